//! From an audience's page to a final outcome for each of its messages.
//!
//! The port [`Provider`] is what a push service looks like from here: it serialises a notification once,
//! takes a request of messages, and says what became of them in [`Reply`] and [`Verdict`]. It never retries,
//! never waits for a rate and never decides what follows; that is decided here, once, for all of them.

pub mod answer;
mod batcher;
mod circuit_breaker;
mod page;
pub mod payload;
mod queue;
mod rate_limiter;
mod retry;
mod route;
mod splice;

use std::{future::Future, sync::Arc, time::Duration};

use serde::Deserialize;

use crate::domain::{Notification, Platform, ProviderId, Token};

pub use self::{
    batcher::{Batcher, BatcherHandle},
    page::{Class, MessageOutcome, Returned, SubmittedPage},
    rate_limiter::{Allowance, RateLimiter, Share},
    route::{Gate, Route, RouteSync, route},
    splice::{splice, splice_number},
};

/// `[push]` of config/default.toml.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "config/default.toml is the manual")]
pub struct Settings {
    pub enabled: bool,
    pub open_pages: usize,
    pub page_size: usize,
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required")]
    pub bulk_life: Duration,
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required")]
    pub urgent_life: Duration,
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required")]
    pub page_stale_after: Duration,
    pub brake_dead: u64,
    pub brake_percent: u64,
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required")]
    pub brake_window: Duration,
}

/// A push service.
pub trait Provider: Send + Sync + 'static {
    /// A notification as this provider wants it, serialised once for all its messages.
    type Body: Send + Sync + 'static;

    /// Which one it is.
    fn id(&self) -> ProviderId;

    /// The most messages that one request may carry.
    fn batch_max(&self) -> usize;

    /// Serialises a notification.
    ///
    /// # Errors
    /// The provider would refuse it whoever it is for.
    fn body(&self, notification: &Notification) -> Result<Self::Body, PayloadRefused>;

    /// Makes one request of at most [`Provider::batch_max`] messages and reads its answer. Ends within the
    /// provider's request time-out.
    fn send(&self, messages: &[PushMessage<'_, Self::Body>]) -> impl Future<Output = Reply> + Send;
}

/// One notification to one token.
#[derive(Debug)]
pub struct PushMessage<'a, B> {
    /// What.
    pub body: &'a B,
    /// To whom.
    pub token: &'a Token,
    /// What the device runs, if known: some fields differ.
    pub platform: Option<Platform>,
    /// How long the provider may keep trying: the rest of the notification's life.
    pub ttl: Duration,
}

/// A provider would refuse this notification whoever it is for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the payload can't be sent: {reason}")]
pub struct PayloadRefused {
    /// What is wrong with it: `4312 bytes, 4096 are allowed`.
    pub reason: String,
}

/// What a provider said to a request.
#[derive(Clone, Debug, PartialEq)]
pub enum Reply {
    /// One verdict per message, in their order.
    Each(Vec<Verdict>),
    /// Too many messages for the project: the route waits.
    Throttled {
        /// As long as the provider asks for, if it says so.
        retry_after: Option<Duration>,
    },
    /// 5xx, a time-out, a broken connection, a body that makes no sense.
    Down {
        /// Whether messages may have been taken all the same.
        ambiguous: bool,
        /// As long as the provider asks for, if it says so.
        retry_after: Option<Duration>,
        /// For the log: `HTTP 503`, `no answer within 15s`.
        why: String,
    },
    /// Our credentials, or our project: nothing can be sent until somebody mends them.
    CredentialsRefused {
        /// In the provider's words.
        why: String,
    },
    /// Nothing was taken for want of good credentials, and by now there are new ones: the messages go again.
    Reauthorised {
        /// What the provider said when it refused the old ones; `None` = there were none yet.
        refused: Option<String>,
    },
    /// The request mixed tokens of several projects: each group goes on alone. Indices into the request.
    Split(Vec<Vec<usize>>),
    /// The request was refused, by the fault of one of its messages or of all.
    Refused {
        /// In the provider's words.
        why: String,
    },
    /// An answer that we don't know. Never read as a dead token.
    Unrecognised {
        /// HTTP status.
        status: u16,
        /// For the log.
        why: String,
    },
}

/// What a provider said of one message.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// Taken.
    Accepted {
        /// To be asked about later.
        ticket: Option<Arc<str>>,
    },
    /// This token is dead.
    Dead {
        /// The provider's word: `DeviceNotRegistered`, `UNREGISTERED`.
        reason: String,
    },
    /// The payload is refused, whoever it is for.
    PayloadRefused {
        /// In the provider's words.
        why: String,
    },
    /// Too many messages for this device; the others go on.
    DeviceBusy {
        /// As long as the provider asks for, if it says so.
        retry_after: Option<Duration>,
    },
    /// The provider failed on this message.
    Down {
        /// Whether it may have been taken all the same.
        ambiguous: bool,
        /// For the log.
        why: String,
    },
    /// Our credentials for this kind of device.
    CredentialsRefused {
        /// In the provider's words.
        why: String,
    },
    /// An answer that we don't know. Never read as a dead token.
    Unrecognised {
        /// For the log.
        why: String,
    },
}

/// The batcher of a provider has ended, and its process is about to.
#[derive(Debug, thiserror::Error)]
#[error("the batcher of {provider} has stopped")]
pub struct BatcherStopped {
    /// Of which provider.
    pub provider: ProviderId,
}

/// A provider did not answer.
#[derive(Debug, thiserror::Error)]
#[error("{provider} is unavailable: {context}: {why}")]
pub struct ProviderUnavailable {
    /// Which.
    pub provider: ProviderId,
    /// What it was asked.
    pub context: String,
    /// Why there is no answer.
    pub why: String,
}

/// Asks a provider what became of messages that it took.
pub trait ReceiptSource: Send + Sync + 'static {
    /// The receipts that are ready; an id that is not in the answer has none yet. At most 1,000 ids.
    ///
    /// # Errors
    /// The provider did not answer.
    fn receipts(
        &self,
        tickets: &[Arc<str>],
    ) -> impl Future<Output = Result<Vec<(String, Receipt)>, ProviderUnavailable>> + Send;
}

impl<R: ReceiptSource> ReceiptSource for Arc<R> {
    async fn receipts(&self, tickets: &[Arc<str>]) -> Result<Vec<(String, Receipt)>, ProviderUnavailable> {
        R::receipts(self, tickets).await
    }
}

/// What became of a message that a provider had taken.
#[derive(Clone, Debug, PartialEq)]
pub enum Receipt {
    /// Handed on to the device's service.
    Delivered,
    /// The token is dead.
    Dead {
        /// The provider's word.
        reason: String,
    },
    /// Our credentials for this kind of device.
    CredentialsRefused {
        /// In the provider's words.
        why: String,
    },
    /// Anything else that went wrong with this message: `MessageTooBig`, `MessageRateExceeded`.
    Failed {
        /// In the provider's words.
        why: String,
    },
}
