//! What can go wrong, by what to do about it.
//!
//! What was [`Unavailable`] is retried for as long as it takes. What is [`Rejected`] will never work: the
//! record is at fault, and becomes a dead letter. They are two types from the client up, so that no caller
//! has to look into an error to learn which of the two it is.

use std::{error::Error, fmt};

/// An error of a dependency.
pub type BoxError = Box<dyn Error + Send + Sync>;

/// A dependency did not answer, or failed for a reason that is not the record's fault: nothing is decided,
/// and the same work may be tried again.
#[derive(Debug, thiserror::Error)]
#[error("{dependency} is unavailable: {context}")]
pub struct Unavailable {
    /// Which dependency, as log lines call it: `Kafka`, `the database`.
    pub dependency: &'static str,
    /// The operation that failed: `writing the order`.
    pub context: String,
    /// Its error, if it returned one.
    #[source]
    pub source: Option<BoxError>,
}

/// The record can't be handled: it would fail again in the same way.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Rejected(pub Cause);

/// Why a record can't be handled. Each holds what is wrong and where, which is written into the dead letter;
/// no secret may be in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Its bytes could not be parsed.
    Unreadable(String),
    /// It was parsed, but its content is impossible.
    Invalid(String),
    /// It causes a message that Kafka never accepts, because it is too large.
    Refused(String),
    /// The handler panicked on it.
    Panicked(String),
}

/// Why a handler returned no fate.
#[derive(Debug, thiserror::Error)]
pub enum HandlerError {
    /// The record is handled again after a pause, for as long as it takes.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    /// The record becomes a dead letter.
    #[error(transparent)]
    Rejected(#[from] Rejected),
}

/// Why a message was not published.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// Kafka did not acknowledge it in time. It may have been written nevertheless.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    /// Kafka will never accept it.
    #[error(transparent)]
    Rejected(#[from] Rejected),
}

// === impl Unavailable ===

impl Unavailable {
    /// `dependency` failed while `context` (`writing the order`).
    pub fn new(dependency: &'static str, context: impl Into<String>, source: impl Into<BoxError>) -> Self {
        Self { dependency, context: context.into(), source: Some(source.into()) }
    }

    /// Kafka failed while `context`.
    pub fn kafka(context: impl Into<String>, source: impl Into<BoxError>) -> Self {
        Self::new("Kafka", context, source)
    }
}

// === impl Cause ===

impl Cause {
    /// The value of the label `cause` in metrics and of the header in dead letters.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Unreadable(_) => "unreadable",
            Self::Invalid(_) => "invalid",
            Self::Refused(_) => "refused",
            Self::Panicked(_) => "panicked",
        }
    }

    /// What is wrong, and where, without the label.
    pub fn detail(&self) -> &str {
        match self {
            Self::Unreadable(detail)
            | Self::Invalid(detail)
            | Self::Refused(detail)
            | Self::Panicked(detail) => detail,
        }
    }

    /// [`Cause::Unreadable`] from an error or a text.
    pub fn unreadable(detail: impl fmt::Display) -> Self {
        Self::Unreadable(detail.to_string())
    }

    /// [`Cause::Invalid`] from an error or a text.
    pub fn invalid(detail: impl fmt::Display) -> Self {
        Self::Invalid(detail.to_string())
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.label(), self.detail())
    }
}

// === impl Rejected ===

impl From<Cause> for Rejected {
    fn from(cause: Cause) -> Self {
        Self(cause)
    }
}

// === impl HandlerError ===

impl From<PublishError> for HandlerError {
    fn from(error: PublishError) -> Self {
        match error {
            PublishError::Unavailable(unavailable) => Self::Unavailable(unavailable),
            PublishError::Rejected(rejected) => Self::Rejected(rejected),
        }
    }
}
