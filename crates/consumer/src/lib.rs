#![doc = include_str!("../README.md")]
//!
//! # Where to start
//! - [`Handler`] and [`Fate`]: what a stage does with a [`Record`], and how that ends.
//! - [`Stage`], [`StageSpec`] and [`Settings`]: running it. [`Assignment`]: what it is assigned, for
//!   readiness checks.
//! - [`Producer`], behind [`Publish`]: writing to topics.
//! - [`admin`]: topics and first offsets. [`mock`]: a broker inside the process, for tests.

use std::{collections::BTreeMap, time::Duration};

use serde::Deserialize;

pub mod admin;
mod client;
mod consumer;
mod error;
mod log_throttle;
mod metrics;
pub mod mock;
mod producer;
mod stream;
mod topics;

pub use self::{
    client::ClientError,
    consumer::{Assignment, DeadLetters, Stage, StageError, StageSpec, TopicPartition},
    error::{BoxError, Cause, HandlerError, PublishError, Rejected, Unavailable},
    log_throttle::LogThrottle,
    metrics::ConsumerMetrics,
    producer::Producer,
    stream::{Fate, Handler, Header, Message, OrderingKey, Publish, Record},
    topics::{FirstOffset, Subscription, TimestampType, Topic},
};

/// How to reach Kafka, and how to consume from it. [`Settings::new`] has the defaults named here;
/// deserialized settings name every field, durations as `"10s"`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Where Kafka is: `host:port`, several separated by commas.
    pub bootstrap_servers: String,
    /// `group.instance.id`: a name that the process keeps over restarts and shares with no other. A restarted
    /// process then gets its partitions back without a rebalance. Empty, the default: a dynamic member.
    pub instance_id: String,
    /// Put before the name of every consumer group (`<group_prefix>.<stage>`); also the client id.
    pub group_prefix: String,
    /// How the group assigns partitions. Default: [`GroupProtocol::Classic`].
    pub group_protocol: GroupProtocol,
    /// After that long without a heartbeat the group reassigns a member's partitions. Classic protocol
    /// only: under KIP-848 the broker's `group.consumer.session.timeout.ms` counts. Here it also sets how
    /// often an idle stage asks whether it is still a member (a quarter of it), and how long the last commit
    /// of a revoked partition may take (half of it). Default: 10 s.
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required")]
    pub session_timeout: Duration,
    /// How long running handlers are awaited when their partition is revoked or the stage stops; then they
    /// are aborted. Meanwhile the whole member reads nothing. Default: 20 s.
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required")]
    pub drain_timeout: Duration,
    /// The interval of commits. Default: 1 s.
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required")]
    pub commit_every: Duration,
    /// For the host, as the [`StageSpec::in_flight`] of stages that have no limit of their own: the runtime
    /// does not read it. Default: 4,096 records.
    pub in_flight: usize,
    /// Bytes of the unsettled records of one stage, over all its partitions; a larger record is handled
    /// alone. Default: 64 MiB.
    pub in_flight_bytes: usize,
    /// How many records a partition may read from its oldest unsettled one on, that one included. After a
    /// crash these may be handled again, and what was settled since the last commit. Default: 10,000.
    pub span: usize,
    /// For the host, as the [`Topic::partitions`] of topics that it creates: the runtime does not read it.
    /// Default: 16.
    pub partitions: i32,
    /// Replicas of each topic that [`admin::init`] creates. 0, the default: the smaller of 3 and the number
    /// of brokers.
    pub replication_factor: i32,
    /// Properties of librdkafka for producers, consumers and the admin client alike. They override those that
    /// the runtime sets, and some must stay as they are or records are lost: `group.id`,
    /// `enable.auto.commit`, `enable.auto.offset.store`, `auto.offset.reset`. Default: none.
    pub properties: BTreeMap<String, String>,
}

/// How the members of a group agree on who reads what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GroupProtocol {
    /// The classic protocol with cooperative-sticky assignment.
    Classic,
    /// KIP-848, brokers from 4.0.
    Consumer,
}

impl Settings {
    /// The defaults, which are those of the fields' documentation.
    pub fn new(bootstrap_servers: impl Into<String>, group_prefix: impl Into<String>) -> Self {
        Self {
            bootstrap_servers: bootstrap_servers.into(),
            instance_id: String::new(),
            group_prefix: group_prefix.into(),
            group_protocol: GroupProtocol::Classic,
            session_timeout: Duration::from_secs(10),
            drain_timeout: Duration::from_secs(20),
            commit_every: Duration::from_secs(1),
            in_flight: 4_096,
            in_flight_bytes: 64 << 20,
            span: 10_000,
            partitions: 16,
            replication_factor: 0,
            properties: BTreeMap::new(),
        }
    }

    /// The consumer group of a stage.
    pub fn group_of(&self, stage: &str) -> String {
        format!("{}.{stage}", self.group_prefix)
    }
}
