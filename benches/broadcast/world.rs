//! What surrounds a sender: the sandbox, Kafka, and the client that publishes posts and waits for their
//! outcomes.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use consumer::{Message, Producer, Publish as _};
use pushcast::{
    config::{Config, Environment},
    events::topics,
};
use rdkafka::{
    ClientConfig, Message as _, Offset, TopicPartitionList,
    consumer::{Consumer as _, StreamConsumer},
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::{sleep, timeout};

use crate::child::{Child, KAFKA, RECEIVERS};

/// How long the bench waits for anything.
const WAIT_MAX: Duration = Duration::from_secs(300);

pub struct World {
    pub folder: TempDir,
    /// The addresses of sandbox and Kafka, as settings.
    pub environment: Environment,
    pub producer: Producer,
    pub http: reqwest::Client,
    outcomes: StreamConsumer,
    sandbox_url: String,
    // Fields are dropped in this order: the servers after their clients.
    _sandbox: Child,
    _kafka: Child,
}

impl World {
    pub async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let credentials = folder.path().join("credentials.json");
        let arguments = [
            "sandbox",
            "--listen",
            "127.0.0.1:0",
            "--remember",
            "0",
            "--credentials",
            credentials.to_str().unwrap(),
        ];
        let mut sandbox = Child::pushcast(RECEIVERS, &arguments, &Environment::new());
        let mut kafka = Child::own(RECEIVERS, &[KAFKA]);
        let settings = sandbox.lines(3).into_iter().chain(kafka.lines(1));
        let environment: Environment = settings
            .map(|line| line.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned())).unwrap())
            .collect();
        let config = Config::load(None, &environment).unwrap();
        Self {
            producer: Producer::new(&config.kafka).unwrap(),
            http: reqwest::Client::builder().no_proxy().build().unwrap(),
            outcomes: outcomes(&environment["PUSHCAST__KAFKA__BOOTSTRAP_SERVERS"]),
            sandbox_url: environment["PUSHCAST__FCM__URL"].clone(),
            folder,
            environment,
            _sandbox: sandbox,
            _kafka: kafka,
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub async fn publish(&self, topic: &'static str, key: Option<&str>, value: &Value) {
        self.producer
            .publish(Message::new(topic, key.map(str::to_owned), value.to_string().into_bytes()))
            .await
            .unwrap();
    }

    /// Waits for the outcome of a notification.
    pub async fn outcome(&self, notification: &str) -> Value {
        let found = async {
            loop {
                let record = self.outcomes.recv().await.unwrap();
                let outcome: Value = serde_json::from_slice(record.payload().unwrap()).unwrap();
                if outcome["notificationId"] == notification {
                    return outcome;
                }
            }
        };
        timeout(WAIT_MAX, found).await.unwrap_or_else(|_| panic!("no outcome of {notification}"))
    }

    /// All outcomes published so far that [`World::outcome`] has not read.
    pub async fn outcomes_so_far(&self) -> Vec<Value> {
        let mut outcomes = Vec::new();
        while let Ok(record) = timeout(Duration::from_secs(1), self.outcomes.recv()).await {
            outcomes.push(serde_json::from_slice(record.unwrap().payload().unwrap()).unwrap());
        }
        outcomes
    }

    /// Sets how long both providers take to answer.
    pub async fn latency(&self, latency: &str) {
        let fault = json!({ "latency": latency, "tokens": [] });
        let faults = json!({ "expo": fault, "fcm": fault }).to_string();
        let put = self
            .http
            .put(format!("{}/sandbox/faults", self.sandbox_url))
            .header("content-type", "application/json");
        put.body(faults).send().await.unwrap().error_for_status().unwrap();
    }

    /// Resets the statistics of the sandbox.
    pub async fn reset(&self) {
        self.http
            .post(format!("{}/sandbox/reset", self.sandbox_url))
            .send()
            .await
            .unwrap()
            .error_for_status()
            .unwrap();
    }

    /// The statistics of a provider since the last reset.
    pub async fn seen(&self, provider: &str) -> Value {
        let text = self
            .http
            .get(format!("{}/sandbox/statistics", self.sandbox_url))
            .send()
            .await
            .unwrap()
            .text()
            .await
            .unwrap();
        serde_json::from_str::<BTreeMap<String, Value>>(&text).unwrap().remove(provider).unwrap()
    }

    /// Messages per second between the provider's first and its last. Checks that there were so many, and no
    /// duplicates.
    pub async fn rate(&self, provider: &str, messages: u64) -> f64 {
        let seen = self.seen(provider).await;
        assert_eq!((&seen["taken"], &seen["doubles"]), (&json!(messages), &json!(0)), "{seen:#}");
        let at = |key: &str| seen[key].as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
        messages as f64 / at("lastAt").duration_since(at("firstAt")).as_secs_f64()
    }

    pub async fn until(&self, what: &str, condition: impl AsyncFn() -> bool) {
        let holds = async {
            while !condition().await {
                sleep(Duration::from_millis(50)).await;
            }
        };
        timeout(WAIT_MAX, holds).await.unwrap_or_else(|_| panic!("waited in vain for: {what}"));
    }
}

fn outcomes(bootstrap_servers: &str) -> StreamConsumer {
    let mut client = ClientConfig::new();
    client.set("bootstrap.servers", bootstrap_servers).set("group.id", "bench").set("fetch.wait.max.ms", "5");
    let consumer: StreamConsumer = client.create().unwrap();
    let mut assignment = TopicPartitionList::new();
    let metadata = consumer.fetch_metadata(Some(topics::PUSH_OUTCOMES), WAIT_MAX).unwrap();
    for partition in metadata.topics()[0].partitions() {
        assignment.add_partition_offset(topics::PUSH_OUTCOMES, partition.id(), Offset::Beginning).unwrap();
    }
    consumer.assign(&assignment).unwrap();
    consumer
}
