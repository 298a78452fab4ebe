//! The consumer runtime: one type for every stage.
//!
//! **Promises.** An offset is committed only when every record below it has a durable fate. Records with one
//! ordering key run in the order of their offsets, one at a time; all others run at once, as many as the
//! budget allows, whatever the number of partitions. A dependency that is unavailable stops the reading and
//! loses nothing. A record that can't be handled affects no other. After a crash at most what was delivered
//! and not yet committed is handled again.
//!
//! **How.** Three kinds of tasks, each with its own knowledge:
//!
//! ```text
//!  librdkafka ── main queue ──> poller        receives events, never messages; never blocks
//!             │                   │ rebalances
//!             │                   v
//!             │                coordinator    answers rebalances, commits, stops
//!             │                   │ signals  ^ progress
//!             │                   v         │
//!             └─ split queues ─> partitions   each owns its window, its key queues and its running handlers
//! ```
//!
//! Backpressure is not reading: a partition without room does not read its queue, and librdkafka stops
//! fetching when the queue is full. (`pause` would discard the queue and fetch it again, a second later.)
//!
//! **A rebalance is answered late, on purpose.** The callback passes the event on and returns, so polling and
//! heartbeats continue while running handlers end and their offsets are committed. Until the answer the whole
//! member reads nothing, hence [`Settings::drain_timeout`]. A partition task ends after its last handler, and
//! the partition is unassigned after the task has ended: that order, and not an epoch number, keeps late
//! results out.
//!
//! **A loss is answered at once**, because the member can't rejoin before. The running handlers go on as
//! [`orphaned`] while the member joins again, so that work which an external service has done already can
//! still be recorded. They settle nothing.
//!
//! **Races we accept.**
//! - An orphaned handler runs beside the next owner of its partition, if that is another process, for up to
//!   the drain time-out; and so does every handler of a member that the group has fenced, until the next
//!   refused commit reveals that. The runtime can't fence what a handler does outside of Kafka: a host to
//!   which that matters needs its own epoch, claim or version there.
//! - A commit that Kafka leaves unanswered for longer than [`coordinator`] waits may arrive after the
//!   partition was revoked, and move its next owner's start back: repeats, never a gap.
//! - librdkafka (2.12.1) may continue to fetch a partition that was revoked right after it was assigned. What
//!   is in the queue when the partition comes back is discarded ([`intake`]); what arrives in the moment
//!   after that is handled, as a repeat. Should it lie ahead of the committed offset, a commit is ahead too,
//!   until the record that belongs there arrives an instant later: a crash in between would skip records. Not
//!   seen in 192 runs of the churn test, 1 of which had such late records.
//! - Records that had overtaken others are repeated if these did not start in the first part of a drain, or
//!   did not end in it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
    time::Duration,
};

use rdkafka::{
    consumer::Consumer as _,
    error::KafkaError,
    message::{BorrowedMessage, Message as _},
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use self::{
    budget::Budget,
    coordinator::{CommitTimeouts, Coordinator},
    orphaned::OrphanedHandlers,
    partition::PartitionLimits,
    poller::{ConsumerStats, Member, Rebalance, StageConsumerContext},
    work::StageContext,
};
use crate::{ClientError, ConsumerMetrics, Handler, LogThrottle, Publish, Settings, client};

mod budget;
mod commit;
mod coordinator;
mod dead_letter;
mod intake;
mod key_queues;
mod orphaned;
mod partition;
mod poison_pill;
mod poller;
mod window;
mod work;

#[cfg(test)]
mod tests;

/// How long the consumer may take to leave the group and close, once all its partitions are unassigned.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// The pause before joining again when another member has our instance id.
const INSTANCE_ID_RETRY: Duration = Duration::from_secs(2);
/// librdkafka waits for the answer to one rebalance before the next; this is room for the improbable.
const REBALANCES_MAX: usize = 16;

/// Which records a stage reads, and how many at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StageSpec {
    /// The stage's name, in metrics and logs; its consumer group is [`Settings::group_of`] it.
    pub name: String,
    /// The topics that it reads. They have to exist.
    pub topics: Vec<String>,
    /// How many records it may have unsettled at once, over all its partitions.
    pub in_flight: usize,
    /// Where records go that can't be handled.
    pub dead_letters: DeadLetters,
}

/// Where and how dead letters are written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetters {
    /// The topic. It has to exist.
    pub topic: String,
    /// Put before the names of the headers that the runtime adds, for instance `myservice.`.
    pub header_prefix: String,
    /// The host's version, which is the header `<header_prefix>version`.
    pub version: String,
}

/// A partition of a topic; `topic/partition` in logs and errors.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TopicPartition {
    /// The topic's name.
    pub topic: Arc<str>,
    /// The partition's number, from 0 on.
    pub partition: i32,
}

/// What a stage is assigned by its group.
#[derive(Clone, Debug, Default)]
pub struct Assignment {
    /// The group has made an assignment at least once: the stage is ready, perhaps with nothing to read.
    pub joined: bool,
    /// What this process reads. A partition is removed when it is drained, *before* it is unassigned; at once
    /// if it is lost.
    pub partitions: BTreeSet<TopicPartition>,
    /// How many partitions each topic has of which this process reads some; a topic may get more at any time.
    /// Some seconds old.
    pub topics: BTreeMap<String, usize>,
    /// When the group last confirmed that we are a member: it made an assignment, or it accepted a commit.
    /// None while the group refuses us. From the first record on a commit is made at least every quarter of
    /// [`Settings::session_timeout`]; until then this is the present.
    pub confirmed_at: Option<Instant>,
}

/// A stage ended without having been stopped. The process should end too, and be started again.
#[derive(Debug, thiserror::Error)]
pub enum StageError {
    /// The consumer could not be created.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// librdkafka refused a call that it has no reason to refuse.
    #[error("librdkafka refused to {call}")]
    Refused {
        /// The call, as a verb: `subscribe`.
        call: &'static str,
        /// librdkafka's error.
        source: KafkaError,
    },
    /// librdkafka reports an error that it can't recover from.
    #[error("the consumer has a fatal error: {0}")]
    Fatal(String),
    /// KIP-848: the group still has a member with our [`Settings::instance_id`]. Never leaves [`Stage::run`],
    /// which tries again: the id is released when that process has stopped in order, or its session has
    /// ended.
    #[error("a member with this instance_id is still in the group")]
    UnreleasedInstanceId,
    /// A process that started after us has our [`Settings::instance_id`], and our partitions.
    #[error(
        "fenced: another process has started with the same instance_id; each process needs one of its own"
    )]
    FencedInstanceId,
    /// The group has removed us while partitions were being revoked. Never leaves [`Stage::run`], which joins
    /// as a new member.
    #[error("the group has fenced this member: {0}")]
    Fenced(KafkaError),
    /// The group assigned partitions before an earlier revocation of them was answered, or twice.
    #[error("the group assigned {0} in the middle of another rebalance of it")]
    OverlappingRebalance(TopicPartition),
    /// The group assigned a partition that the cluster doesn't have.
    #[error("there is no {0}")]
    NoSuchPartition(TopicPartition),
    /// A message came through the main queue instead of its partition's: no task would settle it.
    #[error("{topic}/{partition}@{offset} came through the main queue")]
    UnexpectedMessage {
        /// The message's topic.
        topic: String,
        /// Its partition.
        partition: i32,
        /// Its offset.
        offset: i64,
    },
    /// A task of the runtime panicked or ended early: a bug in the runtime.
    #[error("{task} ended unexpectedly: {why}")]
    TaskFailed {
        /// Which task: the poller, or a partition.
        task: String,
        /// The panic's message, if it panicked.
        why: String,
    },
}

/// A stage, ready to run: a [`Handler`] over the records of its topics.
pub struct Stage<H, P> {
    spec: StageSpec,
    settings: Settings,
    context: Arc<StageContext<H, P>>,
    membership: Membership,
    assignment: watch::Sender<Assignment>,
}

/// One membership of the group, from joining to closing.
struct Membership {
    member: Arc<Member>,
    rebalances: mpsc::Receiver<Rebalance>,
    stats: watch::Receiver<ConsumerStats>,
}

impl<H: Handler, P: Publish> Stage<H, P> {
    /// Creates the stage's consumer, which does not join its group before [`Stage::run`]. `publish` writes
    /// dead letters. Must be called within a Tokio runtime.
    ///
    /// # Errors
    /// librdkafka refuses a property of the settings.
    pub fn new(
        settings: &Settings,
        spec: StageSpec,
        handler: Arc<H>,
        publish: P,
        metrics: Arc<ConsumerMetrics>,
    ) -> Result<Self, StageError> {
        let context = Arc::new(StageContext {
            stage: spec.name.clone(),
            group: settings.group_of(&spec.name),
            handler,
            publish,
            dead_letters: spec.dead_letters.clone(),
            metrics,
            budget: Budget::new(spec.in_flight, settings.in_flight_bytes),
            log_throttle: LogThrottle::default(),
        });
        let membership = Membership::new(settings, spec.in_flight, &context)?;
        Ok(Self {
            spec,
            settings: settings.clone(),
            context,
            membership,
            assignment: watch::Sender::default(),
        })
    }

    /// What the stage is assigned, as it changes: for readiness checks, and for hosts that divide something
    /// among processes by their partitions.
    pub fn assignment(&self) -> watch::Receiver<Assignment> {
        self.assignment.subscribe()
    }

    /// Joins the group and handles records until `stop`; then drains, commits, leaves and closes, within
    /// [`Settings::drain_timeout`] and some seconds.
    ///
    /// # Errors
    /// The stage ended by itself. Nothing is lost: what was not committed is delivered again.
    pub async fn run(self, stop: CancellationToken) -> Result<(), StageError> {
        let Self { spec, settings, context, mut membership, assignment } = self;
        let mut orphaned = OrphanedHandlers::new(&context.stage, settings.drain_timeout);
        let ended = loop {
            let ended = membership.run(&spec, &settings, &context, &assignment, &mut orphaned, &stop).await;
            match ended {
                Err(StageError::Fenced(error)) if !stop.is_cancelled() => {
                    warn!(
                        stage = spec.name,
                        %error,
                        "Fenced: stage {} was removed from its group and joins it again: {error}",
                        spec.name
                    );
                    membership = Membership::new(&settings, spec.in_flight, &context)?;
                }
                Err(StageError::UnreleasedInstanceId) if !stop.is_cancelled() => {
                    orphaned.start_deadline();
                    if context.log_throttle.now() {
                        let stage = &spec.name;
                        let instance_id = &settings.instance_id;
                        warn!(
                            stage,
                            instance_id,
                            "Stage {stage} waits: its group still has a member with the instance_id \
                             {instance_id}. After a crash this lasts for the broker's session time-out; if \
                             longer, another process has the same instance_id"
                        );
                    }
                    let _stopped = stop.run_until_cancelled(sleep(INSTANCE_ID_RETRY)).await;
                    membership = Membership::new(&settings, spec.in_flight, &context)?;
                }
                // After a stop there is nothing to join for.
                Err(StageError::Fenced(_) | StageError::UnreleasedInstanceId) => break Ok(()),
                ended => break ended,
            }
        };
        if let (Err(error), false) = (&ended, orphaned.is_empty()) {
            warn!(
                stage = spec.name,
                %error,
                "Stage {} failed and ends when its orphaned handlers have ended: {error}",
                spec.name
            );
        }
        orphaned.finish().await;
        ended
    }
}

impl Membership {
    fn new<H, P>(
        settings: &Settings,
        in_flight: usize,
        context: &StageContext<H, P>,
    ) -> Result<Self, StageError> {
        let (rebalance_sender, rebalances) = mpsc::channel(REBALANCES_MAX);
        let (stats_sender, stats) = watch::channel(ConsumerStats::default());
        let member = client::consumer(settings, &context.group, in_flight)
            .create_with_context(StageConsumerContext::new(
                &context.stage,
                Arc::clone(&context.metrics),
                rebalance_sender,
                stats_sender,
            ))
            .map_err(|source| ClientError { kind: "consumer", source })?;
        Ok(Self { member: Arc::new(member), rebalances, stats })
    }

    async fn run<H: Handler, P: Publish>(
        self,
        spec: &StageSpec,
        settings: &Settings,
        context: &Arc<StageContext<H, P>>,
        assignment: &watch::Sender<Assignment>,
        orphaned: &mut OrphanedHandlers,
        stop: &CancellationToken,
    ) -> Result<(), StageError> {
        let Self { member, rebalances, stats } = self;
        let name = &spec.name;
        let topics: Vec<_> = spec.topics.iter().map(String::as_str).collect();
        member.subscribe(&topics).map_err(|source| StageError::Refused { call: "subscribe", source })?;
        info!(
            stage = name,
            group = context.group,
            "Stage {name} joins the group {} to read {}",
            context.group,
            topics.join(", ")
        );

        let mut poller = JoinSet::new();
        poller.spawn(poller::poll(Arc::clone(&member)));
        let coordinator = Coordinator::new(
            Arc::clone(&member),
            Arc::clone(context),
            PartitionLimits { span: settings.span, drain_timeout: settings.drain_timeout },
            CommitTimeouts::of(settings),
            assignment.clone(),
            stats,
            orphaned,
        );
        let ended = coordinator.run(rebalances, &mut poller, stop).await;

        // The order matters: first the callback answers rebalances itself, then this is the only owner of the
        // consumer, then it closes.
        member.context().close();
        poller.shutdown().await;
        close(name, member).await;
        info!(stage = name, "Stage {name} has left its group");
        ended
    }
}

/// Closes a consumer on a thread of its own, because closing blocks, at times forever.
async fn close(stage: &str, member: Arc<Member>) {
    let closed = on_a_thread(format!("close {stage}"), move || drop(member));
    if timeout(CLOSE_TIMEOUT, closed).await.is_err() {
        warn!(stage, "The consumer of stage {stage} did not close within {CLOSE_TIMEOUT:?} and is abandoned");
    }
}

/// Runs a call of librdkafka that may block for longer than we want to wait. A Tokio runtime that shuts down
/// does not wait for such a thread, as it would for `spawn_blocking`.
fn on_a_thread<T: Send + 'static>(
    name: String,
    call: impl FnOnce() -> T + Send + 'static,
) -> oneshot::Receiver<T> {
    let (done, result) = oneshot::channel();
    let started = std::thread::Builder::new().name(name).spawn(move || drop(done.send(call())));
    if let Err(error) = started {
        warn!(%error, "A thread could not be started: {error}"); // the receiver sees the sender dropped
    }
    result
}

/// The partitions by topic, for log lines: `orders 0 1 5`.
fn describe(partitions: &[TopicPartition]) -> String {
    let mut by_topic: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for tp in partitions {
        by_topic.entry(&tp.topic).or_default().push(tp.partition.to_string());
    }
    let topics: Vec<_> =
        by_topic.iter().map(|(topic, numbers)| format!("{topic} {}", numbers.join(" "))).collect();
    if topics.is_empty() { "nothing".to_owned() } else { topics.join(", ") }
}

// === impl TopicPartition ===

impl fmt::Display for TopicPartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.topic, self.partition)
    }
}

// === impl Assignment ===

impl Assignment {
    /// How many partitions of the topic this process reads.
    pub fn of_topic(&self, topic: &str) -> usize {
        self.partitions.iter().filter(|tp| &*tp.topic == topic).count()
    }
}

// === impl StageError ===

impl StageError {
    fn unexpected_message(message: &BorrowedMessage<'_>) -> Self {
        Self::UnexpectedMessage {
            topic: message.topic().to_owned(),
            partition: message.partition(),
            offset: message.offset(),
        }
    }
}

// === impl Stage ===

impl<H, P> fmt::Debug for Stage<H, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stage").field("spec", &self.spec).finish_non_exhaustive()
    }
}
