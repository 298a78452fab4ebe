//! Carries jobs out: one lane of one provider, record by record, each message to its outcome.
//!
//! A *part* of a broadcast is walked page by page (`broadcast`); a *dose* is claimed, sent and marked
//! (`reminder`). Both submit their messages to the provider's batcher and then do what follows from the
//! answers (`follow_up`), in an order in which a crash at any line costs at most a repeat. `route_sync` keeps
//! this instance's copy of the route's state.

mod broadcast;
mod follow_up;
mod reminder;
mod route_sync;

use std::{
    error::Error,
    future::Future,
    panic::{AssertUnwindSafe, resume_unwind},
    sync::{Arc, Mutex, OnceLock},
    time::Duration,
};

use backoff::{Backoff, Jitter};
use consumer::{Cause, Fate, Handler, HandlerError, OrderingKey, Publish, Record, Rejected};
use futures::FutureExt as _;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

pub use self::route_sync::sync_route;
use crate::{
    dispatch::{BatcherHandle, Provider},
    domain::{Job, ProviderId, Timestamp, Work},
    events,
    metrics::Metrics,
    stages::quarantine::{Brake, BrakeThresholds},
    store::Store,
    telemetry::LogThrottle,
};

/// The pause between two tries of what follows from an answer.
const SETTLE_AGAIN: Backoff =
    Backoff::new(Duration::from_millis(100), Duration::from_secs(5)).with(Jitter::Lengthen(0.5));
/// How many tokens or users are looked up in the store at once, for one page.
const LOOKUPS_AT_ONCE: usize = 16;

/// The handler of `push.<provider>.<lane>`.
pub struct Delivery<S, Q, P: Provider> {
    provider: Arc<P>,
    batcher: BatcherHandle<P::Body>,
    store: S,
    publish: Q,
    limits: DeliveryLimits,
    metrics: Arc<Metrics>,
    brake: Mutex<Brake>,
    log_throttle: LogThrottle,
}

/// What delivery is bounded by.
#[derive(Clone, Copy, Debug)]
pub struct DeliveryLimits {
    /// Messages in a page.
    pub page_size: usize,
    /// How old a page may be at its first request.
    pub page_stale_after: Duration,
    /// How long a request to the provider may take.
    pub request_timeout: Duration,
    /// When dead tokens brake the route.
    pub brake: BrakeThresholds,
    /// After a stop: how long requests may still start for what is begun.
    pub finish_within: Duration,
}

impl<S: Store, Q: Publish, P: Provider> Delivery<S, Q, P> {
    /// Carries jobs out through `provider`, whose batcher is behind `batcher`.
    pub fn new(
        provider: Arc<P>,
        batcher: BatcherHandle<P::Body>,
        store: S,
        publish: Q,
        limits: DeliveryLimits,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            provider,
            batcher,
            store,
            publish,
            limits,
            metrics,
            brake: Mutex::new(Brake::new(limits.brake)),
            log_throttle: LogThrottle::default(),
        }
    }

    fn id(&self) -> ProviderId {
        self.provider.id()
    }

    async fn retry_until_settled<T, E: Error + 'static, F: Future<Output = Result<T, E>>>(
        &self,
        follow: impl FnMut() -> F,
    ) -> T {
        retry_until_settled(&self.log_throttle, follow).await
    }
}

impl<S: Store, Q: Publish, P: Provider> Handler for Delivery<S, Q, P> {
    type Event = Job;

    fn read(&self, record: &Record) -> Result<Job, Rejected> {
        let job = events::jobs::read(record.key.as_deref(), record.value.as_deref())?;
        if job.provider != self.id() {
            let cause = format!("a job for {} in a topic of {}", job.provider, self.id());
            return Err(Cause::Invalid(cause).into());
        }
        Ok(job)
    }

    /// The same part, or the same dose, one after the other.
    fn key(&self, job: &Job) -> Option<OrderingKey> {
        Some(OrderingKey::of(&events::jobs::key(job)))
    }

    async fn handle(
        &self,
        job: Job,
        record: &Record,
        stop: &CancellationToken,
    ) -> Result<Fate, HandlerError> {
        let drain =
            DrainWindow { stop, finish_within: self.limits.finish_within, stopped_at: OnceLock::new() };
        match &job.work {
            // On the heap, as what they ask of the store is: the runtime's frames would hold them otherwise.
            Work::Dose(dose) => Box::pin(self.dose(record, &job, dose, &drain)).await,
            Work::List(_) | Work::Slice(_) => {
                match AssertUnwindSafe(Box::pin(self.part(record, &job, &drain))).catch_unwind().await {
                    Ok(ended) => ended,
                    Err(panic) => {
                        self.finish_panicked(&job).await;
                        resume_unwind(panic) // The runtime dead-letters the record.
                    }
                }
            }
        }
    }
}

/// The stop of a record's partition, as one handling sees it. Nothing new starts after it. What has started
/// may go on for a while: all that the next owner knows of a dose is the mark, and without it the dose is
/// sent again.
struct DrainWindow<'a> {
    stop: &'a CancellationToken,
    finish_within: Duration,
    stopped_at: OnceLock<Instant>,
}

impl DrainWindow<'_> {
    fn is_stopped(&self) -> bool {
        self.stop.is_cancelled()
    }

    /// Returns when the stop has come.
    async fn stopped(&self) {
        self.stop.cancelled().await;
        self.stopped_at.get_or_init(Instant::now);
    }

    /// Whether there is no time left even for what has started.
    fn is_over(&self) -> bool {
        self.stop.is_cancelled() && self.stopped_at.get_or_init(Instant::now).elapsed() >= self.finish_within
    }

    /// Returns when there is no time left even for what has started.
    async fn over(&self) {
        self.stopped().await;
        sleep_until(*self.stopped_at.get_or_init(Instant::now) + self.finish_within).await;
    }
}

/// Does what follows from a provider's answer, again and again until it succeeds: an answered message is
/// never sent again because Kafka or the store was unavailable. The end of a drain aborts the handler, and
/// only that ends this.
async fn retry_until_settled<T, E: Error + 'static, F: Future<Output = Result<T, E>>>(
    log_throttle: &LogThrottle,
    mut follow: impl FnMut() -> F,
) -> T {
    let mut failures = 0;
    loop {
        match follow().await {
            Ok(done) => return done,
            Err(err) => {
                failures += 1;
                log_unsettled(log_throttle, &err);
                sleep(SETTLE_AGAIN.pause(failures, rand::random())).await;
            }
        }
    }
}

fn log_unsettled(log_throttle: &LogThrottle, error: &(dyn Error + 'static)) {
    if log_throttle.now() {
        warn!(error, "The effects of answers are not durable yet; they are retried until they are");
    } else {
        debug!(error, "The effects of an answer are not durable yet");
    }
}

/// The moment on tokio's clock at which the wall clock shows `at`; the present for a time that has passed.
fn instant(at: Timestamp, now: Timestamp) -> Instant {
    Instant::now() + Duration::try_from(at.duration_since(now)).unwrap_or(Duration::ZERO)
}

#[cfg(test)]
mod tests;
