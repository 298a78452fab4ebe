//! The consumer runtime on the embedded broker: real protocol, real librdkafka, one process.
//!
//! What the mock can't show (commits in an eager revocation, real fetch latency, transactions) is the suite's
//! on a real broker.
//!
//! Here is what happens to records while all is well; `faults` is about a Kafka that is not, `churn` about
//! members that come and go.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test says what went wrong by panicking")]

#[path = "mock_broker/churn.rs"]
mod churn;
#[path = "mock_broker/faults.rs"]
mod faults;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use consumer::{
    Assignment, Cause, ConsumerMetrics, DeadLetters, Fate, FirstOffset, GroupProtocol, Handler, HandlerError,
    Header, LaneKey, Message, Producer, Publish as _, Record, Rejected, Settings, Stage, StageError,
    StageSpec, Subscription, Unavailable,
    admin::{self, Began},
    mock::Broker,
};
use jiff::Timestamp;
use rdkafka::{
    ClientConfig, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer as _},
    message::{Headers as _, Message as _},
    types::RDKafkaRespErr,
};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

/// How long a test waits for what has to happen before it fails.
const PATIENCE: Duration = Duration::from_secs(30);

fn settings(broker: &Broker, group_protocol: GroupProtocol) -> Settings {
    Settings {
        bootstrap_servers: broker.bootstrap_servers(),
        instance_id: String::new(),
        group_prefix: "pushcast".into(),
        group_protocol,
        session_timeout: Duration::from_secs(6),
        drain_timeout: Duration::from_secs(5),
        commit_every: Duration::from_millis(100),
        in_flight: 64,
        in_flight_bytes: 1 << 20,
        span: 1_000,
        partitions: 16,
        replication_factor: 0,
        properties: Broker::properties(),
    }
}

fn dead_letters() -> DeadLetters {
    DeadLetters {
        topic: "dead-letters".to_owned(),
        header_prefix: "pushcast.".to_owned(),
        version: "1.2.3".to_owned(),
    }
}

/// What became of each record, in the order of the handling.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Handled {
    member: usize,
    topic: Arc<str>,
    partition: i32,
    offset: i64,
    key: Option<Vec<u8>>,
    value: String,
}

type Log = Arc<watch::Sender<Vec<Handled>>>;

/// Notes what it has done, after a pause that differs from record to record.
struct Diligent {
    member: usize,
    log: Log,
    /// What it is at now. Nobody is ever given the same record twice at once.
    at_work: Mutex<BTreeSet<(Arc<str>, i32, i64)>>,
    /// Values that make it fail, and how often.
    away: Mutex<BTreeMap<String, usize>>,
}

impl Diligent {
    fn new(member: usize, log: &Log) -> Self {
        Self { member, log: Arc::clone(log), at_work: Mutex::default(), away: Mutex::default() }
    }
}

impl Handler for Diligent {
    /// The record's key, and its value.
    type Event = (Option<Vec<u8>>, String);

    fn read(&self, record: &Record) -> Result<Self::Event, Rejected> {
        let value = String::from_utf8(record.value.clone().unwrap_or_default()).map_err(Cause::unreadable)?;
        Ok((record.key.clone(), value))
    }

    fn key(&self, (key, _): &Self::Event) -> Option<LaneKey> {
        key.as_deref().map(|key| LaneKey(key.into()))
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
        if let Some(left) = self.away.lock().unwrap().get_mut(&value).filter(|left| **left > 0) {
            *left -= 1;
            return Err(Unavailable::new("the store", "handling", "away").into());
        }
        let place = (record.topic.clone(), record.partition, record.offset);
        let is_new = self.at_work.lock().unwrap().insert(place.clone());
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
            // Later ones overtake earlier ones, unless they are in one lane.
            _ => sleep(Duration::from_millis(7 - u64::try_from(record.offset % 7).unwrap())).await,
        }
        self.at_work.lock().unwrap().remove(&place);
        let Record { topic, partition, offset, key, .. } = record.clone();
        let value = if is_new { value } else { format!("{value}, twice at once") };
        self.log.send_modify(|log| {
            log.push(Handled { member: self.member, topic, partition, offset, key, value })
        });
        Ok(Fate::Done)
    }
}

/// A stage at work.
struct Running {
    stop: CancellationToken,
    task: JoinSet<Result<(), StageError>>,
    assignment: watch::Receiver<Assignment>,
}

impl Running {
    fn start(
        settings: &Settings,
        name: &str,
        topics: &[&str],
        handler: Diligent,
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
        let (stop, assignment, mut task) = (CancellationToken::new(), stage.assignment(), JoinSet::new());
        task.spawn(stage.run(stop.clone()));
        Self { stop, task, assignment }
    }

    async fn owns(&mut self, partitions: usize) {
        let owned = self
            .assignment
            .wait_for(|assignment| assignment.arrived && assignment.partitions.len() == partitions);
        timeout(PATIENCE, owned).await.expect("the group deals").unwrap();
    }

    async fn stop(mut self) {
        self.stop.cancel();
        let ended = timeout(PATIENCE, self.task.join_next()).await.expect("a stop comes to an end");
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
    let seen = timeout(PATIENCE, log.wait_for(done)).await;
    seen.unwrap_or_else(|_| panic!("not in time: {what}")).unwrap().clone()
}

/// What a group has committed for each partition of a topic; None = nothing.
fn committed(settings: &Settings, stage: &str, topic: &str, partitions: i32) -> Vec<Option<i64>> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", &settings.bootstrap_servers)
        .set("group.id", settings.group_of(stage))
        .create()
        .unwrap();
    let mut asked = TopicPartitionList::new();
    asked.add_partition_range(topic, 0, partitions - 1);
    let known = consumer.committed_offsets(asked, Duration::from_secs(5)).unwrap();
    let offset = |offset| if let Offset::Offset(offset) = offset { Some(offset) } else { None };
    known.elements().iter().map(|partition| offset(partition.offset())).collect()
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
    let in_time = timeout(PATIENCE, reached).await.is_ok();
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
    let metadata = consumer.fetch_metadata(Some(topic), PATIENCE).unwrap();
    for partition in metadata.topics()[0].partitions() {
        all.add_partition_offset(topic, partition.id(), Offset::Beginning).unwrap();
    }
    consumer.assign(&all).unwrap();
    let message = || {
        // A poll ends early when there is something else to be served.
        let until = Instant::now() + PATIENCE;
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
    let (log, metrics) = (Log::default(), Arc::new(ConsumerMetrics::default()));
    let stage = Running::start(&settings, "s", &["t"], Diligent::new(0, &log), &metrics);
    let handled = until(&log, "all 800", |log| log.len() >= 800).await;
    stage.stop().await;

    let values: BTreeSet<i32> = handled.iter().map(|handled| handled.value.parse().unwrap()).collect();
    assert_eq!((handled.len(), values), (800, (0..800).collect()));
    assert_ordered_by_key(&handled);
    assert!(
        !handled.iter().filter(|handled| handled.partition == 0).map(|handled| handled.offset).is_sorted(),
        "nobody overtook"
    );
    assert_eq!(
        committed(&settings, "s", "t", 4),
        [Some(200); 4],
        "an orderly stop commits all that is settled"
    );
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
    let (log, metrics) = (Log::default(), Arc::new(ConsumerMetrics::default()));
    let stage = Running::start(&settings, "s", &["t"], Diligent::new(0, &log), &metrics);
    until(&log, "the other three", |log| log.len() == 3).await;
    stage.stop().await;
    assert_eq!(committed(&settings, "s", "t", 1), [Some(1)]);

    let again = Running::start(&settings, "s", &["t"], Diligent::new(1, &log), &metrics);
    let handled = until(&log, "the third and the fourth again", |log| log.len() == 5).await;
    again.stop().await;
    assert!(handled[3..].iter().all(|handled| handled.member == 1 && handled.offset >= 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_can_not_be_handled_lies_in_dead_letters_with_its_bytes_and_the_stream_goes_on() {
    let broker = Broker::start([("t", 1), ("dead-letters", 4)]).unwrap();
    let settings = settings(&broker, GroupProtocol::Classic);
    let producer = Producer::new(&settings).unwrap();
    let trace = Header { name: "trace".into(), value: Some(b"abc".to_vec()) };
    let unreadable =
        Message { headers: vec![trace], ..Message::new("t", "k".to_owned(), b"unreadable".to_vec()) };
    producer.publish(unreadable).await.unwrap();
    write(&producer, "t", 0, Some("k"), "panic").await;
    write(&producer, "t", 0, Some("k"), "fine").await;
    let (log, metrics) = (Log::default(), Arc::new(ConsumerMetrics::default()));
    let stage = Running::start(&settings, "s", &["t"], Diligent::new(0, &log), &metrics);
    until(&log, "the fine one", |log| log.len() == 1).await;
    stage.stop().await;

    let mut letters = read(&settings, "dead-letters", 2);
    letters.sort_by_key(|(_, _, headers)| headers["pushcast.offset"].clone());
    let [(key, value, headers), (_, panicked, why)] = &letters[..] else { panic!("{letters:?}") };
    assert_eq!((key.as_deref(), value.as_deref()), (Some(&b"k"[..]), Some(&b"unreadable"[..])));
    let said = [
        "trace",
        "pushcast.topic",
        "pushcast.partition",
        "pushcast.group",
        "pushcast.cause",
        "pushcast.error",
    ]
    .map(|name| &*headers[name]);
    assert_eq!(said, ["abc", "t", "0", "pushcast.s", "unreadable", "no event"]);
    assert_eq!((panicked.as_deref(), &*why["pushcast.cause"]), (Some(&b"panic"[..]), "panicked"));
    assert_eq!(committed(&settings, "s", "t", 1), [Some(3)]);
    assert_eq!(metrics.dead_letters_total.with_label_values(&["t", "panicked"]).get(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_whose_dependency_is_away_is_handled_when_it_is_back() {
    let broker = Broker::start([("t", 1)]).unwrap();
    let settings = settings(&broker, GroupProtocol::Classic);
    let producer = Producer::new(&settings).unwrap();
    write(&producer, "t", 0, Some("a"), "early").await;
    write(&producer, "t", 0, Some("a"), "behind it").await;
    let (log, metrics) = (Log::default(), Arc::new(ConsumerMetrics::default()));
    let handler = Diligent::new(0, &log);
    handler.away.lock().unwrap().insert("early".into(), 3);
    let stage = Running::start(&settings, "s", &["t"], handler, &metrics);
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
    let (log, metrics) = (Log::default(), Arc::new(ConsumerMetrics::default()));
    let stage = Running::start(&settings, "s", &["t"], Diligent::new(0, &log), &metrics);
    until(&log, "the late one", |log| log.len() == 1).await;
    let waited = Timestamp::now().duration_since(written_at);
    stage.stop().await;
    assert!(waited.as_millis() >= 1_500, "{waited}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_is_refused_because_the_group_deals_is_made_again() {
    let broker = Broker::start([("t", 2)]).unwrap();
    let settings = settings(&broker, GroupProtocol::Consumer);
    let producer = Producer::new(&settings).unwrap();
    let (log, metrics) = (Log::default(), Arc::new(ConsumerMetrics::default()));
    let mut stage = Running::start(&settings, "s", &["t"], Diligent::new(0, &log), &metrics);
    stage.owns(2).await;
    broker.refuse_commits(&[RDKafkaRespErr::RD_KAFKA_RESP_ERR_REBALANCE_IN_PROGRESS]);
    write(&producer, "t", 0, None, "one").await;
    write(&producer, "t", 1, None, "two").await;
    until(&log, "both", |log| log.len() >= 2).await;
    stage.stop().await;
    assert_eq!(committed(&settings, "s", "t", 2), [Some(1); 2]);
}

/// Nothing but a refused commit says so: all that runs is broken off, and the member begins again as a new
/// one.
#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_is_expelled_in_the_middle_of_a_revocation_joins_anew_and_loses_nothing() {
    let broker = Broker::start([("t", 2)]).unwrap();
    broker.heartbeat_every(Duration::from_millis(100));
    let settings = settings(&broker, GroupProtocol::Consumer);
    let producer = Producer::new(&settings).unwrap();
    let (log, metrics) = (Log::default(), Arc::new(ConsumerMetrics::default()));
    let mut expelled = Running::start(&settings, "s", &["t"], Diligent::new(0, &log), &metrics);
    expelled.owns(2).await;
    for partition in 0..2 {
        write(&producer, "t", partition, None, "when stopped").await;
    }
    until_committed(&settings, &[0; 2]).await;
    broker.refuse_commits(&[RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_MEMBER_ID]);
    let mut other = Running::start(&settings, "s", &["t"], Diligent::new(1, &log), &metrics);
    expelled.owns(1).await;
    other.owns(1).await;
    for partition in 0..2 {
        write(&producer, "t", partition, None, &format!("after it {partition}")).await;
    }
    let after = |log: &Vec<Handled>| {
        log.iter()
            .filter(|handled| handled.offset == 1)
            .map(|handled| handled.member)
            .collect::<BTreeSet<_>>()
    };
    until(&log, "both members at work again", |log| after(log).len() == 2).await;
    expelled.stop().await;
    other.stop().await;
    let firsts = log.borrow().iter().filter(|handled| handled.offset == 0).count();
    assert!(firsts > 2, "what was handled in the drain, and not committed, is handled again");
    assert_eq!(committed(&settings, "s", "t", 2), [Some(2); 2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn all_stages_of_a_process_are_ready_soon() {
    let topics: Vec<_> = (0..10).map(|n| format!("t{n}")).collect();
    let broker = Broker::start(topics.iter().map(|topic| (topic.as_str(), 16))).unwrap();
    let settings = settings(&broker, GroupProtocol::Classic);
    let (log, metrics) = (Log::default(), Arc::new(ConsumerMetrics::default()));
    let from = tokio::time::Instant::now();
    let mut stages = Vec::new();
    // As many as pushcast has, one of which reads two topics.
    for first in 0..9 {
        let read: Vec<_> =
            topics[first..][..1 + usize::from(first == 8)].iter().map(String::as_str).collect();
        let stage = Running::start(&settings, read[0], &read, Diligent::new(0, &log), &metrics);
        stages.push((read.len() * 16, stage));
    }
    for (partitions, stage) in &mut stages {
        stage.owns(*partitions).await;
    }
    println!("{} stages were ready after {:?}", stages.len(), from.elapsed());
    let mut stops = JoinSet::new();
    for (_, stage) in stages {
        stops.spawn(stage.stop());
    }
    while let Some(stopped) = stops.join_next().await {
        stopped.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_with_nothing_to_read_is_ready_all_the_same() {
    for protocol in [GroupProtocol::Classic, GroupProtocol::Consumer] {
        let broker = Broker::start([("t", 1)]).unwrap();
        broker.heartbeat_every(Duration::from_millis(100));
        let mut settings =
            Settings { session_timeout: Duration::from_secs(3), ..settings(&broker, protocol) };
        settings.properties.insert("statistics.interval.ms".into(), "100".into());
        let (log, metrics) = (Log::default(), Arc::new(ConsumerMetrics::default()));
        let mut first = Running::start(&settings, "s", &["t"], Diligent::new(0, &log), &metrics);
        first.owns(1).await;
        let mut second = Running::start(&settings, "s", &["t"], Diligent::new(1, &log), &metrics);
        second.owns(0).await;
        second.stop().await;
        first.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_backlog_of_a_stage_is_measured() {
    let broker = Broker::start([("t", 1)]).unwrap();
    let mut settings = settings(&broker, GroupProtocol::Classic);
    settings.properties.insert("statistics.interval.ms".into(), "100".into());
    let producer = Producer::new(&settings).unwrap();
    for value in ["done", "until stopped", "done", "done"] {
        write(&producer, "t", 0, None, value).await;
    }
    let (log, metrics) = (Log::default(), Arc::new(ConsumerMetrics::default()));
    let stage = Running::start(&settings, "s", &["t"], Diligent::new(0, &log), &metrics);
    let lag = || metrics.stage_lag_records.with_label_values(&["s"]).get();
    let measured = async {
        while lag() != 3 {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, measured).await.unwrap_or_else(|_| panic!("the lag is {}", lag()));
    stage.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_goes_where_javas_producer_would_put_it() {
    let broker = Broker::start([("t", 16)]).unwrap();
    let settings = settings(&broker, GroupProtocol::Classic);
    let producer = Producer::new(&settings).unwrap();
    let (log, metrics) = (Log::default(), Arc::new(ConsumerMetrics::default()));
    let stage = Running::start(&settings, "s", &["t"], Diligent::new(0, &log), &metrics);
    // Kafka's own test vectors for murmur2: 0x7fffffff & -973932308 and -790332482.
    for key in ["21", "foobar"] {
        producer.publish(Message::new("t", key.to_owned(), key.into())).await.unwrap();
    }
    let mut handled = until(&log, "both", |log| log.len() == 2).await;
    stage.stop().await;
    handled.sort_by_key(|handled| handled.partition);
    let places: Vec<_> = handled.iter().map(|handled| (handled.value.as_str(), handled.partition)).collect();
    assert_eq!(places, [("21", 1_173_551_340 % 16), ("foobar", 1_357_151_166 % 16)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_that_are_published_together_are_written_in_their_order_through_a_full_queue() {
    let broker = Broker::start([("t", 1)]).unwrap();
    let mut settings = settings(&broker, GroupProtocol::Classic);
    settings.properties.insert("queue.buffering.max.messages".into(), "10".into());
    let producer = Producer::new(&settings).unwrap();
    let messages = (0..100).map(|n: i32| Message::new("t", None, n.to_string().into())).collect();
    producer.publish_all(messages).await.unwrap();
    let written: Vec<_> = read(&settings, "t", 100)
        .into_iter()
        .map(|(_, value, _)| String::from_utf8(value.unwrap()).unwrap())
        .collect();
    assert_eq!(written, (0..100).map(|n| n.to_string()).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_begins_where_its_subscription_says_and_only_once() {
    let broker = Broker::start([("posts-created", 16), ("device-tokens", 16)]).unwrap();
    let settings = settings(&broker, GroupProtocol::Classic);
    let producer = Producer::new(&settings).unwrap();
    let subscriptions = [
        Subscription { stage: "posts", topic: "posts-created", from: FirstOffset::End },
        Subscription { stage: "tokens", topic: "device-tokens", from: FirstOffset::Beginning },
    ];
    write(&producer, "posts-created", 3, None, "of yesterday").await;
    write(&producer, "device-tokens", 3, None, "of yesterday").await;

    let began = admin::begin(&settings, &subscriptions).await.unwrap();
    assert!(began.iter().all(|(_, began)| *began == Began::Began { partitions: 16 }), "{began:?}");
    let offset = |stage, topic| committed(&settings, stage, topic, 16)[3];
    assert_eq!((offset("posts", "posts-created"), offset("tokens", "device-tokens")), (Some(1), Some(0)));
    assert_eq!(began.iter().map(|(reads, _)| *reads).collect::<Vec<_>>(), subscriptions);

    write(&producer, "posts-created", 3, None, "of today").await;
    let again = admin::begin(&settings, &subscriptions).await.unwrap();
    assert!(again.iter().all(|(_, began)| *began == Began::Exists), "{again:?}");
    assert_eq!(offset("posts", "posts-created"), Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_topics_and_absent_brokers_are_told_apart() {
    let broker = Broker::start([("device-tokens", 16)]).unwrap();
    let mut settings = settings(&broker, GroupProtocol::Classic);
    let wanted = ["posts-created", "device-tokens", "dead-letters"];
    let missing = admin::check_topics(&settings, wanted).await.unwrap_err();
    assert_eq!(missing.to_string(), "Kafka has no dead-letters, posts-created");
    assert_eq!(
        admin::check_topics(&settings, ["device-tokens"]).await.unwrap(),
        BTreeMap::from([("device-tokens".into(), 16)])
    );
    settings.bootstrap_servers = "127.0.0.1:1".into();
    let absent = admin::look(&settings).await.unwrap_err();
    assert!(absent.to_string().starts_with("no Kafka broker answers at 127.0.0.1:1"), "{absent}");
}
