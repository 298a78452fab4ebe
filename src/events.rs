//! The public contract: what the records of each topic say, one module a topic.
//!
//! Each module turns bytes into the values of [`crate::domain`] and back, with pure functions; nothing here
//! knows Kafka. The private types in them are the source of `schemas/events/`: [`schemas`] generates it and a
//! test keeps it equal.
//!
//! How all of them read:
//! - One JSON object in UTF-8. Names are camelCase; snake_case is accepted. Unknown fields are ignored,
//!   missing ones named.
//! - Identifiers are texts or whole numbers. Times are RFC 3339.
//! - In optional fields `null` and the empty text mean the same as absent. In required ones both are refused.
//! - Sizes are bounded: an identifier to 256 bytes, a text to 64 KiB, `data` to 4 KiB.
//!
//! **Invariant:** no error of this module contains a token, whatever the record looks like.

pub mod broadcast_specs;
pub mod device_tokens;
mod fields;
pub mod invalid_tokens;
pub mod jobs;
mod json;
pub mod medication_regimens;
pub mod medication_ticks;
mod notification;
pub mod posts_created;
pub mod push_outcomes;
pub mod receipts;
#[cfg(test)]
mod tests;
pub mod topics;

use schemars::Schema;

/// A record does not say what its topic's records say. Each holds the field and what was expected of it, and no
/// token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// No JSON, a missing field, a wrong type.
    #[error("{0}")]
    Malformed(String),
    /// It can be read but says something impossible.
    #[error("{0}")]
    Invalid(String),
}

/// Every topic's JSON Schema, by the name of its file in `schemas/events/`.
pub fn schemas() -> [(&'static str, Schema); 8] {
    [
        (topics::DEVICE_TOKENS, device_tokens::schema()),
        (topics::POSTS_CREATED, posts_created::schema()),
        (topics::MEDICATION_REGIMENS, medication_regimens::schema()),
        (topics::MEDICATION_TICKS, medication_ticks::schema()),
        ("push", jobs::schema()),
        (topics::EXPO_RECEIPTS, receipts::schema()),
        (topics::INVALID_TOKENS, invalid_tokens::schema()),
        (topics::PUSH_OUTCOMES, push_outcomes::schema()),
    ]
}

// === impl Unreadable ===

impl Unreadable {
    fn malformed(detail: impl Into<String>) -> Self {
        Self::Malformed(detail.into())
    }

    fn invalid(detail: impl Into<String>) -> Self {
        Self::Invalid(detail.into())
    }
}
