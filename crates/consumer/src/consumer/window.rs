//! Which offset of a partition is safe to commit.
//!
//! Records finish out of order; Kafka commits a prefix. We commit the oldest offset that has been delivered
//! and not settled. After a crash what lies behind it is delivered again: we accept repeats, and never a gap.
//! Only *delivered* offsets count: a compacted or transactional log has gaps, so nothing follows from one
//! offset for the next.

use std::collections::VecDeque;

use jiff::Timestamp;

/// The delivered records of a partition, from the oldest unsettled one on.
#[derive(Debug, Default)]
pub(super) struct Window {
    /// In the order of their offsets, and of their tickets.
    entries: VecDeque<Entry>,
    next: OffsetTicket,
    /// The offset after the last one that was delivered.
    end: Option<i64>,
}

/// Identifies one delivery, not an offset: the same offset may be delivered again while its first delivery is
/// still being handled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct OffsetTicket(u64);

#[derive(Debug)]
struct Entry {
    ticket: OffsetTicket,
    offset: i64,
    timestamp: Timestamp,
    settled: bool,
}

impl Window {
    /// Adds the record at `offset`, unsettled.
    ///
    /// An offset that does not lie behind the last one means that the log was truncated, or that librdkafka
    /// went back a little. Everything from there on is delivered again, so its earlier deliveries no longer
    /// count; what lies below still does.
    pub(super) fn deliver(&mut self, offset: i64, timestamp: Timestamp) -> OffsetTicket {
        while self.entries.pop_back_if(|entry| entry.offset >= offset).is_some() {}
        let ticket = self.next;
        self.next.0 += 1;
        self.entries.push_back(Entry { ticket, offset, timestamp, settled: false });
        self.end = Some(offset + 1);
        ticket
    }

    /// How many offsets lie between the last delivery and `offset`; 0 before the first.
    pub(super) fn gap(&self, offset: i64) -> u64 {
        self.end.map_or(0, |end| u64::try_from(offset - end).unwrap_or(0))
    }

    /// The record's fate is durable.
    pub(super) fn settle(&mut self, ticket: OffsetTicket) {
        if let Some(entry) = self.entry_of(ticket) {
            entry.settled = true;
        }
        while self.entries.pop_front_if(|entry| entry.settled).is_some() {}
    }

    /// Tickets are consecutive unless the log went back, so the first guess is mostly right.
    fn entry_of(&mut self, ticket: OffsetTicket) -> Option<&mut Entry> {
        let guess = usize::try_from(ticket.0.checked_sub(self.entries.front()?.ticket.0)?).ok()?;
        let index = match self.entries.get(guess) {
            Some(entry) if entry.ticket == ticket => guess,
            _ => self.entries.binary_search_by_key(&ticket, |entry| entry.ticket).ok()?,
        };
        self.entries.get_mut(index)
    }

    /// With everything settled, moves on to the `position` that librdkafka reports: behind the markers of a
    /// transaction, for instance, which are never delivered. Ignored before the first delivery: librdkafka's
    /// position may then be one of an earlier assignment, and lie behind what is still to be delivered.
    pub(super) fn advance(&mut self, position: i64) {
        if self.entries.is_empty() && self.end.is_some() {
            self.end = self.end.max(Some(position));
        }
    }

    /// The offset that may be committed: the oldest unsettled one, or the one after the last. None before the
    /// first delivery.
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

    fn deliver(window: &mut Window, offset: i64) -> OffsetTicket {
        window.deliver(offset, Timestamp::from_second(offset).unwrap())
    }

    /// What happens to a partition: a record is delivered, mostly the next one, or one that runs is settled.
    #[derive(Clone, Debug)]
    enum WindowStep {
        Deliver { skipping: i64 },
        Settle(Index),
    }

    fn steps() -> impl Strategy<Value = Vec<WindowStep>> {
        let gap = prop_oneof![20 => Just(0), 5 => 1..50_i64, 1 => -20..0_i64];
        let deliver = gap.prop_map(|skipping| WindowStep::Deliver { skipping });
        prop::collection::vec(prop_oneof![deliver, any::<Index>().prop_map(WindowStep::Settle)], 0..300)
    }

    proptest! {
        #[test]
        fn the_position_is_the_smallest_unsettled_offset_whatever_the_order_and_the_gaps(
            steps in steps(),
            start in 100..1_000_i64,
        ) {
            let mut window = Window::default();
            let mut next = start;
            let mut any = false;
            // The naive model: each delivery that counts and is not settled, and each that still runs.
            let mut open = BTreeSet::new();
            let mut running = Vec::new();
            for step in steps {
                let before = window.position();
                match step {
                    WindowStep::Deliver { skipping } => {
                        let offset = (next + skipping).max(0);
                        let ticket = deliver(&mut window, offset);
                        open.retain(|(other, _)| *other < offset);
                        open.insert((offset, ticket));
                        running.push((offset, ticket));
                        next = offset + 1;
                        any = true;
                        prop_assert!(
                            skipping < 0 || window.position() >= before,
                            "a position only goes back with the log"
                        );
                    }
                    WindowStep::Settle(which) if !running.is_empty() => {
                        let (offset, ticket) = running.swap_remove(which.index(running.len()));
                        window.settle(ticket);
                        open.remove(&(offset, ticket));
                        prop_assert!(window.position() >= before, "a position only goes back with the log");
                    }
                    WindowStep::Settle(_) => {}
                }
                let smallest = open.first().map(|(offset, _)| *offset);
                prop_assert_eq!(window.position(), smallest.or(any.then_some(next)));
                prop_assert_eq!(window.oldest().map(Timestamp::as_second), smallest);
            }
        }
    }

    #[test]
    fn nothing_may_be_committed_before_anything_was_delivered() {
        assert_eq!(Window::default().position(), None);
        // Not even the position that librdkafka reports: that may be the end of an earlier assignment.
        let mut window = Window::default();
        window.advance(9);
        assert_eq!(window.position(), None);
    }

    #[test]
    fn a_gap_is_what_lies_between_two_deliveries() {
        let mut window = Window::default();
        assert_eq!(window.gap(10), 0, "before the first delivery there is no gap");
        deliver(&mut window, 10);
        assert_eq!([window.gap(11), window.gap(14), window.gap(3)], [0, 3, 0]);
    }

    #[test]
    fn settling_twice_is_settling_once() {
        let mut window = Window::default();
        let first = deliver(&mut window, 10);
        deliver(&mut window, 11);
        window.settle(first);
        window.settle(first);
        assert_eq!(window.position(), Some(11));
    }

    #[test]
    fn after_a_truncation_of_the_log_late_results_of_the_old_one_settle_nothing() {
        let mut window = Window::default();
        let old = deliver(&mut window, 100);
        deliver(&mut window, 40);
        window.settle(old);
        assert_eq!((window.position(), window.span()), (Some(40), 1));
    }

    #[test]
    fn a_record_that_is_delivered_twice_does_not_hide_an_unsettled_one_below_it() {
        let mut window = Window::default();
        deliver(&mut window, 5);
        let first = deliver(&mut window, 6);
        let second = deliver(&mut window, 6);
        window.settle(first);
        window.settle(second);
        assert_eq!(window.position(), Some(5));
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
