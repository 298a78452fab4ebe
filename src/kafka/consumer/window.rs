//! Which offset of a partition is safe to commit.
//!
//! Records finish out of order; Kafka commits a prefix. We commit the oldest offset that has been delivered and not
//! settled. After a crash the tail is delivered again: we accept repeats, and never a gap. Only *delivered* offsets
//! count: a compacted or transactional log has holes, so nothing is concluded from one offset to the next.

use std::collections::VecDeque;

use crate::domain::Timestamp;

/// The delivered records of a partition, from the oldest unsettled one on.
#[derive(Debug, Default)]
pub(super) struct Window {
    /// The ticket of the front entry.
    front: u64,
    entries: VecDeque<Entry>,
    /// The offset after the last one that was delivered.
    end: Option<i64>,
}

/// Stands for one delivery, not for an offset: a log that was cut may deliver the same offset twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ticket(u64);

#[derive(Debug)]
struct Entry {
    offset: i64,
    timestamp: Timestamp,
    settled: bool,
}

impl Window {
    /// Takes in the record at `offset`, unsettled.
    pub(super) fn deliver(&mut self, offset: i64, timestamp: Timestamp) -> Ticket {
        if self.end.is_some_and(|end| offset < end) {
            // The log was cut behind us. What follows is another history: tickets of the old one mean nothing now.
            self.front += self.entries.len() as u64;
            self.entries.clear();
        }
        self.entries.push_back(Entry { offset, timestamp, settled: false });
        self.end = Some(offset + 1);
        Ticket(self.front + self.entries.len() as u64 - 1)
    }

    /// The record's fate is durable.
    pub(super) fn settle(&mut self, ticket: Ticket) {
        let index = ticket.0.checked_sub(self.front).and_then(|index| usize::try_from(index).ok());
        if let Some(entry) = index.and_then(|index| self.entries.get_mut(index)) {
            entry.settled = true;
        }
        while self.entries.pop_front_if(|entry| entry.settled).is_some() {
            self.front += 1;
        }
    }

    /// With everything settled, the log itself says that we stand at `position`: behind the markers of a transaction,
    /// say, which are never delivered.
    pub(super) fn advance(&mut self, position: i64) {
        if self.entries.is_empty() {
            self.end = self.end.max(Some(position));
        }
    }

    /// What may be committed: the oldest unsettled offset, or the one after the last. None before the first delivery.
    pub(super) fn position(&self) -> Option<i64> {
        self.entries.front().map(|entry| entry.offset).or(self.end)
    }

    /// When the oldest unsettled record was written.
    pub(super) fn oldest(&self) -> Option<Timestamp> {
        self.entries.front().map(|entry| entry.timestamp)
    }

    /// How many records lie between the oldest unsettled one and the last delivered, both counted.
    pub(super) fn span(&self) -> usize {
        self.entries.len()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::{prelude::*, sample::Index};

    use super::*;

    fn deliver(window: &mut Window, offset: i64) -> Ticket {
        window.deliver(offset, Timestamp::from_second(offset).unwrap())
    }

    /// What happens to a partition: a record comes some offsets further on, or one of those at work is settled.
    #[derive(Clone, Debug)]
    enum Step {
        Deliver { skipping: i64 },
        Settle(Index),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let deliver = prop_oneof![4 => Just(0), 1 => 1..50_i64].prop_map(|skipping| Step::Deliver { skipping });
        prop::collection::vec(prop_oneof![deliver, any::<Index>().prop_map(Step::Settle)], 0..300)
    }

    proptest! {
        #[test]
        fn the_position_is_the_smallest_unsettled_offset_whatever_the_order_and_the_gaps(steps in steps(), start in 0..1_000_i64) {
            let (mut window, mut next) = (Window::default(), start);
            let (mut open, mut tickets) = (BTreeSet::new(), Vec::new());
            let mut last = None;
            for step in steps {
                match step {
                    Step::Deliver { skipping } => {
                        let offset = next + skipping;
                        tickets.push((offset, deliver(&mut window, offset)));
                        open.insert(offset);
                        next = offset + 1;
                    }
                    Step::Settle(which) if !tickets.is_empty() => {
                        let (offset, ticket) = tickets.swap_remove(which.index(tickets.len()));
                        window.settle(ticket);
                        open.remove(&offset);
                    }
                    Step::Settle(_) => {}
                }
                let delivered = (next > start).then_some(next);
                let expected = open.first().copied().or(delivered);
                prop_assert_eq!(window.position(), expected);
                prop_assert!(window.position() >= last, "a position never goes back");
                prop_assert_eq!(window.oldest().map(Timestamp::as_second), open.first().copied());
                last = window.position();
            }
        }
    }

    #[test]
    fn nothing_may_be_committed_before_anything_was_delivered() {
        assert_eq!(Window::default().position(), None);
    }

    #[test]
    fn settling_twice_is_settling_once() {
        let mut window = Window::default();
        let (first, _second) = (deliver(&mut window, 10), deliver(&mut window, 11));
        window.settle(first);
        window.settle(first);
        assert_eq!(window.position(), Some(11));
    }

    #[test]
    fn a_log_that_was_cut_starts_a_new_window_and_late_results_of_the_old_one_settle_nothing() {
        let mut window = Window::default();
        let old = deliver(&mut window, 100);
        let _new = deliver(&mut window, 40);
        window.settle(old);
        assert_eq!((window.position(), window.span()), (Some(40), 1));
    }

    #[test]
    fn markers_behind_the_last_record_are_passed_only_when_all_is_settled() {
        let mut window = Window::default();
        let ticket = deliver(&mut window, 7);
        window.advance(9);
        assert_eq!(window.position(), Some(7));
        window.settle(ticket);
        window.advance(9);
        assert_eq!(window.position(), Some(9));
        window.advance(8);
        assert_eq!(window.position(), Some(9));
    }
}
