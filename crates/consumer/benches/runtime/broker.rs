//! A broker of the bench's own, and the records that all contestants read.

use std::{
    path::{Path, PathBuf},
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

/// Enough for ten seconds of the fastest contestant after its warm-up; 1.8 GB on the disk.
pub const RECORDS: u64 = 8_000_000;
const VALUE_BYTES: usize = 200;
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// Stopped when this is dropped, unless it is kept.
pub struct Broker {
    pub address: String,
    pub topic: String,
    keep: bool,
}

impl Broker {
    /// Starts the broker and writes the records, unless an earlier call has kept them.
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
            let key = format!("key-{n:08}");
            let partition = i32::try_from(n % PARTITIONS as u64).unwrap();
            let mut record = BaseRecord::to(&self.topic).partition(partition).key(&key).payload(&value);
            while let Err((error, unsent)) = producer.send(record) {
                assert!(
                    matches!(error, KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull)),
                    "{error}"
                );
                producer.poll(Duration::from_millis(10));
                record = unsent;
            }
        }
        producer.flush(ANSWER_TIMEOUT).unwrap();
    }

    /// How many records the topic holds.
    fn stored(&self) -> u64 {
        let consumer: BaseConsumer = self.client().create().unwrap();
        let metadata = consumer.fetch_metadata(None, ANSWER_TIMEOUT).unwrap();
        if metadata.topics().iter().all(|topic| topic.name() != self.topic) {
            return 0;
        }
        let watermarks = (0..PARTITIONS)
            .map(|partition| consumer.fetch_watermarks(&self.topic, partition, ANSWER_TIMEOUT).unwrap());
        watermarks.map(|(low, high)| u64::try_from(high - low).unwrap()).sum()
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

/// The name of a group that does not exist yet.
pub fn new_group() -> String {
    format!("bench-{:08x}", rand::random::<u32>())
}

/// The folder of the broker and its data.
fn state() -> PathBuf {
    workspace().join("target/bench-services")
}

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

fn services(command: &str) {
    let ended = Command::new(workspace().join("scripts/services"))
        .args([command, "kafka"])
        .env("SERVICES_STATE", state())
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert!(ended.success(), "scripts/services {command}");
}
