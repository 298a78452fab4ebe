//! What has been committed, what is due, how it is committed, and what a refusal means.
//!
//! A commit is a synchronous call on a thread of its own: rdkafka 0.39 never reports the result of an
//! asynchronous one (it asks for events and sets no callback; librdkafka then replies to nobody).

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

/// Offsets to commit: for each partition the next one to be read.
pub(super) type Offsets = BTreeMap<TopicPartition, i64>;

/// The committed offsets of the partitions we own.
#[derive(Debug, Default)]
pub(super) struct CommittedOffsets {
    committed: Offsets,
    /// The group does not know us as we are: nothing is committed before it has dealt anew, or this time has
    /// come. (A new member epoch under KIP-848 need not come with an event.)
    fenced_until: Option<Instant>,
}

/// A commit on its way.
#[derive(Debug)]
pub(super) struct Commit {
    /// What is to be committed.
    pub offsets: Offsets,
    /// As a member of which deal it was asked.
    pub generation: u64,
    result: oneshot::Receiver<KafkaResult<()>>,
}

/// What a commit that failed tells us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CommitRefusal {
    /// The group is busy or Kafka is away: the next commit will say the same and more.
    Passing,
    /// We are not the member that we think we are; the partitions may be somebody else's already.
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
        positions.into_iter().filter(|(of, position)| self.committed.get(of) != Some(position)).collect()
    }

    /// These have been committed.
    pub(super) fn committed(&mut self, offsets: Offsets) {
        self.committed.extend(offsets);
    }

    /// The group refused us.
    pub(super) fn fence(&mut self, until: Instant) {
        self.fenced_until = Some(until);
    }

    pub(super) fn is_fenced(&self, now: Instant) -> bool {
        self.fenced_until.is_some_and(|until| now < until)
    }

    /// The group has dealt anew: we are a member in good standing.
    pub(super) fn rejoined(&mut self) {
        self.fenced_until = None;
    }

    /// The partition is not ours any more.
    pub(super) fn forget(&mut self, of: &TopicPartition) {
        self.committed.remove(of);
    }
}

impl Commit {
    /// Asks the group to take these offsets.
    ///
    /// # Errors
    /// They are no offsets at all.
    pub(super) fn start(
        member: &Arc<Member>,
        stage: &str,
        offsets: Offsets,
        generation: u64,
    ) -> KafkaResult<Self> {
        let list = list(offsets.iter().map(|(of, offset)| (of, Offset::Offset(*offset))))?;
        let member = Arc::clone(member);
        let result = on_a_thread(format!("commit {stage}"), move || member.commit(&list, CommitMode::Sync));
        Ok(Self { offsets, generation, result })
    }
}

/// The result of the commit on its way, if there is one. None = its thread is gone. Cancel safe.
pub(super) async fn result(commit: &mut Option<Commit>) -> Option<KafkaResult<()>> {
    match commit {
        Some(commit) => (&mut commit.result).await.ok(),
        None => pending().await,
    }
}

/// What the error means.
pub(super) fn refusal(error: &KafkaError) -> CommitRefusal {
    match code_of(error) {
        Some(
            RDKafkaErrorCode::IllegalGeneration
            | RDKafkaErrorCode::UnknownMemberId
            | RDKafkaErrorCode::StaleMemberEpoch
            | RDKafkaErrorCode::FencedMemberEpoch
            | RDKafkaErrorCode::FencedInstanceId,
        ) => CommitRefusal::Fenced,
        _ => CommitRefusal::Passing,
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
    fn only_what_moved_is_due() {
        let mut offsets = CommittedOffsets::default();
        offsets.committed(Offsets::from([(at(0), 5), (at(1), 9)]));
        assert_eq!(
            offsets.due([(at(0), 5), (at(1), 10), (at(2), 0)], Instant::now()),
            Offsets::from([(at(1), 10), (at(2), 0)])
        );
    }

    #[test]
    fn a_fenced_member_commits_nothing_until_the_group_has_dealt_anew_or_a_while_has_passed() {
        let (mut offsets, now) = (CommittedOffsets::default(), Instant::now());
        let (later, due) = (now + Duration::from_secs(2), Offsets::from([(at(0), 5)]));
        offsets.fence(later);
        assert_eq!(offsets.due([(at(0), 5)], now), Offsets::new());
        assert_eq!(offsets.due([(at(0), 5)], later), due);
        offsets.rejoined();
        assert_eq!(offsets.due([(at(0), 5)], now), due);
    }

    #[test]
    fn a_partition_that_comes_back_is_committed_afresh() {
        let mut offsets = CommittedOffsets::default();
        offsets.committed(Offsets::from([(at(0), 5)]));
        offsets.forget(&at(0));
        assert_eq!(offsets.due([(at(0), 5)], Instant::now()), Offsets::from([(at(0), 5)]));
    }

    #[test]
    fn a_rebalance_passes_and_a_foreign_generation_does_not() {
        let refused = |code| refusal(&KafkaError::ConsumerCommit(code));
        assert_eq!(refused(RDKafkaErrorCode::RebalanceInProgress), CommitRefusal::Passing);
        assert_eq!(refused(RDKafkaErrorCode::CoordinatorLoadInProgress), CommitRefusal::Passing);
        assert_eq!(refused(RDKafkaErrorCode::IllegalGeneration), CommitRefusal::Fenced);
        assert_eq!(refused(RDKafkaErrorCode::StaleMemberEpoch), CommitRefusal::Fenced);
    }
}
