#![doc = include_str!("../README.md")]
//!
//! **Invariant:** nothing outside this crate knows librdkafka.

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
    stream::{Fate, Handler, Header, LaneKey, Message, Publish, Record},
    topics::{FirstOffset, Subscription, TimestampType, Topic},
};

/// How to reach Kafka, and how to consume from it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "config/default.toml is the manual")]
pub struct Settings {
    pub bootstrap_servers: String,
    pub instance_id: String,
    pub group_prefix: String,
    pub group_protocol: GroupProtocol,
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required")]
    pub session_timeout: Duration,
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required")]
    pub drain_timeout: Duration,
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required")]
    pub commit_every: Duration,
    pub in_flight: usize,
    pub in_flight_bytes: usize,
    pub span: usize,
    pub partitions: i32,
    pub replication_factor: i32,
    pub properties: BTreeMap<String, String>,
}

/// How members of a group agree on who reads what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GroupProtocol {
    /// The classic protocol with cooperative-sticky assignment.
    Classic,
    /// KIP-848, brokers from 4.0.
    Consumer,
}

impl Settings {
    /// Settings that suit most: classic protocol, a session of 10 s, a drain of 20 s, commits every second, 4,096
    /// records and 64 MiB in flight, 10,000 records ahead of the oldest unfinished one, topics of 16 partitions
    /// with as many copies as there are brokers, at most three.
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
