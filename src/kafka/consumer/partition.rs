//! One task owns everything about one partition: its queue, its window, its lanes, its running handlers. No
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
//! its running handlers are [`stragglers`](super::stragglers).

use std::{pin::pin, sync::Arc, time::Duration};

use futures::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
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
    intake::{Arrival, Intake, Source},
    keyed::Lanes,
    retry::Valve,
    window::Window,
    work::{self, Bench, End, Job, guarded},
};
use crate::{
    domain::Timestamp,
    metrics::Metrics,
    stream::{Cause, Handler, Publish, Record, Stop},
};

/// So many records are taken in at most before results, and a stop, are looked at again.
const ARRIVALS_AT_ONCE: usize = 32;

/// The part of the drain (one in so many) in which somebody who waits in a lane may still start. A drain is a
/// standstill of the whole member, and a long lane would make it last.
const CATCH_UP_PART: u32 = 4;

/// How a partition is told to end.
#[derive(Clone, Debug, Default)]
pub(super) struct Orders {
    /// Read nothing more, start nothing more, finish what runs.
    pub stop: CancellationToken,
    /// Don't wait for what runs: the partition is lost, and may be somebody else's already.
    pub lost: CancellationToken,
}

/// What the coordinator knows of a partition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Progress {
    /// What may be committed; none before the first record.
    pub position: Option<i64>,
    /// When the oldest record was written that is not settled.
    pub oldest: Option<Timestamp>,
}

/// How far a partition may go.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
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
pub(super) type Running = FuturesUnordered<BoxFuture<'static, (Job, End)>>;

/// What is left of a partition that has ended.
#[derive(Debug)]
pub(super) struct Left {
    pub of: TopicPartition,
    /// None but those of a lost partition.
    pub running: Running,
}

/// A partition that is quiet asks for its position after 1, 2, 4 and 8 seconds, and then this often, in
/// seconds.
const QUIET_ASKS_EVERY: u32 = 8;

/// The owner of a partition.
pub(super) struct Partition<S, H, P> {
    of: TopicPartition,
    bench: Arc<Bench<H, P>>,
    intake: Intake<S>,
    orders: Orders,
    /// What handlers are told, which is a stop. One for all: to clone its token takes a lock.
    stop: Arc<Stop>,
    limits: Limits,
    progress: watch::Sender<Progress>,
    window: Window,
    lanes: Lanes<Job>,
    running: Running,
    /// So long has no record come.
    quiet_seconds: u32,
    /// Admitted and not settled, waiting in a lane or running.
    held: usize,
    valve: Valve,
    fates: Fates,
    /// Behind the last record that has started.
    started: i64,
    /// After a stop: the first record that will be handled again. Whatever stands behind it is handled again
    /// too.
    again_from: i64,
}

impl<S: Source, H: Handler, P: Publish> Partition<S, H, P> {
    pub(super) fn new(
        of: TopicPartition,
        source: S,
        bench: Arc<Bench<H, P>>,
        orders: Orders,
        limits: Limits,
        progress: watch::Sender<Progress>,
    ) -> Self {
        let intake = Intake::new(source, bench.budget.admission());
        let fates = Fates::of(&bench.metrics, &bench.stage);
        Self {
            of,
            bench,
            intake,
            stop: Arc::new(Stop::of(orders.stop.clone())),
            orders,
            limits,
            progress,
            window: Window::default(),
            lanes: Lanes::default(),
            running: Running::new(),
            held: 0,
            quiet_seconds: 0,
            valve: Valve::default(),
            fates,
            started: 0,
            again_from: i64::MAX,
        }
    }

    /// Runs the partition until it is told to end, and drains it. Reads nothing before `predecessors` is set.
    pub(super) async fn run(mut self, predecessors: Option<CancellationToken>) -> Left {
        let stop = self.orders.stop.clone();
        let mut stopped = pin!(stop.cancelled());
        if let Some(ended) = predecessors {
            stop.run_until_cancelled(ended.cancelled()).await;
        }
        loop {
            let room = self.has_room();
            tokio::select! {
                biased;
                () = &mut stopped => break,
                Some((job, end)) = self.running.next() => self.ended(job, end),
                arrival = self.intake.next(&*self.bench.handler), if room => match arrival {
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
        Left { of: self.of, running: self.running }
    }

    /// Whether another record may come in. With too much in hand, or too far ahead of a record that doesn't
    /// end, the queue is left unread.
    fn has_room(&self) -> bool {
        self.held < self.bench.budget.partition_seats()
            && self.window.span() < self.limits.span
            && !self.valve.is_closed()
    }

    /// What has ended and what has arrived by now, without going to sleep in between.
    fn go_on(&mut self) {
        while let Some(Some((job, end))) = self.running.next().now_or_never() {
            self.ended(job, end);
        }
        for _ in 0..ARRIVALS_AT_ONCE {
            if !self.has_room() {
                return;
            }
            let Some(Arrival::Record(record, permits)) =
                self.intake.next(&*self.bench.handler).now_or_never()
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
            self.bench.metrics.offset_gaps_total.with_label_values(&[&*self.bench.stage]).inc_by(passed_over);
        }
        let ticket = self.window.deliver(record.offset, record.timestamp);
        match guarded(|| self.bench.handler.lane(&record)) {
            Ok(lane) => {
                let job = Job { record, ticket, lane, _permits: permits };
                if let Some(job) = self.lanes.enter(job.lane.clone().as_ref(), job) {
                    self.handle(job);
                }
            }
            Err(panic) => self.dead(Job { record, ticket, lane: None, _permits: permits }, panic),
        }
    }

    fn handle(&mut self, job: Job) {
        self.started = self.started.max(job.record.offset + 1);
        let (bench, stop) = (Arc::clone(&self.bench), Arc::clone(&self.stop));
        self.running.push(Box::pin(async move {
            let end = bench.handle(&job.record, &stop).await;
            (job, end)
        }));
    }

    /// The record can't be handled: it is buried, unless that happens so often that the fault is ours.
    fn dead(&mut self, job: Job, cause: Cause) {
        let was_open = !self.valve.is_closed();
        if work::may_be_ours(&cause) {
            self.valve.count(true);
        }
        if self.valve.is_closed() {
            if was_open {
                let (of, stage) = (&self.of, &self.bench.stage);
                error!(
                    stage, kafka.topic = %of.topic, kafka.partition = of.partition, error = cause.detail,
                    "Stage {stage} fails on record after record of {of} ({}): the partition stands still until that is mended and it is restarted", cause.label
                );
                self.lanes.retain_waiting(|_| false);
            }
            // Unsettled: the window keeps the offset, and the next owner sees the record again.
            self.again_from = self.again_from.min(job.record.offset);
            return;
        }
        let (bench, stop) = (Arc::clone(&self.bench), Arc::clone(&self.stop));
        self.running.push(Box::pin(async move {
            let end = bench.bury(&job.record, &cause, &stop).await;
            (job, end)
        }));
    }

    /// A piece of work has come to an end: the record is settled, or goes on to its burial, or stays
    /// unsettled.
    fn ended(&mut self, job: Job, end: End) {
        let fate = match end {
            End::Dead(cause) => return self.dead(job, cause),
            End::Done => {
                self.valve.count(false);
                &self.fates.done
            }
            End::Buried => &self.fates.dead_letter,
            End::Unfinished => &self.fates.unfinished,
        };
        fate.inc();
        self.held -= 1;
        if end == End::Unfinished {
            self.again_from = self.again_from.min(job.record.offset);
        } else {
            self.window.settle(job.ticket);
        }
        if let Some(next) = self.lanes.leave(job.lane.as_ref()) {
            self.handle(next);
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
        let progress = Progress {
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
            let end = if catches_up { started.min(self.again_from) } else { 0 };
            if end < starts_below {
                starts_below = end;
                self.lanes.retain_waiting(|job| job.record.offset < end);
            }
            tokio::select! {
                biased;
                () = self.orders.lost.cancelled() => return self.lanes.retain_waiting(|_| false),
                ended = self.running.next() => match ended {
                    Some((job, end)) => self.ended(job, end),
                    None => break,
                },
                () = sleep_until(catch_up_until), if catches_up => {}
                () = sleep_until(deadline) => {
                    let (of, left) = (&self.of, self.running.len());
                    warn!(
                        stage = self.bench.stage, kafka.topic = %of.topic, kafka.partition = of.partition, left,
                        "{left} records of {of} did not end in time, they are broken off and handled again by the next owner"
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
    fn of(metrics: &Metrics, stage: &str) -> Self {
        let [done, dead_letter, unfinished] = ["done", "dead_letter", "unfinished"]
            .map(|fate| metrics.records_total.with_label_values(&[stage, fate]));
        Self { done, dead_letter, unfinished }
    }
}
