//! When a partition stops rather than empty itself into the dead letters.

use std::collections::VecDeque;

/// Trips when records fail in a way that may be our fault (the handler panics on them, or Kafka refuses what
/// they cause) so often that it must be: the partition then stops, with an error in the log, and is not emptied
/// into the dead letters. The next owner of the partition starts with a breaker of its own.
///
/// Records that can't be read never count: a topic full of unreadable records is the producer's fault.
#[derive(Debug, Default)]
pub(super) struct PoisonPillBreaker {
    in_a_row: usize,
    /// The last results; true = failed.
    last: VecDeque<bool>,
    failed: usize,
    tripped: bool,
}

impl PoisonPillBreaker {
    const IN_A_ROW_MAX: usize = 100;
    const WINDOW: usize = 1_000;
    const PART_MAX: usize = Self::WINDOW / 5;

    /// A handler has ended with a record.
    pub(super) fn count(&mut self, failed: bool) {
        self.in_a_row = if failed { self.in_a_row + 1 } else { 0 };
        self.failed += usize::from(failed);
        self.last.push_back(failed);
        if self.last.len() > Self::WINDOW {
            self.failed -= usize::from(self.last.pop_front() == Some(true));
        }
        let too_many = self.last.len() == Self::WINDOW && self.failed > Self::PART_MAX;
        self.tripped |= self.in_a_row >= Self::IN_A_ROW_MAX || too_many;
    }

    /// Whether the partition has to stop.
    pub(super) fn has_tripped(&self) -> bool {
        self.tripped
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hundred_failures_in_a_row_trip_the_breaker() {
        let mut breaker = PoisonPillBreaker::default();
        for _ in 0..99 {
            breaker.count(true);
        }
        assert!(!breaker.has_tripped());
        breaker.count(true);
        assert!(breaker.has_tripped());
    }

    #[test]
    fn more_than_a_fifth_of_the_last_thousand_trips_the_breaker_and_a_fifth_does_not() {
        let (mut fifth, mut more) = (PoisonPillBreaker::default(), PoisonPillBreaker::default());
        for n in 0..5_000 {
            fifth.count(n % 5 == 0);
            more.count(n % 4 == 0);
        }
        assert_eq!((fifth.has_tripped(), more.has_tripped()), (false, true));
    }
}
