//! The Kafka client of the other services: writes what upstream writes, reads what pushcast publishes, and
//! finds whether any record is unsettled. Knows nothing of pushcast but its topics and its consumer groups.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use consumer::Subscription;
use pushcast::topology;
use rdkafka::{
    ClientConfig, Message as _, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer as _, StreamConsumer},
    message::Headers as _,
    producer::{FutureProducer, FutureRecord},
};
use tokio::task::JoinSet;

/// How long Kafka may take to answer one request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Producer, reader of pushcast's public topics, and observer of its groups.
pub struct KafkaClient {
    producer: FutureProducer,
    groups: Arc<Vec<Group>>,
    received: Arc<Mutex<Vec<Received>>>,
    _reading: JoinSet<()>,
}

/// The consumer group of a stage, for a topic that it reads.
struct Group {
    stage: &'static str,
    topic: &'static str,
    client: BaseConsumer,
}

/// A record of one of the topics that pushcast writes for others.
#[derive(Clone, Debug)]
pub struct Received {
    pub topic: String,
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    pub headers: Vec<(String, String)>,
}

impl Received {
    pub fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|(is, _)| is == name).map(|(_, value)| value.as_str()).unwrap_or_default()
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(self.value.as_deref().unwrap_or_default()).expect("JSON")
    }
}

impl KafkaClient {
    pub fn connect(servers: &str) -> Self {
        let client = || {
            let mut config = ClientConfig::new();
            config.set("bootstrap.servers", servers).set("linger.ms", "0").set("fetch.wait.max.ms", "5");
            config
        };
        let producer: FutureProducer = client().set("partitioner", "murmur2_random").create().unwrap();
        let group = |subscription: &Subscription| Group {
            stage: subscription.stage,
            topic: subscription.topic,
            client: client().set("group.id", format!("pushcast.{}", subscription.stage)).create().unwrap(),
        };
        let groups = topology::subscriptions().iter().map(group).collect();
        let reader: StreamConsumer =
            client().set("group.id", "other-services").set("enable.auto.commit", "false").create().unwrap();
        let mut assignment = TopicPartitionList::new();
        for topic in ["push-outcomes", "dead-letters", "invalid-tokens"] {
            for partition in partitions_of(topic) {
                assignment.add_partition_offset(topic, partition, Offset::Beginning).unwrap();
            }
        }
        reader.assign(&assignment).unwrap();
        let received = Arc::<Mutex<Vec<Received>>>::default();
        let mut reading = JoinSet::new();
        reading.spawn(read(reader, received.clone()));
        Self { producer, groups: Arc::new(groups), received, _reading: reading }
    }

    /// Writes a record and waits until Kafka has acknowledged it. `at` is its time in milliseconds since
    /// 1970; `None` = now.
    pub async fn produce(&self, topic: &str, key: Option<&str>, value: Option<&[u8]>, at: Option<i64>) {
        let record =
            FutureRecord { topic, partition: None, payload: value, key, timestamp: at, headers: None };
        self.producer.send(record, REQUEST_TIMEOUT).await.unwrap();
    }

    /// Writes many records at once.
    pub async fn produce_all(&self, topic: &str, values: impl IntoIterator<Item = String>) {
        futures::future::join_all(
            values
                .into_iter()
                .map(async |value| self.produce(topic, None, Some(value.as_bytes()), None).await),
        )
        .await;
    }

    /// The records read so far of a topic that pushcast writes for others.
    pub fn received(&self, topic: &str) -> Vec<Received> {
        self.received.lock().unwrap().iter().filter(|received| received.topic == topic).cloned().collect()
    }

    /// How many records a topic has.
    pub async fn record_count(&self, topic: &'static str) -> usize {
        let groups = Arc::clone(&self.groups);
        let count = move || {
            partitions_of(topic).map(|partition| end(&groups[0].client, topic, partition)).sum::<i64>()
        };
        tokio::task::spawn_blocking(count).await.unwrap() as usize
    }

    /// The partitions where a group of pushcast's lags, one a line. Empty = there was a moment, just now, at
    /// which all were settled: the commits are fetched first, and the ends of the topics after that.
    pub async fn unsettled(&self) -> Vec<String> {
        let groups = Arc::clone(&self.groups);
        tokio::task::spawn_blocking(move || unsettled(&groups)).await.unwrap()
    }
}

async fn read(reader: StreamConsumer, received: Arc<Mutex<Vec<Received>>>) {
    loop {
        // A test may make Kafka unreachable for a while.
        let Ok(message) = reader.recv().await else { continue };
        let headers = message.headers().map(|headers| {
            let text = |bytes: Option<&[u8]>| String::from_utf8_lossy(bytes.unwrap_or_default()).into_owned();
            headers.iter().map(|header| (header.key.to_owned(), text(header.value))).collect()
        });
        received.lock().unwrap().push(Received {
            topic: message.topic().to_owned(),
            key: message.key().map(<[u8]>::to_vec),
            value: message.payload().map(<[u8]>::to_vec),
            headers: headers.unwrap_or_default(),
        });
    }
}

fn unsettled(groups: &[Group]) -> Vec<String> {
    let committed: Vec<_> = groups
        .iter()
        .flat_map(|Group { stage, topic, client }| {
            let mut partitions = TopicPartitionList::new();
            for partition in partitions_of(topic) {
                partitions.add_partition(topic, partition);
            }
            let known = client.committed_offsets(partitions, REQUEST_TIMEOUT).unwrap();
            let position = |offset| if let Offset::Offset(offset) = offset { offset } else { 0 };
            known
                .elements()
                .iter()
                .map(|element| (*stage, *topic, element.partition(), position(element.offset())))
                .collect::<Vec<_>>()
        })
        .collect();
    let behind = committed.into_iter().filter_map(|(stage, topic, partition, position)| {
        let end = end(&groups[0].client, topic, partition);
        (position < end)
            .then(|| format!("{stage} has settled {position} of {end} records of {topic}/{partition}"))
    });
    behind.collect()
}

fn partitions_of(topic: &str) -> impl Iterator<Item = i32> {
    0..topology::topics(16).iter().find(|known| known.name == topic).unwrap().partitions
}

fn end(client: &BaseConsumer, topic: &str, partition: i32) -> i64 {
    client.fetch_watermarks(topic, partition, REQUEST_TIMEOUT).unwrap().1
}
