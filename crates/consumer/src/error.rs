//! What goes wrong, told apart by what to do about it.
//!
//! [`Unavailable`] is tried again for as long as it takes. [`Rejected`] never will work: the record is at
//! fault, and becomes a dead letter. They are two types from the client up, so that no caller has to look
//! into an error to find out which of the two it is.

use std::{error::Error, fmt};

/// An error of whatever was asked.
pub type BoxError = Box<dyn Error + Send + Sync>;

/// A dependency did not answer, or refused for a reason that is not the record's fault: nothing was decided,
/// and the same work may be tried again.
#[derive(Debug, thiserror::Error)]
#[error("{dependency} is unavailable: {context}")]
pub struct Unavailable {
    /// Which dependency, as log lines call it: `Kafka`, `the store`.
    pub dependency: &'static str,
    /// What was asked of it.
    pub context: String,
    /// What it said, if anything.
    #[source]
    pub source: Option<BoxError>,
}

/// It was refused for good: the same record would be refused again.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Rejected(pub Cause);

/// Why a record can't be handled. Each holds what is wrong and where, for the person who reads the dead
/// letter; no secret may be in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Its bytes are no event of its topic.
    Unreadable(String),
    /// It could be read and says something impossible.
    Invalid(String),
    /// It causes a message that Kafka refuses from every producer: too large, and it stays so.
    Refused(String),
    /// The handler panicked on it.
    Panicked(String),
}

/// Why a handler did not come to a fate.
#[derive(Debug, thiserror::Error)]
pub enum HandlerError {
    /// Tried again after a pause, for as long as it takes.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    /// The record becomes a dead letter.
    #[error(transparent)]
    Rejected(#[from] Rejected),
}

/// Why a message was not published.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// Kafka did not acknowledge it in time. It may have been written all the same.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    /// Kafka will never take it.
    #[error(transparent)]
    Rejected(#[from] Rejected),
}

// === impl Unavailable ===

impl Unavailable {
    /// `dependency` failed while `context`.
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
    /// The word for metrics and for grouping.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Unreadable(_) => "unreadable",
            Self::Invalid(_) => "invalid",
            Self::Refused(_) => "refused",
            Self::Panicked(_) => "panicked",
        }
    }

    /// What is wrong, and where.
    pub fn detail(&self) -> &str {
        match self {
            Self::Unreadable(detail)
            | Self::Invalid(detail)
            | Self::Refused(detail)
            | Self::Panicked(detail) => detail,
        }
    }

    /// The bytes could not be read as an event of their topic.
    pub fn unreadable(detail: impl fmt::Display) -> Self {
        Self::Unreadable(detail.to_string())
    }

    /// The event could be read but says something impossible.
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
