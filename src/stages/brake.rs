//! Notices a flood of dead tokens.

use std::collections::VecDeque;

use jiff::SignedDuration;

use crate::domain::Timestamp;

/// How far back answers count.
const WINDOW: SignedDuration = SignedDuration::from_mins(5);
/// Fewer dead tokens than that are no flood.
const DEAD_MIN: u64 = 50;
/// More than this many dead in a hundred answers are a flood.
const DEAD_PERCENT: u64 = 30;

/// The answers of the last minutes. At most one entry a second, so its size is bounded.
#[derive(Debug, Default)]
pub(super) struct Brake {
    seconds: VecDeque<(Timestamp, Answers)>,
}

/// How many answers there were.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Answers {
    /// In all.
    pub answers: u64,
    /// That call the token dead.
    pub dead: u64,
}

impl Brake {
    /// Adds a batch of answers.
    pub(super) fn add(&mut self, now: Timestamp, answers: u64, dead: u64) {
        self.forget_before(now.saturating_sub(WINDOW).unwrap_or(Timestamp::MIN));
        match self.seconds.back_mut() {
            Some((at, sum)) if at.as_second() == now.as_second() => {
                sum.answers += answers;
                sum.dead += dead;
            }
            _ => self.seconds.push_back((now, Answers { answers, dead })),
        }
    }

    /// Forgets what came before `at`.
    pub(super) fn forget_before(&mut self, at: Timestamp) {
        while self.seconds.front().is_some_and(|(first, _)| *first < at) {
            self.seconds.pop_front();
        }
    }

    /// The answers of the window, if they are a flood of dead tokens.
    pub(super) fn flood(&self, now: Timestamp) -> Option<Answers> {
        let from = now.saturating_sub(WINDOW).unwrap_or(Timestamp::MIN);
        let sum = self
            .seconds
            .iter()
            .filter(|(at, _)| *at >= from)
            .fold(Answers::default(), |sum, (_, one)| Answers { answers: sum.answers + one.answers, dead: sum.dead + one.dead });
        (sum.dead >= DEAD_MIN && sum.dead * 100 > sum.answers * DEAD_PERCENT).then_some(sum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    #[test]
    fn fifty_dead_and_more_than_thirty_percent_are_a_flood() {
        let flood = |answers, dead| {
            let mut brake = Brake::default();
            brake.add(at(0), answers, dead);
            brake.flood(at(0)).is_some()
        };
        assert!(flood(50, 50));
        assert!(!flood(49, 49));
        assert!(flood(166, 50));
        assert!(!flood(200, 60));
        assert!(flood(200, 61));
    }

    #[test]
    fn answers_older_than_five_minutes_do_not_count() {
        let mut brake = Brake::default();
        brake.add(at(0), 40, 40);
        brake.add(at(301), 20, 20);
        assert_eq!(brake.flood(at(301)), None);
        brake.add(at(302), 30, 30);
        assert_eq!(brake.flood(at(302)), Some(Answers { answers: 50, dead: 50 }));
    }

    #[test]
    fn after_a_release_nothing_from_before_counts() {
        let mut brake = Brake::default();
        brake.add(at(0), 60, 60);
        brake.forget_before(at(10));
        assert_eq!(brake.flood(at(10)), None);
    }
}
