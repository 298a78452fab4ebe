//! A real broker, seen by somebody who is not pushcast: what stands in its topics, what groups have
//! committed.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::Write,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use pushcast::events::topics;
use rdkafka::{
    ClientConfig, Message, Offset, TopicPartitionList,
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    client::DefaultClientContext,
    consumer::{BaseConsumer, Consumer},
    error::{KafkaError, RDKafkaErrorCode},
    message::{BorrowedMessage, Headers},
};
use serde_json::Value;

use crate::world::until;

/// As many copies of a topic as the broker's settings say.
const COPIES_BY_DEFAULT: i32 = -1;
/// Generous: a machine that compiles beside this must not look like a broker that is away.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// A broker, or several that are one cluster.
#[derive(Clone)]
pub struct Broker {
    pub address: String,
}

/// The broker that `make services` starts has topics of fixed names. They are ours for as long as this lives.
pub struct Alone {
    _lock: File,
}

/// Sees what is written to a topic.
pub struct Tail(BaseConsumer);

/// A record as it stands in a topic.
#[derive(Debug)]
pub struct Stored {
    pub partition: i32,
    pub offset: i64,
    pub key: Option<Vec<u8>>,
    pub value: Vec<u8>,
    pub headers: BTreeMap<String, String>,
}

impl Broker {
    /// The broker that `make services` starts.
    pub fn of_services() -> Self {
        let address = fs::read_to_string(services().join("kafka.address"))
            .expect("there is no Kafka for tests/real: run `make services`, or `make test`, which does")
            .trim()
            .to_owned();
        let broker = Self { address };
        assert!(
            broker.brokers(ANSWER_TIMEOUT).is_some(),
            "no Kafka answers at {}: run `make services-down services`",
            broker.address
        );
        broker
    }

    /// The same without any topic of pushcast's, until `Alone` is dropped.
    pub async fn without_topics() -> (Self, Alone) {
        let broker = Self::of_services();
        let alone = Alone::wait();
        broker.wake_coordinator();
        broker.delete_topics().await;
        (broker, alone)
    }

    /// How many brokers the cluster has; none if nobody answers.
    pub fn brokers(&self, within: Duration) -> Option<usize> {
        Some(self.consumer("look").fetch_metadata(None, within).ok()?.brokers().len())
    }

    /// On a new cluster the first question about a group takes seconds, which hides what `init` has to wait
    /// for; and the one asked may not be the one to ask yet.
    fn wake_coordinator(&self) {
        let mut asked = TopicPartitionList::new();
        asked.add_partition(topics::ALL[0], 0);
        let look = self.consumer("look");
        until("the coordinator of a group answers", ANSWER_TIMEOUT, || {
            look.committed_offsets(asked.clone(), 2 * ANSWER_TIMEOUT).ok()
        });
    }

    async fn delete_topics(&self) {
        let admin = self.admin();
        let names = topics::ALL;
        for deleted in admin.delete_topics(&names, &AdminOptions::new()).await.unwrap() {
            assert!(
                matches!(deleted, Ok(_) | Err((_, RDKafkaErrorCode::UnknownTopicOrPartition))),
                "{deleted:?}"
            );
        }
        until("the old topics are gone", ANSWER_TIMEOUT, || self.topics().is_empty().then_some(()));
    }

    /// The topics of ours that are there, and how many partitions they have.
    pub fn topics(&self) -> BTreeMap<String, usize> {
        let metadata = self.consumer("look").fetch_metadata(None, ANSWER_TIMEOUT).unwrap();
        let ours: BTreeSet<_> = topics::ALL.into();
        let topics = metadata.topics().iter().filter(|topic| ours.contains(topic.name()));
        topics.map(|topic| (topic.name().to_owned(), topic.partitions().len())).collect()
    }

    /// Everything that stands in a topic now. What compaction has left out and the marks of transactions are
    /// passed over.
    pub fn records(&self, topic: &str) -> Vec<Stored> {
        let (reader, ends) = self.reader(topic);
        let (mut unread, mut records): (BTreeSet<i32>, _) = (ends.keys().copied().collect(), Vec::new());
        while !unread.is_empty() {
            match reader.poll(ANSWER_TIMEOUT).expect("a broker that gives what it has") {
                Ok(message) if message.offset() < ends[&message.partition()].1 => {
                    records.push(Stored::of(&message))
                }
                Ok(_written_since) => {}
                Err(KafkaError::PartitionEOF(partition)) => drop(unread.remove(&partition)),
                Err(error) => panic!("reading {topic}: {error}"),
            }
        }
        records
    }

    /// The values of a topic, as JSON.
    pub fn values(&self, topic: &str) -> Vec<Value> {
        self.records(topic).iter().map(|record| serde_json::from_slice(&record.value).unwrap()).collect()
    }

    /// How many records a topic has ever had.
    pub fn count(&self, topic: &str) -> i64 {
        self.ends(&self.consumer("look"), topic).values().map(|(_, high)| high).sum()
    }

    /// What a group has committed for a topic, partition by partition; none where it has not.
    pub fn committed(&self, group: &str, topic: &str) -> Vec<Option<i64>> {
        let outsider = self.consumer(group);
        let mut asked = TopicPartitionList::new();
        for partition in self.ends(&outsider, topic).keys() {
            asked.add_partition(topic, *partition);
        }
        let known = outsider.committed_offsets(asked, ANSWER_TIMEOUT).unwrap();
        known
            .elements()
            .iter()
            .map(|element| element.offset().to_raw().filter(|offset| *offset >= 0))
            .collect()
    }

    /// Waits until a group has settled everything that stands in the topic now.
    pub fn settled(&self, group: &str, topic: &str, within: Duration) {
        let ends = self.ends(&self.consumer("look"), topic);
        until(&format!("{group} has settled {topic}"), within, || {
            let committed = self.committed(group, topic);
            let has = |(at, (_, high)): (&Option<i64>, &(i64, i64))| at.unwrap_or(0) >= *high;
            committed.iter().zip(ends.values()).all(has).then_some(())
        });
    }

    /// How many partitions each member of a group has, where the group is at rest; none while it deals them
    /// out.
    pub fn shares(&self, group: &str) -> Vec<u32> {
        let groups = self.consumer("look").fetch_group_list(Some(group), ANSWER_TIMEOUT).unwrap();
        let stable = groups.groups().iter().find(|it| it.name() == group && it.state() == "Stable");
        stable
            .map(|group| {
                group
                    .members()
                    .iter()
                    .map(|member| partitions(member.assignment().unwrap_or_default()))
                    .collect()
            })
            .unwrap_or_default()
    }

    /// How many partitions a topic has.
    pub fn partitions(&self, topic: &str) -> usize {
        self.ends(&self.consumer("look"), topic).len()
    }

    /// Types lines into Java's own console producer, on the broker of `make services`.
    pub fn type_into_console_producer(&self, topic: &str, options: &[&str], lines: &[String]) {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/services");
        type_into(
            Command::new(script).args(["kafka", "ConsoleProducer", "--topic", topic]).args(options),
            lines,
        );
    }

    /// Types lines into kcat.
    pub fn type_into_kcat(&self, topic: &str, options: &[&str], lines: &[String]) {
        type_into(Command::new("kcat").args(["-P", "-b", &self.address, "-t", topic]).args(options), lines);
    }

    /// A topic of a test's own.
    pub async fn create_topic(&self, name: &str, partitions: i32, settings: &[(&str, &str)]) {
        let topic = settings.iter().fold(
            NewTopic::new(name, partitions, TopicReplication::Fixed(COPIES_BY_DEFAULT)),
            |topic, (key, value)| topic.set(key, value),
        );
        let created = self.admin().create_topics([&topic], &AdminOptions::new()).await.unwrap();
        assert!(created.iter().all(Result::is_ok), "{created:?}");
        until(&format!("{name} is there"), ANSWER_TIMEOUT, || {
            let metadata = self.consumer("look").fetch_metadata(Some(name), ANSWER_TIMEOUT).unwrap();
            let partitions_led =
                metadata.topics()[0].partitions().iter().filter(|partition| partition.leader() >= 0).count();
            (i32::try_from(partitions_led) == Ok(partitions)).then_some(())
        });
    }

    /// What is written to the topic, from its beginning on.
    pub fn tail(&self, topic: &str) -> Tail {
        Tail(self.reader(topic).0)
    }

    /// Reads a topic from its beginning; and where it begins and ends now.
    fn reader(&self, topic: &str) -> (BaseConsumer, BTreeMap<i32, (i64, i64)>) {
        let reader: BaseConsumer =
            self.client().set("group.id", "read").set("enable.partition.eof", "true").create().unwrap();
        let ends = self.ends(&reader, topic);
        let mut from = TopicPartitionList::new();
        for partition in ends.keys() {
            from.add_partition_offset(topic, *partition, Offset::Beginning).unwrap();
        }
        reader.assign(&from).unwrap();
        (reader, ends)
    }

    pub fn admin(&self) -> AdminClient<DefaultClientContext> {
        self.client().create().unwrap()
    }

    fn ends(&self, consumer: &BaseConsumer, topic: &str) -> BTreeMap<i32, (i64, i64)> {
        let metadata = consumer.fetch_metadata(Some(topic), ANSWER_TIMEOUT).unwrap();
        let partitions =
            metadata.topics()[0].partitions().iter().map(rdkafka::metadata::MetadataPartition::id);
        // The metadata of a new topic names leaders that don't know it yet.
        let ends = |partition| {
            until("a leader tells its ends", ANSWER_TIMEOUT, || {
                consumer.fetch_watermarks(topic, partition, ANSWER_TIMEOUT).ok()
            })
        };
        partitions.map(|partition| (partition, ends(partition))).collect()
    }

    pub fn client(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.address);
        config
    }

    pub fn consumer(&self, group: &str) -> BaseConsumer {
        self.client().set("group.id", group).set("enable.auto.commit", "false").create().unwrap()
    }
}

impl Tail {
    /// The next record, if there is one now.
    pub fn next(&self) -> Option<Stored> {
        loop {
            match self.0.poll(Duration::from_millis(20))? {
                Ok(message) => return Some(Stored::of(&message)),
                Err(KafkaError::PartitionEOF(_)) => {}
                Err(_broker_is_away) => return None,
            }
        }
    }
}

impl Alone {
    pub fn wait() -> Self {
        let lock = File::create(services().join("kafka.lock")).unwrap();
        lock.lock().unwrap();
        Self { _lock: lock }
    }
}

impl Stored {
    fn of(message: &BorrowedMessage<'_>) -> Self {
        let headers = message.headers().into_iter().flat_map(|headers| headers.iter());
        Self {
            partition: message.partition(),
            offset: message.offset(),
            key: message.key().map(<[u8]>::to_vec),
            value: message.payload().unwrap_or_default().to_vec(),
            headers: headers.map(|header| (header.key.to_owned(), text(header.value))).collect(),
        }
    }
}

fn type_into(console: &mut Command, lines: &[String]) {
    let mut typing = console.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    typing.stdin.take().unwrap().write_all(lines.join("\n").as_bytes()).unwrap();
    assert!(typing.wait().unwrap().success(), "{console:?}");
}

/// Where `make services` says what runs.
pub fn services() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.services"))
}

/// How many partitions an assignment names, as the consumer protocol writes it: a version (16 bits), then the
/// topics, each a name and its partitions (32 bits each).
fn partitions(assignment: &[u8]) -> u32 {
    let number = |at: usize, bytes: usize| {
        assignment[at..at + bytes].iter().fold(0, |sum, byte| sum << 8 | u32::from(*byte))
    };
    let (mut at, mut sum) = (6, 0);
    for _ in 0..if assignment.is_empty() { 0 } else { number(2, 4) } {
        at += 2 + number(at, 2) as usize;
        let partitions = number(at, 4);
        at += 4 + 4 * partitions as usize;
        sum += partitions;
    }
    sum
}

fn text(value: Option<&[u8]>) -> String {
    String::from_utf8_lossy(value.unwrap_or_default()).into_owned()
}
