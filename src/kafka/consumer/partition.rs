//! One task owns everything about one partition: its queue, its window, its lanes, its running handlers. No locks, and
//! no result can be late: the task ends after its last handler, and only then is the partition given back.
//!
//! ```text
//!  queue -> head (due? room?) -> window -> lane -> handler task -> settled -> progress -> committed
//!                                             \-> dead letter task -/
//! ```
//!
//! A stop ends the reading at once and drops whoever waits in a lane; handlers that run are awaited for the drain
//! time-out and then aborted. Whatever is unsettled then is the next owner's.

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
    work::{Bench, End, Job, guarded},
};
use crate::{
    domain::Timestamp,
    metrics::Metrics,
    stream::{Cause, Handler, Publish, Record, Stop},
};

/// So many records are taken in at most before results, and a stop, are looked at again.
const ARRIVALS_AT_ONCE: usize = 32;

/// How a partition is told to end.
#[derive(Clone, Debug, Default)]
pub(super) struct Orders {
    /// Read nothing more, start nothing more, finish what runs.
    pub stop: CancellationToken,
    /// Don't wait for it: the partition is somebody else's already.
    pub abort: CancellationToken,
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

/// Handlers at work. They run inside the partition's task: to give each record a task costs more than most handlers do
/// before they wait for somebody, and there are other partitions for the other processors.
type Running = FuturesUnordered<BoxFuture<'static, (Job, End)>>;

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
    /// Admitted and not settled, waiting in a lane or running.
    held: usize,
    valve: Valve,
    fates: Fates,
    /// Where the log was last asked for its position.
    asked_at: Option<i64>,
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
            valve: Valve::default(),
            fates,
            asked_at: None,
        }
    }

    /// Runs the partition until it is told to end, and drains it.
    pub(super) async fn run(mut self) -> TopicPartition {
        let stop = self.orders.stop.clone();
        let mut stopped = pin!(stop.cancelled());
        loop {
            let room = self.has_room();
            tokio::select! {
                biased;
                () = &mut stopped => break,
                Some((job, end)) = self.running.next() => self.ended(job, end),
                arrival = self.intake.next(&*self.bench.handler), if room => match arrival {
                    Arrival::Record(record, permits) => self.begin(record, permits),
                    Arrival::Quiet => self.catch_up(),
                },
            }
            self.go_on();
            self.report();
            consume_budget().await; // so that a partition with much to do lets the others work
        }
        self.drain().await;
        self.of
    }

    /// Whether another record may come in. With too much in hand, or too far ahead of a record that doesn't end, the
    /// queue is left unread.
    fn has_room(&self) -> bool {
        self.held < self.bench.budget.partition_seats() && self.window.span() < self.limits.span && !self.valve.is_closed()
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
            let Some(Arrival::Record(record, permits)) = self.intake.next(&*self.bench.handler).now_or_never() else { return };
            self.begin(record, permits);
        }
    }

    fn begin(&mut self, record: Box<Record>, permits: Permits) {
        self.held += 1;
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
        let (bench, stop) = (Arc::clone(&self.bench), Arc::clone(&self.stop));
        self.running.push(Box::pin(async move {
            let end = bench.handle(&job.record, &stop).await;
            (job, end)
        }));
    }

    /// The record can't be handled: it is buried, unless that happens so often that the fault is ours.
    fn dead(&mut self, job: Job, cause: Cause) {
        let was_open = !self.valve.is_closed();
        if cause.label == Cause::panicked("").label {
            self.valve.count(true);
        }
        if self.valve.is_closed() {
            if was_open {
                let (of, stage) = (&self.of, &self.bench.stage);
                error!(
                    stage, kafka.topic = %of.topic, kafka.partition = of.partition, error = cause.detail,
                    "The handler of {stage} panics on record after record of {of}: the partition stands still until it is mended and restarted"
                );
                self.lanes.clear_waiting();
            }
            return; // unsettled: the window keeps the offset, and the next owner sees the record again
        }
        let (bench, stop) = (Arc::clone(&self.bench), Arc::clone(&self.stop));
        self.running.push(Box::pin(async move {
            let end = bench.bury(&job.record, &cause, &stop).await;
            (job, end)
        }));
    }

    /// A piece of work has come to an end: the record is settled, or goes on to its burial, or stays unsettled.
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
        if end != End::Unfinished {
            self.window.settle(job.ticket);
        }
        if let Some(next) = self.lanes.leave(job.lane.as_ref()) {
            self.handle(next);
        }
    }

    /// All is quiet: what lies behind the last record and is never delivered may be passed too. Asked once per lull.
    fn catch_up(&mut self) {
        if self.window.span() == 0 && self.window.position() != self.asked_at {
            if let Some(position) = self.intake.position() {
                self.window.advance(position);
            }
            self.asked_at = self.window.position();
        }
    }

    fn report(&self) {
        let progress = Progress { position: self.window.position(), oldest: self.window.oldest().or(self.intake.oldest()) };
        self.progress.send_if_modified(|last| std::mem::replace(last, progress) != progress);
    }

    /// Waits for the handlers that run, as long as that is allowed. Each result that still comes in counts.
    async fn drain(&mut self) {
        self.lanes.clear_waiting();
        let deadline = Instant::now() + self.limits.drain_timeout;
        loop {
            tokio::select! {
                biased;
                () = self.orders.abort.cancelled() => break,
                ended = self.running.next() => match ended {
                    Some((job, end)) => self.ended(job, end),
                    None => break,
                },
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
        let [done, dead_letter, unfinished] =
            ["done", "dead_letter", "unfinished"].map(|fate| metrics.records_total.with_label_values(&[stage, fate]));
        Self { done, dead_letter, unfinished }
    }
}
