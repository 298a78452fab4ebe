//! The one who decides: answers rebalances, commits what is settled, and stops in good order.
//!
//! ## Assigned => the partitions are split off, taken into the assignment *at once*, and read
//! ## Revoked => they stop reading; their running handlers end, or are broken off; what is settled is committed; then,
//! and only then, they are given back
//! ## Lost => the same, without the waiting and the commit: they may be somebody else's already. What runs comes to its end
//! beside whatever the group generation next, and settles nothing (`orphaned`)
//! ## Expelled, as a refused commit says in the middle of a revocation => everything is lost, and a new member begins
//! ## Stop => unsubscribe, which revokes everything
//!
//! Commits are made one at a time, whenever a tick finds something settled, drains included.

use std::{collections::BTreeMap, future::pending, sync::Arc, time::Duration};

use jiff::Timestamp;
use rdkafka::{consumer::Consumer as _, error::KafkaResult};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::{JoinError, JoinSet},
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::{
    Assignment, StageError, TopicPartition,
    commit::{self, Commit, CommitRefusal, CommittedOffsets, Offsets, refusal},
    intake::SplitQueue,
    listed, on_a_thread,
    orphaned::OrphanedHandlers,
    partition::{CancelSignals, Partition, PartitionExit, PartitionLimits, PartitionProgress},
    poller::{ConsumerStats, Member, Rebalance, give_back, take, wake_fetchers},
    work::{StageContext, panic_message},
};
use crate::{Handler, LogThrottle, Publish, Settings};

/// How long librdkafka may take to answer `unsubscribe` with a revocation.
const UNSUBSCRIBE_TIMEOUT: Duration = Duration::from_secs(5);

/// Decides for one stage.
pub(super) struct Coordinator<'a, H, P> {
    member: Arc<Member>,
    context: Arc<StageContext<H, P>>,
    limits: PartitionLimits,
    timeouts: CommitTimeouts,
    assignment: watch::Sender<Assignment>,
    stats: watch::Receiver<ConsumerStats>,
    owned: BTreeMap<TopicPartition, Owned>,
    tasks: JoinSet<PartitionExit>,
    orphaned: &'a mut OrphanedHandlers,
    offsets: CommittedOffsets,
    /// The commit on its way.
    commit: Option<Commit>,
    /// How often the group has dealt.
    generation: u64,
    /// The question that waits for our answer.
    revocation: Option<Revocation>,
    /// Somebody on a thread of their own makes librdkafka read on.
    waking: Option<oneshot::Receiver<()>>,
    /// We are leaving, and are gone by then in any case.
    leave_by: Option<Instant>,
    log_throttle: LogThrottle,
}

/// How often, and for how long.
#[derive(Clone, Copy, Debug)]
pub(super) struct CommitTimeouts {
    /// Settled offsets are committed that often.
    pub commit_every: Duration,
    /// With nothing to commit, the group is asked that often whether we are still a member.
    pub probe_every: Duration,
    /// How long the last commit of a partition may take, after its drain, before it is given back without
    /// one: Kafka may be away, and the group waits for us.
    pub last_commit_timeout: Duration,
}

/// A partition of ours.
#[derive(Debug)]
struct Owned {
    signals: CancelSignals,
    progress: watch::Receiver<PartitionProgress>,
    /// Its task has ended, and with it its last handler.
    ended: bool,
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
enum RevocationStep {
    Wait,
    Commit(Offsets),
    Answer,
}

impl<'a, H: Handler, P: Publish> Coordinator<'a, H, P> {
    pub(super) fn new(
        member: Arc<Member>,
        context: Arc<StageContext<H, P>>,
        limits: PartitionLimits,
        timeouts: CommitTimeouts,
        assignment: watch::Sender<Assignment>,
        stats: watch::Receiver<ConsumerStats>,
        orphaned: &'a mut OrphanedHandlers,
    ) -> Self {
        Self {
            member,
            context,
            limits,
            timeouts,
            assignment,
            stats,
            owned: BTreeMap::new(),
            tasks: JoinSet::new(),
            orphaned,
            offsets: CommittedOffsets::default(),
            commit: None,
            generation: 0,
            revocation: None,
            waking: None,
            leave_by: None,
            log_throttle: LogThrottle::default(),
        }
    }

    /// Decides until everything is given back after `stop`, or until something breaks.
    pub(super) async fn run(
        mut self,
        mut rebalances: mpsc::Receiver<Rebalance>,
        poller: &mut JoinSet<StageError>,
        stop: &CancellationToken,
    ) -> Result<(), StageError> {
        let ended = self.decide(&mut rebalances, poller, stop).await;
        self.assignment.send_modify(|assignment| {
            assignment.partitions.clear();
            assignment.confirmed_at = None;
        });
        // After an orderly end there is no task left, and no question. After another all is lost: tasks hold
        // their queues, and a consumer that waits for an answer does not close.
        self.owned.values().for_each(Owned::lose);
        while let Some(ended) = self.tasks.join_next().await {
            ended.into_iter().for_each(|left| self.orphaned.take_in(left));
        }
        if let Err(error) = self.answer() {
            debug!(stage = self.context.stage, %error, "The last question is answered in vain: {error}");
        }
        if let Some(waking) = self.waking {
            let _woken = waking.await; // for it holds the member, which is about to close
        }
        ended
    }

    async fn decide(
        &mut self,
        rebalances: &mut mpsc::Receiver<Rebalance>,
        poller: &mut JoinSet<StageError>,
        stop: &CancellationToken,
    ) -> Result<(), StageError> {
        let mut tick = interval(self.timeouts.commit_every);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let alarm = self.alarm();
            tokio::select! {
                Some(rebalance) = rebalances.recv() => self.rebalance(rebalance)?,
                Some(ended) = self.tasks.join_next() => self.task_ended(ended)?,
                () = self.orphaned.next() => {}
                result = commit::result(&mut self.commit) => self.committed(result)?,
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
        self.generation += 1;
        self.offsets.rejoined();
        match rebalance {
            Rebalance::Assigned(partitions) => {
                self.orphaned.hurry();
                self.assigned(partitions)
            }
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
        info!(stage = self.context.stage, "Stage {} is given {}", self.context.stage, listed(&partitions));
        let mut queues = Vec::with_capacity(partitions.len());
        for of in &partitions {
            queues.push(
                SplitQueue::split(&self.member, of.clone())
                    .ok_or_else(|| StageError::NoSuchPartition(of.clone()))?,
            );
        }
        take(&*self.member, &partitions)
            .map_err(|source| StageError::Refused { call: "taking an assignment", source })?;
        self.read_on();
        self.context.budget.shared_by(self.owned.len() + partitions.len());
        for (of, queue) in partitions.iter().zip(queues) {
            self.start(of.clone(), queue);
        }
        self.assignment.send_modify(|assignment| {
            assignment.arrived = true;
            assignment.partitions.extend(partitions);
            assignment.confirmed_at = Some(Instant::now());
        });
        Ok(())
    }

    fn start(&mut self, of: TopicPartition, queue: SplitQueue) {
        let (signals, (report, progress)) =
            (CancelSignals::default(), watch::channel(PartitionProgress::default()));
        let partition = Partition::new(
            of.clone(),
            queue,
            Arc::clone(&self.context),
            signals.clone(),
            self.limits,
            report,
        );
        self.tasks.spawn(partition.run(self.orphaned.of(&of)));
        self.owned.insert(of, Owned { signals, progress, ended: false });
    }

    // ## Revoked

    fn revoked(&mut self, partitions: Vec<TopicPartition>, lost: bool) {
        let how = if lost { "has lost" } else { "gives back" };
        info!(stage = self.context.stage, "Stage {} {how} {}", self.context.stage, listed(&partitions));
        for owned in partitions.iter().filter_map(|of| self.owned.get(of)) {
            owned.signals.stop.cancel();
        }
        // librdkafka asks one question at a time. If it ever asks a second one, one answer is for both.
        let earlier = self.revocation.take();
        let lost = lost || earlier.as_ref().is_some_and(|earlier| earlier.lost);
        let partitions =
            earlier.into_iter().flat_map(|earlier| earlier.partitions).chain(partitions).collect();
        self.revocation = Some(Revocation { partitions, lost: false, answer_by: None, refused: false });
        if lost {
            self.lose();
        }
    }

    /// The partitions that we are asked for are lost: nobody waits for their handlers before they are given
    /// up.
    fn lose(&mut self) {
        let Some(revocation) = &mut self.revocation else { return };
        revocation.lost = true;
        let partitions = revocation.partitions.clone();
        partitions.iter().filter_map(|of| self.owned.get(of)).for_each(Owned::lose);
        self.unshare(&partitions);
        // What the statistics have said so far they said before the loss.
        self.stats.mark_unchanged();
    }

    /// Goes on with the revocation as far as it can be gone on with.
    fn settle_revocation(&mut self) -> Result<(), StageError> {
        // A drain that lasts may end as a loss.
        if self.revocation.as_ref().is_some_and(|revocation| !revocation.lost)
            && self.member.assignment_lost()
        {
            info!(stage = self.context.stage, "Stage {} has lost what it is giving back", self.context.stage);
            self.lose();
        }
        match self.next_step() {
            RevocationStep::Wait => Ok(()),
            RevocationStep::Commit(offsets) => {
                self.start_commit(offsets);
                Ok(())
            }
            RevocationStep::Answer => self.answer(),
        }
    }

    fn next_step(&mut self) -> RevocationStep {
        let Some(revocation) = &mut self.revocation else { return RevocationStep::Wait };
        if revocation.partitions.iter().any(|of| self.owned.get(of).is_some_and(|owned| !owned.ended)) {
            return RevocationStep::Wait;
        }
        let answer_by =
            *revocation.answer_by.get_or_insert_with(|| Instant::now() + self.timeouts.last_commit_timeout);
        if revocation.lost || answer_by <= Instant::now() {
            return RevocationStep::Answer;
        }
        if self.commit.is_some() || revocation.refused {
            return RevocationStep::Wait;
        }
        let positions =
            revocation.partitions.iter().filter_map(|of| Some((of.clone(), self.owned.get(of)?.position()?)));
        let due = self.offsets.due(positions, Instant::now());
        if due.is_empty() { RevocationStep::Answer } else { RevocationStep::Commit(due) }
    }

    /// Gives the partitions back. Nothing of theirs runs any more.
    fn answer(&mut self) -> Result<(), StageError> {
        let Some(Revocation { partitions, .. }) = self.revocation.take() else { return Ok(()) };
        self.unshare(&partitions);
        for of in &partitions {
            self.owned.remove(of);
            self.offsets.forget(of);
        }
        self.context.budget.shared_by(self.owned.len());
        give_back(&*self.member, &partitions)
            .map_err(|source| StageError::Refused { call: "giving an assignment back", source })?;
        self.read_on();
        Ok(())
    }

    /// An answer was given: what we had, and keep, is to be read again at once.
    fn read_on(&mut self) {
        let kept: Vec<_> = self.owned.keys().cloned().collect();
        if !kept.is_empty() {
            let member = Arc::clone(&self.member);
            self.waking = Some(on_a_thread(format!("wake {}", self.context.stage), move || {
                wake_fetchers(&*member, &kept)
            }));
        }
    }

    /// Whoever shares out by partitions shares less before anybody else can share more, and not while they
    /// are drained: what is begun has to be finished.
    fn unshare(&self, partitions: &[TopicPartition]) {
        self.assignment.send_modify(|assignment| assignment.partitions.retain(|of| !partitions.contains(of)));
    }

    // ## Stop

    fn leave(&mut self) {
        self.leave_by = Some(
            Instant::now()
                + self.limits.drain_timeout
                + self.timeouts.last_commit_timeout
                + UNSUBSCRIBE_TIMEOUT,
        );
        for owned in self.owned.values() {
            owned.signals.stop.cancel();
        }
        self.orphaned.hurry();
        self.member.unsubscribe();
    }

    fn has_left(&self) -> bool {
        let Some(leave_by) = self.leave_by else { return false };
        if leave_by <= Instant::now() {
            warn!(
                stage = self.context.stage,
                "Stage {} leaves without an answer from its group", self.context.stage
            );
            return true;
        }
        self.owned.is_empty() && self.revocation.is_none() && self.orphaned.is_empty()
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
            let positions: Vec<_> =
                self.owned.iter().filter_map(|(of, owned)| Some((of.clone(), owned.position()?))).collect();
            let due = self.offsets.due(positions.iter().cloned(), Instant::now());
            if positions.is_empty() {
                self.nothing_is_in_hand();
            } else if !due.is_empty() {
                self.start_commit(due);
            } else if self.probe_is_due() {
                // Nothing has moved. The same offset again asks the group whether we are still a member.
                self.start_commit(positions.into_iter().take(1).collect());
            }
        }
        self.measure();
    }

    /// Before the first record there is no offset to ask with, and nothing that a doubt would have to stop:
    /// the time in which we must be confirmed begins with the first record.
    fn nothing_is_in_hand(&self) {
        self.assignment.send_modify(|assignment| {
            assignment.confirmed_at = assignment.confirmed_at.map(|_| Instant::now())
        });
    }

    /// Whether the group has not confirmed us for a while, and would tell. In a drain the next commit is the
    /// only one to say that the group goes on without us.
    fn probe_is_due(&self) -> bool {
        let every =
            if self.revocation.is_some() { self.timeouts.commit_every } else { self.timeouts.probe_every };
        !self.offsets.is_fenced(Instant::now())
            && self.assignment.borrow().confirmed_at.is_some_and(|at| at.elapsed() >= every)
    }

    fn start_commit(&mut self, offsets: Offsets) {
        if offsets.is_empty() {
            return;
        }
        match Commit::start(&self.member, &self.context.stage, offsets, self.generation) {
            Ok(commit) => self.commit = Some(commit),
            Err(error) => {
                warn!(stage = self.context.stage, %error, "An offset that can't be committed: {error}")
            }
        }
    }

    fn committed(&mut self, result: Option<KafkaResult<()>>) -> Result<(), StageError> {
        let Some(Commit { offsets, generation, .. }) = self.commit.take() else { return Ok(()) };
        let stage = &self.context.stage;
        match result {
            Some(Ok(())) => {
                let ours = offsets.into_iter().filter(|(of, _)| self.owned.contains_key(of)).collect();
                self.offsets.committed(ours);
                self.assignment.send_modify(|assignment| assignment.confirmed_at = Some(Instant::now()));
            }
            // (One that was asked in the name of the deal before is asked again: the classic protocol refuses
            // it in every rebalance, and it means nothing.)
            Some(Err(error)) if refusal(&error) == CommitRefusal::Fenced && generation == self.generation => {
                // The group went on without us, though nothing else says so: whatever still runs here, of any
                // partition, runs beside its new owner.
                if self.revocation.is_some() {
                    return Err(StageError::Expelled(error));
                }
                // Otherwise a rebalance is on its way that will say what it means.
                debug!(stage, %error, "The group refuses a commit of stage {stage}, it waits to be dealt in again: {error}");
                self.offsets.fence(Instant::now() + self.timeouts.probe_every);
            }
            Some(Err(error)) => {
                if self.log_throttle.now() {
                    warn!(stage, %error, "Stage {stage} can't commit, it tries again: {error}");
                }
                self.refused();
            }
            None => self.refused(),
        }
        Ok(())
    }

    fn refused(&mut self) {
        if let Some(revocation) = &mut self.revocation {
            revocation.refused = true;
        }
    }

    fn task_ended(&mut self, ended: Result<PartitionExit, JoinError>) -> Result<(), StageError> {
        let left = ended.map_err(|bug| broken("a partition", bug))?;
        let of = left.of.clone();
        self.orphaned.take_in(left);
        match self.owned.get_mut(&of) {
            Some(owned) if owned.signals.stop.is_cancelled() => {
                owned.ended = true;
                Ok(())
            }
            _ => Err(StageError::Broken { task: of.to_string(), why: "nobody had stopped it".to_owned() }),
        }
    }

    /// How far behind the stage is.
    fn measure(&mut self) {
        // A member that is dealt nothing may hear nothing of it, but others may have been dealt what it has
        // lost.
        if self.stats.has_changed().unwrap_or(false) && self.stats.borrow_and_update().placed {
            self.orphaned.hurry();
        }
        let stats = self.stats.borrow();
        if stats.placed && !self.assignment.borrow().arrived {
            debug!(
                stage = self.context.stage,
                "Stage {} is a member with nothing to read", self.context.stage
            );
            self.assignment.send_modify(|assignment| assignment.arrived = true);
        }
        self.assignment.send_if_modified(|assignment| {
            let changed = assignment.topics != stats.partitions;
            if changed {
                assignment.topics.clone_from(&stats.partitions);
            }
            changed
        });
        let behind = self.owned.iter().filter_map(|(of, owned)| {
            let marks = stats.watermarks.get(of)?;
            let position =
                owned.position().unwrap_or(if marks.committed >= 0 { marks.committed } else { marks.low });
            Some((marks.high - position).max(0))
        });
        let oldest = self.owned.values().filter_map(|owned| owned.progress.borrow().oldest).min();
        let age = oldest.map_or(0.0, |oldest| Timestamp::now().duration_since(oldest).as_secs_f64().max(0.0));
        let (stage, metrics) = ([&*self.context.stage], &self.context.metrics);
        metrics.stage_lag_records.with_label_values(&stage).set(behind.sum());
        metrics.stage_lag_seconds.with_label_values(&stage).set(age);
    }
}

impl CommitTimeouts {
    /// What follows from the settings.
    pub(super) fn of(settings: &Settings) -> Self {
        let Settings { commit_every, session_timeout, .. } = *settings;
        Self { commit_every, probe_every: session_timeout / 4, last_commit_timeout: session_timeout / 2 }
    }
}

impl Owned {
    fn lose(&self) {
        self.signals.stop.cancel();
        self.signals.lost.cancel();
    }

    fn position(&self) -> Option<i64> {
        self.progress.borrow().position
    }
}

async fn at(alarm: Option<Instant>) {
    match alarm {
        Some(alarm) => sleep_until(alarm).await,
        None => pending().await,
    }
}

fn broken(task: &str, bug: JoinError) -> StageError {
    let why =
        bug.try_into_panic().map_or_else(|cancelled| cancelled.to_string(), |panic| panic_message(&*panic));
    StageError::Broken { task: task.to_owned(), why }
}
