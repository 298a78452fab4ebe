//! Every stage and every topic, once: what `init` creates, `run` reads, `check` looks for, the embedded
//! broker starts with and the docs list. The topics' names are [`events::topics`](crate::events::topics)'.

use std::collections::BTreeMap;

use consumer::{
    DeadLetters, FirstOffset, Settings, StageSpec, Subscription, TimestampType, Topic,
    admin::{self, AdminError},
    mock::{Broker, MockError},
};

use crate::{
    domain::{Lane, ProviderId, limits},
    events::topics as names,
};

/// A stage: a consumer group and what it reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StageEntry {
    /// Its name, in metrics and logs; its consumer group is `<kafka.group_prefix>.<name>`.
    pub name: &'static str,
    /// What it reads, and where its group starts the first time.
    pub reads: &'static [(&'static str, FirstOffset)],
}

/// Applies the events of tokens.
pub const TOKENS: StageEntry =
    StageEntry { name: "tokens", reads: &[(names::DEVICE_TOKENS, FirstOffset::Beginning)] };
/// Plans broadcasts. A first start must not notify of yesterday's posts.
pub const POSTS: StageEntry =
    StageEntry { name: "posts", reads: &[(names::POSTS_CREATED, FirstOffset::End)] };
/// Keeps regimens and dispatches doses.
pub const MEDICATION: StageEntry = StageEntry {
    name: "medication",
    reads: &[
        (names::MEDICATION_REGIMENS, FirstOffset::Beginning),
        (names::MEDICATION_TICKS, FirstOffset::End),
    ],
};
/// Sends reminders through Expo.
pub const DELIVERY_EXPO_URGENT: StageEntry =
    StageEntry { name: "delivery.expo.urgent", reads: &[(names::PUSH_EXPO_URGENT, FirstOffset::Beginning)] };
/// Sends broadcasts through Expo.
pub const DELIVERY_EXPO_BULK: StageEntry =
    StageEntry { name: "delivery.expo.bulk", reads: &[(names::PUSH_EXPO_BULK, FirstOffset::Beginning)] };
/// Sends reminders through FCM.
pub const DELIVERY_FCM_URGENT: StageEntry =
    StageEntry { name: "delivery.fcm.urgent", reads: &[(names::PUSH_FCM_URGENT, FirstOffset::Beginning)] };
/// Sends broadcasts through FCM.
pub const DELIVERY_FCM_BULK: StageEntry =
    StageEntry { name: "delivery.fcm.bulk", reads: &[(names::PUSH_FCM_BULK, FirstOffset::Beginning)] };
/// Asks Expo for receipts.
pub const RECEIPTS: StageEntry =
    StageEntry { name: "receipts", reads: &[(names::EXPO_RECEIPTS, FirstOffset::Beginning)] };
/// Revokes dead tokens.
pub const CLEANUP: StageEntry =
    StageEntry { name: "cleanup", reads: &[(names::INVALID_TOKENS, FirstOffset::Beginning)] };

/// Every stage, in the order in which a notification passes them.
pub const STAGES: [StageEntry; 9] = [
    TOKENS,
    POSTS,
    MEDICATION,
    DELIVERY_EXPO_URGENT,
    DELIVERY_EXPO_BULK,
    DELIVERY_FCM_URGENT,
    DELIVERY_FCM_BULK,
    RECEIPTS,
    CLEANUP,
];

/// How many partitions `dead-letters` has: operators read it, no consumer group.
const DEAD_LETTER_PARTITIONS: i32 = 4;

/// The stage that delivers this lane of this provider.
pub fn delivery(provider: ProviderId, lane: Lane) -> StageEntry {
    match (provider, lane) {
        (ProviderId::Expo, Lane::Urgent) => DELIVERY_EXPO_URGENT,
        (ProviderId::Expo, Lane::Bulk) => DELIVERY_EXPO_BULK,
        (ProviderId::Fcm, Lane::Urgent) => DELIVERY_FCM_URGENT,
        (ProviderId::Fcm, Lane::Bulk) => DELIVERY_FCM_BULK,
    }
}

/// All topics, with `partitions` (`kafka.partitions`) each.
pub fn topics(partitions: i32) -> Vec<Topic> {
    let topic =
        |name, retention| Topic { name, partitions, retention, timestamp_type: TimestampType::CreateTime };
    vec![
        // A token's versions are made of timestamps, and the clocks of phones and upstreams are not trusted.
        Topic {
            timestamp_type: TimestampType::LogAppendTime,
            ..topic(names::DEVICE_TOKENS, limits::DEVICE_TOKENS_RETENTION)
        },
        topic(names::POSTS_CREATED, limits::POSTS_CREATED_RETENTION),
        topic(names::MEDICATION_REGIMENS, limits::MEDICATION_REGIMENS_RETENTION),
        topic(names::MEDICATION_TICKS, limits::MEDICATION_TICKS_RETENTION),
        topic(names::PUSH_EXPO_URGENT, limits::PUSH_RETENTION),
        topic(names::PUSH_EXPO_BULK, limits::PUSH_RETENTION),
        topic(names::PUSH_FCM_URGENT, limits::PUSH_RETENTION),
        topic(names::PUSH_FCM_BULK, limits::PUSH_RETENTION),
        topic(names::EXPO_RECEIPTS, limits::EXPO_RECEIPTS_RETENTION),
        topic(names::INVALID_TOKENS, limits::INVALID_TOKENS_RETENTION),
        topic(names::PUSH_OUTCOMES, limits::PUSH_OUTCOMES_RETENTION),
        Topic {
            partitions: DEAD_LETTER_PARTITIONS,
            ..topic(names::DEAD_LETTERS, limits::DEAD_LETTERS_RETENTION)
        },
    ]
}

/// Which stage reads which topic. `push-outcomes` and `dead-letters` are for others.
pub fn subscriptions() -> Vec<Subscription> {
    let of = |stage: &'static StageEntry| {
        stage.reads.iter().map(|&(topic, from)| Subscription { stage: stage.name, topic, from })
    };
    STAGES.iter().flat_map(of).collect()
}

/// An embedded broker with all topics.
///
/// # Errors
/// No port, no memory.
pub fn embedded_broker(partitions: i32) -> Result<Broker, MockError> {
    Broker::start(topics(partitions).iter().map(|topic| (topic.name, topic.partitions)))
}

/// Checks that all topics exist, and returns how many partitions each has.
///
/// # Errors
/// Kafka is unreachable, or topics are missing; the error says what to do.
pub async fn check(settings: &Settings) -> anyhow::Result<BTreeMap<String, usize>> {
    let names = names::ALL;
    admin::check_topics(settings, names).await.map_err(|error| match error {
        AdminError::Missing(_) => anyhow::anyhow!("{error}: run `pushcast init`"),
        other => other.into(),
    })
}

// === impl StageEntry ===

impl StageEntry {
    /// The stage as the runtime takes it.
    pub fn spec(&self, in_flight: usize) -> StageSpec {
        StageSpec {
            name: self.name.to_owned(),
            topics: self.reads.iter().map(|(topic, _)| (*topic).to_owned()).collect(),
            in_flight,
            dead_letters: dead_letters(),
        }
    }
}

/// Where and how our stages write dead letters.
pub fn dead_letters() -> DeadLetters {
    DeadLetters {
        topic: names::DEAD_LETTERS.to_owned(),
        header_prefix: "pushcast.".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_topic_that_is_read_is_created_and_only_outcomes_and_dead_letters_are_for_others() {
        let topics = topics(16);
        let created: BTreeSet<_> = topics.iter().map(|topic| topic.name).collect();
        let read: BTreeSet<_> = subscriptions().iter().map(|reads| reads.topic).collect();
        assert_eq!(created.len(), topics.len(), "each topic is created once");
        assert_eq!(created, BTreeSet::from(names::ALL));
        assert!(read.is_subset(&created));
        assert_eq!(created.difference(&read).collect::<Vec<_>>(), [&"dead-letters", &"push-outcomes"]);
    }

    #[test]
    fn a_first_start_notifies_of_nothing_that_is_past() {
        let from_the_end: Vec<_> = subscriptions()
            .into_iter()
            .filter(|reads| reads.from == FirstOffset::End)
            .map(|reads| reads.topic)
            .collect();
        assert_eq!(from_the_end, ["posts-created", "medication-ticks"]);
    }

    #[test]
    fn run_reads_exactly_what_init_prepares() {
        let run: BTreeSet<_> = STAGES
            .iter()
            .flat_map(|stage| {
                let spec = stage.spec(1);
                spec.topics.into_iter().map(move |topic| (spec.name.clone(), topic))
            })
            .collect();
        let init: BTreeSet<_> = subscriptions()
            .into_iter()
            .map(|reads| (reads.stage.to_owned(), reads.topic.to_owned()))
            .collect();
        assert_eq!(run, init);
    }

    #[test]
    fn the_deployment_chooses_the_partitions_and_dead_letters_keep_theirs() {
        let partitions: BTreeSet<_> = topics(64)
            .iter()
            .filter(|topic| topic.name != "dead-letters")
            .map(|topic| topic.partitions)
            .collect();
        assert_eq!(partitions, BTreeSet::from([64]));
        assert_eq!(topics(64).last().map(|topic| topic.partitions), Some(4));
    }
}
