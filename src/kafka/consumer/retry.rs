//! How long to wait before a record is tried again, and when a partition is too ill to go on.

use std::{collections::VecDeque, time::Duration};

const FIRST: Duration = Duration::from_millis(100);
const CAP: Duration = Duration::from_secs(30);

/// The pause after the `failures`-th failure in a row: twice the one before, up to half a minute, of which
/// `jitter` (0 to 1) takes away up to a half, so that thousands of records that wait for one store don't come
/// back as one.
pub(super) fn pause(failures: u32, jitter: f64) -> Duration {
    let doubled = FIRST.saturating_mul(2_u32.saturating_pow(failures.saturating_sub(1)));
    doubled.min(CAP).mul_f64(1.0 - jitter.clamp(0.0, 1.0) / 2.0)
}

/// Closes when records fail in a way that may be our fault (the handler panics on them, or Kafka refuses what
/// they cause) so often that it must be: the partition then stands still, loudly, and is not emptied into
/// `dead-letters`. It opens again with the next owner, after a fix.
///
/// Records that can't be read never count: a topic full of rubbish is the writer's affair.
#[derive(Debug, Default)]
pub(super) struct Valve {
    in_a_row: usize,
    /// The last results; true = failed.
    last: VecDeque<bool>,
    failed: usize,
    closed: bool,
}

impl Valve {
    const IN_A_ROW_MAX: usize = 100;
    const WINDOW: usize = 1_000;
    const PART_MAX: usize = Self::WINDOW / 5;

    /// A handler came to an end with a record.
    pub(super) fn count(&mut self, failed: bool) {
        self.in_a_row = if failed { self.in_a_row + 1 } else { 0 };
        self.failed += usize::from(failed);
        self.last.push_back(failed);
        if self.last.len() > Self::WINDOW {
            self.failed -= usize::from(self.last.pop_front() == Some(true));
        }
        let too_many = self.last.len() == Self::WINDOW && self.failed > Self::PART_MAX;
        self.closed |= self.in_a_row >= Self::IN_A_ROW_MAX || too_many;
    }

    /// Whether the partition stands still.
    pub(super) fn is_closed(&self) -> bool {
        self.closed
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn pauses_double_up_to_half_a_minute() {
        let seconds: Vec<_> = (1..=11).map(|failures| pause(failures, 0.0).as_secs_f64()).collect();
        assert_eq!(seconds, [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30.0, 30.0]);
    }

    proptest! {
        #[test]
        fn jitter_takes_away_at_most_a_half(failures in 1..u32::MAX, jitter in 0.0..=1.0_f64) {
            let (full, jittered) = (pause(failures, 0.0), pause(failures, jitter));
            prop_assert!(full / 2 <= jittered && jittered <= full);
        }
    }

    #[test]
    fn a_hundred_failures_in_a_row_close_the_valve() {
        let mut valve = Valve::default();
        for _ in 0..99 {
            valve.count(true);
        }
        assert!(!valve.is_closed());
        valve.count(true);
        assert!(valve.is_closed());
    }

    #[test]
    fn more_than_a_fifth_of_the_last_thousand_closes_the_valve_and_a_fifth_does_not() {
        let (mut fifth, mut more) = (Valve::default(), Valve::default());
        for n in 0..5_000 {
            fifth.count(n % 5 == 0);
            more.count(n % 4 == 0);
        }
        assert_eq!((fifth.is_closed(), more.is_closed()), (false, true));
    }
}
