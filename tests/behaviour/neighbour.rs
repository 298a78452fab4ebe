//! Another system on the same Kafka: writes what upstream writes, reads what pushcast publishes, and can tell
//! whether anything is left unsettled. Knows nothing of pushcast but its topics and its consumer groups.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use pushcast::topology;
use rdkafka::{
    ClientConfig, Message as _, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer as _, StreamConsumer},
    message::Headers as _,
    producer::{FutureProducer, FutureRecord},
};
use tokio::task::JoinSet;

/// How long Kafka may take to answer one question, or to take one record.
const ANSWER: Duration = Duration::from_secs(10);

/// A system beside pushcast.
pub struct Neighbour {
    producer: FutureProducer,
    groups: Arc<Vec<(&'static str, &'static str, BaseConsumer)>>,
    mailbox: Arc<Mutex<Vec<Received>>>,
    _reading: JoinSet<()>,
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

impl Neighbour {
    /// Moves in beside the broker.
    pub fn at(servers: &str) -> Self {
        let client = || {
            let mut config = ClientConfig::new();
            config.set("bootstrap.servers", servers).set("linger.ms", "0").set("fetch.wait.max.ms", "5");
            config
        };
        let producer: FutureProducer = client().set("partitioner", "murmur2_random").create().unwrap();
        let group = |stage: &str| -> BaseConsumer {
            client().set("group.id", format!("pushcast.{stage}")).create().unwrap()
        };
        let groups = topology::subscriptions()
            .iter()
            .map(|reads| (reads.stage, reads.topic, group(reads.stage)))
            .collect();
        let reader: StreamConsumer =
            client().set("group.id", "neighbour").set("enable.auto.commit", "false").create().unwrap();
        let mut everything = TopicPartitionList::new();
        for topic in topology::topics(16)
            .iter()
            .filter(|topic| ["push-outcomes", "dead-letters", "invalid-tokens"].contains(&topic.name))
        {
            for partition in 0..topic.partitions {
                everything.add_partition_offset(topic.name, partition, Offset::Beginning).unwrap();
            }
        }
        reader.assign(&everything).unwrap();
        let mailbox = Arc::<Mutex<Vec<Received>>>::default();
        let mut reading = JoinSet::new();
        reading.spawn(read_on(reader, mailbox.clone()));
        Self { producer, groups: Arc::new(groups), mailbox, _reading: reading }
    }

    /// Writes a record and waits until Kafka has it. `at` is its time in milliseconds since 1970, if it is
    /// not now.
    pub async fn writes(&self, topic: &str, key: Option<&str>, value: Option<&[u8]>, at: Option<i64>) {
        let record =
            FutureRecord { topic, partition: None, payload: value, key, timestamp: at, headers: None };
        self.producer.send(record, ANSWER).await.unwrap();
    }

    /// Writes many records at once.
    pub async fn writes_all(&self, topic: &str, values: impl IntoIterator<Item = String>) {
        futures::future::join_all(
            values
                .into_iter()
                .map(async |value| self.writes(topic, None, Some(value.as_bytes()), None).await),
        )
        .await;
    }

    /// What has come so far in a topic that pushcast writes for others.
    pub fn received(&self, topic: &str) -> Vec<Received> {
        self.mailbox.lock().unwrap().iter().filter(|received| received.topic == topic).cloned().collect()
    }

    /// How many records lie in a topic.
    pub async fn records_in(&self, topic: &'static str) -> usize {
        let groups = Arc::clone(&self.groups);
        let count =
            move || partitions_of(topic).map(|partition| end(&groups[0].2, topic, partition)).sum::<i64>();
        tokio::task::spawn_blocking(count).await.unwrap() as usize
    }

    /// What pushcast's groups have not settled yet. Empty = there was a moment, just now, at which nothing at
    /// all was in the works: the commits are asked first and the ends of the topics after that.
    pub async fn unsettled(&self) -> Vec<String> {
        let groups = Arc::clone(&self.groups);
        tokio::task::spawn_blocking(move || unsettled(&groups)).await.unwrap()
    }
}

async fn read_on(reader: StreamConsumer, mailbox: Arc<Mutex<Vec<Received>>>) {
    loop {
        // Kafka may be away for a while in a story.
        let Ok(message) = reader.recv().await else { continue };
        let headers = message.headers().map(|headers| {
            let text = |bytes: Option<&[u8]>| String::from_utf8_lossy(bytes.unwrap_or_default()).into_owned();
            headers.iter().map(|header| (header.key.to_owned(), text(header.value))).collect()
        });
        mailbox.lock().unwrap().push(Received {
            topic: message.topic().to_owned(),
            key: message.key().map(<[u8]>::to_vec),
            value: message.payload().map(<[u8]>::to_vec),
            headers: headers.unwrap_or_default(),
        });
    }
}

fn unsettled(groups: &[(&'static str, &'static str, BaseConsumer)]) -> Vec<String> {
    let committed: Vec<_> = groups
        .iter()
        .flat_map(|(stage, topic, group)| {
            let mut asked = TopicPartitionList::new();
            for partition in partitions_of(topic) {
                asked.add_partition(topic, partition);
            }
            let known = group.committed_offsets(asked, ANSWER).unwrap();
            let position = |offset| if let Offset::Offset(offset) = offset { offset } else { 0 };
            known
                .elements()
                .iter()
                .map(|element| (*stage, *topic, element.partition(), position(element.offset())))
                .collect::<Vec<_>>()
        })
        .collect();
    let behind = committed.into_iter().filter_map(|(stage, topic, partition, position)| {
        let end = end(&groups[0].2, topic, partition);
        (position < end)
            .then(|| format!("{stage} has settled {position} of {end} records of {topic}/{partition}"))
    });
    behind.collect()
}

fn partitions_of(topic: &str) -> impl Iterator<Item = i32> {
    0..topology::topics(16).iter().find(|known| known.name == topic).unwrap().partitions
}

fn end(client: &BaseConsumer, topic: &str, partition: i32) -> i64 {
    client.fetch_watermarks(topic, partition, ANSWER).unwrap().1
}
