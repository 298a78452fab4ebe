//! What has been committed, what is due, how it is committed, and what a failure means.
//!
//! A commit is a synchronous call on a thread of its own: rdkafka 0.39 never reports the result of an
//! asynchronous one (it asks for events and sets no callback; librdkafka then sends its reply nowhere).

use std::{collections::BTreeMap, future::pending, sync::Arc};

use rdkafka::{
    Offset,
    consumer::{CommitMode, Consumer as _},
    error::{KafkaError, KafkaResult, RDKafkaErrorCode},
};
use tokio::{sync::oneshot, time::Instant};

use super::{
    TopicPartition, on_a_thread,
    poller::{Member, list},
};
use crate::client::code_of;

/// Offsets to commit: for each partition the next one to read.
pub(super) type Offsets = BTreeMap<TopicPartition, i64>;

/// The committed offsets of the partitions we own.
#[derive(Debug, Default)]
pub(super) struct CommittedOffsets {
    committed: Offsets,
    /// The group has fenced us: nothing is committed before the next rebalance, or before this time. (Under
    /// KIP-848 a new member epoch may come without an event.)
    fenced_until: Option<Instant>,
}

/// A commit that Kafka has not answered yet.
#[derive(Debug)]
pub(super) struct Commit {
    /// What is to be committed.
    pub offsets: Offsets,
    /// The number of rebalances when it was started.
    pub generation: u64,
    result: oneshot::Receiver<KafkaResult<()>>,
}

/// What the failure of a commit means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CommitFailure {
    /// The group is rebalancing or Kafka is unavailable: a later commit covers the same offsets.
    Retriable,
    /// The group does not accept our generation, epoch or id; another member may own the partitions already.
    Fenced,
}

impl CommittedOffsets {
    /// Those of the positions that are not committed yet.
    pub(super) fn due(
        &self,
        positions: impl IntoIterator<Item = (TopicPartition, i64)>,
        now: Instant,
    ) -> Offsets {
        if self.is_fenced(now) {
            return Offsets::new();
        }
        positions.into_iter().filter(|(tp, position)| self.committed.get(tp) != Some(position)).collect()
    }

    /// Kafka has accepted a commit of these.
    pub(super) fn committed(&mut self, offsets: Offsets) {
        self.committed.extend(offsets);
    }

    /// The group has fenced us: nothing is due until then.
    pub(super) fn fence(&mut self, until: Instant) {
        self.fenced_until = Some(until);
    }

    pub(super) fn is_fenced(&self, now: Instant) -> bool {
        self.fenced_until.is_some_and(|until| now < until)
    }

    /// A rebalance: the group accepts us as a member.
    pub(super) fn rejoined(&mut self) {
        self.fenced_until = None;
    }

    /// The partition is no longer assigned to us: another member may commit it.
    pub(super) fn forget(&mut self, tp: &TopicPartition) {
        self.committed.remove(tp);
    }
}

impl Commit {
    /// Starts to commit these offsets.
    ///
    /// # Errors
    /// One is no valid offset.
    pub(super) fn start(
        member: &Arc<Member>,
        stage: &str,
        offsets: Offsets,
        generation: u64,
    ) -> KafkaResult<Self> {
        let list = list(offsets.iter().map(|(tp, offset)| (tp, Offset::Offset(*offset))))?;
        let member = Arc::clone(member);
        let result = on_a_thread(format!("commit {stage}"), move || member.commit(&list, CommitMode::Sync));
        Ok(Self { offsets, generation, result })
    }
}

/// The result of the commit, pending while there is none. None = its thread has ended without one. Cancel
/// safe.
pub(super) async fn result(commit: &mut Option<Commit>) -> Option<KafkaResult<()>> {
    match commit {
        Some(commit) => (&mut commit.result).await.ok(),
        None => pending().await,
    }
}

/// What the error of a commit means.
pub(super) fn failure_of(error: &KafkaError) -> CommitFailure {
    match code_of(error) {
        Some(
            RDKafkaErrorCode::IllegalGeneration
            | RDKafkaErrorCode::UnknownMemberId
            | RDKafkaErrorCode::StaleMemberEpoch
            | RDKafkaErrorCode::FencedMemberEpoch
            | RDKafkaErrorCode::FencedInstanceId,
        ) => CommitFailure::Fenced,
        _ => CommitFailure::Retriable,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(partition: i32) -> TopicPartition {
        TopicPartition { topic: "t".into(), partition }
    }

    #[test]
    fn only_offsets_that_changed_are_due() {
        let mut offsets = CommittedOffsets::default();
        offsets.committed(Offsets::from([(at(0), 5), (at(1), 9)]));
        assert_eq!(
            offsets.due([(at(0), 5), (at(1), 10), (at(2), 0)], Instant::now()),
            Offsets::from([(at(1), 10), (at(2), 0)])
        );
    }

    #[test]
    fn a_fenced_member_commits_nothing_until_the_next_rebalance_or_until_a_time() {
        let mut offsets = CommittedOffsets::default();
        let now = Instant::now();
        let later = now + Duration::from_secs(2);
        let due = Offsets::from([(at(0), 5)]);
        offsets.fence(later);
        assert_eq!(offsets.due([(at(0), 5)], now), Offsets::new());
        assert_eq!(offsets.due([(at(0), 5)], later), due);
        offsets.rejoined();
        assert_eq!(offsets.due([(at(0), 5)], now), due);
    }

    #[test]
    fn a_partition_that_is_assigned_again_is_committed_again() {
        let mut offsets = CommittedOffsets::default();
        offsets.committed(Offsets::from([(at(0), 5)]));
        offsets.forget(&at(0));
        assert_eq!(offsets.due([(at(0), 5)], Instant::now()), Offsets::from([(at(0), 5)]));
    }

    #[test]
    fn a_commit_during_a_rebalance_is_retriable_and_one_of_an_illegal_generation_is_fenced() {
        let failure = |code| failure_of(&KafkaError::ConsumerCommit(code));
        assert_eq!(failure(RDKafkaErrorCode::RebalanceInProgress), CommitFailure::Retriable);
        assert_eq!(failure(RDKafkaErrorCode::CoordinatorLoadInProgress), CommitFailure::Retriable);
        assert_eq!(failure(RDKafkaErrorCode::IllegalGeneration), CommitFailure::Fenced);
        assert_eq!(failure(RDKafkaErrorCode::StaleMemberEpoch), CommitFailure::Fenced);
    }
}
