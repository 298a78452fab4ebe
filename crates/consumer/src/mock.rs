//! A Kafka broker inside the process, for `demo`, `sandbox --kafka` and tests: librdkafka's mock cluster. It
//! speaks the real protocol on a port of 127.0.0.1, so `kcat` and other clients made of librdkafka can talk
//! to it. Java's (4.1.1) can't: they give up on its metadata and start over, for ever.
//!
//! It is not Kafka. It keeps 5 MiB a partition and silently drops what is older, forgets everything when it
//! is dropped, creates topics only through [`Broker`] (or, with four partitions, for a producer that writes
//! to an unknown one), and a classic group takes most of a session time-out to let a second member in. One
//! member per group forms at once.

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

/// Kafka waits three seconds for more members before it deals for the first time; nobody else is coming here.
const FIRST_DEAL_DELAY_MS: i32 = 50;

/// The protocol's number of KIP-848's only request.
const CONSUMER_GROUP_HEARTBEAT: i16 = 68;

/// The broker. It ends when it is dropped, and with it all that was written to it.
pub struct Broker(Client<Quiet>);

/// The broker could not be started, or refused what it was asked.
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
    /// No port, no memory, or a topic twice.
    pub fn start<'a>(topics: impl IntoIterator<Item = (&'a str, i32)>) -> Result<Self, MockError> {
        // The cluster belongs to a client that does nothing else. rdkafka's own `MockCluster::new` keeps its
        // pointer to itself, is not `Send`, and so could not have its patience shortened.
        let mut config = ClientConfig::new();
        config.set("test.mock.num.brokers", "1").set("client.id", "embedded-broker");
        let client = config
            .create_native_config()
            .and_then(|native| Client::new(&config, native, RDKafkaType::RD_KAFKA_PRODUCER, Quiet))
            .map_err(|source| MockError { what: "does not start", source })?;
        let broker = Self(client);
        broker.shorten_first_deal();
        for (name, partitions) in topics {
            broker.create_topic(name, partitions)?;
        }
        Ok(broker)
    }

    /// Where it listens, as `kafka.bootstrap_servers` wants it.
    pub fn bootstrap_servers(&self) -> String {
        self.cluster().map(|cluster| cluster.bootstrap_servers()).unwrap_or_default()
    }

    /// `kafka.properties` that suit it: it does not wake a waiting fetch when something is written.
    pub fn properties() -> BTreeMap<String, String> {
        BTreeMap::from(
            [("fetch.wait.max.ms", "5"), ("linger.ms", "0")]
                .map(|(name, value)| (name.to_owned(), value.to_owned())),
        )
    }

    /// Creates a topic.
    ///
    /// # Errors
    /// It exists.
    pub fn create_topic(&self, name: &str, partitions: i32) -> Result<(), MockError> {
        self.ask("does not create a topic", |cluster| cluster.create_topic(name, partitions, 1))
    }

    /// Goes away: breaks all connections and takes no new ones. What was written stays.
    ///
    /// # Errors
    /// The mock cluster refuses.
    pub fn go_away(&self) -> Result<(), MockError> {
        self.ask("does not go away", |cluster| cluster.broker_down(-1))
    }

    /// Comes back after [`Broker::go_away`].
    ///
    /// # Errors
    /// The mock cluster refuses.
    pub fn come_back(&self) -> Result<(), MockError> {
        self.ask("does not come back", |cluster| cluster.broker_up(-1))
    }

    /// Answers the next writes to topics with these errors, one each.
    pub fn refuse_writes(&self, errors: &[RDKafkaRespErr]) {
        if let Some(cluster) = self.cluster() {
            cluster.request_errors(RDKafkaApiKey::Produce, errors);
        }
    }

    /// Answers the next signs of life of KIP-848 members with these errors, one each; the first sign is the
    /// joining.
    pub fn refuse_heartbeats(&self, errors: &[RDKafkaRespErr]) {
        #[expect(
            unsafe_code,
            reason = "rdkafka has no safe name for this kind of request; the cluster lives as long as its client"
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

    /// How often members of a KIP-848 group show that they are alive, and so how fast such a group deals. For
    /// groups that form after this call.
    pub fn heartbeat_every(&self, interval: Duration) {
        let interval_ms = i32::try_from(interval.as_millis()).unwrap_or(i32::MAX);
        #[expect(
            unsafe_code,
            reason = "rdkafka has no safe name for it; the cluster lives as long as its client, which is ours"
        )]
        // SAFETY: the client was made with `test.mock.num.brokers`, so it has a cluster, which it frees when
        // it is dropped.
        unsafe {
            rd_kafka_mock_set_group_consumer_heartbeat_interval_ms(
                rd_kafka_handle_mock_cluster(self.0.native_ptr()),
                interval_ms,
            );
        }
    }

    fn shorten_first_deal(&self) {
        #[expect(
            unsafe_code,
            reason = "rdkafka has no safe name for it; the cluster lives as long as its client, which is ours"
        )]
        // SAFETY: as in `heartbeat_every`.
        unsafe {
            rd_kafka_mock_group_initial_rebalance_delay_ms(
                rd_kafka_handle_mock_cluster(self.0.native_ptr()),
                FIRST_DEAL_DELAY_MS,
            );
        }
    }

    fn ask(
        &self,
        what: &'static str,
        ask: impl FnOnce(&MockCluster<'_, Quiet>) -> Result<(), KafkaError>,
    ) -> Result<(), MockError> {
        let cluster = self.cluster().ok_or(MockError { what: "is gone", source: KafkaError::Canceled })?;
        ask(&cluster).map_err(|source| MockError { what, source })
    }

    fn cluster(&self) -> Option<MockCluster<'_, Quiet>> {
        self.0.mock_cluster()
    }
}

impl fmt::Debug for Broker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Broker").field(&self.bootstrap_servers()).finish()
    }
}

/// The cluster's client has nothing to say of its own.
struct Quiet;

impl ClientContext for Quiet {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        log(level, facility, message);
    }
}
