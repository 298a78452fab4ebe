//! Somebody we depend on did not answer. Nothing was decided, so the work may be tried again.

use std::{error::Error, fmt};

/// Who did not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dependency {
    /// The store of tokens, broadcasts and doses.
    Store,
    /// The Kafka cluster.
    Kafka,
    /// A push service.
    Provider,
}

/// A dependency did not answer, or refused for a reason that is not the record's fault.
///
/// Never a reason to give a record up: whoever receives it tries again, for as long as it takes.
#[derive(Debug, thiserror::Error)]
#[error("{dependency} is unavailable: {context}")]
pub struct Unavailable {
    /// Who did not answer.
    pub dependency: Dependency,
    /// What was asked of it.
    pub context: String,
    /// What it said, if anything.
    #[source]
    pub source: Option<Box<dyn Error + Send + Sync>>,
}

impl Unavailable {
    /// The store failed while doing `context`.
    pub fn store(context: impl Into<String>, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { dependency: Dependency::Store, context: context.into(), source: Some(source.into()) }
    }

    /// Kafka failed while doing `context`.
    pub fn kafka(context: impl Into<String>, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { dependency: Dependency::Kafka, context: context.into(), source: Some(source.into()) }
    }
}

impl fmt::Display for Dependency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Store => "the store",
            Self::Kafka => "Kafka",
            Self::Provider => "the provider",
        })
    }
}
