//! Handlers that outlive their partition.
//!
//! A partition that is lost has to be given up at once, or the member never joins its group again. But what a
//! provider has answered must still be checkpointed, or the next owner sends it again. So the handlers that
//! run are moved here: they have heard the stop, start nothing new, and come to their end beside the member's
//! new life. Whatever they answer settles nothing, because the window that would have taken it is gone.
//!
//! While the group is out of reach nobody else can be dealt the partition, and a handler that waits for Kafka
//! waits as long as Kafka is away. From the next deal on there may be another owner: then the drain time-out
//! runs. If the next owner is this process, it reads the partition when the last orphaned handler of it has ended.

use std::{collections::BTreeMap, future::pending, time::Duration};

use futures::StreamExt as _;
use tokio::{task::JoinSet, time::sleep};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{
    TopicPartition,
    partition::{PartitionExit, RunningHandlers},
};

/// The orphaned of a stage.
#[derive(Debug)]
pub(super) struct OrphanedHandlers {
    stage: String,
    /// How long they may go on when there may be another owner.
    drain_timeout: Duration,
    tasks: JoinSet<TopicPartition>,
    /// Set when the last orphaned handler of a partition has ended.
    ended: BTreeMap<TopicPartition, CancellationToken>,
    /// Set when there may be another owner. One for each time that partitions are lost.
    dealt: CancellationToken,
}

impl OrphanedHandlers {
    pub(super) fn new(stage: &str, drain_timeout: Duration) -> Self {
        let (tasks, ended, dealt) = (JoinSet::new(), BTreeMap::new(), CancellationToken::new());
        Self { stage: stage.to_owned(), drain_timeout, tasks, ended, dealt }
    }

    /// Takes in what was left running when a partition ended.
    pub(super) fn take_in(&mut self, left: PartitionExit) {
        let PartitionExit { of, running } = left;
        if running.is_empty() {
            return;
        }
        let (stage, left) = (&self.stage, running.len());
        info!(stage, kafka.topic = %of.topic, kafka.partition = of.partition, left, "{left} records of {of} come to their end beside its next owner");
        let ended = CancellationToken::new();
        self.ended.insert(of.clone(), ended.clone());
        let (stage, dealt, drain_timeout) = (self.stage.clone(), self.dealt.clone(), self.drain_timeout);
        self.tasks.spawn(async move {
            let _ended = ended.drop_guard();
            let over = async {
                dealt.cancelled().await;
                sleep(drain_timeout).await;
            };
            come_to_an_end(&stage, &of, running, over).await;
            of
        });
    }

    /// The group generation, or may have: from now on the orphaned' time is counted.
    pub(super) fn hurry(&mut self) {
        std::mem::take(&mut self.dealt).cancel();
    }

    /// Set when the partition has no orphaned any more; none = it has none now.
    pub(super) fn of(&self, of: &TopicPartition) -> Option<CancellationToken> {
        self.ended.get(of).cloned()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }

    /// Returns when the next partition has none any more. Cancel safe.
    pub(super) async fn next(&mut self) {
        match self.tasks.join_next().await {
            // A partition is not read before its orphaned have ended, so it has one set of them at a time.
            Some(Ok(of)) => drop(self.ended.remove(&of)),
            Some(Err(bug)) => warn!(stage = self.stage, error = %bug, "A orphaned handler broke off: {bug}"),
            None => pending().await,
        }
    }

    /// Waits for all of them, now that the stage has ended.
    pub(super) async fn finish(mut self) {
        self.hurry();
        while !self.is_empty() {
            self.next().await;
        }
    }
}

async fn come_to_an_end(
    stage: &str,
    of: &TopicPartition,
    mut running: RunningHandlers,
    over: impl Future<Output = ()>,
) {
    tokio::pin!(over);
    loop {
        tokio::select! {
            ended = running.next() => if ended.is_none() { return },
            () = &mut over => break,
        }
    }
    let left = running.len();
    warn!(
        stage, kafka.topic = %of.topic, kafka.partition = of.partition, left,
        "{left} records of {of}, which was lost, did not end in time; they are broken off and handled again by the next owner"
    );
    running.clear();
}
