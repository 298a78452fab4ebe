//! What is done with one record: its handler, for as long as it takes, and its dead letter if it can't be
//! handled.
//!
//! Nothing counts attempts and nothing has a deadline after which a record is given up: a dependency that is
//! unavailable is waited for, here, in the record's key queue. The only things that end the waiting are success
//! and the stop of the partition.

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
    Cause, ConsumerMetrics, Fate, Handler, HandlerError, LaneKey, LogThrottle, Publish, PublishError, Record,
    Rejected,
};

/// The pause before a record is tried again. Jitter takes away up to a half, so that thousands of records that
/// wait for one store don't come back as one.
const TRY_AGAIN: Backoff =
    Backoff::new(Duration::from_millis(100), Duration::from_secs(30)).with(Jitter::Shorten(0.5));

/// What all partitions of a stage share.
#[derive(Debug)]
pub(super) struct StageContext<H, P> {
    /// The stage's name, in metrics and log lines.
    pub stage: String,
    /// Its consumer group.
    pub group: String,
    pub handler: Arc<H>,
    pub publish: P,
    pub dead_letters: DeadLetters,
    pub metrics: Arc<ConsumerMetrics>,
    pub budget: Budget,
    /// An outage is logged once in a while, not once a record.
    pub log_throttle: LogThrottle,
}

/// A record on its way to its fate.
#[derive(Debug)]
pub(super) struct InFlight {
    /// Boxed, because it is moved many times.
    pub record: Box<Record>,
    pub ticket: OffsetTicket,
    pub key: Option<LaneKey>,
    /// Released when the record is dropped.
    pub _permits: Permits,
}

/// How a piece of work on a record ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum RecordEnd {
    /// The handler has done it.
    Done,
    /// The handler can't do it, or panicked on it.
    Failed(Cause),
    /// It lies in the topic of dead letters.
    DeadLettered,
    /// Stopped before it was done.
    Unfinished,
}

impl<H: Handler, P: Publish> StageContext<H, P> {
    /// Lets the handler do the record's work, again and again while a dependency is unavailable.
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
                // Stopped by itself, without a stop: it wants to be called again.
                Ok(Ok(Fate::Unfinished)) => {}
                Ok(Err(HandlerError::Rejected(Rejected(cause)))) => return RecordEnd::Failed(cause),
                Ok(Err(HandlerError::Unavailable(unavailable))) => {
                    self.log_unavailable(record, &unavailable);
                }
                Err(panic) => return RecordEnd::Failed(panicked(&*panic)),
            }
            failures += 1;
            if !waited(failures, stop).await {
                return RecordEnd::Unfinished;
            }
            event = match self.read(record) {
                Ok(event) => event,
                Err(cause) => return RecordEnd::Failed(cause),
            };
        }
    }

    /// Reads the record. A panic in it is the record's end, not the stage's.
    pub(super) fn read(&self, record: &Record) -> Result<H::Event, Cause> {
        guarded(|| self.handler.read(record)).and_then(|read| read.map_err(|Rejected(cause)| cause))
    }

    /// Writes the record to the dead letters, again and again while Kafka is unavailable.
    pub(super) async fn dead_letter(
        &self,
        record: &Record,
        cause: &Cause,
        stop: &CancellationToken,
    ) -> RecordEnd {
        let mut letter = dead_letter::letter(record, cause, &self.group, &self.dead_letters);
        let mut failures = 0;
        loop {
            match self.publish.publish(letter.clone()).await {
                Ok(()) => break,
                Err(PublishError::Rejected(_)) if letter.value.is_some() => {
                    letter = dead_letter::without_value(letter, &self.dead_letters);
                    continue;
                }
                // Tried again, although it is hopeless: the record must not be lost.
                Err(PublishError::Rejected(rejected)) => self.log_unavailable(record, &rejected),
                Err(PublishError::Unavailable(unavailable)) => self.log_unavailable(record, &unavailable),
            }
            failures += 1;
            if !waited(failures, stop).await {
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
            "Record {topic}/{partition}@{offset} went to {}: {label}",
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
                "Stage {stage} waits, {error}: {topic}/{partition}@{offset} and perhaps others are tried again \
                 until it works"
            );
        }
    }
}

/// Whether the fault may be ours rather than the record's.
pub(super) fn may_be_ours(cause: &Cause) -> bool {
    match cause {
        Cause::Refused(_) | Cause::Panicked(_) => true,
        Cause::Unreadable(_) | Cause::Invalid(_) => false,
    }
}

/// Runs a piece of the handler that has to answer at once; a panic in it is the record's end, not the stage's.
pub(super) fn guarded<T>(decide: impl FnOnce() -> T) -> Result<T, Cause> {
    std::panic::catch_unwind(AssertUnwindSafe(decide)).map_err(|panic| panicked(&*panic))
}

/// Waits for the pause after that many failures; false = stopped.
async fn waited(failures: u32, stop: &CancellationToken) -> bool {
    tokio::select! {
        biased;
        () = stop.cancelled() => false,
        () = tokio::time::sleep(TRY_AGAIN.pause(failures, rand::random())) => true,
    }
}

fn panicked(panic: &(dyn Any + Send)) -> Cause {
    Cause::Panicked(panic_message(panic))
}

/// What a panic said.
pub(super) fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text =
        panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("a panic without a message").to_owned()
}
