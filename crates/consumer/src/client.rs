//! How librdkafka is configured: the properties of each kind of client, and where its log lines go.
//!
//! The numbers are chosen for a service that reads many partitions, and slowly at times: small fetch queues
//! (they are *per partition* once queues are split), and a short backoff so that small queues don't cost
//! throughput. [`Settings::properties`] override all of it.

use std::time::Duration;

use rdkafka::{
    ClientConfig,
    config::RDKafkaLogLevel,
    error::{KafkaError, RDKafkaErrorCode},
};
use tracing::{debug, error, info, warn};

use super::{GroupProtocol, Settings};

/// What a rebalance needs beside the drain: a commit, an answer and the heartbeat that carries it.
const REBALANCE_MARGIN: Duration = Duration::from_secs(40);

/// A Kafka client could not be created: a property is wrong, or the machine is out of memory or threads.
#[derive(Debug, thiserror::Error)]
#[error("the Kafka {kind} could not be created, check its properties")]
pub struct ClientError {
    /// `producer`, `consumer`, `admin client`.
    pub kind: &'static str,
    /// librdkafka's error.
    pub source: KafkaError,
}

/// A stage with fewer records in flight than this gets small fetch queues.
const FEW_IN_FLIGHT: usize = 256;

/// The consumer of a stage with that many records in flight. One with few, because each of them waits long,
/// fetches little ahead: the queue of each partition would always be full.
pub(super) fn consumer(settings: &Settings, group: &str, in_flight: usize) -> ClientConfig {
    let queued_kib = if in_flight < FEW_IN_FLIGHT { "128" } else { "512" };
    let mut config = shared(settings);
    config
        .set("group.id", group)
        // Only the coordinator commits: librdkafka must not, nor store offsets for a commit.
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        // Never `latest`: after an expired offset everything in the topic would silently be skipped.
        .set("auto.offset.reset", "earliest")
        .set("isolation.level", "read_committed")
        .set("max.poll.interval.ms", millis(max_poll_interval(settings)))
        .set("fetch.queue.backoff.ms", "10")
        .set("queued.max.messages.kbytes", queued_kib)
        .set("queued.min.messages", "1000")
        .set("fetch.message.max.bytes", "131072")
        .set("fetch.max.bytes", "4194304")
        .set("fetch.wait.max.ms", "100")
        .set("fetch.min.bytes", "1")
        .set("check.crcs", "true")
        .set("statistics.interval.ms", "10000")
        .set("allow.auto.create.topics", "false");
    match settings.group_protocol {
        GroupProtocol::Classic => config
            .set("group.protocol", "classic")
            .set("partition.assignment.strategy", "cooperative-sticky")
            .set("session.timeout.ms", millis(settings.session_timeout))
            .set("heartbeat.interval.ms", millis(settings.session_timeout / 3)),
        // Session and heartbeat are broker settings then, and librdkafka refuses them here.
        GroupProtocol::Consumer => config.set("group.protocol", "consumer"),
    };
    if !settings.instance_id.is_empty() {
        config.set("group.instance.id", &settings.instance_id);
    }
    overlay(config, settings)
}

/// The producer.
pub(super) fn producer(settings: &Settings) -> ClientConfig {
    let mut config = shared(settings);
    config
        .set("enable.idempotence", "true")
        .set("acks", "all")
        .set("message.timeout.ms", "30000")
        .set("queue.buffering.max.messages", "20000")
        .set("queue.buffering.max.kbytes", "65536")
        .set("linger.ms", "5")
        .set("compression.codec", "lz4")
        // Java's default. librdkafka's own would put a key into another partition than other producers do.
        .set("partitioner", "murmur2_random");
    overlay(config, settings)
}

/// The client for topics and first offsets.
pub(super) fn admin(settings: &Settings) -> ClientConfig {
    overlay(shared(settings), settings)
}

/// A consumer that never joins its group: it reads and commits the group's offsets.
pub(super) fn group_offsets(settings: &Settings, group: &str) -> ClientConfig {
    let mut config = shared(settings);
    config.set("group.id", group).set("enable.auto.commit", "false");
    overlay(config, settings)
}

/// The longest time between two polls before librdkafka leaves the group. It is also how long a rebalance may
/// take, so it has to outlast the drain; and it may not be shorter than a session.
fn max_poll_interval(settings: &Settings) -> Duration {
    (settings.drain_timeout + REBALANCE_MARGIN).max(settings.session_timeout)
}

fn shared(settings: &Settings) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", &settings.bootstrap_servers)
        .set("client.id", &settings.group_prefix)
        .set("socket.keepalive.enable", "true")
        // With the default, a classic member would not notice an added partition for five minutes.
        .set("topic.metadata.refresh.interval.ms", "30000");
    config
}

fn overlay(mut config: ClientConfig, settings: &Settings) -> ClientConfig {
    // By default rdkafka asks the `log` crate, which is not used here. The filter of `tracing` decides.
    let asked_for_debug = settings.properties.contains_key("debug");
    config.set_log_level(if asked_for_debug { RDKafkaLogLevel::Debug } else { RDKafkaLogLevel::Info });
    for (name, value) in &settings.properties {
        config.set(name, value);
    }
    config
}

fn millis(duration: Duration) -> String {
    duration.as_millis().to_string()
}

/// The code inside an error, if librdkafka reported one.
pub(super) fn code_of(error: &KafkaError) -> Option<RDKafkaErrorCode> {
    error.rdkafka_error_code()
}

/// Logs a log line of librdkafka.
pub(super) fn log(level: RDKafkaLogLevel, facility: &str, message: &str) {
    match level {
        // The settings' properties go to all kinds of clients, and each kind warns of those it has no use
        // for.
        _ if facility == "CONFWARN" => debug!(facility, "librdkafka: {message}"),
        RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical => {
            error!(facility, "librdkafka: {message}")
        }
        RDKafkaLogLevel::Error | RDKafkaLogLevel::Warning => warn!(facility, "librdkafka: {message}"),
        RDKafkaLogLevel::Notice | RDKafkaLogLevel::Info => info!(facility, "librdkafka: {message}"),
        RDKafkaLogLevel::Debug => debug!(facility, "librdkafka: {message}"),
    }
}

#[cfg(test)]
mod tests {
    use rdkafka::{
        consumer::{BaseConsumer, Consumer},
        producer::BaseProducer,
    };

    use super::*;

    fn settings(group_protocol: GroupProtocol) -> Settings {
        Settings {
            group_protocol,
            in_flight: 16,
            in_flight_bytes: 1 << 20,
            span: 100,
            ..Settings::new("127.0.0.1:1", "app")
        }
    }

    #[test]
    fn librdkafka_accepts_our_properties_under_either_protocol() {
        for protocol in [GroupProtocol::Classic, GroupProtocol::Consumer] {
            let consumer: BaseConsumer = consumer(&settings(protocol), "g", 4_096).create().unwrap();
            assert_eq!(consumer.client().fatal_error(), None);
        }
        let _producer: BaseProducer = producer(&settings(GroupProtocol::Classic)).create().unwrap();
    }

    #[test]
    fn a_property_of_the_settings_overrides_ours() {
        let mut settings = settings(GroupProtocol::Classic);
        settings.properties.insert("fetch.wait.max.ms".into(), "5".into());
        assert_eq!(consumer(&settings, "g", 4_096).get("fetch.wait.max.ms"), Some("5"));
    }

    #[test]
    fn a_stage_with_few_records_in_flight_fetches_little_ahead() {
        let queued = |in_flight| {
            let consumer = consumer(&settings(GroupProtocol::Classic), "g", in_flight);
            consumer.get("queued.max.messages.kbytes").map(str::to_owned).unwrap().parse::<u32>().unwrap()
        };
        assert!(queued(64) < queued(4_096));
    }
}
