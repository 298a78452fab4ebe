//! The one who decides: answers rebalances, commits what is settled, and stops in good order.
//!
//! ## Assigned => the partitions are split off, taken into the assignment *at once*, and read
//! ## Revoked => they stop reading; their running handlers end, or are broken off; what is settled is committed; then,
//! and only then, they are given back
//! ## Lost => the same, without the waiting and the commit: they are somebody else's already
//! ## Stop => unsubscribe, which revokes everything
//!
//! Commits are synchronous calls on a thread of their own, one at a time: rdkafka 0.39 never reports the result of an
//! asynchronous one (it asks for events and sets no callback; librdkafka then replies to nobody).

use std::{collections::BTreeMap, future::pending, sync::Arc, time::Duration};

use rdkafka::{
    Offset, TopicPartitionList,
    consumer::{CommitMode, Consumer as _},
    error::KafkaResult,
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::{JoinError, JoinSet},
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::{
    Assignment, StageError, TopicPartition,
    commit::{Ledger, Offsets, Refusal, refusal},
    intake::Queue,
    listed, on_a_thread,
    partition::{Limits, Orders, Partition, Progress},
    poller::{Member, Rebalance, Vitals, give_back, take},
    work::{Bench, words},
};
use crate::{
    domain::Timestamp,
    kafka::client::Rarely,
    stream::{Handler, Publish},
};

/// How long the last commit of a partition may take, after its drain, before it is given back without one: Kafka may be
/// away, and the group waits for us.
const LAST_COMMIT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long librdkafka may take to answer `unsubscribe` with a revocation.
const UNSUBSCRIBE_TIMEOUT: Duration = Duration::from_secs(5);

/// Decides for one stage.
pub(super) struct Coordinator<H, P> {
    member: Arc<Member>,
    bench: Arc<Bench<H, P>>,
    limits: Limits,
    commit_every: Duration,
    probe_every: Duration,
    assignment: watch::Sender<Assignment>,
    vitals: watch::Receiver<Vitals>,
    owned: BTreeMap<TopicPartition, Owned>,
    tasks: JoinSet<TopicPartition>,
    ledger: Ledger,
    /// The commit on its way.
    commit: Option<Commit>,
    /// The question that waits for our answer.
    revocation: Option<Revocation>,
    /// We are leaving, and are gone by then in any case.
    leave_by: Option<Instant>,
    complaints: Rarely,
}

/// A partition of ours.
#[derive(Debug)]
struct Owned {
    orders: Orders,
    progress: watch::Receiver<Progress>,
    /// Its task has ended, and with it its last handler.
    ended: bool,
}

#[derive(Debug)]
struct Commit {
    offsets: Offsets,
    result: oneshot::Receiver<KafkaResult<()>>,
}

#[derive(Debug)]
struct Revocation {
    partitions: Vec<TopicPartition>,
    lost: bool,
    /// Set when the drain is over: whatever the last commit does, the answer is given by then.
    answer_by: Option<Instant>,
    /// A last commit was refused; the tick tries again.
    refused: bool,
}

/// What to do about a revocation.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    Wait,
    Commit(Offsets),
    Answer,
}

impl<H: Handler, P: Publish> Coordinator<H, P> {
    pub(super) fn new(
        member: Arc<Member>,
        bench: Arc<Bench<H, P>>,
        limits: Limits,
        commit_every: Duration,
        probe_every: Duration,
        assignment: watch::Sender<Assignment>,
        vitals: watch::Receiver<Vitals>,
    ) -> Self {
        Self {
            member,
            bench,
            limits,
            commit_every,
            probe_every,
            assignment,
            vitals,
            owned: BTreeMap::new(),
            tasks: JoinSet::new(),
            ledger: Ledger::default(),
            commit: None,
            revocation: None,
            leave_by: None,
            complaints: Rarely::default(),
        }
    }

    /// Decides until everything is given back after `stop`, or until something breaks.
    pub(super) async fn run(
        mut self,
        mut rebalances: mpsc::Receiver<Rebalance>,
        poller: &mut JoinSet<StageError>,
        stop: CancellationToken,
    ) -> Result<(), StageError> {
        let ended = self.decide(&mut rebalances, poller, stop).await;
        // After an orderly end there is none left. After another, none may outlive us: they hold their queues.
        self.tasks.shutdown().await;
        ended
    }

    async fn decide(
        &mut self,
        rebalances: &mut mpsc::Receiver<Rebalance>,
        poller: &mut JoinSet<StageError>,
        stop: CancellationToken,
    ) -> Result<(), StageError> {
        let mut tick = interval(self.commit_every);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let alarm = self.alarm();
            tokio::select! {
                Some(rebalance) = rebalances.recv() => self.rebalance(rebalance)?,
                Some(ended) = self.tasks.join_next() => self.task_ended(ended)?,
                result = committed(&mut self.commit) => self.committed(result),
                _ = tick.tick() => self.tick(),
                () = stop.cancelled(), if self.leave_by.is_none() => self.leave(),
                () = at(alarm) => {}
                Some(ended) = poller.join_next() => return Err(ended.unwrap_or_else(|bug| broken("the poller", bug))),
            }
            self.settle_revocation()?;
            if self.has_left() {
                return Ok(());
            }
        }
    }

    // ## Assigned

    fn rebalance(&mut self, rebalance: Rebalance) -> Result<(), StageError> {
        match rebalance {
            Rebalance::Assigned(partitions) => self.assigned(partitions),
            Rebalance::Revoked { partitions, lost } => {
                self.revoked(partitions, lost);
                Ok(())
            }
        }
    }

    fn assigned(&mut self, partitions: Vec<TopicPartition>) -> Result<(), StageError> {
        let pending = self.revocation.as_ref().and_then(|revocation| revocation.partitions.first());
        if let Some(of) = pending.or_else(|| partitions.iter().find(|of| self.owned.contains_key(of))) {
            return Err(StageError::Overtaken(of.clone()));
        }
        info!(stage = self.bench.stage, "Stage {} is given {}", self.bench.stage, listed(&partitions));
        let mut queues = Vec::with_capacity(partitions.len());
        for of in &partitions {
            queues.push(Queue::split(&self.member, of.clone()).ok_or_else(|| StageError::NoSuchPartition(of.clone()))?);
        }
        take(&*self.member, &list(partitions.iter().map(|of| (of, Offset::Invalid)))?)
            .map_err(|source| StageError::Refused { call: "taking an assignment", source })?;
        self.bench.budget.shared_by(self.owned.len() + partitions.len());
        for (of, queue) in partitions.iter().zip(queues) {
            self.start(of.clone(), queue);
        }
        self.ledger.dealt();
        self.assignment.send_modify(|assignment| {
            assignment.arrived = true;
            assignment.partitions.extend(partitions);
            assignment.confirmed_at = Some(Instant::now());
        });
        Ok(())
    }

    fn start(&mut self, of: TopicPartition, queue: Queue) {
        let (orders, (report, progress)) = (Orders::default(), watch::channel(Progress::default()));
        let partition = Partition::new(of.clone(), queue, Arc::clone(&self.bench), orders.clone(), self.limits, report);
        self.tasks.spawn(partition.run());
        self.owned.insert(of, Owned { orders, progress, ended: false });
    }

    // ## Revoked

    fn revoked(&mut self, partitions: Vec<TopicPartition>, lost: bool) {
        let how = if lost { "has lost" } else { "gives back" };
        info!(stage = self.bench.stage, "Stage {} {how} {}", self.bench.stage, listed(&partitions));
        // Whoever shares out by partitions shares less before anybody else can share more.
        self.assignment.send_modify(|assignment| assignment.partitions.retain(|of| !partitions.contains(of)));
        for owned in partitions.iter().filter_map(|of| self.owned.get(of)) {
            owned.orders.stop.cancel();
        }
        self.revocation = Some(Revocation { partitions, lost: false, answer_by: None, refused: false });
        if lost {
            self.lose();
        }
    }

    /// The group does not know us any more: nothing that runs may go on, whichever partition it is of.
    fn lose(&mut self) {
        self.ledger.fence();
        self.assignment.send_modify(|assignment| assignment.confirmed_at = None);
        if let Some(revocation) = &mut self.revocation {
            revocation.lost = true;
            for owned in self.owned.values() {
                owned.orders.stop.cancel();
                owned.orders.abort.cancel();
            }
        }
    }

    /// Goes on with the revocation as far as it can be gone on with.
    fn settle_revocation(&mut self) -> Result<(), StageError> {
        match self.next_step() {
            Step::Wait => Ok(()),
            Step::Commit(offsets) => {
                self.start_commit(offsets);
                Ok(())
            }
            Step::Answer => self.answer(),
        }
    }

    fn next_step(&mut self) -> Step {
        let Some(revocation) = &mut self.revocation else { return Step::Wait };
        if revocation.partitions.iter().any(|of| self.owned.get(of).is_some_and(|owned| !owned.ended)) {
            return Step::Wait;
        }
        let answer_by = *revocation.answer_by.get_or_insert_with(|| Instant::now() + LAST_COMMIT_TIMEOUT);
        if revocation.lost || self.member.assignment_lost() || answer_by <= Instant::now() {
            return Step::Answer;
        }
        if self.commit.is_some() || revocation.refused {
            return Step::Wait;
        }
        let positions = revocation.partitions.iter().filter_map(|of| Some((of.clone(), self.owned.get(of)?.position()?)));
        let due = self.ledger.due(positions);
        if due.is_empty() { Step::Answer } else { Step::Commit(due) }
    }

    fn answer(&mut self) -> Result<(), StageError> {
        let Some(Revocation { partitions, .. }) = self.revocation.take() else { return Ok(()) };
        for of in &partitions {
            self.owned.remove(of);
            self.ledger.forget(of);
        }
        self.bench.budget.shared_by(self.owned.len());
        give_back(&*self.member, &list(partitions.iter().map(|of| (of, Offset::Invalid)))?)
            .map_err(|source| StageError::Refused { call: "giving an assignment back", source })
    }

    // ## Stop

    fn leave(&mut self) {
        self.leave_by = Some(Instant::now() + self.limits.drain_timeout + LAST_COMMIT_TIMEOUT + UNSUBSCRIBE_TIMEOUT);
        for owned in self.owned.values() {
            owned.orders.stop.cancel();
        }
        self.member.unsubscribe();
    }

    fn has_left(&self) -> bool {
        let Some(leave_by) = self.leave_by else { return false };
        if leave_by <= Instant::now() {
            warn!(stage = self.bench.stage, "Stage {} leaves without an answer from its group", self.bench.stage);
            return true;
        }
        self.owned.is_empty() && self.revocation.is_none()
    }

    fn alarm(&self) -> Option<Instant> {
        let answer_by = self.revocation.as_ref().and_then(|revocation| revocation.answer_by);
        answer_by.into_iter().chain(self.leave_by).min()
    }

    // ## Commits

    fn tick(&mut self) {
        if let Some(revocation) = &mut self.revocation {
            revocation.refused = false;
        }
        if self.commit.is_none() {
            let positions: Vec<_> = self.owned.iter().filter_map(|(of, owned)| Some((of.clone(), owned.position()?))).collect();
            let due = self.ledger.due(positions.iter().cloned());
            if !due.is_empty() {
                self.start_commit(due);
            } else if self.probe_is_due() {
                // Nothing has moved. The same offset again asks the group whether we are still a member.
                self.start_commit(positions.into_iter().take(1).collect());
            }
        }
        self.measure();
    }

    /// Whether the group has not confirmed us for a while, and would tell.
    fn probe_is_due(&self) -> bool {
        !self.ledger.is_fenced() && self.assignment.borrow().confirmed_at.is_some_and(|at| at.elapsed() >= self.probe_every)
    }

    fn start_commit(&mut self, offsets: Offsets) {
        if offsets.is_empty() {
            return;
        }
        let list = match list(offsets.iter().map(|(of, offset)| (of, Offset::Offset(*offset)))) {
            Ok(list) => list,
            Err(error) => return warn!(stage = self.bench.stage, %error, "An offset that can't be committed: {error}"),
        };
        let member = Arc::clone(&self.member);
        let result = on_a_thread(format!("commit {}", self.bench.stage), move || member.commit(&list, CommitMode::Sync));
        self.commit = Some(Commit { offsets, result });
    }

    fn committed(&mut self, result: Option<KafkaResult<()>>) {
        let Some(Commit { offsets, .. }) = self.commit.take() else { return };
        let stage = &self.bench.stage;
        match result {
            Some(Ok(())) => {
                let ours = offsets.into_iter().filter(|(of, _)| self.owned.contains_key(of)).collect();
                self.ledger.committed(ours);
                self.assignment.send_modify(|assignment| assignment.confirmed_at = Some(Instant::now()));
            }
            Some(Err(error)) if refusal(&error) == Refusal::Fenced => {
                warn!(stage, %error, "The group does not know stage {stage} any more, it commits nothing until it is dealt in again: {error}");
                self.lose();
            }
            Some(Err(error)) => {
                if self.complaints.now() {
                    warn!(stage, %error, "Stage {stage} can't commit, it tries again: {error}");
                }
                self.refused();
            }
            None => self.refused(),
        }
    }

    fn refused(&mut self) {
        if let Some(revocation) = &mut self.revocation {
            revocation.refused = true;
        }
    }

    fn task_ended(&mut self, ended: Result<TopicPartition, JoinError>) -> Result<(), StageError> {
        let of = ended.map_err(|bug| broken("a partition", bug))?;
        match self.owned.get_mut(&of) {
            Some(owned) if owned.orders.stop.is_cancelled() => {
                owned.ended = true;
                Ok(())
            }
            _ => Err(StageError::Broken { task: of.to_string(), why: "nobody had stopped it".to_owned() }),
        }
    }

    /// How far behind the stage is.
    fn measure(&self) {
        let vitals = self.vitals.borrow();
        if vitals.steady && !self.assignment.borrow().arrived {
            debug!(stage = self.bench.stage, "Stage {} is a member with nothing to read", self.bench.stage);
            self.assignment.send_modify(|assignment| assignment.arrived = true);
        }
        let behind = self.owned.iter().filter_map(|(of, owned)| {
            let marks = vitals.watermarks.get(of)?;
            let position = owned.position().unwrap_or(if marks.committed >= 0 { marks.committed } else { marks.low });
            Some((marks.high - position).max(0))
        });
        let oldest = self.owned.values().filter_map(|owned| owned.progress.borrow().oldest).min();
        let age = oldest.map_or(0.0, |oldest| Timestamp::now().duration_since(oldest).as_secs_f64().max(0.0));
        let (stage, metrics) = ([&*self.bench.stage], &self.bench.metrics);
        metrics.stage_lag_records.with_label_values(&stage).set(behind.sum());
        metrics.stage_lag_seconds.with_label_values(&stage).set(age);
    }
}

impl Owned {
    fn position(&self) -> Option<i64> {
        self.progress.borrow().position
    }
}

/// The result of the commit on its way, if there is one. None = its thread is gone. Cancel safe.
async fn committed(commit: &mut Option<Commit>) -> Option<KafkaResult<()>> {
    match commit {
        Some(commit) => (&mut commit.result).await.ok(),
        None => pending().await,
    }
}

async fn at(alarm: Option<Instant>) {
    match alarm {
        Some(alarm) => sleep_until(alarm).await,
        None => pending().await,
    }
}

/// A list of librdkafka's.
fn list<'a>(offsets: impl IntoIterator<Item = (&'a TopicPartition, Offset)>) -> Result<TopicPartitionList, StageError> {
    let mut list = TopicPartitionList::new();
    for (of, offset) in offsets {
        list.add_partition_offset(&of.topic, of.partition, offset)
            .map_err(|source| StageError::Refused { call: "listing partitions", source })?;
    }
    Ok(list)
}

fn broken(task: &str, bug: JoinError) -> StageError {
    let why = bug.try_into_panic().map_or_else(|cancelled| cancelled.to_string(), |panic| words(&*panic));
    StageError::Broken { task: task.to_owned(), why }
}
