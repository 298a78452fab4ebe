//! One task owns everything about one partition: its queue, its window, its key queues, its running handlers.
//! No locks, and no result can be late: the task ends after its last handler, and only then is the partition
//! unassigned.
//!
//! ```text
//!  queue -> head (due? room?) -> window -> key queue -> handler -> settled -> progress -> committed
//!                                                  \-> dead letter -/
//! ```
//!
//! A stop ends the reading at once. Running handlers are awaited for the drain time-out and then aborted; of
//! the records that wait in a key queue only those still start which others have overtaken, because a commit
//! does not reach beyond them. Whatever is unsettled then is left to the next owner. A partition that is lost
//! ends at once, and its running handlers are [`orphaned`](super::orphaned).

use std::{pin::pin, sync::Arc, time::Duration};

use futures::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use jiff::Timestamp;
use prometheus::IntCounter;
use tokio::{
    sync::watch,
    task::coop::consume_budget,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use super::{
    TopicPartition,
    budget::Permits,
    intake::{Arrival, Intake, RecordSource},
    key_queues::KeyQueues,
    poison_pill::PoisonPillBreaker,
    window::Window,
    work::{self, InFlight, RecordEnd, StageContext, catch_panic},
};
use crate::{Cause, ConsumerMetrics, Handler, Publish, Record};

/// The most records that are accepted before results, and a stop, are looked at again.
const ARRIVALS_AT_ONCE: usize = 32;

/// The part of the drain (one in so many) in which a record from a key queue may still start. During a drain
/// the whole member reads nothing, and a long key queue would prolong it.
const CATCH_UP_PART: u32 = 4;

/// Tells a partition's task to end.
#[derive(Clone, Debug, Default)]
pub(super) struct CancelSignals {
    /// Read nothing more, start nothing more, finish what runs.
    pub stop: CancellationToken,
    /// Don't wait for running handlers: the partition is lost, and another member may own it already.
    pub lost: CancellationToken,
}

/// What a partition reports to the coordinator.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct PartitionProgress {
    /// The offset that may be committed; none before the first record.
    pub position: Option<i64>,
    /// When the oldest unsettled record was written.
    pub oldest: Option<Timestamp>,
}

/// The limits of a partition.
#[derive(Clone, Copy, Debug)]
pub(super) struct PartitionLimits {
    /// Records from the oldest unsettled one to the last delivered.
    pub span: usize,
    /// How long running handlers are awaited after a stop.
    pub drain_timeout: Duration,
}

/// The counters of records by fate, because looking one up costs more than counting.
#[derive(Debug)]
struct Fates {
    done: IntCounter,
    dead_letter: IntCounter,
    unfinished: IntCounter,
}

/// Running handlers. They run inside the partition's task: a task for each record would cost more than most
/// handlers compute before their first wait, and other partitions occupy the other processors.
pub(super) type RunningHandlers = FuturesUnordered<BoxFuture<'static, (InFlight, RecordEnd)>>;

/// What a partition's task returns.
#[derive(Debug)]
pub(super) struct PartitionExit {
    pub tp: TopicPartition,
    /// Empty unless the partition was lost.
    pub running: RunningHandlers,
}

/// An idle partition asks for its position after 1, 2, 4 and 8 seconds, and then in this interval, in
/// seconds.
const POSITION_POLL_SECONDS: u32 = 8;

/// The state of a partition's task.
pub(super) struct Partition<S, H: Handler, P> {
    tp: TopicPartition,
    context: Arc<StageContext<H, P>>,
    intake: Intake<S>,
    signals: CancelSignals,
    /// The stop that handlers get. One for all: cloning a token takes a lock.
    stop: Arc<CancellationToken>,
    limits: PartitionLimits,
    progress: watch::Sender<PartitionProgress>,
    window: Window,
    key_queues: KeyQueues<(InFlight, H::Event)>,
    running: RunningHandlers,
    /// The time since the last record.
    quiet_seconds: u32,
    /// Records that were accepted and have not ended: waiting in a key queue or running.
    held: usize,
    poison_pills: PoisonPillBreaker,
    fates: Fates,
    /// The offset after the last record that has started.
    started: i64,
    /// The first record that will be handled again after a stop, and with it everything behind it.
    redeliver_from: i64,
}

impl<S: RecordSource, H: Handler, P: Publish> Partition<S, H, P> {
    pub(super) fn new(
        tp: TopicPartition,
        source: S,
        context: Arc<StageContext<H, P>>,
        signals: CancelSignals,
        limits: PartitionLimits,
        progress: watch::Sender<PartitionProgress>,
    ) -> Self {
        let intake = Intake::new(source, context.budget.admission());
        let fates = Fates::of(&context.metrics, &context.stage);
        Self {
            tp,
            context,
            intake,
            stop: Arc::new(signals.stop.clone()),
            signals,
            limits,
            progress,
            window: Window::default(),
            key_queues: KeyQueues::default(),
            running: RunningHandlers::new(),
            held: 0,
            quiet_seconds: 0,
            poison_pills: PoisonPillBreaker::default(),
            fates,
            started: 0,
            redeliver_from: i64::MAX,
        }
    }

    /// Runs the partition until it is stopped, and drains it. Reads nothing before `orphans_ended` is
    /// cancelled: the partition's orphaned handlers still run.
    pub(super) async fn run(mut self, orphans_ended: Option<CancellationToken>) -> PartitionExit {
        let stop = self.signals.stop.clone();
        let mut stopped = pin!(stop.cancelled());
        if let Some(ended) = orphans_ended {
            stop.run_until_cancelled(ended.cancelled()).await;
        }
        loop {
            let room = self.has_room();
            tokio::select! {
                biased;
                () = &mut stopped => break,
                Some((in_flight, end)) = self.running.next() => self.ended(in_flight, end),
                arrival = self.intake.next(&*self.context.handler), if room => match arrival {
                    Arrival::Record(record, permits) => {
                        self.quiet_seconds = 0;
                        self.accept(record, permits);
                    }
                    Arrival::Quiet => self.pass_markers(),
                },
            }
            self.take_ready();
            self.report();
            consume_budget().await; // so that a busy partition lets the others run
        }
        self.drain().await;
        PartitionExit { tp: self.tp, running: self.running }
    }

    /// Whether another record may be read: not with too many held, nor too far ahead of one that doesn't end.
    fn has_room(&self) -> bool {
        self.held < self.context.budget.partition_max()
            && self.window.span() < self.limits.span
            && !self.poison_pills.is_open()
    }

    /// Takes what has ended and what has arrived by now, without waiting.
    fn take_ready(&mut self) {
        while let Some(Some((in_flight, end))) = self.running.next().now_or_never() {
            self.ended(in_flight, end);
        }
        for _ in 0..ARRIVALS_AT_ONCE {
            if !self.has_room() {
                return;
            }
            let Some(Arrival::Record(record, permits)) =
                self.intake.next(&*self.context.handler).now_or_never()
            else {
                return;
            };
            self.accept(record, permits);
        }
    }

    fn accept(&mut self, record: Box<Record>, permits: Permits) {
        self.held += 1;
        let gap = self.window.gap(record.offset);
        if gap > 0 {
            let gaps = &self.context.metrics.offset_gaps_total;
            gaps.with_label_values(&[&*self.context.stage]).inc_by(gap);
        }
        let ticket = self.window.deliver(record.offset, record.timestamp);
        let read = self.context.read(&record);
        let keyed = read.and_then(|event| {
            let key = catch_panic(|| self.context.handler.key(&event))?;
            Ok((event, key))
        });
        match keyed {
            Ok((event, key)) => {
                let in_flight = InFlight { record, ticket, key, _permits: permits };
                let entered = self.key_queues.enter(in_flight.key.clone().as_ref(), (in_flight, event));
                if let Some((in_flight, event)) = entered {
                    self.handle(in_flight, event);
                }
            }
            Err(cause) => self.failed(InFlight { record, ticket, key: None, _permits: permits }, cause),
        }
    }

    fn handle(&mut self, in_flight: InFlight, event: H::Event) {
        self.started = self.started.max(in_flight.record.offset + 1);
        let context = Arc::clone(&self.context);
        let stop = Arc::clone(&self.stop);
        self.running.push(Box::pin(async move {
            let end = context.handle(event, &in_flight.record, &stop).await;
            (in_flight, end)
        }));
    }

    /// The record can't be handled: it becomes a dead letter, unless that happens so often that the handler
    /// must be at fault.
    fn failed(&mut self, in_flight: InFlight, cause: Cause) {
        let was_open = self.poison_pills.is_open();
        if work::may_be_handlers_fault(&cause) {
            self.poison_pills.count(true);
        }
        if self.poison_pills.is_open() {
            if !was_open {
                let tp = &self.tp;
                let stage = &self.context.stage;
                error!(
                    stage,
                    topic = &*tp.topic,
                    partition = tp.partition,
                    error = cause.detail(),
                    "Poison-pill breaker open: stage {stage} fails on record after record of {tp} ({}). The \
                     partition is not read until the cause is fixed and the process restarted",
                    cause.label()
                );
                self.key_queues.retain_waiting(|_| false);
            }
            // Unsettled: the window keeps the offset, and the next owner sees the record again.
            self.redeliver_from = self.redeliver_from.min(in_flight.record.offset);
            return;
        }
        let context = Arc::clone(&self.context);
        let stop = Arc::clone(&self.stop);
        self.running.push(Box::pin(async move {
            let end = context.dead_letter(&in_flight.record, &cause, &stop).await;
            (in_flight, end)
        }));
    }

    /// A handler, or the writing of a dead letter, has ended: the record is settled, or becomes a dead
    /// letter, or stays unsettled.
    fn ended(&mut self, in_flight: InFlight, end: RecordEnd) {
        let fate = match end {
            RecordEnd::Failed(cause) => return self.failed(in_flight, cause),
            RecordEnd::Done => {
                self.poison_pills.count(false);
                &self.fates.done
            }
            RecordEnd::DeadLettered => &self.fates.dead_letter,
            RecordEnd::Unfinished => &self.fates.unfinished,
        };
        fate.inc();
        self.held -= 1;
        if end == RecordEnd::Unfinished {
            self.redeliver_from = self.redeliver_from.min(in_flight.record.offset);
        } else {
            self.window.settle(in_flight.ticket);
        }
        if let Some(next) = self.key_queues.leave(in_flight.key.as_ref()) {
            let (in_flight, event) = next;
            self.handle(in_flight, event);
        }
    }

    /// The partition is idle: the position may also pass what follows the last record and is never delivered.
    /// An aborted transaction causes no event, so the position is polled; but seldom, because an answer costs
    /// librdkafka time in proportion to the consumer's partitions, and a partition may be idle forever.
    fn pass_markers(&mut self) {
        self.quiet_seconds = self.quiet_seconds.saturating_add(1);
        let asks =
            self.quiet_seconds.is_power_of_two() || self.quiet_seconds.is_multiple_of(POSITION_POLL_SECONDS);
        if asks
            && self.window.span() == 0
            && let Some(position) = self.intake.position()
        {
            self.window.advance(position);
        }
    }

    fn report(&self) {
        let progress = PartitionProgress {
            position: self.window.position(),
            oldest: self.window.oldest().or(self.intake.oldest()),
        };
        self.progress.send_if_modified(|last| std::mem::replace(last, progress) != progress);
    }

    /// Waits for the running handlers, at most for the drain time-out. Each result until then counts.
    async fn drain(&mut self) {
        let now = Instant::now();
        let catch_up_until = now + self.limits.drain_timeout / CATCH_UP_PART;
        let deadline = now + self.limits.drain_timeout;
        // A record in a key queue that lies behind the last one started was overtaken by none.
        let started = self.started;
        let mut starts_below = i64::MAX;
        loop {
            let catches_up = Instant::now() < catch_up_until;
            let end = if catches_up { started.min(self.redeliver_from) } else { 0 };
            if end < starts_below {
                starts_below = end;
                self.key_queues.retain_waiting(|(in_flight, _)| in_flight.record.offset < end);
            }
            tokio::select! {
                biased;
                () = self.signals.lost.cancelled() => return self.key_queues.retain_waiting(|_| false),
                ended = self.running.next() => match ended {
                    Some((in_flight, end)) => self.ended(in_flight, end),
                    None => break,
                },
                () = sleep_until(catch_up_until), if catches_up => {}
                () = sleep_until(deadline) => {
                    let tp = &self.tp;
                    let aborted = self.running.len();
                    warn!(
                        stage = self.context.stage,
                        topic = &*tp.topic,
                        partition = tp.partition,
                        aborted,
                        "Drain timed out: {aborted} handlers of {tp} are aborted, their records left to the \
                         next owner"
                    );
                    break;
                }
            }
            self.report();
        }
        self.running.clear();
    }
}

// === impl Fates ===

impl Fates {
    fn of(metrics: &ConsumerMetrics, stage: &str) -> Self {
        let [done, dead_letter, unfinished] = ["done", "dead_letter", "unfinished"]
            .map(|fate| metrics.records_total.with_label_values(&[stage, fate]));
        Self { done, dead_letter, unfinished }
    }
}
