//! One task owns everything about one partition: its queue, its window, its key_queues, its running handlers. No
//! locks, and no result can be late: the task ends after its last handler, and only then is the partition
//! given back.
//!
//! ```text
//!  queue -> head (due? room?) -> window -> lane -> handler task -> settled -> progress -> committed
//!                                             \-> dead letter task -/
//! ```
//!
//! A stop ends the reading at once. Handlers that run are awaited for the drain time-out and then aborted; of
//! those who wait in a lane only they still start whom others have overtaken, because a commit does not reach
//! beyond them. Whatever is unsettled then is the next owner's. A partition that is lost ends at once, and
//! its running handlers are [`orphaned`](super::orphaned).

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
    work::{self, InFlight, RecordEnd, StageContext, guarded},
};
use crate::{Cause, ConsumerMetrics, Handler, Publish, Record};

/// So many records are taken in at most before results, and a stop, are looked at again.
const ARRIVALS_AT_ONCE: usize = 32;

/// The part of the drain (one in so many) in which somebody who waits in a lane may still start. A drain is a
/// standstill of the whole member, and a long lane would make it last.
const CATCH_UP_PART: u32 = 4;

/// How a partition is told to end.
#[derive(Clone, Debug, Default)]
pub(super) struct CancelSignals {
    /// Read nothing more, start nothing more, finish what runs.
    pub stop: CancellationToken,
    /// Don't wait for what runs: the partition is lost, and may be somebody else's already.
    pub lost: CancellationToken,
}

/// What the coordinator knows of a partition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct PartitionProgress {
    /// What may be committed; none before the first record.
    pub position: Option<i64>,
    /// When the oldest record was written that is not settled.
    pub oldest: Option<Timestamp>,
}

/// How far a partition may go.
#[derive(Clone, Copy, Debug)]
pub(super) struct PartitionLimits {
    /// Records between the oldest unsettled one and the last delivered.
    pub span: usize,
    /// How long running handlers are awaited after a stop.
    pub drain_timeout: Duration,
}

/// How many records met which fate. To look a counter up costs more than to count.
#[derive(Debug)]
struct Fates {
    done: IntCounter,
    dead_letter: IntCounter,
    unfinished: IntCounter,
}

/// Handlers at work. They run inside the partition's task: to give each record a task costs more than most
/// handlers do before they wait for somebody, and there are other partitions for the other processors.
pub(super) type RunningHandlers = FuturesUnordered<BoxFuture<'static, (InFlight, RecordEnd)>>;

/// What is left of a partition that has ended.
#[derive(Debug)]
pub(super) struct PartitionExit {
    pub of: TopicPartition,
    /// None but those of a lost partition.
    pub running: RunningHandlers,
}

/// A partition that is quiet asks for its position after 1, 2, 4 and 8 seconds, and then this often, in
/// seconds.
const QUIET_ASKS_EVERY: u32 = 8;

/// The owner of a partition.
pub(super) struct Partition<S, H: Handler, P> {
    of: TopicPartition,
    context: Arc<StageContext<H, P>>,
    intake: Intake<S>,
    signals: CancelSignals,
    /// The stop that handlers are given. One for all: to clone a token takes a lock.
    stop: Arc<CancellationToken>,
    limits: PartitionLimits,
    progress: watch::Sender<PartitionProgress>,
    window: Window,
    key_queues: KeyQueues<(InFlight, H::Event)>,
    running: RunningHandlers,
    /// So long has no record come.
    quiet_seconds: u32,
    /// Admitted and not settled, waiting in a lane or running.
    held: usize,
    poison_pills: PoisonPillBreaker,
    fates: Fates,
    /// Behind the last record that has started.
    started: i64,
    /// After a stop: the first record that will be handled again. Whatever stands behind it is handled again
    /// too.
    redeliver_from: i64,
}

impl<S: RecordSource, H: Handler, P: Publish> Partition<S, H, P> {
    pub(super) fn new(
        of: TopicPartition,
        source: S,
        context: Arc<StageContext<H, P>>,
        signals: CancelSignals,
        limits: PartitionLimits,
        progress: watch::Sender<PartitionProgress>,
    ) -> Self {
        let intake = Intake::new(source, context.budget.admission());
        let fates = Fates::of(&context.metrics, &context.stage);
        Self {
            of,
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

    /// Runs the partition until it is told to end, and drains it. Reads nothing before `predecessors` is set.
    pub(super) async fn run(mut self, predecessors: Option<CancellationToken>) -> PartitionExit {
        let stop = self.signals.stop.clone();
        let mut stopped = pin!(stop.cancelled());
        if let Some(ended) = predecessors {
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
                        self.begin(record, permits);
                    }
                    Arrival::Quiet => self.catch_up(),
                },
            }
            self.go_on();
            self.report();
            consume_budget().await; // so that a partition with much to do lets the others work
        }
        self.drain().await;
        PartitionExit { of: self.of, running: self.running }
    }

    /// Whether another record may come in. With too much in hand, or too far ahead of a record that doesn't
    /// end, the queue is left unread.
    fn has_room(&self) -> bool {
        self.held < self.context.budget.partition_seats()
            && self.window.span() < self.limits.span
            && !self.poison_pills.has_tripped()
    }

    /// What has ended and what has arrived by now, without going to sleep in between.
    fn go_on(&mut self) {
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
            self.begin(record, permits);
        }
    }

    fn begin(&mut self, record: Box<Record>, permits: Permits) {
        self.held += 1;
        let passed_over = self.window.gap(record.offset);
        if passed_over > 0 {
            self.context
                .metrics
                .offset_gaps_total
                .with_label_values(&[&*self.context.stage])
                .inc_by(passed_over);
        }
        let ticket = self.window.deliver(record.offset, record.timestamp);
        let read = self.context.read(&record);
        let keyed = read.and_then(|event| {
            let key = guarded(|| self.context.handler.key(&event))?;
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

    /// The record can't be handled: it becomes a dead letter, unless that happens so often that the fault is
    /// ours.
    fn failed(&mut self, in_flight: InFlight, cause: Cause) {
        let had_tripped = self.poison_pills.has_tripped();
        if work::may_be_ours(&cause) {
            self.poison_pills.count(true);
        }
        if self.poison_pills.has_tripped() {
            if !had_tripped {
                let of = &self.of;
                let stage = &self.context.stage;
                error!(
                    stage,
                    topic = &*of.topic,
                    partition = of.partition,
                    error = cause.detail(),
                    "Poison-pill breaker open: stage {stage} fails on record after record of {of} ({}). The \
                     partition is not read until the cause is mended and the process is restarted",
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

    /// A piece of work has ended: the record is settled, or goes on to the dead letters, or stays unsettled.
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

    /// All is quiet: what lies behind the last record and is never delivered may be passed too. An aborted
    /// transaction comes without any sign, so that is asked again and again; but an answer costs librdkafka
    /// as much as the consumer has partitions, and a partition may be quiet for ever.
    fn catch_up(&mut self) {
        self.quiet_seconds = self.quiet_seconds.saturating_add(1);
        let asks =
            self.quiet_seconds.is_power_of_two() || self.quiet_seconds.is_multiple_of(QUIET_ASKS_EVERY);
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

    /// Waits for the handlers that run, as long as that is allowed. Each result that still comes in counts.
    async fn drain(&mut self) {
        let (started, now) = (self.started, Instant::now());
        let (catch_up_until, deadline) =
            (now + self.limits.drain_timeout / CATCH_UP_PART, now + self.limits.drain_timeout);
        // Whoever waits in a lane behind the last one that has started was overtaken by nobody.
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
                    let (of, left) = (&self.of, self.running.len());
                    warn!(
                        stage = self.context.stage,
                        topic = &*of.topic,
                        partition = of.partition,
                        left,
                        "Drain timed out: {left} records of {of} are aborted and handled again by the next owner"
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
