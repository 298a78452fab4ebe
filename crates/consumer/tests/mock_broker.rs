//! The consumer runtime on the embedded broker: real protocol, real librdkafka, one process.
//!
//! What the mock can't show (commits in an eager revocation, real fetch latency, transactions) needs tests on
//! a real broker.
//!
//! Here is what happens to records without faults; `faults` is about outages, refusals and offset resets,
//! `membership` and `churn` about the group, `clients` about the producer and the admin client.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

#[path = "mock_broker/churn.rs"]
mod churn;
#[path = "mock_broker/clients.rs"]
mod clients;
#[path = "mock_broker/faults.rs"]
mod faults;
#[path = "mock_broker/membership.rs"]
mod membership;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use consumer::{
    Assignment, Cause, ConsumerMetrics, DeadLetters, Fate, GroupProtocol, Handler, HandlerError, Header,
    Message, OrderingKey, Producer, Publish as _, Record, Rejected, Settings, Stage, StageError, StageSpec,
    Unavailable, mock::Broker,
};
use jiff::Timestamp;
use rdkafka::{
    ClientConfig, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer as _},
    message::{Headers as _, Message as _},
};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

/// How long a test waits for an event before it fails.
const TEST_TIMEOUT: Duration = Duration::from_secs(30);

fn settings(broker: &Broker, group_protocol: GroupProtocol) -> Settings {
    Settings {
        group_protocol,
        session_timeout: Duration::from_secs(6),
        drain_timeout: Duration::from_secs(5),
        commit_every: Duration::from_millis(100),
        in_flight: 64,
        in_flight_bytes: 1 << 20,
        span: 1_000,
        properties: Broker::properties(),
        ..Settings::new(broker.bootstrap_servers(), "app")
    }
}

fn dead_letters() -> DeadLetters {
    DeadLetters {
        topic: "dead-letters".to_owned(),
        header_prefix: "app.".to_owned(),
        version: "1.2.3".to_owned(),
    }
}

/// A record that a handler has done.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Handled {
    member: usize,
    topic: Arc<str>,
    partition: i32,
    offset: i64,
    key: Option<Vec<u8>>,
    value: String,
}

/// What all members of a test have done, in the order in which they did it.
type Log = Arc<watch::Sender<Vec<Handled>>>;

/// Logs what it has done, after a pause that differs from record to record.
struct TestHandler {
    member: usize,
    log: Log,
    /// The records that run now. No record may ever run twice at once.
    running: Mutex<BTreeSet<(Arc<str>, i32, i64)>>,
    /// Values for which a dependency is unavailable, and how often.
    unavailable: Mutex<BTreeMap<String, usize>>,
}

impl TestHandler {
    fn new(member: usize, log: &Log) -> Self {
        Self { member, log: Arc::clone(log), running: Mutex::default(), unavailable: Mutex::default() }
    }
}

impl Handler for TestHandler {
    /// The record's key, and its value.
    type Event = (Option<Vec<u8>>, String);

    fn read(&self, record: &Record) -> Result<Self::Event, Rejected> {
        let value = String::from_utf8(record.value.clone().unwrap_or_default()).map_err(Cause::unreadable)?;
        Ok((record.key.clone(), value))
    }

    fn key(&self, (key, _): &Self::Event) -> Option<OrderingKey> {
        key.as_deref().map(|key| OrderingKey(key.into()))
    }

    fn due(&self, record: &Record) -> Option<Timestamp> {
        record.header("delay-ms").map(|ms| {
            let ms: u64 = str::from_utf8(ms).unwrap().parse().unwrap();
            record.timestamp + Duration::from_millis(ms)
        })
    }

    async fn handle(
        &self,
        (_, value): Self::Event,
        record: &Record,
        stop: &CancellationToken,
    ) -> Result<Fate, HandlerError> {
        if let Some(left) = self.unavailable.lock().unwrap().get_mut(&value).filter(|left| **left > 0) {
            *left -= 1;
            return Err(Unavailable::new("the store", "handling", "down").into());
        }
        let id = (record.topic.clone(), record.partition, record.offset);
        let is_new = self.running.lock().unwrap().insert(id.clone());
        match value.as_str() {
            "panic" => panic!("a record that makes handlers panic"),
            "unreadable" => return Ok(Fate::DeadLetter(Cause::unreadable("no event"))),
            "until stopped" => {
                stop.cancelled().await;
                return Ok(Fate::Unfinished);
            }
            "when stopped" => stop.cancelled().await,
            slow if slow.starts_with("for ms ") => {
                sleep(Duration::from_millis(slow["for ms ".len()..].parse().unwrap())).await
            }
            // Later records overtake earlier ones, unless they have the same key.
            _ => sleep(Duration::from_millis(7 - u64::try_from(record.offset % 7).unwrap())).await,
        }
        self.running.lock().unwrap().remove(&id);
        let Record { topic, partition, offset, key, .. } = record.clone();
        let value = if is_new { value } else { format!("{value}, concurrently") };
        self.log.send_modify(|log| {
            log.push(Handled { member: self.member, topic, partition, offset, key, value })
        });
        Ok(Fate::Done)
    }
}

struct RunningStage {
    stop: CancellationToken,
    task: JoinSet<Result<(), StageError>>,
    assignment: watch::Receiver<Assignment>,
}

impl RunningStage {
    fn start(
        settings: &Settings,
        name: &str,
        topics: &[&str],
        handler: TestHandler,
        metrics: &Arc<ConsumerMetrics>,
    ) -> Self {
        let topics = topics.iter().map(|topic| (*topic).to_owned()).collect();
        let spec = StageSpec {
            name: name.into(),
            topics,
            in_flight: settings.in_flight,
            dead_letters: dead_letters(),
        };
        let stage = Stage::new(
            settings,
            spec,
            Arc::new(handler),
            Producer::new(settings).unwrap(),
            Arc::clone(metrics),
        )
        .unwrap();
        let assignment = stage.assignment();
        let stop = CancellationToken::new();
        let mut task = JoinSet::new();
        task.spawn(stage.run(stop.clone()));
        Self { stop, task, assignment }
    }

    /// Waits until the stage is assigned that many partitions.
    async fn owns(&mut self, partitions: usize) {
        let owned = self
            .assignment
            .wait_for(|assignment| assignment.joined && assignment.partitions.len() == partitions);
        timeout(TEST_TIMEOUT, owned).await.expect("an assignment").unwrap();
    }

    async fn stop(mut self) {
        self.stop.cancel();
        let ended = timeout(TEST_TIMEOUT, self.task.join_next()).await.expect("a stop ends");
        ended.unwrap().unwrap().unwrap();
    }
}

async fn write(producer: &Producer, topic: &str, partition: i32, key: Option<&str>, value: &str) {
    let message =
        Message { partition: Some(partition), ..Message::new(topic, key.map(str::to_owned), value.into()) };
    producer.publish(message).await.unwrap();
}

async fn until(log: &Log, what: &str, done: impl FnMut(&Vec<Handled>) -> bool) -> Vec<Handled> {
    let mut log = log.subscribe();
    let seen = timeout(TEST_TIMEOUT, log.wait_for(done)).await;
    seen.unwrap_or_else(|_| panic!("not in time: {what}")).unwrap().clone()
}

/// What a group has committed for each partition of a topic; none = nothing.
fn committed(settings: &Settings, stage: &str, topic: &str, partitions: i32) -> Vec<Option<i64>> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", &settings.bootstrap_servers)
        .set("group.id", settings.group_of(stage))
        .create()
        .unwrap();
    let mut all = TopicPartitionList::new();
    all.add_partition_range(topic, 0, partitions - 1);
    let committed = consumer.committed_offsets(all, Duration::from_secs(5)).unwrap();
    let offset = |offset| if let Offset::Offset(offset) = offset { Some(offset) } else { None };
    committed.elements().iter().map(|partition| offset(partition.offset())).collect()
}

/// Waits until group `s` has committed these offsets for the partitions of `t`.
async fn until_committed(settings: &Settings, offsets: &[i64]) {
    let wanted: Vec<_> = offsets.iter().copied().map(Some).collect();
    let mut last = Vec::new();
    let reached = async {
        while last != wanted {
            sleep(Duration::from_millis(50)).await;
            last = committed(settings, "s", "t", i32::try_from(offsets.len()).unwrap());
        }
    };
    let in_time = timeout(TEST_TIMEOUT, reached).await.is_ok();
    assert!(in_time, "committed are {last:?}, not {wanted:?}");
}

/// Key, value, headers.
type Written = (Option<Vec<u8>>, Option<Vec<u8>>, BTreeMap<String, String>);

/// The first `count` messages of a topic.
fn read(settings: &Settings, topic: &str, count: usize) -> Vec<Written> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", &settings.bootstrap_servers)
        .set("group.id", "reader")
        .set("fetch.wait.max.ms", "5")
        .create()
        .unwrap();
    let mut all = TopicPartitionList::new();
    let metadata = consumer.fetch_metadata(Some(topic), TEST_TIMEOUT).unwrap();
    for partition in metadata.topics()[0].partitions() {
        all.add_partition_offset(topic, partition.id(), Offset::Beginning).unwrap();
    }
    consumer.assign(&all).unwrap();
    let message = || {
        // A poll returns early when it has served an event.
        let until = Instant::now() + TEST_TIMEOUT;
        let polls = std::iter::repeat_with(|| consumer.poll(Duration::from_secs(1)))
            .take_while(|_| Instant::now() < until);
        let message = polls.flatten().next().expect("a message").unwrap();
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        let headers = message.headers().into_iter().flat_map(|headers| headers.iter());
        let headers = headers
            .map(|header| (header.key.to_owned(), header.value.map(text).unwrap_or_default()))
            .collect();
        (message.key().map(<[u8]>::to_vec), message.payload().map(<[u8]>::to_vec), headers)
    };
    (0..count).map(|_| message()).collect()
}

/// Each key's records were handled, the first time, in the order in which they were written.
fn assert_ordered_by_key(log: &[Handled]) {
    let mut seen = BTreeSet::new();
    let mut last: BTreeMap<(&str, &[u8]), i64> = BTreeMap::new();
    for handled in
        log.iter().filter(|handled| seen.insert((&handled.topic, handled.partition, handled.offset)))
    {
        let Some(key) = handled.key.as_deref() else { continue };
        let before = last.insert((&handled.topic, key), handled.offset);
        assert!(
            before.is_none_or(|before| before < handled.offset),
            "{key:?}: {} after {before:?}",
            handled.offset
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_and_each_key_keeps_its_order_while_others_overtake() {
    let broker = Broker::start([("t", 4)]).unwrap();
    let settings = settings(&broker, GroupProtocol::Classic);
    let producer = Producer::new(&settings).unwrap();
    for n in 0..800 {
        let key = (n % 5 != 0).then(|| format!("key {}", n % 12));
        write(&producer, "t", n % 4, key.as_deref(), &n.to_string()).await;
    }
    let log = Log::default();
    let metrics = Arc::new(ConsumerMetrics::default());
    let stage = RunningStage::start(&settings, "s", &["t"], TestHandler::new(0, &log), &metrics);
    let handled = until(&log, "all 800", |log| log.len() >= 800).await;
    stage.stop().await;

    let values: BTreeSet<i32> = handled.iter().map(|handled| handled.value.parse().unwrap()).collect();
    assert_eq!((handled.len(), values), (800, (0..800).collect()));
    assert_ordered_by_key(&handled);
    assert!(
        !handled.iter().filter(|handled| handled.partition == 0).map(|handled| handled.offset).is_sorted(),
        "no record overtook another"
    );
    assert_eq!(committed(&settings, "s", "t", 4), [Some(200); 4], "a stop commits all that is settled");
    assert_eq!(metrics.records_total.with_label_values(&["s", "done"]).get(), 800);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_never_passes_an_unfinished_record_and_the_next_owner_begins_with_it() {
    let broker = Broker::start([("t", 1)]).unwrap();
    let settings = settings(&broker, GroupProtocol::Consumer);
    let producer = Producer::new(&settings).unwrap();
    let values = ["first", "until stopped", "third", "fourth"];
    for value in values {
        write(&producer, "t", 0, None, value).await;
    }
    let log = Log::default();
    let metrics = Arc::new(ConsumerMetrics::default());
    let stage = RunningStage::start(&settings, "s", &["t"], TestHandler::new(0, &log), &metrics);
    until(&log, "the other three", |log| log.len() == 3).await;
    stage.stop().await;
    assert_eq!(committed(&settings, "s", "t", 1), [Some(1)]);

    let again = RunningStage::start(&settings, "s", &["t"], TestHandler::new(1, &log), &metrics);
    let handled = until(&log, "the third and the fourth again", |log| log.len() == 5).await;
    again.stop().await;
    assert!(handled[3..].iter().all(|handled| handled.member == 1 && handled.offset >= 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_can_not_be_handled_becomes_a_dead_letter_with_its_bytes_and_the_next_is_handled() {
    let broker = Broker::start([("t", 1), ("dead-letters", 4)]).unwrap();
    let settings = settings(&broker, GroupProtocol::Classic);
    let producer = Producer::new(&settings).unwrap();
    let trace = Header { name: "trace".into(), value: Some(b"abc".to_vec()) };
    let unreadable =
        Message { headers: vec![trace], ..Message::new("t", "k".to_owned(), b"unreadable".to_vec()) };
    producer.publish(unreadable).await.unwrap();
    write(&producer, "t", 0, Some("k"), "panic").await;
    write(&producer, "t", 0, Some("k"), "fine").await;
    let log = Log::default();
    let metrics = Arc::new(ConsumerMetrics::default());
    let stage = RunningStage::start(&settings, "s", &["t"], TestHandler::new(0, &log), &metrics);
    until(&log, "the fine one", |log| log.len() == 1).await;
    stage.stop().await;

    let mut dead_letters = read(&settings, "dead-letters", 2);
    dead_letters.sort_by_key(|(_, _, headers)| headers["app.offset"].clone());
    let [(key, value, headers), (_, panicked, panicked_headers)] = &dead_letters[..] else {
        panic!("{dead_letters:?}")
    };
    assert_eq!((key.as_deref(), value.as_deref()), (Some(&b"k"[..]), Some(&b"unreadable"[..])));
    let headers = ["trace", "app.topic", "app.partition", "app.group", "app.cause", "app.error"]
        .map(|name| &*headers[name]);
    assert_eq!(headers, ["abc", "t", "0", "app.s", "unreadable", "no event"]);
    assert_eq!((panicked.as_deref(), &*panicked_headers["app.cause"]), (Some(&b"panic"[..]), "panicked"));
    assert_eq!(committed(&settings, "s", "t", 1), [Some(3)]);
    assert_eq!(metrics.dead_letters_total.with_label_values(&["t", "panicked"]).get(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_whose_dependency_is_unavailable_is_handled_when_it_is_available_again() {
    let broker = Broker::start([("t", 1)]).unwrap();
    let settings = settings(&broker, GroupProtocol::Classic);
    let producer = Producer::new(&settings).unwrap();
    write(&producer, "t", 0, Some("a"), "early").await;
    write(&producer, "t", 0, Some("a"), "behind it").await;
    let log = Log::default();
    let metrics = Arc::new(ConsumerMetrics::default());
    let handler = TestHandler::new(0, &log);
    handler.unavailable.lock().unwrap().insert("early".into(), 3);
    let stage = RunningStage::start(&settings, "s", &["t"], handler, &metrics);
    let handled = until(&log, "both", |log| log.len() == 2).await;
    stage.stop().await;
    assert_eq!([&*handled[0].value, &handled[1].value], ["early", "behind it"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_is_not_handled_before_it_is_due() {
    let broker = Broker::start([("t", 1)]).unwrap();
    let settings = settings(&broker, GroupProtocol::Classic);
    let producer = Producer::new(&settings).unwrap();
    let delay = Header { name: "delay-ms".into(), value: Some(b"1500".to_vec()) };
    let written_at = Timestamp::now();
    producer
        .publish(Message { headers: vec![delay], ..Message::new("t", None, b"later".to_vec()) })
        .await
        .unwrap();
    let log = Log::default();
    let metrics = Arc::new(ConsumerMetrics::default());
    let stage = RunningStage::start(&settings, "s", &["t"], TestHandler::new(0, &log), &metrics);
    until(&log, "the late one", |log| log.len() == 1).await;
    let waited = Timestamp::now().duration_since(written_at);
    stage.stop().await;
    assert!(waited.as_millis() >= 1_500, "{waited}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_lag_of_a_stage_is_measured() {
    let broker = Broker::start([("t", 1)]).unwrap();
    let mut settings = settings(&broker, GroupProtocol::Classic);
    settings.properties.insert("statistics.interval.ms".into(), "100".into());
    let producer = Producer::new(&settings).unwrap();
    for value in ["done", "until stopped", "done", "done"] {
        write(&producer, "t", 0, None, value).await;
    }
    let log = Log::default();
    let metrics = Arc::new(ConsumerMetrics::default());
    let stage = RunningStage::start(&settings, "s", &["t"], TestHandler::new(0, &log), &metrics);
    let lag = || metrics.stage_lag_records.with_label_values(&["s"]).get();
    let measured = async {
        while lag() != 3 {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(TEST_TIMEOUT, measured).await.unwrap_or_else(|_| panic!("the lag is {}", lag()));
    stage.stop().await;
}
