//! Handlers that outlive the loss of their partition.
//!
//! A partition that is lost has to be unassigned at once, or the member never rejoins its group. But what a
//! handler has done already outside of Kafka should still be recorded, or the next owner does it again. So
//! the running handlers are moved here: their stop is cancelled, they start nothing new, and they end beside
//! the member's next assignment. Their results settle nothing, because the window that would take them is
//! gone.
//!
//! While the group is unreachable no other member can be assigned the partition, and a handler that waits for
//! Kafka waits as long as Kafka is unavailable. From the next assignment on there may be another owner: then
//! the drain time-out runs. If the next owner is this process, it reads the partition when the last orphaned
//! handler of it has ended.

use std::{collections::BTreeMap, future::pending, time::Duration};

use futures::StreamExt as _;
use tokio::{task::JoinSet, time::sleep};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{
    TopicPartition,
    partition::{PartitionExit, RunningHandlers},
};

/// The orphaned handlers of a stage.
#[derive(Debug)]
pub(super) struct OrphanedHandlers {
    stage: String,
    /// How long they may run once there may be another owner.
    drain_timeout: Duration,
    /// One for each partition that was lost with handlers running.
    tasks: JoinSet<TopicPartition>,
    /// Cancelled when the last orphaned handler of a partition has ended.
    ended: BTreeMap<TopicPartition, CancellationToken>,
    /// Cancelled when there may be another owner. Each loss of partitions gets a new one.
    reassigned: CancellationToken,
}

impl OrphanedHandlers {
    pub(super) fn new(stage: &str, drain_timeout: Duration) -> Self {
        Self {
            stage: stage.to_owned(),
            drain_timeout,
            tasks: JoinSet::new(),
            ended: BTreeMap::new(),
            reassigned: CancellationToken::new(),
        }
    }

    /// Adds the handlers that still ran when a partition's task ended, if any.
    pub(super) fn add(&mut self, exit: PartitionExit) {
        let PartitionExit { tp, running } = exit;
        if running.is_empty() {
            return;
        }
        let stage = self.stage.clone();
        let handlers = running.len();
        info!(
            stage,
            topic = &*tp.topic,
            partition = tp.partition,
            handlers,
            "Orphaned: {handlers} handlers of {tp}, which was lost, go on without settling their records"
        );
        let ended = CancellationToken::new();
        self.ended.insert(tp.clone(), ended.clone());
        let reassigned = self.reassigned.clone();
        let drain_timeout = self.drain_timeout;
        self.tasks.spawn(async move {
            let _ended = ended.drop_guard();
            let deadline = async {
                reassigned.cancelled().await;
                sleep(drain_timeout).await;
            };
            run_to_end(&stage, &tp, running, deadline).await;
            tp
        });
    }

    /// There may be another owner: from now on the drain time-out of the orphaned handlers runs.
    pub(super) fn start_deadline(&mut self) {
        std::mem::take(&mut self.reassigned).cancel();
    }

    /// Cancelled when the partition has no orphaned handlers any more; none = it has none now.
    pub(super) fn ended_signal(&self, tp: &TopicPartition) -> Option<CancellationToken> {
        self.ended.get(tp).cloned()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }

    /// Returns when the orphaned handlers of one more partition have ended. Cancel safe.
    pub(super) async fn next(&mut self) {
        match self.tasks.join_next().await {
            // A partition is not read before its orphaned handlers have ended, so it has one set of them at a
            // time.
            Some(Ok(tp)) => drop(self.ended.remove(&tp)),
            Some(Err(error)) => {
                warn!(stage = self.stage, %error, "An orphaned handler's task failed: {error}");
            }
            None => pending().await,
        }
    }

    /// Waits for all of them, after the stage has ended.
    pub(super) async fn finish(mut self) {
        self.start_deadline();
        while !self.is_empty() {
            self.next().await;
        }
    }
}

async fn run_to_end(
    stage: &str,
    tp: &TopicPartition,
    mut running: RunningHandlers,
    deadline: impl Future<Output = ()>,
) {
    tokio::pin!(deadline);
    loop {
        tokio::select! {
            ended = running.next() => if ended.is_none() { return },
            () = &mut deadline => break,
        }
    }
    let aborted = running.len();
    warn!(
        stage,
        topic = &*tp.topic,
        partition = tp.partition,
        aborted,
        "Drain timed out: {aborted} orphaned handlers of {tp} are aborted, their records left to its \
         next owner"
    );
    running.clear();
}
