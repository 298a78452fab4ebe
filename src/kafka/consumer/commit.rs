//! What has been committed, what is due, and what an error of a commit means.

use std::collections::BTreeMap;

use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use super::TopicPartition;
use crate::kafka::client::code_of;

/// Offsets to commit: for each partition the next one to be read.
pub(super) type Offsets = BTreeMap<TopicPartition, i64>;

/// The committed offsets of the partitions we own.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    committed: Offsets,
    /// The group no longer knows us as we are: nothing more is committed until it has dealt anew.
    fenced: bool,
}

/// What a commit that failed tells us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The group is busy or Kafka is away: the next commit will say the same and more.
    Passing,
    /// We are not the member that we think we are; the partitions may be somebody else's already.
    Fenced,
}

impl Ledger {
    /// Those of the positions that are not committed yet.
    pub(super) fn due(&self, positions: impl IntoIterator<Item = (TopicPartition, i64)>) -> Offsets {
        if self.fenced {
            return Offsets::new();
        }
        positions.into_iter().filter(|(of, position)| self.committed.get(of) != Some(position)).collect()
    }

    /// These have been committed.
    pub(super) fn committed(&mut self, offsets: Offsets) {
        self.committed.extend(offsets);
    }

    /// The group refused us.
    pub(super) fn fence(&mut self) {
        self.fenced = true;
    }

    pub(super) fn is_fenced(&self) -> bool {
        self.fenced
    }

    /// The group has dealt anew: we are a member in good standing.
    pub(super) fn dealt(&mut self) {
        self.fenced = false;
    }

    /// The partition is not ours any more.
    pub(super) fn forget(&mut self, of: &TopicPartition) {
        self.committed.remove(of);
    }
}

/// What the error means.
pub(super) fn refusal(error: &KafkaError) -> Refusal {
    match code_of(error) {
        Some(
            RDKafkaErrorCode::IllegalGeneration
            | RDKafkaErrorCode::UnknownMemberId
            | RDKafkaErrorCode::StaleMemberEpoch
            | RDKafkaErrorCode::FencedMemberEpoch
            | RDKafkaErrorCode::FencedInstanceId,
        ) => Refusal::Fenced,
        _ => Refusal::Passing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(partition: i32) -> TopicPartition {
        TopicPartition { topic: "t".into(), partition }
    }

    #[test]
    fn only_what_moved_is_due() {
        let mut ledger = Ledger::default();
        ledger.committed(Offsets::from([(at(0), 5), (at(1), 9)]));
        assert_eq!(ledger.due([(at(0), 5), (at(1), 10), (at(2), 0)]), Offsets::from([(at(1), 10), (at(2), 0)]));
    }

    #[test]
    fn a_fenced_member_commits_nothing_until_the_group_has_dealt_anew() {
        let mut ledger = Ledger::default();
        ledger.fence();
        assert_eq!(ledger.due([(at(0), 5)]), Offsets::new());
        ledger.dealt();
        assert_eq!(ledger.due([(at(0), 5)]), Offsets::from([(at(0), 5)]));
    }

    #[test]
    fn a_partition_that_comes_back_is_committed_afresh() {
        let mut ledger = Ledger::default();
        ledger.committed(Offsets::from([(at(0), 5)]));
        ledger.forget(&at(0));
        assert_eq!(ledger.due([(at(0), 5)]), Offsets::from([(at(0), 5)]));
    }

    #[test]
    fn a_rebalance_passes_and_a_foreign_generation_does_not() {
        let refused = |code| refusal(&KafkaError::ConsumerCommit(code));
        assert_eq!(refused(RDKafkaErrorCode::RebalanceInProgress), Refusal::Passing);
        assert_eq!(refused(RDKafkaErrorCode::CoordinatorLoadInProgress), Refusal::Passing);
        assert_eq!(refused(RDKafkaErrorCode::IllegalGeneration), Refusal::Fenced);
        assert_eq!(refused(RDKafkaErrorCode::StaleMemberEpoch), Refusal::Fenced);
    }
}
