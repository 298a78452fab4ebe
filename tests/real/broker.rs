//! A real broker, seen from outside of pushcast: the records of its topics, the committed offsets of its
//! groups.

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

/// The replication factor of the broker's settings.
const DEFAULT_REPLICATION: i32 = -1;
/// Generous: on a machine that compiles at the same time the broker must not look unreachable.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// The address of a broker, or of several that are one cluster.
#[derive(Clone)]
pub struct Broker {
    pub address: String,
}

/// While this lives, no other test uses the topics of pushcast on the broker that `make services` starts.
pub struct TopicsLock {
    _file: File,
}

/// Reads a topic as it grows.
pub struct Tail(BaseConsumer);

/// A record of a topic.
#[derive(Debug)]
pub struct StoredRecord {
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

    /// The same without any topic of pushcast's, for this test alone until the lock is dropped.
    pub async fn without_topics() -> (Self, TopicsLock) {
        let broker = Self::of_services();
        let lock = TopicsLock::wait();
        broker.wait_for_coordinator();
        broker.delete_topics().await;
        (broker, lock)
    }

    /// How many brokers the cluster has; `None` if none answers.
    pub fn brokers(&self, within: Duration) -> Option<usize> {
        Some(self.consumer("look").fetch_metadata(None, within).ok()?.brokers().len())
    }

    /// On a new cluster the first request about a group takes seconds, which would hide what `init` has to
    /// wait for; and the broker that is asked may not be the coordinator yet.
    fn wait_for_coordinator(&self) {
        let mut partitions = TopicPartitionList::new();
        partitions.add_partition(topics::ALL[0], 0);
        let look = self.consumer("look");
        until("the coordinator of a group answers", ANSWER_TIMEOUT, || {
            look.committed_offsets(partitions.clone(), 2 * ANSWER_TIMEOUT).ok()
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

    /// The topics of pushcast that exist, and how many partitions they have.
    pub fn topics(&self) -> BTreeMap<String, usize> {
        let metadata = self.consumer("look").fetch_metadata(None, ANSWER_TIMEOUT).unwrap();
        let ours: BTreeSet<_> = topics::ALL.into();
        let topics = metadata.topics().iter().filter(|topic| ours.contains(topic.name()));
        topics.map(|topic| (topic.name().to_owned(), topic.partitions().len())).collect()
    }

    /// All records that a topic has now. Offsets of compacted records and of transaction markers are skipped.
    pub fn records(&self, topic: &str) -> Vec<StoredRecord> {
        let (reader, ends) = self.reader(topic);
        let mut unread: BTreeSet<i32> = ends.keys().copied().collect();
        let mut records = Vec::new();
        while !unread.is_empty() {
            match reader.poll(ANSWER_TIMEOUT).expect("the broker answers") {
                Ok(message) if message.offset() < ends[&message.partition()].1 => {
                    records.push(StoredRecord::of(&message))
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

    /// What a group has committed for a topic, partition by partition; `None` where it has not.
    pub fn committed(&self, group: &str, topic: &str) -> Vec<Option<i64>> {
        let client = self.consumer(group);
        let mut partitions = TopicPartitionList::new();
        for partition in self.ends(&client, topic).keys() {
            partitions.add_partition(topic, *partition);
        }
        let known = client.committed_offsets(partitions, ANSWER_TIMEOUT).unwrap();
        known
            .elements()
            .iter()
            .map(|element| element.offset().to_raw().filter(|offset| *offset >= 0))
            .collect()
    }

    /// Waits until a group has committed all records that the topic has now.
    pub fn wait_until_settled(&self, group: &str, topic: &str, within: Duration) {
        let ends = self.ends(&self.consumer("look"), topic);
        until(&format!("{group} has settled {topic}"), within, || {
            let committed = self.committed(group, topic);
            let is_at_end = |(at, (_, high)): (&Option<i64>, &(i64, i64))| at.unwrap_or(0) >= *high;
            committed.iter().zip(ends.values()).all(is_at_end).then_some(())
        });
    }

    /// How many partitions are assigned to each member of a group; empty while it rebalances.
    pub fn assigned(&self, group: &str) -> Vec<u32> {
        let groups = self.consumer("look").fetch_group_list(Some(group), ANSWER_TIMEOUT).unwrap();
        let stable =
            groups.groups().iter().find(|listed| listed.name() == group && listed.state() == "Stable");
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

    /// Writes lines with Java's console producer, to the broker of `make services`.
    pub fn write_with_console_producer(&self, topic: &str, options: &[&str], lines: &[String]) {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/services");
        pipe_into(
            Command::new(script).args(["kafka", "ConsoleProducer", "--topic", topic]).args(options),
            lines,
        );
    }

    /// Writes lines with kcat.
    pub fn write_with_kcat(&self, topic: &str, options: &[&str], lines: &[String]) {
        pipe_into(Command::new("kcat").args(["-P", "-b", &self.address, "-t", topic]).args(options), lines);
    }

    /// Creates a topic, and waits until each partition has a leader.
    pub async fn create_topic(&self, name: &str, partitions: i32, settings: &[(&str, &str)]) {
        let topic = settings.iter().fold(
            NewTopic::new(name, partitions, TopicReplication::Fixed(DEFAULT_REPLICATION)),
            |topic, (key, value)| topic.set(key, value),
        );
        let created = self.admin().create_topics([&topic], &AdminOptions::new()).await.unwrap();
        assert!(created.iter().all(Result::is_ok), "{created:?}");
        until(&format!("{name} exists"), ANSWER_TIMEOUT, || {
            let metadata = self.consumer("look").fetch_metadata(Some(name), ANSWER_TIMEOUT).unwrap();
            let with_leader =
                metadata.topics()[0].partitions().iter().filter(|partition| partition.leader() >= 0).count();
            (i32::try_from(with_leader) == Ok(partitions)).then_some(())
        });
    }

    /// Reads the topic from its beginning on.
    pub fn tail(&self, topic: &str) -> Tail {
        Tail(self.reader(topic).0)
    }

    /// A reader at the beginning of a topic; and the first and the next offset of each partition.
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
        // The metadata of a new topic names leaders that don't know of it yet.
        let ends = |partition| {
            until("a leader answers", ANSWER_TIMEOUT, || {
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
    pub fn next(&self) -> Option<StoredRecord> {
        loop {
            match self.0.poll(Duration::from_millis(20))? {
                Ok(message) => return Some(StoredRecord::of(&message)),
                Err(KafkaError::PartitionEOF(_)) => {}
                Err(_unreachable) => return None,
            }
        }
    }
}

impl TopicsLock {
    pub fn wait() -> Self {
        let file = File::create(services().join("kafka.lock")).unwrap();
        file.lock().unwrap();
        Self { _file: file }
    }
}

impl StoredRecord {
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

fn pipe_into(producer: &mut Command, lines: &[String]) {
    let mut running = producer.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    running.stdin.take().unwrap().write_all(lines.join("\n").as_bytes()).unwrap();
    assert!(running.wait().unwrap().success(), "{producer:?}");
}

/// The folder where `make services` writes the addresses and process ids of its servers.
pub fn services() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.services"))
}

/// How many partitions an assignment names, as the consumer protocol writes it: a version (16 bits), then the
/// topics, each a name and its partitions (32 bits each).
fn partitions(assignment: &[u8]) -> u32 {
    let number = |at: usize, bytes: usize| {
        assignment[at..at + bytes].iter().fold(0, |sum, byte| sum << 8 | u32::from(*byte))
    };
    let mut at = 6;
    let mut sum = 0;
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
