//! Notices a flood of dead tokens.
//!
//! Each instance counts the answers that it sees itself; what it finds, it writes into the route's row, and
//! that brakes all of them. A release by hand (`RouteState::Released`) lets pass what is held, and everything
//! else that was written before it: the rest of the same broadcast would brake the route again at once, and
//! whoever released it has looked at just that. Work that was written later counts from zero. A pause and a
//! resume are no release.

use std::{collections::VecDeque, time::Duration};

use crate::domain::Timestamp;

/// What is a flood of dead tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Thresholds {
    /// Fewer dead tokens than that are none.
    pub dead_min: u64,
    /// More than this many dead in a hundred answers are one.
    pub dead_percent: u64,
    /// How far back answers count.
    pub window: Duration,
}

/// The answers of the last minutes. At most one entry a second, so its size is bounded.
#[derive(Debug)]
pub(super) struct Brake {
    thresholds: Thresholds,
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
    pub(super) fn new(thresholds: Thresholds) -> Self {
        Self { thresholds, seconds: VecDeque::new() }
    }

    /// The flood in words.
    pub(super) fn tell(&self, flood: Answers, answers: &str) -> String {
        format!(
            "{} of {} {answers} in {:?} call the token dead",
            flood.dead, flood.answers, self.thresholds.window
        )
    }

    /// Where the window begins.
    fn from(&self, now: Timestamp) -> Timestamp {
        now.saturating_sub(self.thresholds.window).unwrap_or(Timestamp::MIN)
    }

    /// Adds a batch of answers.
    pub(super) fn add(&mut self, now: Timestamp, answers: u64, dead: u64) {
        self.forget_before(self.from(now));
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
        let from = self.from(now);
        let sum =
            self.seconds.iter().filter(|(at, _)| *at >= from).fold(Answers::default(), |sum, (_, one)| {
                Answers { answers: sum.answers + one.answers, dead: sum.dead + one.dead }
            });
        (sum.dead >= self.thresholds.dead_min && sum.dead * 100 > sum.answers * self.thresholds.dead_percent)
            .then_some(sum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const THRESHOLDS: Thresholds =
        Thresholds { dead_min: 50, dead_percent: 30, window: Duration::from_secs(300) };

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    #[test]
    fn fifty_dead_and_more_than_thirty_percent_are_a_flood() {
        let flood = |answers, dead| {
            let mut brake = Brake::new(THRESHOLDS);
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
    fn a_deployment_may_draw_the_line_elsewhere() {
        let mut brake =
            Brake::new(Thresholds { dead_min: 5, dead_percent: 60, window: Duration::from_secs(10) });
        brake.add(at(0), 10, 6);
        assert_eq!(brake.flood(at(0)), None);
        brake.add(at(1), 10, 7);
        let flood = brake.flood(at(2)).unwrap();
        assert_eq!(brake.tell(flood, "answers"), "13 of 20 answers in 10s call the token dead");
        assert_eq!(brake.flood(at(20)), None);
    }

    #[test]
    fn answers_older_than_five_minutes_do_not_count() {
        let mut brake = Brake::new(THRESHOLDS);
        brake.add(at(0), 40, 40);
        brake.add(at(301), 20, 20);
        assert_eq!(brake.flood(at(301)), None);
        brake.add(at(302), 30, 30);
        assert_eq!(brake.flood(at(302)), Some(Answers { answers: 50, dead: 50 }));
    }

    #[test]
    fn after_a_release_nothing_from_before_counts() {
        let mut brake = Brake::new(THRESHOLDS);
        brake.add(at(0), 60, 60);
        brake.forget_before(at(10));
        assert_eq!(brake.flood(at(10)), None);
    }
}
