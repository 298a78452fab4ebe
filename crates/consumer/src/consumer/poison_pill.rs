//! Stops a partition whose records all fail, before all of them become dead letters.

use std::collections::VecDeque;

/// Opens when records fail in a way that may be the handler's fault (it panics on them, or Kafka refuses what
/// they cause) so often that it must be: the partition then stops, with an error in the log. The next owner
/// of the partition starts with a closed breaker.
///
/// Records that can't be read never count: a topic full of unreadable records is the producer's fault.
#[derive(Debug, Default)]
pub(super) struct PoisonPillBreaker {
    /// Failures since the last success.
    in_a_row: usize,
    /// The last results; true = failed.
    last: VecDeque<bool>,
    /// How many of them failed.
    failed: usize,
    open: bool,
}

impl PoisonPillBreaker {
    const IN_A_ROW_MAX: usize = 100;
    /// How many results are looked at.
    const WINDOW: usize = 1_000;
    /// How many of these may have failed.
    const FAILED_MAX: usize = Self::WINDOW / 5;

    /// Counts a record whose handler has ended.
    pub(super) fn count(&mut self, failed: bool) {
        self.in_a_row = if failed { self.in_a_row + 1 } else { 0 };
        self.failed += usize::from(failed);
        self.last.push_back(failed);
        if self.last.len() > Self::WINDOW {
            self.failed -= usize::from(self.last.pop_front() == Some(true));
        }
        let too_many = self.last.len() == Self::WINDOW && self.failed > Self::FAILED_MAX;
        self.open |= self.in_a_row >= Self::IN_A_ROW_MAX || too_many;
    }

    /// Whether the partition has to stop. Once open, it stays open.
    pub(super) fn is_open(&self) -> bool {
        self.open
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hundred_failures_in_a_row_open_the_breaker() {
        let mut breaker = PoisonPillBreaker::default();
        for _ in 0..99 {
            breaker.count(true);
        }
        assert!(!breaker.is_open());
        breaker.count(true);
        assert!(breaker.is_open());
    }

    #[test]
    fn more_than_a_fifth_of_the_last_thousand_opens_the_breaker_and_a_fifth_does_not() {
        let mut fifth = PoisonPillBreaker::default();
        let mut more = PoisonPillBreaker::default();
        for n in 0..5_000 {
            fifth.count(n % 5 == 0);
            more.count(n % 4 == 0);
        }
        assert_eq!((fifth.is_open(), more.is_open()), (false, true));
    }
}
