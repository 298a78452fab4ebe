//! The Kafka adapter: consumer runtime, producer, admin, and the embedded broker.
//!
//! [`Stage`] runs a [`Handler`](crate::stream::Handler) over its topics, [`Producer`] writes, [`admin`]
//! prepares and checks the topics, [`mock`] is a broker inside the process for the demo and for tests.
//!
//! **Invariant:** nothing outside this folder knows librdkafka.

use std::{collections::BTreeMap, time::Duration};

use serde::Deserialize;

pub mod admin;
mod client;
mod consumer;
pub mod mock;
mod producer;
pub mod topics;

pub use self::{
    client::ClientError,
    consumer::{Assignment, Stage, StageError, StageSpec, TopicPartition},
    producer::Producer,
};

/// `[kafka]` of config/default.toml.
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
    /// The consumer group of a stage.
    pub fn group_of(&self, stage: &str) -> String {
        format!("{}.{stage}", self.group_prefix)
    }
}
