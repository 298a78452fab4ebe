//! The values that `events` reads from records, and that the stages work with.

use std::sync::Arc;

use super::{
    Counts, Data, NotificationId, PostId, ProfileId, ProviderId, Regimen, RegimenId, Timestamp, Token,
    UserId, Version,
};

/// A record of `posts-created`.
#[derive(Clone, Debug, PartialEq)]
pub enum PostEvent {
    /// A new post.
    Posted(Post),
    /// The post was withdrawn: what has not been sent yet is not sent.
    Cancelled(PostId),
}

/// A post, and whom it is announced to.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "the fields are those of the event, which the schemas describe")]
pub struct Post {
    pub id: PostId,
    pub author: Option<UserId>,
    pub author_name: Option<String>,
    pub title: Option<String>,
    pub body: Option<String>,
    pub data: Data,
    /// Named users; none = all users but the author.
    pub audience: Option<Vec<UserId>>,
}

/// A record of `medication-regimens`.
#[derive(Clone, Debug, PartialEq)]
pub enum RegimenEvent {
    /// The regimen as it now is.
    Set(RegimenId, Box<Regimen>),
    /// The regimen was removed.
    Removed(RegimenId),
}

/// A record of `medication-ticks`.
#[derive(Clone, Debug, PartialEq)]
pub enum Tick {
    /// A tick of the clock: every shard is looked at.
    Clock {
        /// The time up to which doses are due, if it is earlier than now.
        at: Option<Timestamp>,
    },
    /// One shard's tick: a clock tick is cut into these.
    Shard {
        /// The shard's number, from 0.
        shard: u16,
        /// The time up to which doses are due, if it is earlier than now.
        at: Timestamp,
    },
    /// A dose that upstream found due itself.
    Dose(UpstreamDose),
}

/// A dose that upstream found due itself; the regimen is not asked.
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
    /// The token.
    pub token: Token,
    /// The provider whose verdict it is; other systems need not name one.
    pub provider: Option<ProviderId>,
    /// The provider's error code, or the other system's reason.
    pub reason: String,
    /// Where it was reported: `ticket`, `receipt`, `response`, or another system's text.
    pub source: Option<String>,
    /// The registration that was sent to; other systems know none.
    pub registration: Option<Version>,
    /// When it was reported.
    pub detected_at: Option<Timestamp>,
}

/// A message that Expo accepted, and whose receipt is asked for later.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ticket {
    /// Expo's id for the message.
    pub id: Arc<str>,
    /// The token that it was sent to.
    pub token: Token,
    /// The registration that was sent to.
    pub registration: Version,
}

/// A record of `expo-receipts`: at most
/// [`BATCH_TICKETS_MAX`](super::limits::BATCH_TICKETS_MAX) tickets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TicketBatch {
    /// The tickets whose receipts are asked for.
    pub tickets: Vec<Ticket>,
    /// When the first of them was sent, if the batch was produced again; none = the record's time.
    pub first_sent_at: Option<Timestamp>,
}

/// A record of `push-outcomes`: what became of a notification.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// A broadcast is complete.
    Broadcast {
        /// The broadcast's notification.
        notification: NotificationId,
        /// Its messages, over all providers and parts.
        counts: Counts,
        /// When it was complete.
        at: Timestamp,
    },
    /// A dose has its outcome.
    Dose {
        /// The dose's notification.
        notification: NotificationId,
        /// The provider that was asked; none where no provider was.
        provider: Option<ProviderId>,
        /// What became of it.
        outcome: DoseOutcome,
        /// Its messages.
        counts: Counts,
        /// When it ended; for `sent` the time of the provider's answer.
        at: Timestamp,
    },
}

/// What became of a dose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DoseOutcome {
    /// A provider accepted at least one of its messages.
    Sent,
    /// The user has no token.
    NoTokens,
    /// Found due too late to be sent.
    Missed,
    /// No message could be sent.
    Failed,
    /// It expired before a provider accepted it.
    Expired,
    /// The provider refuses the notification.
    Refused,
}

impl DoseOutcome {
    /// All of them, for tables and tests.
    pub const ALL: [Self; 6] =
        [Self::Sent, Self::NoTokens, Self::Missed, Self::Failed, Self::Expired, Self::Refused];

    /// Its text in `push-outcomes` and in the store.
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

    /// The outcome of that text; none for an unknown one.
    pub fn from_label(label: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|outcome| outcome.label() == label)
    }
}
