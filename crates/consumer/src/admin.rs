//! Prepares Kafka for a first start, and checks it before any other.
//!
//! What exists is never changed: no partitions are added, no retention is set, no offset of a group is moved.

use std::{
    collections::{BTreeMap, BTreeSet},
    thread,
    time::Duration,
};

use rdkafka::{
    ClientContext, Offset, TopicPartitionList,
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    client::DefaultClientContext,
    config::RDKafkaLogLevel,
    consumer::{BaseConsumer, CommitMode, Consumer as _, ConsumerContext},
    error::{KafkaError, KafkaResult, RDKafkaErrorCode},
};
use tokio::time::Instant;
use tracing::info;

use super::{
    ClientError, Settings,
    client::{self, code_of, log},
    topics::{FirstOffset, Subscription, Topic},
};

/// How long the cluster may take to answer one question.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a cluster that is busy may take until all of it knows new topics, and somebody leads them.
const READY_TIMEOUT: Duration = Duration::from_secs(60);
/// The pause before a question is put again that a new topic's brokers are not ready for.
const AGAIN_AFTER: Duration = Duration::from_millis(100);
/// The most copies that `kafka.replication_factor = 0` asks for.
const COPIES_MAX: usize = 3;

/// What the cluster has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterInfo {
    /// How many brokers.
    pub brokers: usize,
    /// Its topics, and how many partitions each has.
    pub topics: BTreeMap<String, usize>,
}

/// What `init` did, for the person who called it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InitReport {
    /// Each topic of ours.
    pub topics: Vec<(&'static str, Created)>,
    /// Each subscription of ours.
    pub groups: Vec<(Subscription, Began)>,
}

/// What became of a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Created {
    /// It was missing.
    Created,
    /// It was there, and is as it was.
    Exists,
}

/// What became of a group's offsets for a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Began {
    /// It had none for that many partitions, and has now.
    Began {
        /// How many.
        partitions: usize,
    },
    /// It had offsets for all of them.
    Exists,
    /// Somebody is reading already: the group's offsets are theirs.
    Running,
}

/// Kafka is not as we need it.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// The client could not be made.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// Nobody is there, or nobody who speaks our dialect (TLS, SASL).
    #[error("no Kafka broker answers at {servers}, check kafka.bootstrap_servers and kafka.properties")]
    Unreachable {
        /// Where we asked.
        servers: String,
        /// In librdkafka's words.
        source: KafkaError,
    },
    /// Topics that have to be there are not.
    #[error("Kafka has no {}", .0.join(", "))]
    Missing(Vec<String>),
    /// A topic could not be created.
    #[error("Kafka does not create {topic}: {code}")]
    NotCreated {
        /// Which.
        topic: String,
        /// Why.
        code: RDKafkaErrorCode,
    },
    /// The cluster was asked something and did not answer, or refused.
    #[error("{asked} failed")]
    Refused {
        /// What was asked.
        asked: String,
        /// In librdkafka's words.
        source: KafkaError,
    },
    /// The thread that asked is gone.
    #[error("asking Kafka was broken off")]
    Broken(#[from] tokio::task::JoinError),
}

/// Looks at the cluster; the check that anybody is there.
///
/// # Errors
/// Nobody is.
pub async fn look(settings: &Settings) -> Result<ClusterInfo, AdminError> {
    let settings = settings.clone();
    tokio::task::spawn_blocking(move || look_now(&settings)).await?
}

/// Checks that all of `topics` exist, and gives back how many partitions each has.
///
/// # Errors
/// Kafka is away, or topics are missing; the error says what to do.
pub async fn check_topics<'a>(
    settings: &Settings,
    topics: impl IntoIterator<Item = &'a str>,
) -> Result<BTreeMap<String, usize>, AdminError> {
    let cluster = look(settings).await?;
    let needed: BTreeSet<_> = topics.into_iter().collect();
    cluster.has_all(needed.iter().copied())?;
    Ok(cluster.topics.into_iter().filter(|(topic, _)| needed.contains(topic.as_str())).collect())
}

/// Creates the topics that are missing, and gives each group that has none its first offsets.
///
/// # Errors
/// Kafka is away or refuses. What was done stays done; calling again goes on.
pub async fn init(
    settings: &Settings,
    topics: &[Topic],
    subscriptions: &[Subscription],
) -> Result<InitReport, AdminError> {
    let cluster = look(settings).await?;
    let created = create_missing(settings, topics, &cluster).await?;
    let settings = settings.clone();
    let topics = topics.to_vec();
    let subscriptions = subscriptions.to_vec();
    let groups = tokio::task::spawn_blocking(move || {
        begin_groups(&settings, &subscriptions, &look_until_complete(&settings, &topics)?)
    })
    .await??;
    Ok(InitReport { topics: created, groups })
}

/// Gives each group that has none its first offsets; the part of [`init`] for a cluster whose topics are made
/// elsewhere.
///
/// # Errors
/// Kafka is away or refuses, or topics are missing.
pub async fn begin(
    settings: &Settings,
    subscriptions: &[Subscription],
) -> Result<Vec<(Subscription, Began)>, AdminError> {
    let settings = settings.clone();
    let subscriptions = subscriptions.to_vec();
    tokio::task::spawn_blocking(move || begin_groups(&settings, &subscriptions, &look_now(&settings)?))
        .await?
}

fn look_now(settings: &Settings) -> Result<ClusterInfo, AdminError> {
    let client: BaseConsumer<AdminContext> = client::admin(settings)
        .create_with_context(AdminContext)
        .map_err(|source| ClientError { kind: "admin client", source })?;
    let unreachable =
        |source| AdminError::Unreachable { servers: settings.bootstrap_servers.clone(), source };
    let metadata = client.fetch_metadata(None, ANSWER_TIMEOUT).map_err(unreachable)?;
    let topics =
        metadata.topics().iter().map(|topic| (topic.name().to_owned(), topic.partitions().len())).collect();
    Ok(ClusterInfo { brokers: metadata.brokers().len(), topics })
}

/// The cluster as soon as it has all topics of ours: brokers hear of a new one a moment after it was created.
fn look_until_complete(settings: &Settings, topics: &[Topic]) -> Result<ClusterInfo, AdminError> {
    let since = Instant::now();
    loop {
        let cluster = look_now(settings)?;
        match cluster.has_all(topics.iter().map(|topic| topic.name)) {
            Ok(()) => return Ok(cluster),
            Err(missing) if since.elapsed() >= READY_TIMEOUT => return Err(missing),
            Err(_missing) => thread::sleep(AGAIN_AFTER),
        }
    }
}

/// Asks about a topic, and again while the answer is one that passes.
fn patiently<T>(ask: impl Fn() -> KafkaResult<T>, passes: impl Fn(&KafkaError) -> bool) -> KafkaResult<T> {
    let since = Instant::now();
    loop {
        match ask() {
            Err(error) if passes(&error) && since.elapsed() < READY_TIMEOUT => thread::sleep(AGAIN_AFTER),
            answer => return answer,
        }
    }
}

/// Whether a broker says what it says of a topic whose leader has not taken office yet.
fn is_too_new(error: &KafkaError) -> bool {
    use RDKafkaErrorCode::{
        LeaderNotAvailable, NotLeaderForPartition, UnknownPartition, UnknownTopicOrPartition,
    };
    matches!(
        code_of(error),
        Some(LeaderNotAvailable | NotLeaderForPartition | UnknownPartition | UnknownTopicOrPartition)
    )
}

/// The same, or that it says nothing. For questions only: a commit that was late may be done, and not to be
/// done again.
fn is_too_new_or_late(error: &KafkaError) -> bool {
    is_too_new(error) || code_of(error) == Some(RDKafkaErrorCode::OperationTimedOut)
}

async fn create_missing(
    settings: &Settings,
    topics: &[Topic],
    cluster: &ClusterInfo,
) -> Result<Vec<(&'static str, Created)>, AdminError> {
    let missing: Vec<_> = topics.iter().filter(|topic| !cluster.topics.contains_key(topic.name)).collect();
    let mut created = BTreeSet::new();
    if !missing.is_empty() {
        let admin: AdminClient<DefaultClientContext> = client::admin(settings)
            .create()
            .map_err(|source| ClientError { kind: "admin client", source })?;
        let copies = copies(settings.replication_factor, cluster.brokers);
        let retentions: Vec<_> =
            missing.iter().map(|topic| topic.retention.as_millis().to_string()).collect();
        let asked: Vec<_> = missing
            .iter()
            .zip(&retentions)
            .map(|(topic, retention)| new_topic(topic, retention, copies))
            .collect();
        let options = AdminOptions::new()
            .operation_timeout(Some(ANSWER_TIMEOUT))
            .request_timeout(Some(2 * ANSWER_TIMEOUT));
        let answers = admin.create_topics(&asked, &options).await;
        for answer in
            answers.map_err(|source| AdminError::Refused { asked: "creating topics".to_owned(), source })?
        {
            match answer {
                Ok(name) => drop(created.insert(name)),
                // Somebody else was a moment faster.
                Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
                Err((topic, code)) => return Err(AdminError::NotCreated { topic, code }),
            }
        }
        info!("Created {} topics with {copies} copies each", created.len());
    }
    let became =
        |topic: &Topic| if created.contains(topic.name) { Created::Created } else { Created::Exists };
    Ok(topics.iter().map(|topic| (topic.name, became(topic))).collect())
}

fn new_topic<'a>(topic: &'a Topic, retention: &'a str, copies: i32) -> NewTopic<'a> {
    NewTopic::new(topic.name, topic.partitions, TopicReplication::Fixed(copies))
        // A compacted topic would refuse lines without a key, whatever the cluster's default is.
        .set("cleanup.policy", "delete")
        .set("retention.ms", retention)
        .set("message.timestamp.type", topic.timestamp_type.label())
}

/// How many copies a topic gets.
fn copies(replication_factor: i32, brokers: usize) -> i32 {
    match replication_factor {
        1.. => replication_factor,
        _ => i32::try_from(brokers.clamp(1, COPIES_MAX)).unwrap_or(1),
    }
}

fn begin_groups(
    settings: &Settings,
    subscriptions: &[Subscription],
    cluster: &ClusterInfo,
) -> Result<Vec<(Subscription, Began)>, AdminError> {
    subscriptions.iter().map(|reads| Ok((*reads, begin_group(settings, cluster, reads)?))).collect()
}

fn begin_group(
    settings: &Settings,
    cluster: &ClusterInfo,
    reads: &Subscription,
) -> Result<Began, AdminError> {
    let group = settings.group_of(reads.stage);
    let refused = |asked: &str| {
        let asked = format!("{asked} {group} for {}", reads.topic);
        move |source| AdminError::Refused { asked, source }
    };
    let partitions =
        *cluster.topics.get(reads.topic).ok_or_else(|| AdminError::Missing(vec![reads.topic.to_owned()]))?;
    let outsider: BaseConsumer<AdminContext> = client::outsider(settings, &group)
        .create_with_context(AdminContext)
        .map_err(|source| ClientError { kind: "consumer", source })?;

    let mut asked = TopicPartitionList::new();
    asked.add_partition_range(reads.topic, 0, i32::try_from(partitions).unwrap_or(i32::MAX) - 1);
    let known =
        outsider.committed_offsets(asked, ANSWER_TIMEOUT).map_err(refused("asking the offsets of"))?;
    let mut first = TopicPartitionList::new();
    for partition in known.elements().iter().filter(|partition| partition.offset() == Offset::Invalid) {
        let ends = || outsider.fetch_watermarks(reads.topic, partition.partition(), ANSWER_TIMEOUT);
        let (low, high) = patiently(ends, is_too_new_or_late).map_err(refused("asking the ends of"))?;
        let offset = match reads.from {
            FirstOffset::Beginning => low,
            FirstOffset::End => high,
        };
        first
            .add_partition_offset(reads.topic, partition.partition(), Offset::Offset(offset))
            .map_err(refused("listing the offsets of"))?;
    }
    if first.count() == 0 {
        return Ok(Began::Exists);
    }
    match patiently(|| outsider.commit(&first, CommitMode::Sync), is_too_new) {
        Ok(()) => Ok(Began::Began { partitions: first.count() }),
        // Only an empty group takes offsets from an outsider.
        Err(error) if code_of(&error) == Some(RDKafkaErrorCode::UnknownMemberId) => Ok(Began::Running),
        Err(error) => Err(refused("committing the first offsets of")(error)),
    }
}

// === impl ClusterInfo ===

impl ClusterInfo {
    /// An error that names those of `topics` that the cluster doesn't have.
    fn has_all<'a>(&self, topics: impl Iterator<Item = &'a str>) -> Result<(), AdminError> {
        let missing: Vec<_> =
            topics.filter(|topic| !self.topics.contains_key(*topic)).map(str::to_owned).collect();
        if missing.is_empty() { Ok(()) } else { Err(AdminError::Missing(missing)) }
    }
}

/// For clients that live for a question or two.
struct AdminContext;

impl ConsumerContext for AdminContext {}

impl ClientContext for AdminContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        log(level, facility, message);
    }

    /// The question that fails for it says it.
    fn error(&self, _: KafkaError, _: &str) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_are_three_unless_there_are_fewer_brokers_or_the_operator_says_otherwise() {
        assert_eq!([copies(0, 1), copies(0, 2), copies(0, 9), copies(0, 0)], [1, 2, 3, 1]);
        assert_eq!(copies(2, 9), 2);
    }

    #[test]
    fn missing_topics_are_named() {
        let error = AdminError::Missing(vec!["posts-created".into(), "dead-letters".into()]);
        assert_eq!(error.to_string(), "Kafka has no posts-created, dead-letters");
    }
}
