//! The one who listens to librdkafka: serves its main queue, and hands rebalances over.
//!
//! Messages never come this way; they come through the partitions' own queues. What comes is events:
//! rebalances, errors, statistics, log lines. A rebalance is *handed over* to the coordinator and answered
//! later, so this loop never stands still: polling is our sign of life, and if it stopped while partitions
//! were read, no rebalance would ever be answered.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use rdkafka::{
    ClientContext, Offset, Statistics, TopicPartitionList,
    config::RDKafkaLogLevel,
    consumer::{BaseConsumer, Consumer, ConsumerContext, RebalanceProtocol, StreamConsumer},
    error::{KafkaError, KafkaResult, RDKafkaErrorCode},
    types::RDKafkaRespErr,
};
use tokio::{
    sync::{mpsc, watch},
    time::timeout,
};
use tracing::{debug, error, warn};

use super::{StageError, TopicPartition};
use crate::{ConsumerMetrics, LogThrottle, client::log};

/// A stage's consumer: this process's member of the stage's group.
pub(super) type Member = StreamConsumer<StageConsumerContext>;

/// The main queue may lose a wake-up like any other.
const LISTEN: Duration = Duration::from_secs(1);

/// What the group tells us. It waits for an answer to each, and meanwhile the whole member is given nothing
/// to read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Rebalance {
    /// These are ours now, beside those that we have.
    Assigned(Vec<TopicPartition>),
    /// These are to be given back.
    Revoked {
        /// Which.
        partitions: Vec<TopicPartition>,
        /// They are somebody else's already: nothing may be committed, nothing waited for.
        lost: bool,
    },
}

/// What librdkafka's statistics say.
#[derive(Clone, Debug, Default)]
pub(super) struct ConsumerStats {
    /// The member has its place in the group, perhaps with nothing to read.
    pub placed: bool,
    pub watermarks: HashMap<TopicPartition, Watermarks>,
    /// How many partitions each topic has that we read something of.
    pub partitions: BTreeMap<String, usize>,
}

/// Where a partition begins and ends, and what the group had committed; negative = unknown.
#[derive(Clone, Copy, Debug)]
pub(super) struct Watermarks {
    pub low: i64,
    pub high: i64,
    pub committed: i64,
}

/// librdkafka calls this from the poller's task, and from the thread that closes the consumer.
#[derive(Debug)]
pub(super) struct StageConsumerContext {
    stage: String,
    metrics: Arc<ConsumerMetrics>,
    rebalances: mpsc::Sender<Rebalance>,
    stats: watch::Sender<ConsumerStats>,
    closing: AtomicBool,
    log_throttle: LogThrottle,
}

/// Polls until something is wrong that polling again does not mend.
pub(super) async fn poll(member: Arc<Member>) -> StageError {
    loop {
        match timeout(LISTEN, member.recv()).await {
            // Partitions are split off before they are assigned. Whatever this is, nobody would settle it.
            Ok(Ok(stray)) => return StageError::stray(&stray),
            Ok(Err(KafkaError::MessageConsumptionFatal(code))) => {
                return gave_up(member.client().fatal_error().unwrap_or((code, String::new())));
            }
            // All brokers away, a poll that came late, an unknown topic: it passes, and `Context::error` has
            // told it.
            Ok(Err(passing)) => debug!(error = %passing, "librdkafka reports: {passing}"),
            Err(_elapsed) => {}
        }
        if let Some(why) = member.client().fatal_error() {
            return gave_up(why);
        }
    }
}

/// What it means that librdkafka has given up.
fn gave_up((code, reason): (RDKafkaErrorCode, String)) -> StageError {
    match code {
        RDKafkaErrorCode::UnreleasedInstanceId => StageError::NameTaken,
        RDKafkaErrorCode::FencedInstanceId => StageError::NameTakenOver,
        _ => StageError::Fatal(format!("{code}: {reason}")),
    }
}

/// Takes partitions into the assignment: the answer to [`Rebalance::Assigned`].
pub(super) fn take(
    consumer: &impl Consumer<StageConsumerContext>,
    partitions: &[TopicPartition],
) -> KafkaResult<()> {
    let partitions = list(partitions.iter().map(|of| (of, Offset::Invalid)))?;
    match consumer.rebalance_protocol() {
        RebalanceProtocol::Cooperative => consumer.incremental_assign(&partitions),
        // Only where kafka.properties asks for an eager assignor.
        RebalanceProtocol::Eager | RebalanceProtocol::None => consumer.assign(&partitions),
    }
}

/// Gives partitions back: the answer to [`Rebalance::Revoked`].
pub(super) fn give_back(
    consumer: &impl Consumer<StageConsumerContext>,
    partitions: &[TopicPartition],
) -> KafkaResult<()> {
    let partitions = list(partitions.iter().map(|of| (of, Offset::Invalid)))?;
    match consumer.rebalance_protocol() {
        RebalanceProtocol::Cooperative => consumer.incremental_unassign(&partitions),
        RebalanceProtocol::Eager | RebalanceProtocol::None => consumer.unassign(),
    }
}

/// Wakes the threads that fetch what we keep. librdkafka pauses all that we have while it waits for our
/// answer, and then resumes it without a word to the thread of the broker that leads it, which looks once a
/// second when it has nothing else to do (2.12.1). So each is given something to do: the question where its
/// partitions end. Blocks until they have answered.
pub(super) fn wake_fetchers(consumer: &impl Consumer<StageConsumerContext>, kept: &[TopicPartition]) {
    let asked = list(kept.iter().map(|of| (of, Offset::End)))
        .and_then(|ends| consumer.offsets_for_times(ends, LISTEN));
    if let Err(error) = asked {
        debug!(%error, "Nobody was woken, reading goes on within a second: {error}");
    }
}

/// A list of librdkafka's.
pub(super) fn list<'a>(
    offsets: impl IntoIterator<Item = (&'a TopicPartition, Offset)>,
) -> KafkaResult<TopicPartitionList> {
    let mut list = TopicPartitionList::new();
    for (of, offset) in offsets {
        list.add_partition_offset(&of.topic, of.partition, offset)?;
    }
    Ok(list)
}

/// Whether the member has its place in the group. A member that is dealt nothing is told so by the classic
/// protocol; under KIP-848 it hears nothing at all, and that it has stood in front of its coordinator for a
/// while is all there is to see.
fn is_placed(state: &str, join_state: &str, state_age_ms: i64) -> bool {
    const A_WHILE_MS: i64 = 10_000;
    state == "up" && (join_state == "steady" || (join_state == "init" && state_age_ms >= A_WHILE_MS))
}

/// Whether librdkafka says that it goes on reading elsewhere than where it was. It says so in its log and
/// nowhere else. (That a group has no offset yet, it says at another level.)
fn is_offset_reset(facility: &str, message: &str) -> bool {
    facility == "OFFSET" && message.contains("offset reset")
}

/// The partitions of a list of librdkafka's.
fn partitions_of(list: &TopicPartitionList) -> Vec<TopicPartition> {
    list.elements()
        .iter()
        .map(|element| TopicPartition { topic: element.topic().into(), partition: element.partition() })
        .collect()
}

// === impl StageConsumerContext ===

impl StageConsumerContext {
    pub(super) fn new(
        stage: &str,
        metrics: Arc<ConsumerMetrics>,
        rebalances: mpsc::Sender<Rebalance>,
        stats: watch::Sender<ConsumerStats>,
    ) -> Self {
        let (closing, log_throttle) = (AtomicBool::new(false), LogThrottle::default());
        Self { stage: stage.to_owned(), metrics, rebalances, stats, closing, log_throttle }
    }

    /// Records were deleted before they were read, or the log is not the one that the group has read: an
    /// alarm.
    pub(super) fn on_offset_reset(&self, detail: &str) {
        let stage = &self.stage;
        error!(
            stage,
            "The place where stage {stage} was reading is gone, records may be lost or come again: {detail}"
        );
        self.metrics.offset_resets_total.with_label_values(&[stage.as_str()]).inc();
    }

    /// From now on nobody answers rebalances but the callback itself; without an answer a consumer never
    /// closes.
    pub(super) fn close(&self) {
        self.closing.store(true, Ordering::Release);
    }

    fn answer(&self, consumer: &BaseConsumer<Self>, rebalance: &Rebalance) {
        let answered = match rebalance {
            Rebalance::Assigned(partitions) => take(consumer, partitions),
            Rebalance::Revoked { partitions, .. } => give_back(consumer, partitions),
        };
        if let Err(error) = answered {
            warn!(stage = self.stage, %error, "A rebalance could not be answered while closing: {error}");
        }
    }
}

impl ConsumerContext for StageConsumerContext {
    fn rebalance(&self, consumer: &BaseConsumer<Self>, code: RDKafkaRespErr, list: &mut TopicPartitionList) {
        let partitions = partitions_of(list);
        let rebalance = match code {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => Rebalance::Assigned(partitions),
            _ => Rebalance::Revoked { partitions, lost: consumer.assignment_lost() },
        };
        if self.closing.load(Ordering::Acquire) {
            return self.answer(consumer, &rebalance);
        }
        match self.rebalances.try_send(rebalance) {
            Ok(()) => {}
            // The coordinator is gone, and with it all partition tasks.
            Err(mpsc::error::TrySendError::Closed(rebalance)) => self.answer(consumer, &rebalance),
            // librdkafka waits for one answer before it asks the next question. Should that ever be untrue,
            // no answer is the safe one: the group takes the partitions away when our time is up.
            Err(mpsc::error::TrySendError::Full(rebalance)) => {
                error!(stage = self.stage, ?rebalance, "Too many rebalances at once")
            }
        }
    }
}

impl ClientContext for StageConsumerContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        if is_offset_reset(facility, message) {
            return self.on_offset_reset(message);
        }
        log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        if self.log_throttle.now() {
            warn!(stage = self.stage, %error, "Kafka is not well for stage {}: {reason}", self.stage);
        }
    }

    fn stats(&self, statistics: Statistics) {
        let partitions = statistics
            .topics
            .values()
            .flat_map(|topic| topic.partitions.values().map(|partition| (&topic.topic, partition)));
        let watermarks =
            partitions.filter(|(_, partition)| partition.partition >= 0).map(|(topic, partition)| {
                // Under read_committed nothing behind the last stable offset can be read.
                let high = if partition.ls_offset >= 0 { partition.ls_offset } else { partition.hi_offset };
                let watermarks =
                    Watermarks { low: partition.lo_offset, high, committed: partition.committed_offset };
                (TopicPartition { topic: topic.as_str().into(), partition: partition.partition }, watermarks)
            });
        let placed =
            statistics.cgrp.is_some_and(|group| is_placed(&group.state, &group.join_state, group.stateage));
        let watermarks = watermarks.collect();
        let partitions = statistics.topics.values().map(|topic| {
            let known =
                topic.partitions.values().filter(|partition| partition.partition >= 0 && !partition.unknown);
            (topic.topic.clone(), known.count())
        });
        self.stats.send_replace(ConsumerStats { placed, watermarks, partitions: partitions.collect() });
    }
}
