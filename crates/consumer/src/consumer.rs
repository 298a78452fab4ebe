//! The consumer runtime: one for every stage.
//!
//! **Promises.** An offset is committed only when every record below it has a durable fate. Records of one
//! lane run in their order, one at a time; all others run at once, as many as the budget allows, whatever the
//! number of partitions. A dependency that is away stops the reading and loses nothing. A record that can't
//! be handled harms only itself. After a crash at most what was delivered and not yet committed is handled
//! again.
//!
//! **How.** Three kinds of tasks, each with one thing to know:
//!
//! ```text
//!  librdkafka ── main queue ──> poller        listens to events, never to messages; never stands still
//!             │                   │ rebalances
//!             │                   v
//!             │                coordinator    answers rebalances, commits, stops
//!             │                   │ signals  ^ progress
//!             │                   v         │
//!             └─ split queues ─> partitions   each owns its window, its key_queues and its running handlers
//! ```
//!
//! Backpressure is not reading: a partition that has no room leaves its queue alone, and librdkafka stops
//! fetching when the queue is full. (`pause` would throw the queue away and fetch it again, a second later.)
//!
//! **A rebalance is answered late, on purpose.** The callback hands the event over and returns, so polling
//! and heartbeats go on while running handlers come to an end and their offsets are committed. Until the
//! answer the whole member gets nothing to read, hence `kafka.drain_timeout`. A partition task ends after its
//! last handler, and the partition is given back after the task has ended: that order, and not an epoch
//! number, is what keeps late results out.
//!
//! **A loss is answered at once**, because the member can't join again before. The handlers that run come to
//! their end as `orphaned`, beside the member's next life: what a provider has answered gets its
//! checkpoint. They settle nothing.
//!
//! **Races we accept.**
//! - A orphaned handler runs beside the next owner of its partition, if that is another process, for up to the drain
//!   time-out; and so does every handler of a member that the group has thrown out, until the next refused
//!   commit tells. What a handler does is safe from that: a slice has its epoch, a dose its claim, a token
//!   its version. The page that both have open is sent twice.
//! - A commit that Kafka leaves unanswered for longer than [`coordinator`] waits may land after the partition
//!   was given back, and move its next owner's start back: repeats, never a gap.
//! - librdkafka (2.12.1) may go on fetching a partition that was taken away right after it was dealt. What
//!   lies in the queue when the partition comes back is thrown away ([`intake`]); what arrives in the moment
//!   after that is handled, as a repeat. Should it lie ahead of the committed offset, a commit is ahead too,
//!   until the record that belongs there comes an instant later: a crash in between would skip. Not seen in
//!   192 runs of the churn, 1 of which had such late records.
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

/// How long the consumer may take to leave the group and close, once all its partitions are given back.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long to wait before a taken name is tried again.
const NAME_PAUSE: Duration = Duration::from_secs(2);
/// librdkafka asks one question at a time; this is room for the improbable.
const REBALANCES_MAX: usize = 16;

/// Which records a stage reads, and how many at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StageSpec {
    /// The stage's name, in metrics and logs; its consumer group is `<kafka.group_prefix>.<name>`.
    pub name: String,
    /// What it reads. They have to exist.
    pub topics: Vec<String>,
    /// How many records it may have unfinished at once, over all partitions.
    pub in_flight: usize,
    /// Where the records go that can't be handled.
    pub dead_letters: DeadLetters,
}

/// Where and how dead letters are written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetters {
    /// The topic. It has to exist.
    pub topic: String,
    /// What the names of the headers begin with that say where a letter came from, as `myservice.`.
    pub header_prefix: String,
    /// The version of the host, for the header that says who wrote the letter.
    pub version: String,
}

/// A partition of a topic.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TopicPartition {
    /// The topic.
    pub topic: Arc<str>,
    /// The partition.
    pub partition: i32,
}

/// A stage's place in its group.
#[derive(Clone, Debug, Default)]
pub struct Assignment {
    /// The group has dealt at least once: the stage is ready, perhaps with nothing to read.
    pub arrived: bool,
    /// What this process reads. A partition leaves when it is drained, *before* it is given back; at once if
    /// it is lost.
    pub partitions: BTreeSet<TopicPartition>,
    /// How many partitions each topic has of which it reads some; a topic may get more while we run. Some
    /// seconds old.
    pub topics: BTreeMap<String, usize>,
    /// When the group last confirmed that we are a member: it dealt, or it took a commit. None while it
    /// refuses us. From the first record on a commit is made at least every quarter of
    /// `kafka.session_timeout`; until then this is the present.
    pub confirmed_at: Option<Instant>,
}

/// A stage came to an end that was not asked for. The process should end too, and be started again.
#[derive(Debug, thiserror::Error)]
pub enum StageError {
    /// The consumer could not be made.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// librdkafka refused a call that it has no reason to refuse.
    #[error("{call} was refused")]
    Refused {
        /// What was asked.
        call: &'static str,
        /// In librdkafka's words.
        source: KafkaError,
    },
    /// librdkafka gave up.
    #[error("the consumer can't go on: {0}")]
    Fatal(String),
    /// The group still counts on an earlier process with our `kafka.instance_id`. Never leaves
    /// [`Stage::run`], which tries again: the name is free when that process has ended in good order, or its
    /// session is over.
    #[error("a member with this kafka.instance_id is still in the group")]
    NameTaken,
    /// A process that started after us has our `kafka.instance_id`, and our partitions.
    #[error("another process has started with the same kafka.instance_id: give each process one of its own")]
    NameTakenOver,
    /// The group went on without us while we were giving partitions back. Never leaves [`Stage::run`]: a new
    /// member begins.
    #[error("the group has gone on without us: {0}")]
    Expelled(KafkaError),
    /// The group dealt anew while it waited for our answer.
    #[error("the group dealt {0} while it waited for an answer about it")]
    Overtaken(TopicPartition),
    /// A partition to read that the cluster doesn't have.
    #[error("there is no {0}")]
    NoSuchPartition(TopicPartition),
    /// A message came by the main queue, where none may come.
    #[error("{topic}/{partition}@{offset} came by the wrong queue")]
    Stray {
        /// Where it stood.
        topic: String,
        /// Where it stood.
        partition: i32,
        /// Where it stood.
        offset: i64,
    },
    /// A bug of ours.
    #[error("{task} ended unasked: {why}")]
    Broken {
        /// Whose task.
        task: String,
        /// The panic's words, if it was one.
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

/// One life in the group, from joining to closing.
struct Membership {
    member: Arc<Member>,
    rebalances: mpsc::Receiver<Rebalance>,
    stats: watch::Receiver<ConsumerStats>,
}

impl<H: Handler, P: Publish> Stage<H, P> {
    /// Makes the stage's consumer, which does not join its group before [`Stage::run`]. `publish` writes dead
    /// letters. Needs a Tokio runtime.
    ///
    /// # Errors
    /// A property in the settings is wrong.
    pub fn new(
        settings: &Settings,
        spec: StageSpec,
        handler: Arc<H>,
        publish: P,
        metrics: Arc<ConsumerMetrics>,
    ) -> Result<Self, StageError> {
        let (stage, group) = (spec.name.clone(), settings.group_of(&spec.name));
        let budget = Budget::new(spec.in_flight, settings.in_flight_bytes);
        let context = Arc::new(StageContext {
            stage,
            group,
            handler,
            publish,
            dead_letters: spec.dead_letters.clone(),
            metrics,
            budget,
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

    /// The stage's place in its group, as it changes: for readiness, and for whoever shares out by
    /// partitions.
    pub fn assignment(&self) -> watch::Receiver<Assignment> {
        self.assignment.subscribe()
    }

    /// Joins the group and handles records until `stop`; then drains, commits, leaves and closes, within
    /// `kafka.drain_timeout` and some seconds.
    ///
    /// # Errors
    /// The stage ended by itself. Nothing is lost: whatever was not committed is delivered again.
    pub async fn run(self, stop: CancellationToken) -> Result<(), StageError> {
        let Self { spec, settings, context, mut membership, assignment } = self;
        let mut orphaned = OrphanedHandlers::new(&context.stage, settings.drain_timeout);
        let ended = loop {
            let ended = membership.live(&spec, &settings, &context, &assignment, &mut orphaned, &stop).await;
            match ended {
                Err(StageError::Expelled(error)) if !stop.is_cancelled() => {
                    warn!(stage = spec.name, %error, "Stage {} was expelled from its group and joins anew: {error}", spec.name);
                    membership = Membership::new(&settings, spec.in_flight, &context)?;
                }
                Err(StageError::NameTaken) if !stop.is_cancelled() => {
                    orphaned.hurry();
                    if context.log_throttle.now() {
                        let (stage, instance) = (&spec.name, &settings.instance_id);
                        warn!(
                            stage,
                            instance,
                            "Stage {stage} waits: in its group there is still a member with the kafka.instance_id {instance}. After a crash that lasts for the broker's session time-out; else another process has the same"
                        );
                    }
                    let _stopped = stop.run_until_cancelled(sleep(NAME_PAUSE)).await;
                    membership = Membership::new(&settings, spec.in_flight, &context)?;
                }
                // On the way out it makes no difference.
                Err(StageError::Expelled(_) | StageError::NameTaken) => break Ok(()),
                ended => break ended,
            }
        };
        if let (Err(error), false) = (&ended, orphaned.is_empty()) {
            warn!(stage = spec.name, %error, "Stage {} ends as soon as what it has begun is done: {error}", spec.name);
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
        let (hand_over, rebalances) = mpsc::channel(REBALANCES_MAX);
        let (report, stats) = watch::channel(ConsumerStats::default());
        let member = client::consumer(settings, &context.group, in_flight)
            .create_with_context(StageConsumerContext::new(
                &context.stage,
                Arc::clone(&context.metrics),
                hand_over,
                report,
            ))
            .map_err(|source| ClientError { kind: "consumer", source })?;
        Ok(Self { member: Arc::new(member), rebalances, stats })
    }

    async fn live<H: Handler, P: Publish>(
        self,
        spec: &StageSpec,
        settings: &Settings,
        context: &Arc<StageContext<H, P>>,
        assignment: &watch::Sender<Assignment>,
        orphaned: &mut OrphanedHandlers,
        stop: &CancellationToken,
    ) -> Result<(), StageError> {
        let Self { member, rebalances, stats } = self;
        let (name, topics) = (&spec.name, spec.topics.iter().map(String::as_str).collect::<Vec<_>>());
        member.subscribe(&topics).map_err(|source| StageError::Refused { call: "subscribe", source })?;
        info!(
            stage = name,
            group = context.group,
            "Stage {name} joins {} for {}",
            context.group,
            topics.join(", ")
        );

        let mut poller = JoinSet::new();
        poller.spawn(poller::poll(Arc::clone(&member)));
        let limits = PartitionLimits { span: settings.span, drain_timeout: settings.drain_timeout };
        let (assignment, timeouts) = (assignment.clone(), CommitTimeouts::of(settings));
        let coordinator = Coordinator::new(
            Arc::clone(&member),
            Arc::clone(context),
            limits,
            timeouts,
            assignment,
            stats,
            orphaned,
        );
        let ended = coordinator.run(rebalances, &mut poller, stop).await;

        // The order matters: the callback answers for itself, then nobody holds the consumer but us, then it
        // closes.
        member.context().close();
        poller.shutdown().await;
        close(name, member).await;
        info!(stage = name, "Stage {name} has left its group");
        ended
    }
}

/// Closes a consumer on a thread of its own, because closing blocks, at times for ever.
async fn close(stage: &str, member: Arc<Member>) {
    let closed = on_a_thread(format!("close {stage}"), move || drop(member));
    if timeout(CLOSE_TIMEOUT, closed).await.is_err() {
        warn!(stage, "The consumer of {stage} does not close, it is left behind");
    }
}

/// Runs a call of librdkafka's that may block for longer than we want to wait. Neither the runtime nor its
/// end waits for such a thread, which `spawn_blocking` would make them do.
fn on_a_thread<T: Send + 'static>(
    name: String,
    call: impl FnOnce() -> T + Send + 'static,
) -> oneshot::Receiver<T> {
    let (done, result) = oneshot::channel();
    let started = std::thread::Builder::new().name(name).spawn(move || drop(done.send(call())));
    if let Err(error) = started {
        warn!(%error, "No thread to be had: {error}"); // the receiver sees the sender dropped
    }
    result
}

/// The partitions of each topic among these, for log lines: `posts-created 0 1 5`.
fn listed(partitions: &[TopicPartition]) -> String {
    let mut by_topic: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for of in partitions {
        by_topic.entry(&of.topic).or_default().push(of.partition.to_string());
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
    /// How many partitions of the topic are ours.
    pub fn of_topic(&self, topic: &str) -> usize {
        self.partitions.iter().filter(|of| &*of.topic == topic).count()
    }
}

// === impl StageError ===

impl StageError {
    fn stray(message: &BorrowedMessage<'_>) -> Self {
        Self::Stray {
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
