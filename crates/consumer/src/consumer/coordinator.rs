//! The decisions of a stage: answers rebalances, commits what is settled, and stops in order.
//!
//! ## Assigned => the partitions are read
//! Their queues are split off, and they are taken into the assignment *at once*.
//!
//! ## Revoked => drained, committed, unassigned
//! They stop reading; their running handlers end, or are aborted; what is settled is committed. Then, and
//! only then, they are unassigned.
//!
//! ## Lost => unassigned at once
//! Nothing is awaited and nothing committed: another member may own them already. Running handlers go on
//! beside whatever is assigned next, and settle nothing (`orphaned`).
//!
//! ## Fenced during a revocation => everything is lost, and the process joins as a new member
//! A refused commit is how this shows.
//!
//! ## Stopped => unsubscribed
//! That revokes everything.
//!
//! Commits are made one at a time, whenever a tick finds something settled, during drains too.

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
    commit::{self, Commit, CommitFailure, CommittedOffsets, Offsets, failure_of},
    describe,
    intake::SplitQueue,
    on_a_thread,
    orphaned::OrphanedHandlers,
    partition::{CancelSignals, Partition, PartitionExit, PartitionLimits, PartitionProgress},
    poller::{ConsumerStats, Member, PartitionWatermarks, Rebalance, assign, unassign, wake_fetchers},
    work::{StageContext, panic_message},
};
use crate::{Handler, LogThrottle, Publish, Settings};

/// How long librdkafka may take to revoke everything after `unsubscribe`.
const UNSUBSCRIBE_TIMEOUT: Duration = Duration::from_secs(5);

/// The coordinator of one membership of a stage.
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
    /// The commit that Kafka has not answered yet.
    commit: Option<Commit>,
    /// The rebalances so far.
    generation: u64,
    /// The revocation that is not answered yet.
    revocation: Option<Revocation>,
    /// A thread that makes librdkafka fetch the kept partitions again.
    waking: Option<oneshot::Receiver<()>>,
    /// Set when stopping: the stage ends by then in any case.
    leave_by: Option<Instant>,
    log_throttle: LogThrottle,
}

/// The times of commits.
#[derive(Clone, Copy, Debug)]
pub(super) struct CommitTimeouts {
    /// The interval of commits while something is settled.
    pub commit_every: Duration,
    /// With nothing to commit: the interval of commits that only ask whether we are still a member.
    pub probe_every: Duration,
    /// How long the last commit of a partition may take, after its drain, before it is unassigned without
    /// one: Kafka may be unavailable, and the group waits for us.
    pub last_commit_timeout: Duration,
}

/// A partition that is assigned to us.
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
    /// Set when the drain has ended: the answer follows by then, whatever the last commit does.
    answer_by: Option<Instant>,
    /// A last commit has failed; the tick tries again.
    commit_failed: bool,
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

    /// Runs until everything is unassigned after `stop`, or until something fails.
    pub(super) async fn run(
        mut self,
        mut rebalances: mpsc::Receiver<Rebalance>,
        poller: &mut JoinSet<StageError>,
        stop: &CancellationToken,
    ) -> Result<(), StageError> {
        let ended = self.event_loop(&mut rebalances, poller, stop).await;
        self.assignment.send_modify(|assignment| {
            assignment.partitions.clear();
            assignment.confirmed_at = None;
        });
        // After a stop in order no task is left and no revocation is unanswered. After a failure everything
        // is lost: tasks hold their queues, and a consumer that waits for an answer does not close.
        self.owned.values().for_each(Owned::mark_lost);
        while let Some(ended) = self.tasks.join_next().await {
            ended.into_iter().for_each(|exit| self.orphaned.add(exit));
        }
        if let Err(error) = self.answer() {
            debug!(
                stage = self.context.stage,
                %error,
                "The last revocation could not be answered: {error}"
            );
        }
        if let Some(waking) = self.waking {
            let _woken = waking.await; // its thread holds the member, which is about to close
        }
        ended
    }

    async fn event_loop(
        &mut self,
        rebalances: &mut mpsc::Receiver<Rebalance>,
        poller: &mut JoinSet<StageError>,
        stop: &CancellationToken,
    ) -> Result<(), StageError> {
        let mut tick = interval(self.timeouts.commit_every);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let deadline = self.next_deadline();
            tokio::select! {
                Some(rebalance) = rebalances.recv() => self.rebalance(rebalance)?,
                Some(ended) = self.tasks.join_next() => self.task_ended(ended)?,
                () = self.orphaned.next() => {}
                result = commit::result(&mut self.commit) => self.committed(result)?,
                _ = tick.tick() => self.tick(),
                () = stop.cancelled(), if self.leave_by.is_none() => self.leave(),
                () = at(deadline) => {}
                Some(ended) = poller.join_next() => {
                    return Err(ended.unwrap_or_else(|error| task_failed("the poller", error)));
                }
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
                self.orphaned.start_deadline();
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
        if let Some(tp) = pending.or_else(|| partitions.iter().find(|tp| self.owned.contains_key(tp))) {
            return Err(StageError::OverlappingRebalance(tp.clone()));
        }
        let stage = &self.context.stage;
        info!(stage, "Partitions assigned to stage {stage}: {}", describe(&partitions));
        let mut queues = Vec::with_capacity(partitions.len());
        for tp in &partitions {
            queues.push(
                SplitQueue::split(&self.member, tp.clone())
                    .ok_or_else(|| StageError::NoSuchPartition(tp.clone()))?,
            );
        }
        assign(&*self.member, &partitions)
            .map_err(|source| StageError::Refused { call: "assign partitions", source })?;
        self.wake_kept();
        self.context.budget.shared_by(self.owned.len() + partitions.len());
        for (tp, queue) in partitions.iter().zip(queues) {
            self.start(tp.clone(), queue);
        }
        self.assignment.send_modify(|assignment| {
            assignment.joined = true;
            assignment.partitions.extend(partitions);
            assignment.confirmed_at = Some(Instant::now());
        });
        Ok(())
    }

    fn start(&mut self, tp: TopicPartition, queue: SplitQueue) {
        let signals = CancelSignals::default();
        let (progress_sender, progress) = watch::channel(PartitionProgress::default());
        let partition = Partition::new(
            tp.clone(),
            queue,
            Arc::clone(&self.context),
            signals.clone(),
            self.limits,
            progress_sender,
        );
        self.tasks.spawn(partition.run(self.orphaned.ended_signal(&tp)));
        self.owned.insert(tp, Owned { signals, progress, ended: false });
    }

    // ## Revoked

    fn revoked(&mut self, partitions: Vec<TopicPartition>, lost: bool) {
        let stage = &self.context.stage;
        let how = if lost { "lost by" } else { "revoked from" };
        info!(stage, "Partitions {how} stage {stage}: {}", describe(&partitions));
        for owned in partitions.iter().filter_map(|tp| self.owned.get(tp)) {
            owned.signals.stop.cancel();
        }
        // librdkafka waits for the answer to one rebalance. Should a second revocation ever come before, one
        // answer is for both.
        let earlier = self.revocation.take();
        let lost = lost || earlier.as_ref().is_some_and(|earlier| earlier.lost);
        let partitions =
            earlier.into_iter().flat_map(|earlier| earlier.partitions).chain(partitions).collect();
        self.revocation = Some(Revocation { partitions, lost: false, answer_by: None, commit_failed: false });
        if lost {
            self.mark_lost();
        }
    }

    /// The partitions that are being revoked are lost: their handlers are not awaited before they are
    /// unassigned.
    fn mark_lost(&mut self) {
        let Some(revocation) = &mut self.revocation else { return };
        revocation.lost = true;
        let partitions = revocation.partitions.clone();
        partitions.iter().filter_map(|tp| self.owned.get(tp)).for_each(Owned::mark_lost);
        self.withdraw(&partitions);
        // The statistics so far are from before the loss.
        self.stats.mark_unchanged();
    }

    /// Advances the revocation, if there is one, as far as possible.
    fn settle_revocation(&mut self) -> Result<(), StageError> {
        // A drain that lasts may end as a loss.
        if self.revocation.as_ref().is_some_and(|revocation| !revocation.lost)
            && self.member.assignment_lost()
        {
            let stage = &self.context.stage;
            info!(stage, "Partitions lost by stage {stage} while they were being revoked");
            self.mark_lost();
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
        if revocation.partitions.iter().any(|tp| self.owned.get(tp).is_some_and(|owned| !owned.ended)) {
            return RevocationStep::Wait;
        }
        let answer_by =
            *revocation.answer_by.get_or_insert_with(|| Instant::now() + self.timeouts.last_commit_timeout);
        if revocation.lost || answer_by <= Instant::now() {
            return RevocationStep::Answer;
        }
        if self.commit.is_some() || revocation.commit_failed {
            return RevocationStep::Wait;
        }
        let positions =
            revocation.partitions.iter().filter_map(|tp| Some((tp.clone(), self.owned.get(tp)?.position()?)));
        let due = self.offsets.due(positions, Instant::now());
        if due.is_empty() { RevocationStep::Answer } else { RevocationStep::Commit(due) }
    }

    /// Unassigns the partitions that are being revoked. Their tasks have ended.
    fn answer(&mut self) -> Result<(), StageError> {
        let Some(Revocation { partitions, .. }) = self.revocation.take() else { return Ok(()) };
        self.withdraw(&partitions);
        for tp in &partitions {
            self.owned.remove(tp);
            self.offsets.forget(tp);
        }
        self.context.budget.shared_by(self.owned.len());
        unassign(&*self.member, &partitions)
            .map_err(|source| StageError::Refused { call: "unassign partitions", source })?;
        self.wake_kept();
        Ok(())
    }

    /// A rebalance was answered: the partitions that we keep are to be fetched again at once.
    fn wake_kept(&mut self) {
        let kept: Vec<_> = self.owned.keys().cloned().collect();
        if !kept.is_empty() {
            let member = Arc::clone(&self.member);
            self.waking = Some(on_a_thread(format!("wake {}", self.context.stage), move || {
                wake_fetchers(&*member, &kept)
            }));
        }
    }

    /// Removes partitions from the published assignment: after their drain, because what is started has to be
    /// finished, and before another member can own them, so that a host that divides something by partitions
    /// never counts one twice.
    fn withdraw(&self, partitions: &[TopicPartition]) {
        self.assignment.send_modify(|assignment| assignment.partitions.retain(|tp| !partitions.contains(tp)));
    }

    // ## Stopped

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
        self.orphaned.start_deadline();
        self.member.unsubscribe();
    }

    fn has_left(&self) -> bool {
        let Some(leave_by) = self.leave_by else { return false };
        if leave_by <= Instant::now() {
            let stage = &self.context.stage;
            warn!(
                stage,
                "Stage {stage} stops without waiting any longer: its partitions were not revoked in time"
            );
            return true;
        }
        self.owned.is_empty() && self.revocation.is_none() && self.orphaned.is_empty()
    }

    fn next_deadline(&self) -> Option<Instant> {
        let answer_by = self.revocation.as_ref().and_then(|revocation| revocation.answer_by);
        answer_by.into_iter().chain(self.leave_by).min()
    }

    // ## Commits

    fn tick(&mut self) {
        if let Some(revocation) = &mut self.revocation {
            revocation.commit_failed = false;
        }
        if self.commit.is_none() {
            let positions: Vec<_> =
                self.owned.iter().filter_map(|(tp, owned)| Some((tp.clone(), owned.position()?))).collect();
            let due = self.offsets.due(positions.iter().cloned(), Instant::now());
            if positions.is_empty() {
                self.confirm_before_first_record();
            } else if !due.is_empty() {
                self.start_commit(due);
            } else if self.probe_is_due() {
                // No offset has changed. Committing the same one again asks whether we are still a member.
                self.start_commit(positions.into_iter().take(1).collect());
            }
        }
        self.update_lag();
    }

    /// Before the first record there is no offset to commit, and no work that a doubt would have to stop: the
    /// time within which we must be confirmed starts with the first record.
    fn confirm_before_first_record(&self) {
        self.assignment.send_modify(|assignment| {
            assignment.confirmed_at = assignment.confirmed_at.map(|_| Instant::now())
        });
    }

    /// Whether to ask the group if we are still a member. In a drain only a refused commit reveals that the
    /// group has fenced us.
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
                let stage = &self.context.stage;
                warn!(stage, %error, "librdkafka refuses an offset of stage {stage}: {error}")
            }
        }
    }

    fn committed(&mut self, result: Option<KafkaResult<()>>) -> Result<(), StageError> {
        let Some(Commit { offsets, generation, .. }) = self.commit.take() else { return Ok(()) };
        let stage = &self.context.stage;
        match result {
            Some(Ok(())) => {
                let ours = offsets.into_iter().filter(|(tp, _)| self.owned.contains_key(tp)).collect();
                self.offsets.committed(ours);
                self.assignment.send_modify(|assignment| assignment.confirmed_at = Some(Instant::now()));
            }
            // (One of an earlier generation means nothing, because the classic protocol refuses it in every
            // rebalance: it is tried again.)
            Some(Err(error))
                if failure_of(&error) == CommitFailure::Fenced && generation == self.generation =>
            {
                // The group has removed us, though nothing else reveals it: whatever still runs here, of any
                // partition, runs beside its new owner.
                if self.revocation.is_some() {
                    return Err(StageError::Fenced(error));
                }
                // Otherwise a rebalance will follow and say what it means.
                debug!(
                    stage,
                    %error,
                    "Commit fenced: stage {stage} commits nothing until the next rebalance: {error}"
                );
                self.offsets.fence(Instant::now() + self.timeouts.probe_every);
            }
            Some(Err(error)) => {
                if self.log_throttle.now() {
                    warn!(stage, %error, "Commit failed, stage {stage} tries again: {error}");
                }
                self.commit_failed();
            }
            None => self.commit_failed(),
        }
        Ok(())
    }

    fn commit_failed(&mut self) {
        if let Some(revocation) = &mut self.revocation {
            revocation.commit_failed = true;
        }
    }

    fn task_ended(&mut self, ended: Result<PartitionExit, JoinError>) -> Result<(), StageError> {
        let exit = ended.map_err(|error| task_failed("a partition", error))?;
        let tp = exit.tp.clone();
        self.orphaned.add(exit);
        match self.owned.get_mut(&tp) {
            Some(owned) if owned.signals.stop.is_cancelled() => {
                owned.ended = true;
                Ok(())
            }
            _ => Err(StageError::TaskFailed { task: tp.to_string(), why: "it was not stopped".to_owned() }),
        }
    }

    /// Updates the metrics of the lag, and what else follows from the statistics.
    fn update_lag(&mut self) {
        // A member to which nothing is assigned may get no event, but what it has lost may be assigned to
        // another.
        if self.stats.has_changed().unwrap_or(false) && self.stats.borrow_and_update().joined {
            self.orphaned.start_deadline();
        }
        let stats = self.stats.borrow();
        if stats.joined && !self.assignment.borrow().joined {
            debug!(stage = self.context.stage, "Stage {} is a member without partitions", self.context.stage);
            self.assignment.send_modify(|assignment| assignment.joined = true);
        }
        self.assignment.send_if_modified(|assignment| {
            let changed = assignment.topics != stats.partitions;
            if changed {
                assignment.topics.clone_from(&stats.partitions);
            }
            changed
        });
        let lag = self.owned.iter().filter_map(|(tp, owned)| {
            let PartitionWatermarks { low, high, committed } = *stats.watermarks.get(tp)?;
            let position = owned.position().unwrap_or(if committed >= 0 { committed } else { low });
            Some((high - position).max(0))
        });
        let oldest = self.owned.values().filter_map(|owned| owned.progress.borrow().oldest).min();
        let age = oldest.map_or(0.0, |oldest| Timestamp::now().duration_since(oldest).as_secs_f64().max(0.0));
        let stage = [&*self.context.stage];
        let metrics = &self.context.metrics;
        metrics.stage_lag_records.with_label_values(&stage).set(lag.sum());
        metrics.stage_lag_seconds.with_label_values(&stage).set(age);
    }
}

impl CommitTimeouts {
    /// The times that follow from the settings.
    pub(super) fn of(settings: &Settings) -> Self {
        let Settings { commit_every, session_timeout, .. } = *settings;
        Self { commit_every, probe_every: session_timeout / 4, last_commit_timeout: session_timeout / 2 }
    }
}

impl Owned {
    fn mark_lost(&self) {
        self.signals.stop.cancel();
        self.signals.lost.cancel();
    }

    fn position(&self) -> Option<i64> {
        self.progress.borrow().position
    }
}

async fn at(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => pending().await,
    }
}

fn task_failed(task: &str, error: JoinError) -> StageError {
    let why =
        error.try_into_panic().map_or_else(|cancelled| cancelled.to_string(), |panic| panic_message(&*panic));
    StageError::TaskFailed { task: task.to_owned(), why }
}
