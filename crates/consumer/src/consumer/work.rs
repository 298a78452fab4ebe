//! What is done with one record: its handler, for as long as it takes, and its dead letter if it can't be
//! handled.
//!
//! Nothing counts attempts, and there is no deadline after which a record is dropped: a dependency that is
//! unavailable is waited for, here, in the record's key queue. Only success and the stop of the partition end
//! the waiting.

use std::{any::Any, error::Error, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use backoff::{Backoff, Jitter};
use futures::FutureExt;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::{
    DeadLetters,
    budget::{Budget, Permits},
    dead_letter,
    window::OffsetTicket,
};
use crate::{
    Cause, ConsumerMetrics, Fate, Handler, HandlerError, LogThrottle, OrderingKey, Publish, PublishError,
    Record, Rejected,
};

/// The pause before a record is tried again. Jitter takes away up to a half, so that thousands of records
/// that wait for one dependency don't retry at the same moment.
const RETRY_BACKOFF: Backoff =
    Backoff::new(Duration::from_millis(100), Duration::from_secs(30)).with(Jitter::Shorten(0.5));

/// What all partitions of a stage share.
#[derive(Debug)]
pub(super) struct StageContext<H, P> {
    /// The stage's name, in metrics and logs.
    pub stage: String,
    /// Its consumer group.
    pub group: String,
    pub handler: Arc<H>,
    pub publish: P,
    pub dead_letters: DeadLetters,
    pub metrics: Arc<ConsumerMetrics>,
    pub budget: Budget,
    /// For outages, which would else be logged once for each record.
    pub log_throttle: LogThrottle,
}

/// A record that has permits and no fate yet.
#[derive(Debug)]
pub(super) struct InFlight {
    /// Boxed, because it is moved many times.
    pub record: Box<Record>,
    pub ticket: OffsetTicket,
    pub key: Option<OrderingKey>,
    /// Released when the record is dropped.
    pub _permits: Permits,
}

/// How a handler, or the writing of a dead letter, ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum RecordEnd {
    /// The handler is done with the record.
    Done,
    /// The handler rejected the record, or panicked.
    Failed(Cause),
    /// The record was written to the topic of dead letters.
    DeadLettered,
    /// Stopped before it was done.
    Unfinished,
}

impl<H: Handler, P: Publish> StageContext<H, P> {
    /// Calls the handler, again and again while a dependency is unavailable.
    pub(super) async fn handle(
        &self,
        event: H::Event,
        record: &Record,
        stop: &CancellationToken,
    ) -> RecordEnd {
        let mut event = event;
        let mut failures = 0;
        loop {
            let attempt = AssertUnwindSafe(async { self.handler.handle(event, record, stop).await });
            match attempt.catch_unwind().await {
                Ok(Ok(Fate::Done)) => return RecordEnd::Done,
                Ok(Ok(Fate::DeadLetter(cause))) => return RecordEnd::Failed(cause),
                // Without a stop it is called again.
                Ok(Ok(Fate::Unfinished)) => {}
                Ok(Err(HandlerError::Rejected(Rejected(cause)))) => return RecordEnd::Failed(cause),
                Ok(Err(HandlerError::Unavailable(unavailable))) => {
                    self.log_unavailable(record, &unavailable);
                }
                Err(panic) => return RecordEnd::Failed(panicked(&*panic)),
            }
            failures += 1;
            if !pause(failures, stop).await {
                return RecordEnd::Unfinished;
            }
            event = match self.read(record) {
                Ok(event) => event,
                Err(cause) => return RecordEnd::Failed(cause),
            };
        }
    }

    /// Reads the record. If that panics, the record is rejected.
    pub(super) fn read(&self, record: &Record) -> Result<H::Event, Cause> {
        catch_panic(|| self.handler.read(record)).and_then(|read| read.map_err(|Rejected(cause)| cause))
    }

    /// Writes the record to the dead letters, again and again while Kafka is unavailable.
    pub(super) async fn dead_letter(
        &self,
        record: &Record,
        cause: &Cause,
        stop: &CancellationToken,
    ) -> RecordEnd {
        let mut message = dead_letter::message(record, cause, &self.group, &self.dead_letters);
        let mut failures = 0;
        loop {
            match self.publish.publish(message.clone()).await {
                Ok(()) => break,
                Err(PublishError::Rejected(_)) if message.value.is_some() => {
                    message = dead_letter::without_value(message, &self.dead_letters);
                    continue;
                }
                // Tried again, although that may never succeed: the record must not be lost.
                Err(PublishError::Rejected(rejected)) => self.log_unavailable(record, &rejected),
                Err(PublishError::Unavailable(unavailable)) => self.log_unavailable(record, &unavailable),
            }
            failures += 1;
            if !pause(failures, stop).await {
                return RecordEnd::Unfinished;
            }
        }
        let Record { topic, partition, offset, .. } = record;
        let label = cause.label();
        warn!(
            stage = self.stage,
            topic = &**topic,
            partition,
            offset,
            cause = label,
            error = cause.detail(),
            "Dead letter: record {topic}/{partition}@{offset} was written to {}: {label}",
            self.dead_letters.topic
        );
        self.metrics.dead_letters_total.with_label_values(&[topic, label]).inc();
        RecordEnd::DeadLettered
    }

    fn log_unavailable(&self, record: &Record, error: &(dyn Error + 'static)) {
        if self.log_throttle.now() {
            let Record { topic, partition, offset, .. } = record;
            let stage = &self.stage;
            warn!(
                stage,
                topic = &**topic,
                partition,
                offset,
                error,
                "Stage {stage} retries {topic}/{partition}@{offset}, and perhaps other records, until it \
                 succeeds: {error}"
            );
        }
    }
}

/// Whether the handler may be at fault rather than the record.
pub(super) fn may_be_handlers_fault(cause: &Cause) -> bool {
    match cause {
        Cause::Refused(_) | Cause::Panicked(_) => true,
        Cause::Unreadable(_) | Cause::Invalid(_) => false,
    }
}

/// Runs a synchronous part of the handler; a panic becomes the cause for which the record is rejected.
pub(super) fn catch_panic<T>(decide: impl FnOnce() -> T) -> Result<T, Cause> {
    std::panic::catch_unwind(AssertUnwindSafe(decide)).map_err(|panic| panicked(&*panic))
}

/// Waits for the pause after that many failures; false = `stop` came first.
async fn pause(failures: u32, stop: &CancellationToken) -> bool {
    tokio::select! {
        biased;
        () = stop.cancelled() => false,
        () = tokio::time::sleep(RETRY_BACKOFF.pause(failures, rand::random())) => true,
    }
}

fn panicked(panic: &(dyn Any + Send)) -> Cause {
    Cause::Panicked(panic_message(panic))
}

/// The message of a panic.
pub(super) fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text =
        panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("a panic without a message").to_owned()
}
