//! What a topic and a subscription are, for [`admin`](crate::admin). The host decides which there are.

use std::time::Duration;

/// A topic as [`admin::init`](crate::admin::init) creates it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Topic {
    /// Its name.
    pub name: &'static str,
    /// How many partitions.
    pub partitions: i32,
    /// How long records are kept: `retention.ms`.
    pub retention: Duration,
    /// Which clock stamps its records.
    pub timestamp_type: TimestampType,
}

/// Which clock stamps a record: the value of `message.timestamp.type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimestampType {
    /// The producer's.
    CreateTime,
    /// The broker's.
    LogAppendTime,
}

/// A stage reads a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subscription {
    /// The stage's name.
    pub stage: &'static str,
    /// The topic's name.
    pub topic: &'static str,
    /// Where the group's first committed offset points.
    pub from: FirstOffset,
}

/// Where a group starts to read a topic when it has no committed offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FirstOffset {
    /// With the oldest record.
    Beginning,
    /// With the next record that is written.
    End,
}

impl FirstOffset {
    /// `beginning` or `end`.
    pub fn label(self) -> &'static str {
        match self {
            Self::Beginning => "beginning",
            Self::End => "end",
        }
    }
}

impl TimestampType {
    /// `CreateTime` or `LogAppendTime`.
    pub fn label(self) -> &'static str {
        match self {
            Self::CreateTime => "CreateTime",
            Self::LogAppendTime => "LogAppendTime",
        }
    }
}
