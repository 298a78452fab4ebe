//! What happens to the records of one partition, without Kafka and without waiting: the clock is tokio's, and
//! paused. Here: retries, due times and limits.

mod dead_letters;
mod drain;

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
    Cause, ConsumerMetrics, DeadLetters, Fate, Handler, HandlerError, LogThrottle, Message, OrderingKey,
    Publish, PublishError, Record, Rejected, Unavailable,
};

const LIMITS: PartitionLimits = PartitionLimits { span: 1_000, drain_timeout: Duration::from_secs(20) };

/// Does what a record's value asks for; the ordering key is the record's key.
struct ScriptedHandler {
    /// Offset and value of each call, in their order.
    log: Mutex<Vec<String>>,
    /// `wait` waits for one of these permits.
    release: Semaphore,
}

impl Handler for ScriptedHandler {
    /// The record's key, and its value.
    type Event = (Option<Vec<u8>>, String);

    fn read(&self, record: &Record) -> Result<Self::Event, Rejected> {
        assert!(record.value.as_deref() != Some(b"panic in read"), "not to be read");
        let value = record.value.clone().unwrap();
        let value = String::from_utf8(value).map_err(Cause::unreadable)?;
        Ok((record.key.clone(), value))
    }

    fn key(&self, (key, value): &Self::Event) -> Option<OrderingKey> {
        assert!(value != "panic in key", "no key for this");
        key.as_deref().map(|key| OrderingKey(key.into()))
    }

    fn due(&self, record: &Record) -> Option<Timestamp> {
        (record.value.as_deref() == Some(b"later")).then(|| Timestamp::now() + Duration::from_secs(900))
    }

    async fn handle(
        &self,
        (_, value): Self::Event,
        record: &Record,
        stop: &CancellationToken,
    ) -> Result<Fate, HandlerError> {
        self.log.lock().unwrap().push(format!("{} {value}", record.offset));
        Ok(match value.as_str() {
            "panic" => panic!("as scripted"),
            "cause a message too large" => {
                return Err(Rejected(Cause::Refused("publishing what follows: too large".to_owned())).into());
            }
            "reject" => Fate::DeadLetter(Cause::unreadable("as scripted")),
            "wait" => {
                self.release.acquire().await.unwrap().forget();
                Fate::Done
            }
            "until stopped" => {
                stop.cancelled().await;
                Fate::Unfinished
            }
            "fail three times" if self.tries(record.offset) <= 3 => {
                return Err(Unavailable::new("the store", "handling", "down").into());
            }
            _ => Fate::Done,
        })
    }
}

impl ScriptedHandler {
    fn tries(&self, offset: i64) -> usize {
        self.log.lock().unwrap().iter().filter(|line| line.starts_with(&format!("{offset} "))).count()
    }

    fn log(&self) -> Vec<String> {
        self.log.lock().unwrap().clone()
    }
}

/// Fails with these errors, the last one first, and then keeps what is published.
#[derive(Clone, Default)]
struct FakePublisher {
    published: Arc<Mutex<Vec<Message>>>,
    errors: Arc<Mutex<Vec<PublishError>>>,
}

impl Publish for FakePublisher {
    async fn publish(&self, message: Message) -> Result<(), PublishError> {
        if let Some(error) = self.errors.lock().unwrap().pop() {
            return Err(error);
        }
        self.published.lock().unwrap().push(message);
        Ok(())
    }
}

/// Kafka does not acknowledge a message.
fn unavailable() -> PublishError {
    Unavailable::kafka("publishing", "down").into()
}

/// Kafka will never accept a message.
fn too_large() -> PublishError {
    Rejected(Cause::Refused("publishing: too large".to_owned())).into()
}

struct FakeSource {
    records: mpsc::Receiver<Record>,
    position_calls: Arc<AtomicU32>,
}

impl RecordSource for FakeSource {
    async fn next(&mut self) -> Option<Record> {
        timeout(Duration::from_secs(1), self.records.recv()).await.ok().flatten()
    }

    fn position(&self) -> Option<i64> {
        self.position_calls.fetch_add(1, Relaxed);
        None
    }
}

/// A running partition, from outside.
struct World {
    handler: Arc<ScriptedHandler>,
    publisher: FakePublisher,
    metrics: Arc<ConsumerMetrics>,
    records: mpsc::Sender<Record>,
    position_calls: Arc<AtomicU32>,
    signals: CancelSignals,
    progress: watch::Receiver<PartitionProgress>,
    task: JoinSet<PartitionExit>,
    /// The next record's offset.
    next: i64,
}

impl World {
    fn new() -> Self {
        Self::with(LIMITS, 100)
    }

    fn with(limits: PartitionLimits, in_flight: usize) -> Self {
        Self::of(limits, in_flight, None)
    }

    fn after(orphans_ended: Option<CancellationToken>) -> Self {
        Self::of(LIMITS, 100, orphans_ended)
    }

    fn of(limits: PartitionLimits, in_flight: usize, orphans_ended: Option<CancellationToken>) -> Self {
        let handler = Arc::new(ScriptedHandler { log: Mutex::default(), release: Semaphore::new(0) });
        let publisher = FakePublisher::default();
        let signals = CancelSignals::default();
        let (records, source_records) = mpsc::channel(2_000);
        let position_calls = Arc::new(AtomicU32::new(0));
        let (progress_sender, progress) = watch::channel(PartitionProgress::default());
        let metrics = Arc::new(ConsumerMetrics::default());
        let context = StageContext {
            stage: "stage".into(),
            group: "app.stage".into(),
            handler: Arc::clone(&handler),
            publish: publisher.clone(),
            dead_letters: DeadLetters {
                topic: "dead-letters".to_owned(),
                header_prefix: "app.".to_owned(),
                version: "1.2.3".to_owned(),
            },
            metrics: Arc::clone(&metrics),
            budget: Budget::new(in_flight, 1 << 20),
            log_throttle: LogThrottle::default(),
        };
        let tp = TopicPartition { topic: "t".into(), partition: 0 };
        let partition = Partition::new(
            tp,
            FakeSource { records: source_records, position_calls: Arc::clone(&position_calls) },
            Arc::new(context),
            signals.clone(),
            limits,
            progress_sender,
        );
        let mut task = JoinSet::new();
        task.spawn(partition.run(orphans_ended));
        Self { handler, publisher, metrics, records, position_calls, signals, progress, task, next: 0 }
    }

    async fn write(&mut self, key: Option<&str>, value: &str) {
        let record = Record {
            topic: "t".into(),
            partition: 0,
            offset: self.next,
            timestamp: Timestamp::from_second(self.next).unwrap(),
            key: key.map(|key| key.as_bytes().to_vec()),
            value: Some(value.as_bytes().to_vec()),
            headers: Vec::new(),
        };
        self.records.send(record).await.unwrap();
        self.next += 1;
    }

    /// Waits until this offset may be committed.
    async fn committable(&mut self, offset: i64) {
        let reached = self.progress.wait_for(|progress| progress.position == Some(offset));
        timeout(Duration::from_secs(600), reached).await.expect("the position is reached").unwrap();
    }

    fn position(&self) -> Option<i64> {
        self.progress.borrow().position
    }

    /// Waits until the partition's task has ended, and returns how long that took.
    async fn ended(&mut self) -> Duration {
        let from = Instant::now();
        self.exit().await;
        from.elapsed()
    }

    async fn exit(&mut self) -> PartitionExit {
        self.task.join_next().await.unwrap().unwrap()
    }
}

#[tokio::test(start_paused = true)]
async fn a_record_whose_dependency_is_unavailable_is_retried_in_place_until_it_succeeds() {
    let mut world = World::new();
    world.write(Some("a"), "fail three times").await;
    world.write(Some("a"), "after it, with its key").await;
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
    assert_eq!(log.last().unwrap(), "1 after it, with its key");
    assert_eq!((world.handler.tries(0), world.handler.tries(1), world.handler.tries(2)), (4, 1, 1));
}

#[tokio::test(start_paused = true)]
async fn an_idle_partition_seldom_asks_for_its_position() {
    let mut world = World::new();
    sleep(Duration::from_millis(80_500)).await;
    assert_eq!(world.position_calls.swap(0, Relaxed), 13, "after 1, 2, 4, 8, 16 … 80 seconds");
    world.write(None, "").await;
    sleep(Duration::from_millis(2_500)).await;
    assert_eq!(world.position_calls.load(Relaxed), 2, "after a record it asks early again");
}

#[tokio::test(start_paused = true)]
async fn an_outage_of_hours_loses_no_record() {
    let mut world = World::new();
    world.publisher.errors.lock().unwrap().extend((0..1_000).map(|_| unavailable()));
    world.write(None, "reject").await;
    let reached = world.progress.wait_for(|progress| progress.position == Some(1));
    reached.await.unwrap();
    assert_eq!(world.publisher.published.lock().unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn the_offset_to_commit_never_passes_an_unsettled_record() {
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
async fn a_partition_is_not_read_until_its_head_is_due() {
    let mut world = World::new();
    world.write(None, "later").await;
    world.write(None, "done").await;
    let from = Instant::now();
    sleep(Duration::from_secs(890)).await;
    assert_eq!(world.handler.log(), [""; 0]);
    assert_eq!(
        world.records.max_capacity() - world.records.capacity(),
        1,
        "the second record is not read yet"
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
async fn a_record_that_is_due_at_once_is_not_delayed() {
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
async fn a_full_budget_leaves_the_partition_unread() {
    let mut world = World::with(LIMITS, 2);
    for _ in 0..10 {
        world.write(None, "wait").await;
    }
    sleep(Duration::from_secs(5)).await;
    assert_eq!(world.handler.log().len(), 2, "the budget");
    assert_eq!(
        world.records.max_capacity() - world.records.capacity(),
        7,
        "and one head; the others are not read yet"
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
async fn the_budget_is_of_bytes_too() {
    let mut world = World::new();
    for n in 0..3 {
        world.write(Some(&n.to_string().repeat(600 << 10)), "wait").await;
    }
    sleep(Duration::from_secs(5)).await;
    assert_eq!(world.handler.log().len(), 1, "two of them exceed a MiB");
    world.handler.release.add_permits(3);
    world.committable(3).await;
}

#[tokio::test(start_paused = true)]
async fn offset_gaps_are_counted() {
    let mut world = World::new();
    world.write(None, "done").await;
    world.next += 5;
    world.write(None, "done").await;
    world.committable(7).await;
    assert_eq!(world.metrics.offset_gaps_total.with_label_values(&["stage"]).get(), 5);
}
