//! What records say, once they have been read: the values that `events` turns bytes into, and stages work
//! with.

use std::sync::Arc;

use super::{
    Counts, NotificationId, PostId, ProfileId, ProviderId, Regimen, RegimenId, Timestamp, Token, UserId,
    Version,
};

/// A record of `posts-created`.
#[derive(Clone, Debug, PartialEq)]
pub enum PostEvent {
    /// Somebody has posted.
    Posted(Post),
    /// What has not been sent yet is not sent.
    Cancelled(PostId),
}

/// A post, and whom to tell.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "the fields are those of the event, which the schemas describe")]
pub struct Post {
    pub id: PostId,
    pub author: Option<UserId>,
    pub author_name: Option<String>,
    pub title: Option<String>,
    pub body: Option<String>,
    pub data: serde_json::Map<String, serde_json::Value>,
    /// Named users; none = everybody but the author.
    pub audience: Option<Vec<UserId>>,
}

/// A record of `medication-regimens`.
#[derive(Clone, Debug, PartialEq)]
pub enum RegimenEvent {
    /// The regimen as it now is.
    Set(RegimenId, Box<Regimen>),
    /// There is no such regimen any more.
    Removed(RegimenId),
}

/// A record of `medication-ticks`.
#[derive(Clone, Debug, PartialEq)]
pub enum Tick {
    /// The clock: every shard is looked at.
    Clock {
        /// Up to here, if earlier than now.
        at: Option<Timestamp>,
    },
    /// One shard's tick: a clock tick is cut into these.
    Shard {
        /// Which shard.
        shard: u16,
        /// Up to here, if earlier than now.
        at: Timestamp,
    },
    /// A dose that upstream found due itself.
    Dose(UpstreamDose),
}

/// A dose that upstream found due itself; asks no regimen.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are those of the event")]
pub struct UpstreamDose {
    pub regimen: RegimenId,
    pub profile: ProfileId,
    pub user: UserId,
    pub schedule_time: Timestamp,
    pub medicine_name: String,
    pub dosage: String,
    /// IANA name, for `{local_time}`; none = the regimen's zone if we know it, else UTC.
    pub timezone: Option<String>,
}

/// A record of `invalid-tokens`: this token is dead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadToken {
    /// Which.
    pub token: Token,
    /// Who says so; outsiders may not.
    pub provider: Option<ProviderId>,
    /// The provider's word, or the outsider's.
    pub reason: String,
    /// How it came to light: `ticket`, `receipt`, `response`, or an outsider's word.
    pub source: Option<String>,
    /// The registration that was sent to; outsiders know none.
    pub registration: Option<Version>,
    /// When.
    pub detected_at: Option<Timestamp>,
}

/// A message that a provider took, to be asked about later.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ticket {
    /// The provider's id for it.
    pub id: Arc<str>,
    /// Whom it was for.
    pub token: Token,
    /// The registration that was sent to.
    pub registration: Version,
}

/// A record of `expo-receipts`: at most 1,000 tickets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TicketBatch {
    /// What to ask for.
    pub tickets: Vec<Ticket>,
    /// When the first of them was sent, once the batch was put back; none = the record's time.
    pub first_sent_at: Option<Timestamp>,
}

/// A record of `push-outcomes`: what became of a notification.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// A broadcast is complete.
    Broadcast {
        /// Which.
        notification: NotificationId,
        /// Over all providers and parts.
        counts: Counts,
        /// When.
        at: Timestamp,
    },
    /// A dose has its outcome.
    Dose {
        /// Which.
        notification: NotificationId,
        /// Through whom; none where no provider was asked.
        provider: Option<ProviderId>,
        /// What became of it.
        outcome: DoseOutcome,
        /// Its messages.
        counts: Counts,
        /// When; for `sent` the time of the provider's answer.
        at: Timestamp,
    },
}

/// What became of a dose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DoseOutcome {
    /// At least one device was rung.
    Sent,
    /// The user has no device.
    NoTokens,
    /// Found too late to be rung.
    Missed,
    /// No device could be rung.
    Failed,
    /// Its life was over before a provider took it.
    Expired,
    /// The provider refuses the notification.
    Refused,
}

impl DoseOutcome {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Sent, Self::NoTokens, Self::Missed, Self::Failed, Self::Expired, Self::Refused];

    /// The word in `push-outcomes` and in the store.
    pub fn label(self) -> &'static str {
        match self {
            Self::Sent => "sent",
            Self::NoTokens => "noTokens",
            Self::Missed => "missed",
            Self::Failed => "failed",
            Self::Expired => "expired",
            Self::Refused => "refused",
        }
    }

    /// The outcome of that word.
    pub fn from_label(label: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|outcome| outcome.label() == label)
    }
}
