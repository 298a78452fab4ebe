//! Which of two events about the same thing is the later one.
//!
//! A version is a pure function of the Kafka record that carried the event, so a replay gives the same number
//! and changes nothing. Event versions are even; the odd number above each belongs to a revocation *of that
//! version*, so that a registration made after a failed send always wins over the verdict on that send.

use super::Timestamp;

const STEP_MS: i64 = 10;
const SLOTS: i64 = 5_000;

/// A point in the order of events, in microseconds since 1970 with the record's offset folded into the last
/// digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Version(i64);

/// The registration that a dead-token verdict is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judged {
    /// The registration that was sent to.
    Registration(Version),
    /// The registration that was current at this time: verdicts of other systems, which know no versions.
    AsOf(Timestamp),
}

impl Version {
    /// The version of the event in the record with this timestamp and offset.
    ///
    /// Steps of 10 ms: `LogAppendTime` gives a whole batch one millisecond, and the offset then keeps the
    /// batch's order.
    pub fn of_record(timestamp: Timestamp, offset: i64) -> Self {
        let step = timestamp.as_millisecond().div_euclid(STEP_MS);
        Self(step * STEP_MS * 1_000 + offset.rem_euclid(SLOTS) * 2)
    }

    /// When the event happened, to ten milliseconds: the digits below hold the record's offset.
    pub fn happened_at(self) -> Timestamp {
        let step_us = STEP_MS * 1_000;
        Timestamp::from_microsecond(self.0.div_euclid(step_us) * step_us).unwrap_or(Timestamp::UNIX_EPOCH)
    }

    /// The number that the store and `invalid-tokens` carry.
    pub fn as_i64(self) -> i64 {
        self.0
    }

    /// The version of a number that the store or a record carries.
    pub fn from_i64(value: i64) -> Self {
        Self(value)
    }

    /// The version of a revocation of this very version: above it, below every later event.
    pub fn revocation(self) -> Self {
        Self(self.0 | 1)
    }

    /// Whether this version was current, or could have been, at `at`.
    pub fn not_after(self, at: Timestamp) -> bool {
        self.0 < Self::of_record(at, 0).0 + STEP_MS * 1_000
    }
}

impl Judged {
    /// Whether the verdict is about the registration with version `current`.
    pub fn names(self, current: Version) -> bool {
        match self {
            Self::Registration(version) => version == current,
            Self::AsOf(at) => current.not_after(at),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(ms: i64) -> Timestamp {
        Timestamp::from_millisecond(ms).unwrap()
    }

    proptest! {
        #[test]
        fn an_event_is_even_and_its_revocation_lies_between_it_and_the_next(
            ms in 0..4_000_000_000_000_i64,
            offset in 0..i64::MAX,
        ) {
            let version = Version::of_record(at(ms), offset);
            prop_assert_eq!(version.as_i64() % 2, 0);
            prop_assert!(version < version.revocation());
            prop_assert!(version.revocation() < Version::from_i64(version.as_i64() + 2));
        }

        #[test]
        fn a_later_step_of_ten_milliseconds_wins_whatever_the_offsets(
            ms in 0..4_000_000_000_000_i64,
            a in 0..i64::MAX,
            b in 0..i64::MAX,
        ) {
            prop_assert!(Version::of_record(at(ms), a) < Version::of_record(at(ms + 10), b));
        }
    }

    #[test]
    fn a_verdict_without_a_version_is_not_about_what_was_registered_later() {
        let current = Version::of_record(at(50_000), 3);
        assert!(Judged::AsOf(at(50_000)).names(current));
        assert!(Judged::AsOf(at(60_000)).names(current));
        assert!(!Judged::AsOf(at(49_980)).names(current));
    }
}
