//! Keeps the registry of tokens current: one record, one change, applied with the record's own version.
//!
//! The store's protocol ends in the same state whatever the order of the events, so a record that is handled
//! twice, or replayed a week later with its origin's version, changes nothing that came after it.

use std::sync::Arc;

use consumer::{Fate, Handler, HandlerError, OrderingKey, Record, Rejected};
use tokio_util::sync::CancellationToken;

use super::RecordOrigin;
use crate::{
    domain::{Timestamp, Token, TokenChange},
    events::device_tokens,
    metrics::Metrics,
    store::Registry,
};

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
    type Event = TokenChange;

    fn read(&self, record: &Record) -> Result<TokenChange, Rejected> {
        Ok(device_tokens::read(record.key.as_deref(), record.value.as_deref())?)
    }

    /// A token's events keep their order, and so do a user's deletions.
    fn key(&self, change: &TokenChange) -> Option<OrderingKey> {
        Some(OrderingKey::of(match change {
            TokenChange::UserDeleted(user) => user.as_str(),
            TokenChange::Registered { token, .. }
            | TokenChange::Seen(token)
            | TokenChange::Unregistered(token) => token.as_str(),
        }))
    }

    async fn handle(
        &self,
        change: TokenChange,
        record: &Record,
        _: &CancellationToken,
    ) -> Result<Fate, HandlerError> {
        let origin = RecordOrigin::of(record, Timestamp::now())?;
        self.store.apply(&change, origin.version()).await?;
        self.metrics.token_changes_total.with_label_values(&[label(&change)]).inc();
        tracing::debug!(
            token.hash = token(&change).map(tracing::field::display),
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
