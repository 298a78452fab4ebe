//! A broker of the bench's own, and the records that everybody reads.

use std::{
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};

use rdkafka::{
    ClientConfig,
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    client::DefaultClientContext,
    consumer::{BaseConsumer, Consumer},
    error::{KafkaError, RDKafkaErrorCode},
    producer::{BaseProducer, BaseRecord, Producer},
};

use crate::PARTITIONS;

/// Enough for ten seconds of the fastest after its warm-up; 1.8 GB on the disk.
pub const RECORDS: u64 = 8_000_000;
const VALUE_BYTES: usize = 200;
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// Ends with the bench, unless it is kept.
pub struct Broker {
    pub address: String,
    pub topic: String,
    keep: bool,
}

impl Broker {
    /// Starts the broker and writes the records, where an earlier call has not left them.
    pub fn start(keep: bool) -> Self {
        services("up");
        let address = std::fs::read_to_string(state().join("kafka.address")).unwrap().trim().to_owned();
        let broker = Self { address, topic: format!("records-{RECORDS}"), keep };
        if broker.stored() != RECORDS {
            broker.create_topic();
            broker.produce();
            assert_eq!(broker.stored(), RECORDS, "the topic holds what was written, and nothing else");
        }
        broker
    }

    fn create_topic(&self) {
        let admin: AdminClient<DefaultClientContext> = self.client().create().unwrap();
        let topic = NewTopic::new(&self.topic, PARTITIONS, TopicReplication::Fixed(1));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let created = runtime.block_on(admin.create_topics([&topic], &AdminOptions::new())).unwrap();
        assert!(created[0].is_ok(), "{created:?}");
    }

    fn produce(&self) {
        eprintln!("writing {RECORDS} records of {VALUE_BYTES} bytes");
        let producer: BaseProducer = self
            .client()
            .set("acks", "1")
            .set("linger.ms", "50")
            .set("batch.size", "262144")
            .create()
            .unwrap();
        let value: Vec<u8> = (0..VALUE_BYTES).map(|_| rand::random()).collect();
        for n in 0..RECORDS {
            let (key, partition) = (format!("key-{n:08}"), i32::try_from(n % PARTITIONS as u64).unwrap());
            let mut record = BaseRecord::to(&self.topic).partition(partition).key(&key).payload(&value);
            while let Err((error, refused)) = producer.send(record) {
                assert!(
                    matches!(error, KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull)),
                    "{error}"
                );
                producer.poll(Duration::from_millis(10));
                record = refused;
            }
        }
        producer.flush(ANSWER_TIMEOUT).unwrap();
    }

    /// How many records the topic holds.
    fn stored(&self) -> u64 {
        let consumer: BaseConsumer = self.client().create().unwrap();
        let there = consumer.fetch_metadata(None, ANSWER_TIMEOUT).unwrap();
        if there.topics().iter().all(|topic| topic.name() != self.topic) {
            return 0;
        }
        let ends = (0..PARTITIONS)
            .map(|partition| consumer.fetch_watermarks(&self.topic, partition, ANSWER_TIMEOUT).unwrap());
        ends.map(|(low, high)| u64::try_from(high - low).unwrap()).sum()
    }

    fn client(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.address);
        config
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        if !self.keep {
            services("down");
        }
    }
}

/// A group that nobody has been in.
pub fn some_group() -> String {
    format!("bench-{:08x}", rand::random::<u32>())
}

/// Where the broker and its data are.
fn state() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/target/bench-services"))
}

fn services(word: &str) {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/services");
    let ended = Command::new(script)
        .args([word, "kafka"])
        .env("SERVICES_STATE", state())
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert!(ended.success(), "scripts/services {word}");
}
