//! Keeps the registry of tokens current: one record, one change, applied with the record's own version.
//!
//! The store's protocol ends in the same state whatever the order of the events, so a record that is handled
//! twice, or replayed a week later with its origin's version, changes nothing that came after it.

use std::sync::Arc;

use crate::{
    domain::{Timestamp, Token, TokenChange, Unavailable},
    events::device_tokens,
    metrics::Metrics,
    store::Registry,
    stream::{Fate, Handler, LaneKey, Record, Stop},
};

use super::{Origin, dead_letter};

/// The stage of `device-tokens`.
#[derive(Debug)]
pub struct Tokens<S> {
    store: S,
    metrics: Arc<Metrics>,
}

impl<S: Registry> Tokens<S> {
    /// Applies what it reads to `store`.
    pub fn new(store: S, metrics: Arc<Metrics>) -> Self {
        Self { store, metrics }
    }
}

impl<S: Registry> Handler for Tokens<S> {
    /// A token's events keep their order, and so do a user's deletions.
    fn lane(&self, record: &Record) -> Option<LaneKey> {
        let change = device_tokens::read(record.key.as_deref(), record.value.as_deref()).ok()?;
        Some(LaneKey::of(match &change {
            TokenChange::UserDeleted(user) => user.as_str(),
            TokenChange::Registered { token, .. }
            | TokenChange::Seen(token)
            | TokenChange::Unregistered(token) => token.as_str(),
        }))
    }

    async fn handle(&self, record: &Record, _: &Stop) -> Result<Fate, Unavailable> {
        let change = match device_tokens::read(record.key.as_deref(), record.value.as_deref()) {
            Ok(change) => change,
            Err(unreadable) => return Ok(dead_letter(unreadable)),
        };
        let origin = match Origin::of(record, Timestamp::now()) {
            Ok(origin) => origin,
            Err(cause) => return Ok(dead_letter(cause)),
        };
        self.store.apply(&change, origin.version()).await?;
        self.metrics.token_changes_total.with_label_values(&[label(&change)]).inc();
        tracing::debug!(
            token = token(&change).map(tracing::field::display),
            change = label(&change),
            "Applied {}",
            label(&change)
        );
        Ok(Fate::Done)
    }
}

fn label(change: &TokenChange) -> &'static str {
    match change {
        TokenChange::Registered { .. } => "registered",
        TokenChange::Seen(_) => "seen",
        TokenChange::Unregistered(_) => "unregistered",
        TokenChange::UserDeleted(_) => "user_deleted",
    }
}

fn token(change: &TokenChange) -> Option<&Token> {
    match change {
        TokenChange::Registered { token, .. }
        | TokenChange::Seen(token)
        | TokenChange::Unregistered(token) => Some(token),
        TokenChange::UserDeleted(_) => None,
    }
}

#[cfg(test)]
mod tests;
