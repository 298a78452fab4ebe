//! Why a store did not do what it was asked.

use std::error::Error;

/// Why a store operation failed. The variants differ in what they lead to: an unavailable store is asked
/// again, a rejected request is rejected each time, and a corrupt row concerns that row alone.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The store is unreachable or too slow. Nothing is known to have been done: repeat the operation, for as
    /// long as it takes.
    #[error("the store is unavailable: {context}")]
    Unavailable {
        /// The operation.
        context: String,
        /// What the driver or the server reported, if anything.
        source: Option<Box<dyn Error + Send + Sync>>,
    },
    /// The store calls the request invalid, and would again.
    #[error("the store rejects the request: {context}")]
    Rejected {
        /// The operation.
        context: String,
        /// What the driver or the server reported.
        source: Box<dyn Error + Send + Sync>,
    },
    /// A stored row can't be read back.
    #[error("a stored row can't be read: {context}")]
    Corrupt {
        /// The table and the key, where they are known; else the operation.
        context: String,
        /// What is wrong with it.
        source: Box<dyn Error + Send + Sync>,
    },
}

impl StoreError {
    /// The store was unavailable for the operation `context`.
    pub fn unavailable(context: impl Into<String>, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Unavailable { context: context.into(), source: Some(source.into()) }
    }

    /// The store calls the operation `context` invalid.
    pub fn rejected(context: impl Into<String>, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Rejected { context: context.into(), source: source.into() }
    }

    /// The row that `context` names can't be read.
    pub fn corrupt(context: impl Into<String>, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Corrupt { context: context.into(), source: source.into() }
    }
}
