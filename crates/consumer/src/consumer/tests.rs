//! What happens to the records of one partition, without Kafka and without waiting: the clock is tokio's, and
//! paused.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

use jiff::Timestamp;
use tokio::{
    sync::{Semaphore, mpsc, watch},
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    TopicPartition,
    budget::Budget,
    intake::RecordSource,
    orphaned::OrphanedHandlers,
    partition::{CancelSignals, Partition, PartitionExit, PartitionLimits, PartitionProgress},
    work::StageContext,
};
use crate::{
    Cause, ConsumerMetrics, DeadLetters, Fate, Handler, HandlerError, LaneKey, LogThrottle, Message, Publish,
    PublishError, Record, Rejected, Unavailable,
};

const LIMITS: PartitionLimits = PartitionLimits { span: 1_000, drain_timeout: Duration::from_secs(20) };

/// Does what a record's value says; the key is its key.
struct Obedient {
    log: Mutex<Vec<String>>,
    /// `wait` waits for one of these.
    release: Semaphore,
}

impl Handler for Obedient {
    /// The record's key, and its value.
    type Event = (Option<Vec<u8>>, String);

    fn read(&self, record: &Record) -> Result<Self::Event, Rejected> {
        assert!(record.value.as_deref() != Some(b"panic over reading"), "not to be read");
        let value = record.value.clone().unwrap();
        let order = String::from_utf8(value).map_err(Cause::unreadable)?;
        Ok((record.key.clone(), order))
    }

    fn key(&self, (key, order): &Self::Event) -> Option<LaneKey> {
        assert!(order != "panic over key", "no key for this");
        key.as_deref().map(|key| LaneKey(key.into()))
    }

    fn due(&self, record: &Record) -> Option<Timestamp> {
        (record.value.as_deref() == Some(b"later")).then(|| Timestamp::now() + Duration::from_secs(900))
    }

    async fn handle(
        &self,
        (_, order): Self::Event,
        record: &Record,
        stop: &CancellationToken,
    ) -> Result<Fate, HandlerError> {
        self.log.lock().unwrap().push(format!("{} {order}", record.offset));
        Ok(match order.as_str() {
            "panic" => panic!("as ordered"),
            "cause something huge" => {
                return Err(Rejected(Cause::Refused("publishing what follows: too large".to_owned())).into());
            }
            "refuse" => Fate::DeadLetter(Cause::unreadable("as ordered")),
            "wait" => {
                self.release.acquire().await.unwrap().forget();
                Fate::Done
            }
            "until stopped" => {
                stop.cancelled().await;
                Fate::Unfinished
            }
            "fail three times" if self.tries(record.offset) <= 3 => {
                return Err(Unavailable::new("the store", "obeying", "away").into());
            }
            _ => Fate::Done,
        })
    }
}

impl Obedient {
    fn tries(&self, offset: i64) -> usize {
        self.log.lock().unwrap().iter().filter(|line| line.starts_with(&format!("{offset} "))).count()
    }

    fn log(&self) -> Vec<String> {
        self.log.lock().unwrap().clone()
    }
}

/// A Kafka that refuses as many messages as it is told to, and keeps the others.
#[derive(Clone, Default)]
struct Shelf {
    kept: Arc<Mutex<Vec<Message>>>,
    refusals: Arc<Mutex<Vec<PublishError>>>,
}

impl Publish for Shelf {
    async fn publish(&self, message: Message) -> Result<(), PublishError> {
        if let Some(refusal) = self.refusals.lock().unwrap().pop() {
            return Err(refusal);
        }
        self.kept.lock().unwrap().push(message);
        Ok(())
    }
}

/// Kafka is unavailable.
fn away() -> PublishError {
    Unavailable::kafka("publishing", "away").into()
}

/// Kafka will never take it.
fn too_large() -> PublishError {
    Rejected(Cause::Refused("publishing: too large".to_owned())).into()
}

/// Records to come, and how often it was asked for its position.
struct Script(mpsc::Receiver<Record>, Arc<AtomicU32>);

impl RecordSource for Script {
    async fn next(&mut self) -> Option<Record> {
        timeout(Duration::from_secs(1), self.0.recv()).await.ok().flatten()
    }

    fn position(&self) -> Option<i64> {
        self.1.fetch_add(1, Relaxed);
        None
    }
}

/// One partition at work.
struct World {
    handler: Arc<Obedient>,
    shelf: Shelf,
    metrics: Arc<ConsumerMetrics>,
    records: mpsc::Sender<Record>,
    asked: Arc<AtomicU32>,
    signals: CancelSignals,
    progress: watch::Receiver<PartitionProgress>,
    task: JoinSet<PartitionExit>,
    next: i64,
}

impl World {
    fn new() -> Self {
        Self::with(LIMITS, 100)
    }

    fn with(limits: PartitionLimits, in_flight: usize) -> Self {
        Self::of(limits, in_flight, None)
    }

    fn after(predecessors: Option<CancellationToken>) -> Self {
        Self::of(LIMITS, 100, predecessors)
    }

    fn of(limits: PartitionLimits, in_flight: usize, predecessors: Option<CancellationToken>) -> Self {
        let (handler, shelf, signals) = (
            Arc::new(Obedient { log: Mutex::default(), release: Semaphore::new(0) }),
            Shelf::default(),
            CancelSignals::default(),
        );
        let (records, script) = mpsc::channel(2_000);
        let asked = Arc::new(AtomicU32::new(0));
        let (report, progress) = watch::channel(PartitionProgress::default());
        let metrics = Arc::new(ConsumerMetrics::default());
        let context = StageContext {
            stage: "stage".into(),
            group: "pushcast.stage".into(),
            handler: Arc::clone(&handler),
            publish: shelf.clone(),
            dead_letters: DeadLetters {
                topic: "dead-letters".to_owned(),
                header_prefix: "pushcast.".to_owned(),
                version: "1.2.3".to_owned(),
            },
            metrics: Arc::clone(&metrics),
            budget: Budget::new(in_flight, 1 << 20),
            log_throttle: LogThrottle::default(),
        };
        let of = TopicPartition { topic: "t".into(), partition: 0 };
        let partition = Partition::new(
            of,
            Script(script, Arc::clone(&asked)),
            Arc::new(context),
            signals.clone(),
            limits,
            report,
        );
        let mut task = JoinSet::new();
        task.spawn(partition.run(predecessors));
        Self { handler, shelf, metrics, records, asked, signals, progress, task, next: 0 }
    }

    async fn write(&mut self, key: Option<&str>, value: &str) {
        let (key, value) = (key.map(|key| key.as_bytes().to_vec()), Some(value.as_bytes().to_vec()));
        let timestamp = Timestamp::from_second(self.next).unwrap();
        let record = Record {
            topic: "t".into(),
            partition: 0,
            offset: self.next,
            timestamp,
            key,
            value,
            headers: Vec::new(),
        };
        self.records.send(record).await.unwrap();
        self.next += 1;
    }

    async fn committable(&mut self, offset: i64) {
        let reached = self.progress.wait_for(|progress| progress.position == Some(offset));
        timeout(Duration::from_secs(600), reached).await.expect("the position is reached").unwrap();
    }

    fn position(&self) -> Option<i64> {
        self.progress.borrow().position
    }

    async fn ended(&mut self) -> Duration {
        let from = Instant::now();
        self.left().await;
        from.elapsed()
    }

    async fn left(&mut self) -> PartitionExit {
        self.task.join_next().await.unwrap().unwrap()
    }
}

#[tokio::test(start_paused = true)]
async fn a_record_whose_dependency_is_away_is_tried_again_in_place_until_it_works() {
    let mut world = World::new();
    world.write(Some("a"), "fail three times").await;
    world.write(Some("a"), "after it, in its lane").await;
    world.write(Some("b"), "beside it").await;
    let from = Instant::now();
    world.committable(3).await;
    // Pauses of 0.1, 0.2 and 0.4 s, of which jitter takes at most a half.
    assert!(
        (Duration::from_millis(350)..Duration::from_millis(800)).contains(&from.elapsed()),
        "{:?}",
        from.elapsed()
    );
    let log = world.handler.log();
    assert_eq!(log.last().unwrap(), "1 after it, in its lane");
    assert_eq!((world.handler.tries(0), world.handler.tries(1), world.handler.tries(2)), (4, 1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_partition_that_stays_quiet_asks_seldom_for_its_position() {
    let mut world = World::new();
    sleep(Duration::from_millis(80_500)).await;
    assert_eq!(world.asked.swap(0, Relaxed), 13, "after 1, 2, 4, 8, 16 … 80 seconds");
    world.write(None, "").await;
    sleep(Duration::from_millis(2_500)).await;
    assert_eq!(world.asked.load(Relaxed), 2, "a record makes it ask early again");
}

#[tokio::test(start_paused = true)]
async fn an_outage_of_hours_costs_no_record_its_life() {
    let mut world = World::new();
    world.shelf.refusals.lock().unwrap().extend((0..1_000).map(|_| away()));
    world.write(None, "refuse").await;
    let reached = world.progress.wait_for(|progress| progress.position == Some(1));
    reached.await.unwrap();
    assert_eq!(world.shelf.kept.lock().unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_may_be_committed_never_passes_a_record_that_is_not_finished() {
    let mut world = World::new();
    world.write(None, "wait").await;
    for _ in 1..50 {
        world.write(None, "done").await;
    }
    sleep(Duration::from_secs(5)).await;
    assert_eq!((world.handler.log().len(), world.position()), (50, Some(0)));
    world.handler.release.add_permits(1);
    world.committable(50).await;
}

#[tokio::test(start_paused = true)]
async fn a_panicking_handler_costs_its_record_and_nobody_elses() {
    let mut world = World::new();
    world.write(Some("a"), "panic").await;
    world.write(Some("a"), "panic over key").await;
    world.write(Some("a"), "panic over reading").await;
    world.write(Some("a"), "next of the key").await;
    world.committable(4).await;
    let letters = world.shelf.kept.lock().unwrap().clone();
    let mut causes: Vec<_> = letters
        .iter()
        .map(|letter| {
            let said = |name: &str| {
                letter.headers.iter().find(|header| header.name == name).unwrap().value.clone().unwrap()
            };
            let text = |name| String::from_utf8(said(name)).unwrap();
            (text("pushcast.offset"), text("pushcast.cause"), text("pushcast.error"))
        })
        .collect();
    causes.sort();
    let panicked = |offset: &str, words: &str| (offset.to_owned(), "panicked".to_owned(), words.to_owned());
    assert_eq!(
        causes,
        [panicked("0", "as ordered"), panicked("1", "no key for this"), panicked("2", "not to be read")]
    );
    assert!(
        letters.iter().all(|letter| letter.topic == "dead-letters" && letter.key.as_deref() == Some(b"a"))
    );
    assert_eq!(world.handler.log().last().unwrap(), "3 next of the key");
}

#[tokio::test(start_paused = true)]
async fn a_dead_letter_settles_its_record_only_when_kafka_has_it() {
    let mut world = World::new();
    world.shelf.refusals.lock().unwrap().extend((0..5).map(|_| away()));
    world.write(None, "refuse").await;
    world.write(None, "done").await;
    sleep(Duration::from_millis(50)).await;
    assert_eq!(world.position(), Some(0));
    world.committable(2).await;
    assert_eq!(world.shelf.kept.lock().unwrap()[0].value.as_deref(), Some(&b"refuse"[..]));
}

#[tokio::test(start_paused = true)]
async fn a_dead_letter_that_is_too_large_is_written_without_its_value() {
    let mut world = World::new();
    world.shelf.refusals.lock().unwrap().push(too_large());
    world.write(None, "refuse").await;
    world.committable(1).await;
    let letter = world.shelf.kept.lock().unwrap()[0].clone();
    assert_eq!(letter.value, None);
    assert!(letter.headers.iter().any(|header| header.name == "pushcast.value-sha256"));
}

#[tokio::test(start_paused = true)]
async fn a_partition_sleeps_unread_until_its_head_is_due() {
    let mut world = World::new();
    world.write(None, "later").await;
    world.write(None, "done").await;
    let from = Instant::now();
    sleep(Duration::from_secs(890)).await;
    assert_eq!(world.handler.log(), [""; 0]);
    assert_eq!(
        world.records.max_capacity() - world.records.capacity(),
        1,
        "the second record is still Kafka's"
    );
    world.committable(2).await;
    // The due time is wall-clock time, of which some passes while the test runs.
    assert!(
        (Duration::from_secs(895)..=Duration::from_secs(901)).contains(&from.elapsed()),
        "{:?}",
        from.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn a_record_that_is_due_at_once_is_not_slept_over() {
    let mut world = World::new();
    // Timers know whole milliseconds only: from the middle of one, any sleep ends in the next.
    tokio::time::advance(Duration::from_micros(500)).await;
    for _ in 0..100 {
        world.write(None, "done").await;
    }
    let from = Instant::now();
    world.committable(100).await;
    assert_eq!(from.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_full_budget_is_felt_as_an_unread_partition() {
    let mut world = World::with(LIMITS, 2);
    for _ in 0..10 {
        world.write(None, "wait").await;
    }
    sleep(Duration::from_secs(5)).await;
    assert_eq!(world.handler.log().len(), 2, "two seats");
    assert_eq!(
        world.records.max_capacity() - world.records.capacity(),
        7,
        "and one head; the others are still Kafka's"
    );
    world.handler.release.add_permits(10);
    world.committable(10).await;
}

#[tokio::test(start_paused = true)]
async fn a_partition_does_not_run_further_ahead_than_its_span() {
    let mut world = World::with(PartitionLimits { span: 10, ..LIMITS }, 100);
    world.write(None, "wait").await;
    for _ in 0..30 {
        world.write(None, "done").await;
    }
    sleep(Duration::from_secs(5)).await;
    assert_eq!(world.handler.log().len(), 10);
    world.handler.release.add_permits(1);
    world.committable(31).await;
}

#[tokio::test(start_paused = true)]
async fn a_stop_waits_for_what_runs_and_starts_nothing_that_was_not_overtaken() {
    let mut world = World::new();
    world.write(Some("a"), "wait").await;
    world.write(Some("b"), "until stopped").await;
    world.write(Some("a"), "behind what is unfinished").await;
    world.write(Some("c"), "wait").await;
    world.write(Some("c"), "behind all that has started").await;
    sleep(Duration::from_secs(1)).await;
    world.signals.stop.cancel();
    sleep(Duration::from_secs(1)).await;
    world.handler.release.add_permits(2);
    assert_eq!(world.ended().await, Duration::ZERO);
    assert_eq!(
        world.position(),
        Some(1),
        "what ended in the drain counts, what did not start and what is unfinished don't"
    );
    assert_eq!(world.handler.log(), ["0 wait", "1 until stopped", "3 wait"]);
}

#[tokio::test(start_paused = true)]
async fn a_stop_lets_those_in_the_lanes_start_whom_others_have_overtaken_so_that_nothing_is_repeated() {
    let mut world = World::new();
    world.write(Some("a"), "wait").await;
    world.write(Some("a"), "overtaken").await;
    world.write(Some("b"), "overtakes").await;
    world.write(Some("a"), "overtaken by nobody").await;
    sleep(Duration::from_secs(1)).await;
    world.signals.stop.cancel();
    sleep(Duration::from_secs(1)).await;
    world.handler.release.add_permits(1);
    assert_eq!(world.ended().await, Duration::ZERO);
    assert_eq!(world.position(), Some(3));
    assert_eq!(world.handler.log(), ["0 wait", "2 overtakes", "1 overtaken"]);
}

#[tokio::test(start_paused = true)]
async fn late_in_a_drain_nobody_starts_any_more() {
    let mut world = World::new();
    world.write(Some("a"), "wait").await;
    world.write(Some("a"), "overtaken").await;
    world.write(Some("b"), "overtakes").await;
    sleep(Duration::from_secs(1)).await;
    world.signals.stop.cancel();
    sleep(LIMITS.drain_timeout / 2).await;
    world.handler.release.add_permits(1);
    assert_eq!(world.ended().await, Duration::ZERO);
    assert_eq!((world.position(), world.handler.log().len()), (Some(1), 2));
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_outlasts_the_drain_is_broken_off_and_its_record_stays_unsettled() {
    let mut world = World::new();
    world.write(None, "wait").await;
    sleep(Duration::from_secs(1)).await;
    world.signals.stop.cancel();
    assert_eq!(world.ended().await, LIMITS.drain_timeout);
    assert_eq!(world.position(), Some(0));
}

/// A partition with a handler that waits, lost; and its orphaned.
async fn lost() -> (World, OrphanedHandlers) {
    let (mut world, mut orphaned) = (World::new(), OrphanedHandlers::new("stage", LIMITS.drain_timeout));
    world.write(Some("a"), "wait").await;
    world.write(Some("a"), "not begun").await;
    world.write(Some("b"), "overtakes").await;
    sleep(Duration::from_secs(1)).await;
    world.signals.stop.cancel();
    world.signals.lost.cancel();
    let from = Instant::now();
    orphaned.take_in(world.left().await);
    assert_eq!(
        (from.elapsed(), orphaned.is_empty()),
        (Duration::ZERO, false),
        "given up at once, though somebody is at work"
    );
    (world, orphaned)
}

fn is_over(orphaned: &OrphanedHandlers) -> bool {
    orphaned.of(&TopicPartition { topic: "t".into(), partition: 0 }).is_none_or(|ended| ended.is_cancelled())
}

#[tokio::test(start_paused = true)]
async fn what_runs_when_a_partition_is_lost_comes_to_its_end_but_settles_nothing_and_starts_nothing() {
    let (world, mut orphaned) = lost().await;
    sleep(Duration::from_secs(3_600)).await; // Nobody is dealt anything, so nobody else can own it.
    assert!(!is_over(&orphaned));
    world.handler.release.add_permits(1);
    orphaned.next().await;
    assert!(is_over(&orphaned) && orphaned.is_empty());
    assert_eq!(
        (world.position(), world.handler.log()),
        (Some(0), vec!["0 wait".to_owned(), "2 overtakes".to_owned()])
    );
    assert_eq!(world.handler.release.available_permits(), 0, "it has come to its end");
}

#[tokio::test(start_paused = true)]
async fn once_there_may_be_another_owner_what_is_left_of_a_lost_partition_has_the_drain_timeout_and_no_more()
{
    let (world, mut orphaned) = lost().await;
    orphaned.hurry();
    let from = Instant::now();
    orphaned.next().await;
    assert_eq!((from.elapsed(), is_over(&orphaned)), (LIMITS.drain_timeout, true));
    world.handler.release.add_permits(1);
    sleep(Duration::from_secs(1)).await;
    assert_eq!(world.handler.release.available_permits(), 1, "it was broken off");
}

#[tokio::test(start_paused = true)]
async fn a_partition_that_comes_back_is_not_read_before_its_stragglers_have_ended() {
    let ended = CancellationToken::new();
    let mut world = World::after(Some(ended.clone()));
    world.write(None, "done").await;
    sleep(Duration::from_secs(60)).await;
    assert_eq!(world.handler.log(), [""; 0]);
    ended.cancel();
    world.committable(1).await;
}

#[tokio::test(start_paused = true)]
async fn a_stop_ends_the_wait_for_a_dependency_that_is_away() {
    let mut world = World::new();
    world.shelf.refusals.lock().unwrap().extend((0..10_000).map(|_| away()));
    world.write(None, "refuse").await;
    sleep(Duration::from_secs(100)).await;
    world.signals.stop.cancel();
    assert_eq!(world.ended().await, Duration::ZERO);
    assert_eq!(world.position(), Some(0));
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_panics_on_everything_stops_its_partition_instead_of_emptying_it_into_dead_letters() {
    let mut world = World::with(LIMITS, 1);
    for _ in 0..300 {
        world.write(None, "panic").await;
    }
    sleep(Duration::from_secs(60)).await;
    assert_eq!((world.shelf.kept.lock().unwrap().len(), world.position()), (99, Some(99)));
    world.signals.stop.cancel();
    world.ended().await;
}

#[tokio::test(start_paused = true)]
async fn a_record_that_causes_a_message_too_large_for_kafka_is_buried_and_not_tried_for_ever() {
    let mut world = World::new();
    world.write(Some("a"), "cause something huge").await;
    world.write(Some("a"), "next in the lane").await;
    world.committable(2).await;
    let letter = world.shelf.kept.lock().unwrap()[0].clone();
    assert!(
        letter
            .headers
            .iter()
            .any(|header| header.name == "pushcast.cause" && header.value.as_deref() == Some(b"refused"))
    );
    assert_eq!(world.handler.tries(0), 1);
}

#[tokio::test(start_paused = true)]
async fn a_stage_that_only_causes_what_kafka_refuses_stops_its_partition_too() {
    let mut world = World::with(LIMITS, 1);
    for _ in 0..300 {
        world.write(None, "cause something huge").await;
    }
    sleep(Duration::from_secs(60)).await;
    assert_eq!((world.shelf.kept.lock().unwrap().len(), world.position()), (99, Some(99)));
}

#[tokio::test(start_paused = true)]
async fn records_are_held_by_their_bytes_too() {
    let mut world = World::new();
    for n in 0..3 {
        world.write(Some(&n.to_string().repeat(600 << 10)), "wait").await;
    }
    sleep(Duration::from_secs(5)).await;
    assert_eq!(world.handler.log().len(), 1, "two of them are more than a MiB");
    world.handler.release.add_permits(3);
    world.committable(3).await;
}

#[tokio::test(start_paused = true)]
async fn offsets_that_are_passed_over_are_counted() {
    let mut world = World::new();
    world.write(None, "done").await;
    world.next += 5;
    world.write(None, "done").await;
    world.committable(7).await;
    assert_eq!(world.metrics.offset_gaps_total.with_label_values(&["stage"]).get(), 5);
}

#[tokio::test(start_paused = true)]
async fn a_topic_full_of_rubbish_goes_to_dead_letters_to_its_end() {
    let mut world = World::new();
    for _ in 0..300 {
        world.write(None, "refuse").await;
    }
    world.committable(300).await;
    assert_eq!(world.shelf.kept.lock().unwrap().len(), 300);
}
