//! A Kafka broker inside the process, for tests and for trying things out: librdkafka's mock cluster. It
//! speaks the real protocol on a port of 127.0.0.1, so `kcat` and other clients built on librdkafka can use
//! it. Java's (4.1.1) can't: they reject its metadata and retry forever.
//!
//! It is not Kafka. It keeps 5 MiB of each partition and silently drops what is older, loses everything when
//! it is dropped, creates topics only through [`Broker`] (or, with four partitions, for a producer that
//! writes to an unknown one), and a classic group takes most of a session time-out to admit a second member.
//! A group of one member forms at once.

use std::{collections::BTreeMap, fmt, time::Duration};

use rdkafka::{
    ClientConfig, ClientContext,
    bindings::{
        rd_kafka_handle_mock_cluster, rd_kafka_mock_group_initial_rebalance_delay_ms,
        rd_kafka_mock_push_request_errors_array, rd_kafka_mock_set_group_consumer_heartbeat_interval_ms,
    },
    client::Client,
    config::RDKafkaLogLevel,
    error::KafkaError,
    mocking::MockCluster,
    types::{RDKafkaApiKey, RDKafkaRespErr, RDKafkaType},
};

use super::client::log;

/// Kafka waits three seconds for more members before a group's first assignment. Here mostly none follows.
const INITIAL_REBALANCE_DELAY_MS: i32 = 50;

/// The API key of KIP-848's heartbeat.
const CONSUMER_GROUP_HEARTBEAT: i16 = 68;

/// The broker. When it is dropped, it stops and what was written to it is lost.
pub struct Broker(Client<MockContext>);

/// The broker could not be started, or refused a request.
#[derive(Debug, thiserror::Error)]
#[error("the embedded Kafka broker {what}")]
pub struct MockError {
    what: &'static str,
    source: KafkaError,
}

impl Broker {
    /// Starts a broker with these topics and their numbers of partitions.
    ///
    /// # Errors
    /// No free port, no memory, or a duplicate topic.
    pub fn start<'a>(topics: impl IntoIterator<Item = (&'a str, i32)>) -> Result<Self, MockError> {
        // The cluster belongs to a client that does nothing else. rdkafka's own `MockCluster::new` keeps its
        // pointer private, so its rebalance delay could not be shortened, and it is not `Send`.
        let mut config = ClientConfig::new();
        config.set("test.mock.num.brokers", "1").set("client.id", "embedded-broker");
        let client = config
            .create_native_config()
            .and_then(|native| Client::new(&config, native, RDKafkaType::RD_KAFKA_PRODUCER, MockContext))
            .map_err(|source| MockError { what: "does not start", source })?;
        let broker = Self(client);
        broker.shorten_initial_rebalance_delay();
        for (name, partitions) in topics {
            broker.create_topic(name, partitions)?;
        }
        Ok(broker)
    }

    /// Where it listens, for [`Settings::bootstrap_servers`](crate::Settings::bootstrap_servers).
    pub fn bootstrap_servers(&self) -> String {
        self.cluster().map(|cluster| cluster.bootstrap_servers()).unwrap_or_default()
    }

    /// [`Settings::properties`](crate::Settings::properties) that suit it: short waits, because it does not
    /// wake a waiting fetch when something is written.
    pub fn properties() -> BTreeMap<String, String> {
        BTreeMap::from(
            [("fetch.wait.max.ms", "5"), ("linger.ms", "0")]
                .map(|(name, value)| (name.to_owned(), value.to_owned())),
        )
    }

    /// Creates a topic with one replica.
    ///
    /// # Errors
    /// It exists.
    pub fn create_topic(&self, name: &str, partitions: i32) -> Result<(), MockError> {
        self.ask("does not create a topic", |cluster| cluster.create_topic(name, partitions, 1))
    }

    /// Makes the broker unavailable: closes all connections and accepts no new ones. What was written is
    /// kept.
    ///
    /// # Errors
    /// The mock cluster refuses.
    pub fn take_down(&self) -> Result<(), MockError> {
        self.ask("does not go down", |cluster| cluster.broker_down(-1))
    }

    /// Makes the broker available again after [`Broker::take_down`].
    ///
    /// # Errors
    /// The mock cluster refuses.
    pub fn bring_up(&self) -> Result<(), MockError> {
        self.ask("does not come up", |cluster| cluster.broker_up(-1))
    }

    /// Answers the next produce requests with these errors, one each.
    pub fn refuse_writes(&self, errors: &[RDKafkaRespErr]) {
        if let Some(cluster) = self.cluster() {
            cluster.request_errors(RDKafkaApiKey::Produce, errors);
        }
    }

    /// Answers the next heartbeats of KIP-848 members with these errors, one each; a member joins by its
    /// first.
    pub fn refuse_heartbeats(&self, errors: &[RDKafkaRespErr]) {
        #[expect(
            unsafe_code,
            reason = "rdkafka has no safe call for this request; the cluster lives as long as its client"
        )]
        // SAFETY: as in `heartbeat_every`; the errors are copied.
        unsafe {
            let cluster = rd_kafka_handle_mock_cluster(self.0.native_ptr());
            rd_kafka_mock_push_request_errors_array(
                cluster,
                CONSUMER_GROUP_HEARTBEAT,
                errors.len(),
                errors.as_ptr(),
            );
        }
    }

    /// Answers the next commits with these errors, one each.
    pub fn refuse_commits(&self, errors: &[RDKafkaRespErr]) {
        if let Some(cluster) = self.cluster() {
            cluster.request_errors(RDKafkaApiKey::OffsetCommit, errors);
        }
    }

    /// Sets the heartbeat interval of KIP-848 groups, and so how fast these rebalance. For groups that form
    /// after this call.
    pub fn heartbeat_every(&self, interval: Duration) {
        let interval_ms = i32::try_from(interval.as_millis()).unwrap_or(i32::MAX);
        #[expect(
            unsafe_code,
            reason = "rdkafka has no safe call for it; the cluster lives as long as its client, which is ours"
        )]
        // SAFETY: the client was created with `test.mock.num.brokers`, so it has a cluster, which it frees
        // when it is dropped.
        unsafe {
            rd_kafka_mock_set_group_consumer_heartbeat_interval_ms(
                rd_kafka_handle_mock_cluster(self.0.native_ptr()),
                interval_ms,
            );
        }
    }

    fn shorten_initial_rebalance_delay(&self) {
        #[expect(
            unsafe_code,
            reason = "rdkafka has no safe call for it; the cluster lives as long as its client, which is ours"
        )]
        // SAFETY: as in `heartbeat_every`.
        unsafe {
            rd_kafka_mock_group_initial_rebalance_delay_ms(
                rd_kafka_handle_mock_cluster(self.0.native_ptr()),
                INITIAL_REBALANCE_DELAY_MS,
            );
        }
    }

    fn ask(
        &self,
        what: &'static str,
        ask: impl FnOnce(&MockCluster<'_, MockContext>) -> Result<(), KafkaError>,
    ) -> Result<(), MockError> {
        let cluster =
            self.cluster().ok_or(MockError { what: "has no cluster", source: KafkaError::Canceled })?;
        ask(&cluster).map_err(|source| MockError { what, source })
    }

    fn cluster(&self) -> Option<MockCluster<'_, MockContext>> {
        self.0.mock_cluster()
    }
}

impl fmt::Debug for Broker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Broker").field(&self.bootstrap_servers()).finish()
    }
}

/// Callbacks of the cluster's client: only its log lines are used.
struct MockContext;

impl ClientContext for MockContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        log(level, facility, message);
    }
}
