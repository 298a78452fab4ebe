//! Outcomes of messages, and how many ended in which.

use std::ops::AddAssign;

/// The final result of one message to one token. Every message that enters delivery ends in exactly one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// The provider accepted it.
    Sent,
    /// The provider reported the token as dead.
    Dead,
    /// The provider refuses the notification, for every token.
    Refused,
    /// Given up for a reason that lies neither in the token nor in the payload.
    Failed,
    /// It expired before a provider accepted it.
    Expired,
}

impl Outcome {
    /// All of them, in the order in which they are shown.
    pub const ALL: [Self; 5] = [Self::Sent, Self::Dead, Self::Refused, Self::Failed, Self::Expired];

    /// Its text in metrics and `push-outcomes`.
    pub fn label(self) -> &'static str {
        match self {
            Self::Sent => "sent",
            Self::Dead => "dead",
            Self::Refused => "refused",
            Self::Failed => "failed",
            Self::Expired => "expired",
        }
    }
}

/// How many messages ended in which outcome.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are the outcomes")]
pub struct Counts {
    pub sent: u64,
    pub dead: u64,
    pub refused: u64,
    pub failed: u64,
    pub expired: u64,
}

impl Counts {
    /// Counts one message more.
    pub fn add(&mut self, outcome: Outcome) {
        *match outcome {
            Outcome::Sent => &mut self.sent,
            Outcome::Dead => &mut self.dead,
            Outcome::Refused => &mut self.refused,
            Outcome::Failed => &mut self.failed,
            Outcome::Expired => &mut self.expired,
        } += 1;
    }

    /// How many messages ended in that outcome.
    pub fn of(&self, outcome: Outcome) -> u64 {
        match outcome {
            Outcome::Sent => self.sent,
            Outcome::Dead => self.dead,
            Outcome::Refused => self.refused,
            Outcome::Failed => self.failed,
            Outcome::Expired => self.expired,
        }
    }

    /// The sum over all outcomes.
    pub fn total(&self) -> u64 {
        self.sent + self.dead + self.refused + self.failed + self.expired
    }
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.sent += other.sent;
        self.dead += other.dead;
        self.refused += other.refused;
        self.failed += other.failed;
        self.expired += other.expired;
    }
}
