//! The public contract: the format of each topic's records, one module a topic.
//!
//! Each module turns bytes into the values of [`crate::domain`] and back, with pure functions; nothing here
//! knows Kafka. The private types in them are the source of `schemas/events/`: [`schemas`] generates it and a
//! test keeps it equal. Their doc comments are the descriptions there.
//!
//! What they have in common:
//! - One JSON object in UTF-8. Names are camelCase; snake_case is accepted. Unknown fields are ignored,
//!   missing ones named.
//! - Identifiers are texts or whole numbers. Times are RFC 3339.
//! - In optional fields `null` and the empty text mean the same as absent. In required ones both are refused.
//! - Sizes are bounded: [`crate::domain::limits`].
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

use schemars::{
    Schema,
    transform::{RecursiveTransform, Transform as _},
};
use serde_json::Value;

/// A record does not have its topic's format. The text names the field and what was expected there, and holds
/// no token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// No JSON, a missing field, a wrong type.
    #[error("{0}")]
    Malformed(String),
    /// It has the right form and an impossible value.
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
    .map(|(name, mut schema)| {
        RecursiveTransform(unwrap_description).transform(&mut schema);
        (name, schema)
    })
}

/// A doc comment is wrapped for the source; in the schema it is one line.
fn unwrap_description(schema: &mut Schema) {
    if let Some(Value::String(text)) = schema.get_mut("description") {
        *text = text.replace('\n', " ");
    }
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
