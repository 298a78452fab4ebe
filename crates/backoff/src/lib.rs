//! Exponential backoff with jitter, as a value: it computes pauses, and neither sleeps nor reads a clock nor
//! draws random numbers. One formula for everything that retries.

use std::time::Duration;

/// How long to wait before a failed attempt is made again: the first pause, doubled with each further failure
/// up to a cap, spread by jitter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Backoff {
    /// The pause after the first failure, before jitter.
    pub first: Duration,
    /// The longest pause, before jitter.
    pub cap: Duration,
    /// How jitter spreads the pause.
    pub jitter: Jitter,
}

/// How jitter spreads a pause. The share is of the pause without jitter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Jitter {
    /// Not at all.
    None,
    /// Takes away up to this share: callers that failed together don't retry together.
    Shorten(f64),
    /// Adds up to this share, for pauses that must not be shorter than a server asks for.
    Lengthen(f64),
}

impl Backoff {
    /// A backoff from `first` to `cap`, without jitter.
    pub const fn new(first: Duration, cap: Duration) -> Self {
        Self { first, cap, jitter: Jitter::None }
    }

    /// The same with jitter.
    pub const fn with(self, jitter: Jitter) -> Self {
        Self { jitter, ..self }
    }

    /// The pause after the `failures`-th failure in a row (from 1 on). `random` is a uniform number from 0 to
    /// 1, and clamped to that.
    pub fn pause(&self, failures: u32, random: f64) -> Duration {
        let doubled = self.first.saturating_mul(2_u32.saturating_pow(failures.saturating_sub(1)));
        let random = random.clamp(0.0, 1.0);
        let factor = match self.jitter {
            Jitter::None => 1.0,
            Jitter::Shorten(share) => 1.0 - share * random,
            Jitter::Lengthen(share) => 1.0 + share * random,
        };
        doubled.min(self.cap).mul_f64(factor)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HALF_A_MINUTE: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(30));

    #[test]
    fn pauses_double_up_to_the_cap() {
        let seconds: Vec<_> =
            (1..=11).map(|failures| HALF_A_MINUTE.pause(failures, 0.7).as_secs_f64()).collect();
        assert_eq!(seconds, [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30.0, 30.0]);
    }

    #[test]
    fn jitter_shortens_or_lengthens_by_its_share() {
        let shortened = HALF_A_MINUTE.with(Jitter::Shorten(0.5));
        let lengthened = HALF_A_MINUTE.with(Jitter::Lengthen(0.25));
        assert_eq!(shortened.pause(1, 1.0), Duration::from_millis(50));
        assert_eq!(lengthened.pause(1, 1.0), Duration::from_millis(125));
        assert_eq!(
            (shortened.pause(1, 0.0), lengthened.pause(1, 0.0)),
            (HALF_A_MINUTE.first, HALF_A_MINUTE.first)
        );
    }

    proptest! {
        #[test]
        fn a_pause_stays_within_its_share_whatever_the_failures(
            failures in 0..u32::MAX,
            random in -1.0..2.0_f64,
        ) {
            let full = HALF_A_MINUTE.pause(failures, 0.0);
            let jittered = HALF_A_MINUTE.with(Jitter::Shorten(0.5)).pause(failures, random);
            prop_assert!(full / 2 <= jittered && jittered <= full);
        }
    }
}
