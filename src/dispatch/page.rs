//! What is handed in and what comes back: a page of one notification's messages.

use std::sync::Arc;

use tokio::time::Instant;

use crate::domain::{Outcome, Recipient};

/// What goes first. Within a class pages keep the order in which they came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// A dose.
    Urgent,
    /// A broadcast's named users.
    List,
    /// A broadcast's piece of the ring.
    Slice,
}

/// Messages of one notification, at most a page of them.
#[derive(Debug)]
pub struct SubmittedPage<B> {
    /// What goes first.
    pub class: Class,
    /// What is sent.
    pub body: Arc<B>,
    /// To whom. Shared with the requests that carry them.
    pub recipients: Arc<[Recipient]>,
    /// When the notification is no longer worth sending.
    pub expires: Instant,
    /// No request with one of these messages starts after this: the end of a dose's lease. `None` = no such
    /// end.
    pub start_before: Option<Instant>,
    /// A page whose first request would start later than this is given back unsent, to be read again.
    pub stale_at: Instant,
}

/// What finally became of one message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MessageOutcome {
    /// The provider took it.
    Sent {
        /// To be asked about later.
        ticket: Option<Arc<str>>,
    },
    /// The provider says the token is dead.
    Dead {
        /// In its words.
        reason: String,
    },
    /// The provider refuses the message.
    Refused {
        /// In its words.
        why: String,
        /// Whether it would refuse it whoever it is for.
        whoever: bool,
    },
    /// Its life was over.
    Expired,
}

/// A page that came back.
#[derive(Debug)]
pub struct Returned {
    /// The page's recipients.
    pub recipients: Arc<[Recipient]>,
    /// What became of each message, in the page's order; `None` = nothing yet: the page was withdrawn, went
    /// stale or ran out of its lease.
    pub outcomes: Vec<Option<MessageOutcome>>,
}

impl<B> SubmittedPage<B> {
    /// When the page goes home at the latest, but for what is on the wire.
    pub(super) fn deadline(&self) -> Instant {
        self.start_before.map_or(self.expires, |end| end.min(self.expires))
    }
}

impl Class {
    /// All of them, first things first.
    pub const ALL: [Self; 3] = [Self::Urgent, Self::List, Self::Slice];
}

impl MessageOutcome {
    /// The outcome that is counted.
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::Sent { .. } => Outcome::Sent,
            Self::Dead { .. } => Outcome::Dead,
            Self::Refused { .. } => Outcome::Refused,
            Self::Expired => Outcome::Expired,
        }
    }
}

impl Returned {
    /// Whether every message has its outcome.
    pub fn is_complete(&self) -> bool {
        self.outcomes.iter().all(Option::is_some)
    }
}
