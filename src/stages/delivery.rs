//! Carries jobs out: a lane of one provider's work, record by record, each to its last outcome.
//!
//! A *part* of a broadcast is walked page by page (`part`); a *dose* is claimed, rung and marked (`dose`).
//! Both hand their messages in at the provider's batcher and then see to what follows from the answers
//! (`ledger`), in an order in which a death at any line costs at most a repeat.

mod broadcast;
mod follow_up;
mod held;
mod reminder;
mod route_sync;

use std::{
    error::Error,
    future::Future,
    panic::{AssertUnwindSafe, resume_unwind},
    sync::{Arc, Mutex, OnceLock},
    time::Duration,
};

use futures::FutureExt as _;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{debug, warn};

pub use self::route_sync::sync_route;
use crate::{
    dispatch::{BatcherHandle, Provider},
    domain::{Job, ProviderId, Timestamp, Work},
    events,
    metrics::Metrics,
    stages::brake::{Brake, Thresholds},
    store::Store,
};
use consumer::HandlerError;
use consumer::{Cause, Fate, Handler, LaneKey, LogThrottle, Publish, Record, Rejected};
use tokio_util::sync::CancellationToken;

/// The longest pause between two tries of what follows from an answer.
const INSIST_EVERY_MAX: Duration = Duration::from_secs(5);

/// The handler of `push.<provider>.<lane>`.
pub struct Delivery<S, Q, P: Provider> {
    provider: Arc<P>,
    batcher: BatcherHandle<P::Body>,
    store: S,
    publish: Q,
    limits: Limits,
    metrics: Arc<Metrics>,
    brake: Mutex<Brake>,
    log_throttle: LogThrottle,
}

/// What delivery is bounded by.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Messages in a page.
    pub page_size: usize,
    /// How old a page may be at its first request.
    pub page_stale_after: Duration,
    /// How long a request to the provider may take.
    pub request_timeout: Duration,
    /// What is a flood of dead tokens.
    pub brake: Thresholds,
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
        limits: Limits,
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
    fn key(&self, job: &Job) -> Option<LaneKey> {
        Some(LaneKey::of(&events::jobs::key(job)))
    }

    async fn handle(
        &self,
        job: Job,
        record: &Record,
        stop: &CancellationToken,
    ) -> Result<Fate, HandlerError> {
        let stop = Stopping { stop, finish_within: self.limits.finish_within, came: OnceLock::new() };
        match &job.work {
            // On the heap, as what they ask of the store is: the runtime's frames would hold them otherwise.
            Work::Dose(dose) => Box::pin(self.dose(record, &job, dose, &stop)).await,
            Work::List(_) | Work::Slice(_) => {
                match AssertUnwindSafe(Box::pin(self.part(record, &job, &stop))).catch_unwind().await {
                    Ok(ended) => ended,
                    Err(panic) => {
                        self.give_up(&job).await;
                        resume_unwind(panic) // The runtime buries the record.
                    }
                }
            }
        }
    }
}

/// A stop as one handling sees it. Nothing is begun after it. What is begun may go on for a while: of a dose
/// the next owner knows nothing but the mark, and would ring it from its beginning.
struct Stopping<'a> {
    stop: &'a CancellationToken,
    finish_within: Duration,
    came: OnceLock<Instant>,
}

impl Stopping<'_> {
    fn is_set(&self) -> bool {
        self.stop.is_cancelled()
    }

    /// Returns when it has come.
    async fn wait(&self) {
        self.stop.cancelled().await;
        self.came.get_or_init(Instant::now);
    }

    /// Whether there is no time left for what is begun either.
    fn is_over(&self) -> bool {
        self.stop.is_cancelled() && self.came.get_or_init(Instant::now).elapsed() >= self.finish_within
    }

    /// Returns when there is no time left for what is begun either.
    async fn last_call(&self) {
        self.wait().await;
        sleep_until(*self.came.get_or_init(Instant::now) + self.finish_within).await;
    }
}

/// Does what follows from a provider's answer, again and again until it succeeds: an answered message is
/// never sent again because Kafka or the store was away. The end of a drain aborts the handler, and only that
/// ends this.
async fn retry_until_settled<T, E: Error + 'static, F: Future<Output = Result<T, E>>>(
    log_throttle: &LogThrottle,
    mut follow: impl FnMut() -> F,
) -> T {
    let mut pause = Duration::from_millis(100);
    loop {
        match follow().await {
            Ok(done) => return done,
            Err(err) => {
                log_unsettled(log_throttle, &err);
                sleep(pause.mul_f64(1.0 + rand::random::<f64>() / 2.0)).await;
                pause = (pause * 2).min(INSIST_EVERY_MAX);
            }
        }
    }
}

fn log_unsettled(log_throttle: &LogThrottle, error: &(dyn Error + 'static)) {
    if log_throttle.now() {
        warn!(error, "What follows from answers is not durable yet; it is tried again until it works");
    } else {
        debug!(error, "What follows from an answer is not durable yet");
    }
}

/// The moment on tokio's clock that is `at` on the wall; the present for a time that has passed.
fn instant(at: Timestamp, now: Timestamp) -> Instant {
    Instant::now() + Duration::try_from(at.duration_since(now)).unwrap_or(Duration::ZERO)
}

#[cfg(test)]
mod tests;
