//! The real broker, seen by somebody who is not pushcast: what stands in its topics, what groups have committed.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::Write,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use pushcast::kafka::topics::TOPICS;
use rdkafka::{
    ClientConfig, Message, Offset, TopicPartitionList,
    admin::{AdminClient, AdminOptions},
    client::DefaultClientContext,
    consumer::{BaseConsumer, Consumer},
    error::RDKafkaErrorCode,
    message::Headers,
};
use serde_json::Value;

use crate::world::until;

const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// The broker, ours alone for as long as this lives.
pub struct Broker {
    pub address: String,
    _alone: File,
}

/// A record as it stands in a topic.
#[derive(Debug)]
pub struct Stored {
    pub partition: i32,
    pub offset: i64,
    pub value: Vec<u8>,
    pub headers: BTreeMap<String, String>,
}

impl Broker {
    /// The broker without any topic of ours.
    pub async fn without_topics() -> Self {
        let address = fs::read_to_string(services().join("kafka.address"))
            .expect("there is no Kafka for tests/real: run `make services`, or `make test`, which does")
            .trim()
            .to_owned();
        let alone = File::create(services().join("kafka.lock")).unwrap();
        alone.lock().unwrap();
        let broker = Self { address, _alone: alone };
        assert!(
            broker.consumer("look").fetch_metadata(None, ANSWER_TIMEOUT).is_ok(),
            "no Kafka answers at {}: run `make services-down services`",
            broker.address
        );
        broker.wake_coordinator();
        broker.delete_topics().await;
        broker
    }

    /// On a new cluster the first question about a group takes seconds, which hides what `init` has to wait for; and the one
    /// asked may not be the one to ask yet.
    fn wake_coordinator(&self) {
        let mut asked = TopicPartitionList::new();
        asked.add_partition(TOPICS[0].name, 0);
        let look = self.consumer("look");
        until("the coordinator of a group answers", ANSWER_TIMEOUT, || look.committed_offsets(asked.clone(), 2 * ANSWER_TIMEOUT).ok());
    }

    async fn delete_topics(&self) {
        let admin: AdminClient<DefaultClientContext> = self.client().create().unwrap();
        let names: Vec<_> = TOPICS.iter().map(|topic| topic.name).collect();
        for deleted in admin.delete_topics(&names, &AdminOptions::new()).await.unwrap() {
            assert!(matches!(deleted, Ok(_) | Err((_, RDKafkaErrorCode::UnknownTopicOrPartition))), "{deleted:?}");
        }
        until("the old topics are gone", ANSWER_TIMEOUT, || self.topics().is_empty().then_some(()));
    }

    /// The topics of ours that are there, and how many partitions they have.
    pub fn topics(&self) -> BTreeMap<String, usize> {
        let metadata = self.consumer("look").fetch_metadata(None, ANSWER_TIMEOUT).unwrap();
        let ours: BTreeSet<_> = TOPICS.iter().map(|topic| topic.name).collect();
        let topics = metadata.topics().iter().filter(|topic| ours.contains(topic.name()));
        topics.map(|topic| (topic.name().to_owned(), topic.partitions().len())).collect()
    }

    /// Everything that stands in a topic now.
    pub fn records(&self, topic: &str) -> Vec<Stored> {
        let reader = self.consumer("read");
        let ends = self.ends(&reader, topic);
        let mut from = TopicPartitionList::new();
        for partition in ends.keys() {
            from.add_partition_offset(topic, *partition, Offset::Beginning).unwrap();
        }
        reader.assign(&from).unwrap();
        let mut left: i64 = ends.values().map(|(low, high)| high - low).sum();
        let mut records = Vec::new();
        while left > 0 {
            let message = reader.poll(ANSWER_TIMEOUT).expect("a broker that gives what it has").unwrap();
            if message.offset() >= ends[&message.partition()].1 {
                continue; // written since we looked
            }
            left -= 1;
            let headers =
                message.headers().map(|headers| headers.iter().map(|header| (header.key.to_owned(), text(header.value)))).into_iter();
            records.push(Stored {
                partition: message.partition(),
                offset: message.offset(),
                value: message.payload().unwrap_or_default().to_vec(),
                headers: headers.flatten().collect(),
            });
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
        known.elements().iter().map(|element| element.offset().to_raw().filter(|offset| *offset >= 0)).collect()
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

    /// Types lines into Java's own console producer.
    pub fn type_into_console_producer(&self, topic: &str, lines: &[String]) {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/services");
        let mut console = Command::new(script);
        console.args(["kafka", "ConsoleProducer", "--topic", topic]).stdin(Stdio::piped()).stdout(Stdio::null());
        let mut console = console.spawn().unwrap();
        console.stdin.take().unwrap().write_all(lines.join("\n").as_bytes()).unwrap();
        assert!(console.wait().unwrap().success(), "the console producer");
    }

    fn ends(&self, consumer: &BaseConsumer, topic: &str) -> BTreeMap<i32, (i64, i64)> {
        let metadata = consumer.fetch_metadata(Some(topic), ANSWER_TIMEOUT).unwrap();
        let partitions = metadata.topics()[0].partitions().iter().map(rdkafka::metadata::MetadataPartition::id);
        partitions.map(|partition| (partition, consumer.fetch_watermarks(topic, partition, ANSWER_TIMEOUT).unwrap())).collect()
    }

    fn client(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.address);
        config
    }

    fn consumer(&self, group: &str) -> BaseConsumer {
        self.client().set("group.id", group).set("enable.auto.commit", "false").create().unwrap()
    }
}

fn services() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.services"))
}

fn text(value: Option<&[u8]>) -> String {
    String::from_utf8_lossy(value.unwrap_or_default()).into_owned()
}
