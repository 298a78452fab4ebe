//! Polls librdkafka's main queue, and passes rebalances to the coordinator.
//!
//! Messages never come this way; they come through the partitions' own queues. What comes is events:
//! rebalances, errors, statistics, log lines. A rebalance is *passed on* and answered later, so this loop
//! never blocks: by polling a consumer shows that it is alive, and if it stopped while partitions were read,
//! no rebalance would ever be answered.

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

/// How long to wait for an event before polling again: the main queue may lose a wake-up like any other.
const RECV_TIMEOUT: Duration = Duration::from_secs(1);
/// How long the requests of [`wake_fetchers`] may take.
const WAKE_TIMEOUT: Duration = Duration::from_secs(1);

/// A rebalance event. The group waits for an answer to each, and meanwhile the whole member reads nothing.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Rebalance {
    /// These are assigned, beside those that we have.
    Assigned(Vec<TopicPartition>),
    /// These are revoked.
    Revoked {
        partitions: Vec<TopicPartition>,
        /// Another member may own them already: nothing may be committed, nothing awaited.
        lost: bool,
    },
}

/// What we use of librdkafka's statistics.
#[derive(Clone, Debug, Default)]
pub(super) struct ConsumerStats {
    /// The member has joined its group, perhaps with nothing to read.
    pub joined: bool,
    pub watermarks: HashMap<TopicPartition, PartitionWatermarks>,
    /// How many partitions each topic has of which we read some.
    pub partitions: BTreeMap<String, usize>,
}

/// The first offset of a partition, the one after its last, and the group's committed one; negative =
/// unknown.
#[derive(Clone, Copy, Debug)]
pub(super) struct PartitionWatermarks {
    pub low: i64,
    pub high: i64,
    pub committed: i64,
}

/// The callbacks of a consumer: librdkafka calls them from the poller's task, and from the thread that closes
/// the consumer.
#[derive(Debug)]
pub(super) struct StageConsumerContext {
    stage: String,
    metrics: Arc<ConsumerMetrics>,
    rebalances: mpsc::Sender<Rebalance>,
    stats: watch::Sender<ConsumerStats>,
    closing: AtomicBool,
    log_throttle: LogThrottle,
}

/// Polls until a fatal error.
pub(super) async fn poll(member: Arc<Member>) -> StageError {
    loop {
        match timeout(RECV_TIMEOUT, member.recv()).await {
            // Queues are split off before their partitions are assigned. No task would settle this message.
            Ok(Ok(message)) => return StageError::unexpected_message(&message),
            Ok(Err(KafkaError::MessageConsumptionFatal(code))) => {
                return fatal(member.client().fatal_error().unwrap_or((code, String::new())));
            }
            // All brokers down, a poll that came late, an unknown topic: it passes, and the callback `error`
            // has logged it.
            Ok(Err(error)) => debug!(%error, "librdkafka reports: {error}"),
            Err(_elapsed) => {}
        }
        if let Some(error) = member.client().fatal_error() {
            return fatal(error);
        }
    }
}

/// A fatal error of librdkafka as ours.
fn fatal((code, reason): (RDKafkaErrorCode, String)) -> StageError {
    match code {
        RDKafkaErrorCode::UnreleasedInstanceId => StageError::UnreleasedInstanceId,
        RDKafkaErrorCode::FencedInstanceId => StageError::FencedInstanceId,
        _ => StageError::Fatal(format!("{code}: {reason}")),
    }
}

/// Adds partitions to the assignment: the answer to [`Rebalance::Assigned`].
pub(super) fn assign(
    consumer: &impl Consumer<StageConsumerContext>,
    partitions: &[TopicPartition],
) -> KafkaResult<()> {
    let partitions = list(partitions.iter().map(|tp| (tp, Offset::Invalid)))?;
    match consumer.rebalance_protocol() {
        RebalanceProtocol::Cooperative => consumer.incremental_assign(&partitions),
        // Only where the settings' properties ask for an eager assignor.
        RebalanceProtocol::Eager | RebalanceProtocol::None => consumer.assign(&partitions),
    }
}

/// Removes partitions from the assignment: the answer to [`Rebalance::Revoked`].
pub(super) fn unassign(
    consumer: &impl Consumer<StageConsumerContext>,
    partitions: &[TopicPartition],
) -> KafkaResult<()> {
    let partitions = list(partitions.iter().map(|tp| (tp, Offset::Invalid)))?;
    match consumer.rebalance_protocol() {
        RebalanceProtocol::Cooperative => consumer.incremental_unassign(&partitions),
        RebalanceProtocol::Eager | RebalanceProtocol::None => consumer.unassign(),
    }
}

/// Wakes the threads that fetch the partitions that we keep. librdkafka pauses all of them while it waits for
/// our answer, and then resumes them without waking the threads of the brokers that lead them, which look
/// once a second when they have nothing else to do (2.12.1). So each gets a request: the end offsets of its
/// partitions. Blocks until they are answered.
pub(super) fn wake_fetchers(consumer: &impl Consumer<StageConsumerContext>, kept: &[TopicPartition]) {
    let woken = list(kept.iter().map(|tp| (tp, Offset::End)))
        .and_then(|ends| consumer.offsets_for_times(ends, WAKE_TIMEOUT));
    if let Err(error) = woken {
        debug!(%error, "The fetchers were not woken, they continue within a second: {error}");
    }
}

/// Partitions and offsets as librdkafka takes them.
pub(super) fn list<'a>(
    offsets: impl IntoIterator<Item = (&'a TopicPartition, Offset)>,
) -> KafkaResult<TopicPartitionList> {
    let mut list = TopicPartitionList::new();
    for (tp, offset) in offsets {
        list.add_partition_offset(&tp.topic, tp.partition, offset)?;
    }
    Ok(list)
}

/// Whether the member has joined the group. A member without partitions gets an event under the classic
/// protocol; under KIP-848 there is none, and the only sign is that its coordinator has been up for a while.
fn has_joined(state: &str, join_state: &str, state_age_ms: i64) -> bool {
    const AGE_MIN_MS: i64 = 10_000;
    state == "up" && (join_state == "steady" || (join_state == "init" && state_age_ms >= AGE_MIN_MS))
}

/// Whether a log line of librdkafka reports an offset reset, which it reports in no other way. (A group
/// without a committed offset is logged at another level.)
fn is_offset_reset(facility: &str, message: &str) -> bool {
    facility == "OFFSET" && message.contains("offset reset")
}

/// The partitions of a list, without its offsets.
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
        Self {
            stage: stage.to_owned(),
            metrics,
            rebalances,
            stats,
            closing: AtomicBool::new(false),
            log_throttle: LogThrottle::default(),
        }
    }

    /// Records were deleted before they were read, or the topic is not the one that the group has read.
    pub(super) fn on_offset_reset(&self, detail: &str) {
        let stage = &self.stage;
        error!(stage, "Offset out of range: records of stage {stage} may be lost or handled again: {detail}");
        self.metrics.offset_resets_total.with_label_values(&[stage.as_str()]).inc();
    }

    /// From now on the callback itself answers rebalances; without an answer a consumer never closes.
    pub(super) fn close(&self) {
        self.closing.store(true, Ordering::Release);
    }

    fn answer(&self, consumer: &BaseConsumer<Self>, rebalance: &Rebalance) {
        let answered = match rebalance {
            Rebalance::Assigned(partitions) => assign(consumer, partitions),
            Rebalance::Revoked { partitions, .. } => unassign(consumer, partitions),
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
            // The coordinator has ended, and with it all partition tasks.
            Err(mpsc::error::TrySendError::Closed(rebalance)) => self.answer(consumer, &rebalance),
            // librdkafka waits for the answer to one rebalance before the next. Should that ever be untrue,
            // no answer is the safe one: the group reassigns the partitions when our time is up.
            Err(mpsc::error::TrySendError::Full(rebalance)) => {
                error!(stage = self.stage, ?rebalance, "Too many unanswered rebalances, one is ignored")
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
            let stage = &self.stage;
            warn!(stage, %error, "Kafka is unreachable: stage={stage} error={reason}");
        }
    }

    fn stats(&self, statistics: Statistics) {
        let partitions = statistics
            .topics
            .values()
            .flat_map(|topic| topic.partitions.values().map(|partition| (&topic.topic, partition)));
        let watermarks =
            partitions.filter(|(_, partition)| partition.partition >= 0).map(|(topic, partition)| {
                // Under read_committed nothing from the last stable offset on can be read.
                let high = if partition.ls_offset >= 0 { partition.ls_offset } else { partition.hi_offset };
                let watermarks = PartitionWatermarks {
                    low: partition.lo_offset,
                    high,
                    committed: partition.committed_offset,
                };
                (TopicPartition { topic: topic.as_str().into(), partition: partition.partition }, watermarks)
            });
        let joined =
            statistics.cgrp.is_some_and(|group| has_joined(&group.state, &group.join_state, group.stateage));
        let watermarks = watermarks.collect();
        let partitions = statistics.topics.values().map(|topic| {
            let known =
                topic.partitions.values().filter(|partition| partition.partition >= 0 && !partition.unknown);
            (topic.topic.clone(), known.count())
        });
        self.stats.send_replace(ConsumerStats { joined, watermarks, partitions: partitions.collect() });
    }
}
