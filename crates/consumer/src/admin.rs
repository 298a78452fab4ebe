//! Prepares Kafka for a first start, and checks it before any other.
//!
//! What exists is never changed: no partitions are added, no retention is set, no committed offset is moved.

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

/// How long the cluster may take to answer one request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a busy cluster may take until all brokers know new topics and each partition has a leader.
const READY_TIMEOUT: Duration = Duration::from_secs(60);
/// The pause before a request is repeated for which a new topic is not ready.
const RETRY_PAUSE: Duration = Duration::from_millis(100);
/// The most replicas that a replication factor of 0 stands for.
const REPLICAS_MAX: usize = 3;

/// What the cluster has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterInfo {
    /// How many brokers.
    pub brokers: usize,
    /// Its topics, and how many partitions each has.
    pub topics: BTreeMap<String, usize>,
}

/// What [`init`] found and did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InitReport {
    /// Each of the topics.
    pub topics: Vec<(&'static str, TopicState)>,
    /// Each of the subscriptions.
    pub groups: Vec<(Subscription, GroupOffsets)>,
}

/// What [`init`] did about a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TopicState {
    /// It did not exist.
    Created,
    /// It existed, and is unchanged.
    Exists,
}

/// What [`init`] did about a group's offsets of a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupOffsets {
    /// Partitions without a committed offset got one.
    Committed {
        /// How many.
        partitions: usize,
    },
    /// All partitions had one.
    Exist,
    /// The group has members, so only these can commit.
    GroupActive,
}

/// Kafka is not as it has to be, or could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// The client could not be created.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// No broker answers, or none that uses the same security protocol (TLS, SASL).
    #[error("no Kafka broker answers at {servers}, check bootstrap_servers and properties")]
    Unreachable {
        /// The bootstrap servers.
        servers: String,
        /// librdkafka's error.
        source: KafkaError,
    },
    /// These topics are missing.
    #[error("Kafka has no {}", .0.join(", "))]
    Missing(Vec<String>),
    /// A topic could not be created.
    #[error("Kafka does not create {topic}: {code}")]
    NotCreated {
        /// The topic's name.
        topic: String,
        /// The broker's error code.
        code: RDKafkaErrorCode,
    },
    /// A request failed or was not answered.
    #[error("{request} failed")]
    Refused {
        /// The request: `creating topics`.
        request: String,
        /// librdkafka's error.
        source: KafkaError,
    },
    /// The blocking task that made the requests panicked, or was cancelled by the end of the runtime.
    #[error("a request to Kafka was cancelled")]
    TaskFailed(#[from] tokio::task::JoinError),
}

/// Lists the cluster's brokers and topics, which is also the check that it can be reached.
///
/// # Errors
/// No broker answers.
pub async fn describe_cluster(settings: &Settings) -> Result<ClusterInfo, AdminError> {
    let settings = settings.clone();
    tokio::task::spawn_blocking(move || describe_cluster_blocking(&settings)).await?
}

/// Checks that all of `topics` exist, and returns how many partitions each has.
///
/// # Errors
/// Kafka is unreachable, or topics are missing.
pub async fn check_topics<'a>(
    settings: &Settings,
    topics: impl IntoIterator<Item = &'a str>,
) -> Result<BTreeMap<String, usize>, AdminError> {
    let cluster = describe_cluster(settings).await?;
    let needed: BTreeSet<_> = topics.into_iter().collect();
    cluster.has_all(needed.iter().copied())?;
    Ok(cluster.topics.into_iter().filter(|(topic, _)| needed.contains(topic.as_str())).collect())
}

/// Creates the topics that are missing, and commits first offsets for the groups that have none.
///
/// # Errors
/// Kafka is unreachable or refuses. What was done stays done, and another call does the rest.
pub async fn init(
    settings: &Settings,
    topics: &[Topic],
    subscriptions: &[Subscription],
) -> Result<InitReport, AdminError> {
    let cluster = describe_cluster(settings).await?;
    let created = create_missing(settings, topics, &cluster).await?;
    let settings = settings.clone();
    let topics = topics.to_vec();
    let subscriptions = subscriptions.to_vec();
    let groups = tokio::task::spawn_blocking(move || {
        commit_all_first_offsets(&settings, &subscriptions, &wait_for_topics(&settings, &topics)?)
    })
    .await??;
    Ok(InitReport { topics: created, groups })
}

/// Commits first offsets for the groups that have none; the part of [`init`] for a cluster whose topics are
/// created by other means.
///
/// # Errors
/// Kafka is unreachable or refuses, or topics are missing.
pub async fn commit_first_offsets(
    settings: &Settings,
    subscriptions: &[Subscription],
) -> Result<Vec<(Subscription, GroupOffsets)>, AdminError> {
    let settings = settings.clone();
    let subscriptions = subscriptions.to_vec();
    tokio::task::spawn_blocking(move || {
        commit_all_first_offsets(&settings, &subscriptions, &describe_cluster_blocking(&settings)?)
    })
    .await?
}

fn describe_cluster_blocking(settings: &Settings) -> Result<ClusterInfo, AdminError> {
    let client: BaseConsumer<AdminContext> = client::admin(settings)
        .create_with_context(AdminContext)
        .map_err(|source| ClientError { kind: "admin client", source })?;
    let unreachable =
        |source| AdminError::Unreachable { servers: settings.bootstrap_servers.clone(), source };
    let metadata = client.fetch_metadata(None, REQUEST_TIMEOUT).map_err(unreachable)?;
    let topics =
        metadata.topics().iter().map(|topic| (topic.name().to_owned(), topic.partitions().len())).collect();
    Ok(ClusterInfo { brokers: metadata.brokers().len(), topics })
}

/// The cluster as soon as it has all these topics: brokers know a new one only a moment after it was created.
fn wait_for_topics(settings: &Settings, topics: &[Topic]) -> Result<ClusterInfo, AdminError> {
    let since = Instant::now();
    loop {
        let cluster = describe_cluster_blocking(settings)?;
        match cluster.has_all(topics.iter().map(|topic| topic.name)) {
            Ok(()) => return Ok(cluster),
            Err(missing) if since.elapsed() >= READY_TIMEOUT => return Err(missing),
            Err(_missing) => thread::sleep(RETRY_PAUSE),
        }
    }
}

/// Makes a request about a topic, and repeats it while its error is `retriable`, up to a time-out.
fn retry_while<T>(
    request: impl Fn() -> KafkaResult<T>,
    retriable: impl Fn(&KafkaError) -> bool,
) -> KafkaResult<T> {
    let since = Instant::now();
    loop {
        match request() {
            Err(error) if retriable(&error) && since.elapsed() < READY_TIMEOUT => thread::sleep(RETRY_PAUSE),
            answer => return answer,
        }
    }
}

/// Whether this is the error for a topic that was just created and whose partitions have no leader yet.
fn is_not_ready(error: &KafkaError) -> bool {
    use RDKafkaErrorCode::{
        LeaderNotAvailable, NotLeaderForPartition, UnknownPartition, UnknownTopicOrPartition,
    };
    matches!(
        code_of(error),
        Some(LeaderNotAvailable | NotLeaderForPartition | UnknownPartition | UnknownTopicOrPartition)
    )
}

/// The same, or a time-out. Only for requests that read: a commit that timed out may have been done, and must
/// not be repeated.
fn is_not_ready_or_timeout(error: &KafkaError) -> bool {
    is_not_ready(error) || code_of(error) == Some(RDKafkaErrorCode::OperationTimedOut)
}

async fn create_missing(
    settings: &Settings,
    topics: &[Topic],
    cluster: &ClusterInfo,
) -> Result<Vec<(&'static str, TopicState)>, AdminError> {
    let missing: Vec<_> = topics.iter().filter(|topic| !cluster.topics.contains_key(topic.name)).collect();
    let mut created = BTreeSet::new();
    if !missing.is_empty() {
        let admin: AdminClient<DefaultClientContext> = client::admin(settings)
            .create()
            .map_err(|source| ClientError { kind: "admin client", source })?;
        let replicas = replicas(settings.replication_factor, cluster.brokers);
        let retentions: Vec<_> =
            missing.iter().map(|topic| topic.retention.as_millis().to_string()).collect();
        let new_topics: Vec<_> = missing
            .iter()
            .zip(&retentions)
            .map(|(topic, retention)| new_topic(topic, retention, replicas))
            .collect();
        let options = AdminOptions::new()
            .operation_timeout(Some(REQUEST_TIMEOUT))
            .request_timeout(Some(2 * REQUEST_TIMEOUT));
        let answers = admin.create_topics(&new_topics, &options).await;
        let refused = |source| AdminError::Refused { request: "creating topics".to_owned(), source };
        for answer in answers.map_err(refused)? {
            match answer {
                Ok(name) => drop(created.insert(name)),
                // Another process was a moment faster.
                Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
                Err((topic, code)) => return Err(AdminError::NotCreated { topic, code }),
            }
        }
        info!("Created {} topics with {replicas} replicas each", created.len());
    }
    let state =
        |topic: &Topic| if created.contains(topic.name) { TopicState::Created } else { TopicState::Exists };
    Ok(topics.iter().map(|topic| (topic.name, state(topic))).collect())
}

fn new_topic<'a>(topic: &'a Topic, retention: &'a str, replicas: i32) -> NewTopic<'a> {
    NewTopic::new(topic.name, topic.partitions, TopicReplication::Fixed(replicas))
        // A compacted topic would refuse records without a key, whatever the cluster's default is.
        .set("cleanup.policy", "delete")
        .set("retention.ms", retention)
        .set("message.timestamp.type", topic.timestamp_type.label())
}

/// How many replicas a topic gets.
fn replicas(replication_factor: i32, brokers: usize) -> i32 {
    match replication_factor {
        1.. => replication_factor,
        _ => i32::try_from(brokers.clamp(1, REPLICAS_MAX)).unwrap_or(1),
    }
}

fn commit_all_first_offsets(
    settings: &Settings,
    subscriptions: &[Subscription],
    cluster: &ClusterInfo,
) -> Result<Vec<(Subscription, GroupOffsets)>, AdminError> {
    subscriptions
        .iter()
        .map(|subscription| Ok((*subscription, commit_first_offsets_of(settings, cluster, subscription)?)))
        .collect()
}

fn commit_first_offsets_of(
    settings: &Settings,
    cluster: &ClusterInfo,
    subscription: &Subscription,
) -> Result<GroupOffsets, AdminError> {
    let Subscription { stage, topic, from } = *subscription;
    let group = settings.group_of(stage);
    let refused = |request: &str| {
        let request = format!("{request} of group {group} for {topic}");
        move |source| AdminError::Refused { request, source }
    };
    let partitions = *cluster.topics.get(topic).ok_or_else(|| AdminError::Missing(vec![topic.to_owned()]))?;
    let client: BaseConsumer<AdminContext> = client::group_offsets(settings, &group)
        .create_with_context(AdminContext)
        .map_err(|source| ClientError { kind: "consumer", source })?;

    let mut all = TopicPartitionList::new();
    all.add_partition_range(topic, 0, i32::try_from(partitions).unwrap_or(i32::MAX) - 1);
    let committed =
        client.committed_offsets(all, REQUEST_TIMEOUT).map_err(refused("reading the committed offsets"))?;
    let mut first = TopicPartitionList::new();
    for partition in committed.elements().iter().filter(|partition| partition.offset() == Offset::Invalid) {
        let watermarks = || client.fetch_watermarks(topic, partition.partition(), REQUEST_TIMEOUT);
        let (low, high) = retry_while(watermarks, is_not_ready_or_timeout)
            .map_err(refused("reading the watermarks for the first offsets"))?;
        let offset = match from {
            FirstOffset::Beginning => low,
            FirstOffset::End => high,
        };
        first
            .add_partition_offset(topic, partition.partition(), Offset::Offset(offset))
            .map_err(refused("listing the first offsets"))?;
    }
    if first.count() == 0 {
        return Ok(GroupOffsets::Exist);
    }
    match retry_while(|| client.commit(&first, CommitMode::Sync), is_not_ready) {
        Ok(()) => Ok(GroupOffsets::Committed { partitions: first.count() }),
        // Kafka accepts the commit of a client that is no member only while the group is empty.
        Err(error) if code_of(&error) == Some(RDKafkaErrorCode::UnknownMemberId) => {
            Ok(GroupOffsets::GroupActive)
        }
        Err(error) => Err(refused("committing the first offsets")(error)),
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

/// Callbacks of clients that make a few requests.
struct AdminContext;

impl ConsumerContext for AdminContext {}

impl ClientContext for AdminContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        log(level, facility, message);
    }

    /// Not logged: the request fails with it.
    fn error(&self, _: KafkaError, _: &str) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replicas_are_three_unless_there_are_fewer_brokers_or_the_settings_have_a_number() {
        assert_eq!([replicas(0, 1), replicas(0, 2), replicas(0, 9), replicas(0, 0)], [1, 2, 3, 1]);
        assert_eq!(replicas(2, 9), 2);
    }

    #[test]
    fn missing_topics_are_named() {
        let error = AdminError::Missing(vec!["orders".into(), "dead-letters".into()]);
        assert_eq!(error.to_string(), "Kafka has no orders, dead-letters");
    }
}
