//! What a topic and a subscription are, for [`admin`](crate::admin). Which there are is the host's to say.

use std::time::Duration;

/// A topic as [`admin::init`](crate::admin::init) creates it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Topic {
    /// Its name.
    pub name: &'static str,
    /// How many partitions.
    pub partitions: i32,
    /// How long records are kept.
    pub retention: Duration,
    /// Whose clock stamps a record.
    pub timestamp_type: TimestampType,
}

/// Whose clock stamps a record: the value of `message.timestamp.type`.
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
    /// What it reads.
    pub topic: &'static str,
    /// Where its group starts, the first time.
    pub from: FirstOffset,
}

/// Where a group starts to read a topic when it has no committed offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FirstOffset {
    /// With everything there is.
    Beginning,
    /// With what comes next.
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
    /// The value of `message.timestamp.type`.
    pub fn label(self) -> &'static str {
        match self {
            Self::CreateTime => "CreateTime",
            Self::LogAppendTime => "LogAppendTime",
        }
    }
}
