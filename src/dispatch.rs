//! From a page of recipients to an outcome for each of its messages.
//!
//! The port [`Provider`] is what a push service looks like from here: it serialises a notification once,
//! makes a request of messages, and reads the answer into a [`Reply`] of [`Verdict`]s. It never retries,
//! never waits for a rate and never decides what follows; that is decided here, once, for all providers.

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

use backoff::Backoff;
use serde::Deserialize;

use crate::domain::{Notification, Platform, ProviderId, Token};

pub use self::{
    batcher::{Batcher, BatcherHandle},
    page::{Class, MessageOutcome, Returned, SubmittedPage},
    rate_limiter::{Allowance, RateLimiter, Share},
    route::{ClosedBy, Gate, Route, RouteSync, route},
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

    /// How long to wait after its failures.
    fn backoff(&self) -> ProviderBackoff;

    /// Serialises a notification.
    ///
    /// # Errors
    /// The provider would refuse it for every recipient.
    fn body(&self, notification: &Notification) -> Result<Self::Body, PayloadRefused>;

    /// Makes one request of at most [`Provider::batch_max`] messages and reads its answer. Ends within the
    /// provider's request time-out.
    fn send(&self, messages: &[PushMessage<'_, Self::Body>]) -> impl Future<Output = Reply> + Send;
}

/// How long to wait after a provider's failures, as its documentation asks. Jitter and the caps of other
/// messages are the same for all providers (`retry`).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ProviderBackoff {
    /// The pause after the first failure of a message or of a probe; doubled with each further one.
    pub first: Duration,
    /// The longest pause of an urgent message, unless `Retry-After` asks for a longer one. At least half as
    /// long again as `first`, to leave room for the jitter.
    pub urgent_cap: Duration,
    /// The pauses of the whole route after refusals for too many messages (HTTP 429) in a row, where the
    /// provider sends no `Retry-After`.
    pub throttled: Backoff,
}

/// One notification to one token.
#[derive(Debug)]
pub struct PushMessage<'a, B> {
    /// The serialised notification.
    pub body: &'a B,
    /// The device.
    pub token: &'a Token,
    /// What the device runs, if known: some fields differ.
    pub platform: Option<Platform>,
    /// How long the provider may keep trying: the rest of the notification's life.
    pub ttl: Duration,
}

/// A provider would refuse this notification for every recipient.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the payload can't be sent: {reason}")]
pub struct PayloadRefused {
    /// What is wrong with it: `4312 bytes, 4096 are allowed`.
    pub reason: String,
}

/// A provider's answer to a request.
#[derive(Clone, Debug, PartialEq)]
pub enum Reply {
    /// One verdict per message, in their order.
    Each(Vec<Verdict>),
    /// Too many messages for the project: the route waits.
    Throttled {
        /// How long the provider asks us to wait, if it does.
        retry_after: Option<Duration>,
    },
    /// 5xx, a time-out, a broken connection, a body that can't be read.
    Down {
        /// Whether the provider may have accepted messages all the same.
        ambiguous: bool,
        /// How long the provider asks us to wait, if it does.
        retry_after: Option<Duration>,
        /// For the log: `HTTP 503`, `no answer within 15s`.
        why: String,
    },
    /// Our credentials, or our project: nothing can be sent until an operator mends them.
    CredentialsRefused {
        /// The provider's text.
        why: String,
    },
    /// No message was accepted for want of good credentials, and by now there are new ones: the messages are
    /// sent again.
    Reauthorised {
        /// The provider's text when it refused the old ones; `None` = there were none yet.
        refused: Option<String>,
    },
    /// The request mixed tokens of several projects: each group is sent in a request of its own. Indices into
    /// the request.
    Split(Vec<Vec<usize>>),
    /// The request was refused because of one of its messages, or because of all.
    Refused {
        /// The provider's text.
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

/// A provider's answer for one message.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// The provider will deliver it.
    Accepted {
        /// By which its receipt is read later.
        ticket: Option<Arc<str>>,
    },
    /// This token is dead.
    Dead {
        /// The provider's error code: `DeviceNotRegistered`, `UNREGISTERED`.
        reason: String,
    },
    /// The payload is refused, for this recipient and for every other.
    PayloadRefused {
        /// The provider's text.
        why: String,
    },
    /// Too many messages for this device; those to others are not concerned.
    DeviceBusy {
        /// How long the provider asks us to wait, if it does.
        retry_after: Option<Duration>,
    },
    /// The provider failed on this message.
    Down {
        /// Whether it may have accepted the message all the same.
        ambiguous: bool,
        /// For the log.
        why: String,
    },
    /// Our credentials for this kind of device.
    CredentialsRefused {
        /// The provider's text.
        why: String,
    },
    /// An answer that we don't know. Never read as a dead token.
    Unrecognised {
        /// For the log.
        why: String,
    },
}

/// The batcher of a provider has ended while a page was submitted: the runtime shuts down, or the batcher
/// panicked and the process is about to end.
#[derive(Debug, thiserror::Error)]
#[error("the batcher of {provider} has stopped")]
pub struct BatcherStopped {
    /// Whose batcher.
    pub provider: ProviderId,
}

/// A provider did not answer a question about receipts, or its answer can't be used.
#[derive(Debug, thiserror::Error)]
#[error("{provider} is unavailable: {context}: {why}")]
pub struct ProviderUnavailable {
    /// Which provider.
    pub provider: ProviderId,
    /// What was attempted: `asking Expo for 300 receipts`.
    pub context: String,
    /// Why there is no usable answer.
    pub why: String,
}

/// Reads from a provider what became of messages that it accepted.
pub trait ReceiptSource: Send + Sync + 'static {
    /// The receipts that are ready; an id that is not in the answer has none yet. At most 1,000 ids.
    ///
    /// # Errors
    /// The provider did not answer, or its answer can't be used.
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

/// What became of a message that a provider had accepted.
#[derive(Clone, Debug, PartialEq)]
pub enum Receipt {
    /// The device's own service (APNs, FCM) accepted it.
    Delivered,
    /// The token is dead.
    Dead {
        /// The provider's error code.
        reason: String,
    },
    /// Our credentials for this kind of device.
    CredentialsRefused {
        /// The provider's text.
        why: String,
    },
    /// Any other error of this message: `MessageTooBig`, `MessageRateExceeded`.
    Failed {
        /// The provider's text.
        why: String,
    },
}
