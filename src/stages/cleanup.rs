//! Revokes dead tokens in the registry, whichever system reported them.
//!
//! A verdict names a registration. A later registration is spared: the app was installed again.

use std::sync::Arc;

use consumer::{Fate, Handler, HandlerError, OrderingKey, Record, Rejected};
use tokio_util::sync::CancellationToken;

use super::RecordOrigin;
use crate::{
    domain::{DeadToken, Judged, Timestamp},
    events::invalid_tokens,
    metrics::Metrics,
    store::Registry,
};

/// The stage of `invalid-tokens`.
#[derive(Debug)]
pub struct Cleanup<S> {
    store: S,
    metrics: Arc<Metrics>,
}

impl<S: Registry> Cleanup<S> {
    /// Revokes in `store`.
    pub fn new(store: S, metrics: Arc<Metrics>) -> Self {
        Self { store, metrics }
    }
}

impl<S: Registry> Handler for Cleanup<S> {
    type Event = DeadToken;

    fn read(&self, record: &Record) -> Result<DeadToken, Rejected> {
        Ok(invalid_tokens::read(record.key.as_deref(), record.value.as_deref())?)
    }

    fn key(&self, dead: &DeadToken) -> Option<OrderingKey> {
        Some(OrderingKey::of(dead.token.as_str()))
    }

    async fn handle(
        &self,
        dead: DeadToken,
        record: &Record,
        _: &CancellationToken,
    ) -> Result<Fate, HandlerError> {
        let origin = RecordOrigin::of(record, Timestamp::now())?;
        let revoked = self.store.revoke(&dead.token, judged(&dead, origin.timestamp), &dead.reason).await?;
        let change = if revoked { "revoked" } else { "spared" };
        self.metrics.token_changes_total.with_label_values(&[change]).inc();
        tracing::debug!(token.hash = %dead.token, change, "Token {} was {change}", dead.token);
        Ok(Fate::Done)
    }
}

/// Which registration the verdict is about. Other systems know no registrations: their verdict is about the
/// one that was current when they detected it.
fn judged(dead: &DeadToken, written_at: Timestamp) -> Judged {
    match dead.registration {
        Some(version) => Judged::Registration(version),
        None => Judged::AsOf(dead.detected_at.map_or(written_at, |detected_at| detected_at.min(written_at))),
    }
}

#[cfg(test)]
mod tests;
