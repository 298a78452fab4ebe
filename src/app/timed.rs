//! A store whose operations are timed: `pushcast_store_seconds{operation}`. The stores themselves know no
//! metrics.

use std::{future::Future, sync::Arc, time::Duration};

use tokio::time::{Instant, interval};
use tokio_util::sync::CancellationToken;

use crate::{
    domain::{
        BroadcastId, BroadcastState, Cursor, DoseKey, DueRow, Judged, Listeners, PartId, Plan, Progress,
        ProviderId, Regimen, RegimenId, Registration, Slice, StopReason, Timestamp, Token, TokenChange,
        TokenHash, UserId, Version,
    },
    metrics::Metrics,
    store::{
        Audience, Broadcasts, Census, Checkpoint, Claim, Claimed, DoseMark, Doses, DriverCounts, Lease,
        Marked, Page, Registry, RouteRow, Routes, Shard, Store, StoreError, TokenRow, Total, Watermark,
        Watermarks,
    },
};

/// How often the driver's counters are copied.
const COPY_EVERY: Duration = Duration::from_secs(5);

/// Wraps a store and observes how long each of its operations takes.
#[derive(Clone)]
pub struct Timed<S> {
    store: S,
    metrics: Arc<Metrics>,
}

impl<S> Timed<S> {
    /// Times every operation of `store`, failed ones too.
    pub fn new(store: S, metrics: Arc<Metrics>) -> Self {
        Self { store, metrics }
    }

    async fn time<T>(&self, operation: &str, work: impl Future<Output = T>) -> T {
        let started = Instant::now();
        let result = work.await;
        self.metrics.store_seconds.with_label_values(&[operation]).observe(started.elapsed().as_secs_f64());
        result
    }
}

/// Implements the store's traits by timing each of their operations under its own name.
macro_rules! timed {
    ($($port:ident { $($operation:ident($($name:ident: $type:ty),*) -> $answer:ty;)+ })+) => {$(
        impl<S: $port> $port for Timed<S> {
            $(async fn $operation(&self $(, $name: $type)*) -> Result<$answer, StoreError> {
                // On the heap: in a debug build each caller's frame would hold all that a driver awaits, many
                // times over, and delivery on a CQL store overflowed a worker's stack of 2 MiB.
                self.time(stringify!($operation), Box::pin(self.store.$operation($($name),*))).await
            })+
        }
    )+};
}

timed! {
    Registry {
        apply(change: &TokenChange, version: Version) -> ();
        tokens_of(user: &UserId) -> Vec<Registration>;
        revoke(token: &Token, judged: Judged, reason: &str) -> bool;
        inspect(token: &Token) -> Option<TokenRow>;
        inspect_hash(hash: TokenHash) -> Option<TokenRow>;
        census() -> Vec<Census>;
    }
    Audience {
        page_of_slice(
            provider: ProviderId, slice: Slice, to: &Listeners, after: Option<Cursor>, limit: usize
        ) -> Page;
    }
    Broadcasts {
        plan(broadcast: &BroadcastId, plan: &Plan, now: Timestamp) -> Plan;
        broadcast(broadcast: &BroadcastId) -> (Option<Plan>, Option<BroadcastState>);
        stop(broadcast: &BroadcastId, reason: &StopReason) -> ();
        close(broadcast: &BroadcastId) -> ();
        take_over(part: &PartId) -> Progress;
        checkpoint(part: &PartId, progress: &Progress) -> Checkpoint;
        finish_part(part: &PartId) -> u32;
        progress(part: &PartId) -> Option<Progress>;
        total(broadcast: &BroadcastId, now: Timestamp) -> Total;
    }
    Doses {
        put_regimen(regimen: &RegimenId, definition: Option<&Regimen>, version: Version) -> ();
        regimen(regimen: &RegimenId) -> Option<Regimen>;
        regimens(after: Option<&RegimenId>, limit: usize) -> Vec<(RegimenId, Regimen)>;
        insert_due(shard: Shard, row: &DueRow) -> ();
        due_rows(
            shard: Shard, after: Timestamp, until: Timestamp, past: Option<&DueRow>, limit: usize
        ) -> Vec<DueRow>;
        marks(shard: Shard) -> Watermarks;
        init_marks(now: Timestamp) -> ();
        raise(shard: Shard, mark: Watermark, to: Timestamp) -> ();
        claim(dose: &DoseKey, owner: &str, now: Timestamp, until: Timestamp) -> Claim;
        claimed(dose: &DoseKey) -> Option<Claimed>;
        mark(dose: &DoseKey, lease: &Lease, mark: &DoseMark) -> Marked;
    }
    Routes {
        route(provider: ProviderId) -> RouteRow;
        set_route(provider: ProviderId, route: &RouteRow) -> ();
    }
}

impl<S: Store> Store for Timed<S> {
    async fn ping(&self) -> Result<(), StoreError> {
        self.time("ping", self.store.ping()).await
    }

    fn driver_counts(&self) -> Option<DriverCounts> {
        self.store.driver_counts()
    }
}

/// Copies the counters of the store's driver into the metrics, until `stop`.
pub async fn copy_driver_counts<S: Store>(store: Timed<S>, metrics: Arc<Metrics>, stop: CancellationToken) {
    let mut copied = DriverCounts::default();
    let mut ticks = interval(COPY_EVERY);
    while let Some(_now) = stop.run_until_cancelled(ticks.tick()).await {
        let Some(counts) = store.driver_counts() else { return stop.cancelled().await };
        for (event, now, before) in [
            ("request", counts.requests, copied.requests),
            ("error", counts.errors, copied.errors),
            ("retry", counts.retries, copied.retries),
            ("timeout", counts.timeouts, copied.timeouts),
        ] {
            metrics.store_driver_total.with_label_values(&[event]).inc_by(now.saturating_sub(before));
        }
        metrics.store_connections.set(counts.connections.cast_signed());
        metrics.store_request_p99_seconds.set(counts.p99.as_secs_f64());
        copied = counts;
    }
}
