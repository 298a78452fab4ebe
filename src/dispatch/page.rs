//! What is submitted to the batcher and what it returns: a page of one notification's messages.

use std::sync::Arc;

use tokio::time::Instant;

use crate::domain::{Outcome, Recipient};

/// Which messages are sent first. Within a class pages keep the order in which they were submitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// Reminders of doses.
    Urgent,
    /// A broadcast's named users.
    List,
    /// A broadcast's slice of the token ring.
    Slice,
}

/// Messages of one notification, at most a page of them.
#[derive(Debug)]
pub struct SubmittedPage<B> {
    /// Which other pages it overtakes.
    pub class: Class,
    /// The serialised notification.
    pub body: Arc<B>,
    /// Shared with the requests that carry their messages.
    pub recipients: Arc<[Recipient]>,
    /// When the notification is no longer worth sending.
    pub expires: Instant,
    /// No request with one of these messages starts after this: the end of a dose's lease. `None` = there is
    /// no lease.
    pub start_before: Option<Instant>,
    /// A page whose first request would start later than this is returned unsent, for its recipients to be
    /// read again.
    pub stale_at: Instant,
}

/// The final outcome of one message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MessageOutcome {
    /// The provider accepted it.
    Sent {
        /// By which its receipt is read later.
        ticket: Option<Arc<str>>,
    },
    /// The provider calls the token dead.
    Dead {
        /// The provider's error code.
        reason: String,
    },
    /// The provider refuses the message.
    Refused {
        /// The provider's text.
        why: String,
        /// Whether it would refuse the notification for every other recipient too.
        for_all_recipients: bool,
    },
    /// It was not sent before the notification expired.
    Expired,
}

/// A page that the batcher has returned.
#[derive(Debug)]
pub struct Returned {
    /// The page's recipients.
    pub recipients: Arc<[Recipient]>,
    /// The outcome of each message, in the page's order; `None` = it has none: the page was withdrawn, went
    /// stale or its lease ended.
    pub outcomes: Vec<Option<MessageOutcome>>,
}

impl<B> SubmittedPage<B> {
    /// When the page is returned at the latest, or as soon after that as none of its requests is on the wire.
    pub(super) fn deadline(&self) -> Instant {
        self.start_before.map_or(self.expires, |end| end.min(self.expires))
    }
}

impl Class {
    /// All classes, the most urgent first.
    pub const ALL: [Self; 3] = [Self::Urgent, Self::List, Self::Slice];
}

impl MessageOutcome {
    /// The outcome under which metrics and totals count it.
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
