//! The topics, and who reads them from where. The meaning of each is in README.md and `events`.

use std::time::Duration;

/// A topic as `pushcast init` creates it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Topic {
    /// Its name.
    pub name: &'static str,
    /// How many partitions.
    pub partitions: i32,
    /// How long records are kept.
    pub retention: Duration,
    /// Whose clock stamps a record.
    pub stamp: Stamp,
}

/// Whose clock stamps a record: the value of `message.timestamp.type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stamp {
    /// The producer's.
    CreateTime,
    /// The broker's. A token's versions are made of timestamps, and phones' and upstreams' clocks are not to
    /// be trusted.
    LogAppendTime,
}

/// A stage reads a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subscription {
    /// Who: the stage's name.
    pub stage: &'static str,
    /// What.
    pub topic: &'static str,
    /// Where its group begins, the first time.
    pub from: From,
}

/// Where a group begins to read a topic, the first time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    /// With everything there is.
    Beginning,
    /// With what comes next: a first start must not ring yesterday.
    End,
}

/// All topics.
pub const TOPICS: [Topic; 12] = [
    Topic { stamp: Stamp::LogAppendTime, ..topic("device-tokens", 16, 30) },
    topic("posts-created", 16, 7),
    topic("medication-regimens", 16, 30),
    topic("medication-ticks", 16, 1),
    topic("push.expo.urgent", 16, 3),
    topic("push.expo.bulk", 16, 3),
    topic("push.fcm.urgent", 16, 3),
    topic("push.fcm.bulk", 16, 3),
    topic("expo-receipts", 16, 3),
    topic("invalid-tokens", 16, 7),
    topic("push-outcomes", 16, 7),
    topic("dead-letters", 4, 30),
];

/// Who reads what. `push-outcomes` and `dead-letters` are for others.
pub const SUBSCRIPTIONS: [Subscription; 10] = [
    reads("tokens", "device-tokens", From::Beginning),
    reads("posts", "posts-created", From::End),
    reads("medication", "medication-regimens", From::Beginning),
    reads("medication", "medication-ticks", From::End),
    reads("delivery.expo.urgent", "push.expo.urgent", From::Beginning),
    reads("delivery.expo.bulk", "push.expo.bulk", From::Beginning),
    reads("delivery.fcm.urgent", "push.fcm.urgent", From::Beginning),
    reads("delivery.fcm.bulk", "push.fcm.bulk", From::Beginning),
    reads("receipts", "expo-receipts", From::Beginning),
    reads("cleanup", "invalid-tokens", From::Beginning),
];

/// The topics that a stage reads.
pub fn read_by(stage: &str) -> Vec<String> {
    SUBSCRIPTIONS.iter().filter(|reads| reads.stage == stage).map(|reads| reads.topic.to_owned()).collect()
}

const fn topic(name: &'static str, partitions: i32, days: u64) -> Topic {
    Topic { name, partitions, retention: Duration::from_secs(days * 24 * 60 * 60), stamp: Stamp::CreateTime }
}

const fn reads(stage: &'static str, topic: &'static str, from: From) -> Subscription {
    Subscription { stage, topic, from }
}

impl From {
    /// `beginning` or `end`.
    pub fn label(self) -> &'static str {
        match self {
            Self::Beginning => "beginning",
            Self::End => "end",
        }
    }
}

impl Stamp {
    /// The value of `message.timestamp.type`.
    pub fn label(self) -> &'static str {
        match self {
            Self::CreateTime => "CreateTime",
            Self::LogAppendTime => "LogAppendTime",
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn whatever_is_read_is_also_created_and_only_outcomes_and_dead_letters_are_for_others() {
        let created: BTreeSet<_> = TOPICS.iter().map(|topic| topic.name).collect();
        let read: BTreeSet<_> = SUBSCRIPTIONS.iter().map(|reads| reads.topic).collect();
        assert_eq!(created.len(), TOPICS.len(), "each once");
        assert!(read.is_subset(&created));
        assert_eq!(created.difference(&read).collect::<Vec<_>>(), [&"dead-letters", &"push-outcomes"]);
    }

    #[test]
    fn a_first_start_rings_nothing_of_yesterday() {
        let from_the_end: Vec<_> =
            SUBSCRIPTIONS.iter().filter(|reads| reads.from == From::End).map(|reads| reads.topic).collect();
        assert_eq!(from_the_end, ["posts-created", "medication-ticks"]);
    }
}
