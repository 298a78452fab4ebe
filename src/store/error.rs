//! What a store answers when it does not do what it was asked.

use std::error::Error;

/// Why a store did not do what it was asked. The three are told apart by what they lead to: an unavailable
/// store is asked again, a rejected question never will be answered, and a corrupt row is the row's fault
/// alone.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The store is away or slow. Nothing was decided: ask again, for as long as it takes.
    #[error("the store is unavailable: {context}")]
    Unavailable {
        /// What it was asked.
        context: String,
        /// What it said, if anything.
        source: Option<Box<dyn Error + Send + Sync>>,
    },
    /// The store calls what it was asked invalid, and would again.
    #[error("the store rejects {context}")]
    Rejected {
        /// What it was asked.
        context: String,
        /// What it said.
        source: Box<dyn Error + Send + Sync>,
    },
    /// A stored row can't be read back.
    #[error("a stored row can't be read: {context}")]
    Corrupt {
        /// Which row, and what of it.
        context: String,
        /// Why not.
        source: Box<dyn Error + Send + Sync>,
    },
}

impl StoreError {
    /// The store failed while `context`.
    pub fn unavailable(context: impl Into<String>, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Unavailable { context: context.into(), source: Some(source.into()) }
    }

    /// The store calls `context` invalid.
    pub fn rejected(context: impl Into<String>, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Rejected { context: context.into(), source: source.into() }
    }

    /// The row that `context` names can't be read.
    pub fn corrupt(context: impl Into<String>, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Corrupt { context: context.into(), source: source.into() }
    }
}
