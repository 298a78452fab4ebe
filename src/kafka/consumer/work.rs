//! What is done with one record: its handler, for as long as it takes, and its burial if it can't be handled.
//!
//! Nothing counts attempts and nothing has a deadline after which a record is given up: a dependency that is
//! away is waited for, here, in the record's lane. The only things that end the waiting are success and
//! [`Stop`].

use std::{any::Any, panic::AssertUnwindSafe, sync::Arc};

use futures::FutureExt;
use tracing::warn;

use super::{budget::Budget, budget::Permits, dead_letter, retry, window::Ticket};
use crate::{
    domain::Unavailable,
    metrics::Metrics,
    stream::{Cause, Fate, Handler, LaneKey, Publish, Rarely, Record, Stop},
};

/// The label of a record that causes a message which Kafka takes from nobody: it is too large, and stays so.
const REFUSED: &str = "refused";

/// What all partitions of a stage share.
#[derive(Debug)]
pub(super) struct Bench<H, P> {
    /// The stage's name, in metrics and log lines.
    pub stage: String,
    /// Its consumer group.
    pub group: String,
    pub handler: Arc<H>,
    pub publish: P,
    pub metrics: Arc<Metrics>,
    pub budget: Budget,
    /// An outage is told once in a while, not once a record.
    pub complaints: Rarely,
}

/// A record on its way to its fate.
#[derive(Debug)]
pub(super) struct Job {
    /// Boxed, because jobs are handed on many times.
    pub record: Box<Record>,
    pub ticket: Ticket,
    pub lane: Option<LaneKey>,
    /// Given back when the job is dropped.
    pub _permits: Permits,
}

/// How a piece of work on a record ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The handler has done it.
    Done,
    /// The handler can't do it, or panicked on it.
    Dead(Cause),
    /// It lies in `dead-letters`.
    Buried,
    /// Stopped before it was done.
    Unfinished,
}

impl<H: Handler, P: Publish> Bench<H, P> {
    /// Lets the handler do the record's work, again and again while a dependency is away.
    pub(super) async fn handle(&self, record: &Record, stop: &Stop) -> End {
        let mut failures = 0;
        loop {
            let attempt =
                AssertUnwindSafe(async { self.handler.handle(record, stop).await }).catch_unwind().await;
            match attempt {
                Ok(Ok(Fate::Done)) => return End::Done,
                Ok(Ok(Fate::DeadLetter(cause))) => return End::Dead(cause),
                // Stopped by itself, though nobody asked: it wants to be called again.
                Ok(Ok(Fate::Unfinished)) => {}
                Ok(Err(refused)) if dead_letter::is_too_large(&refused) => {
                    return End::Dead(Cause { label: REFUSED, detail: refused.to_string() });
                }
                Ok(Err(unavailable)) => self.complain(record, &unavailable),
                Err(panic) => return End::Dead(Cause::panicked(words(&*panic))),
            }
            failures += 1;
            if !waited(failures, stop).await {
                return End::Unfinished;
            }
        }
    }

    /// Writes the record to `dead-letters`, again and again while Kafka is away.
    pub(super) async fn bury(&self, record: &Record, cause: &Cause, stop: &Stop) -> End {
        let mut letter = dead_letter::letter(record, cause, &self.group);
        let mut failures = 0;
        loop {
            match self.publish.publish(letter.clone()).await {
                Ok(()) => break,
                Err(refused) if dead_letter::is_too_large(&refused) && letter.value.is_some() => {
                    letter = dead_letter::without_value(letter);
                    continue;
                }
                Err(unavailable) => self.complain(record, &unavailable),
            }
            failures += 1;
            if !waited(failures, stop).await {
                return End::Unfinished;
            }
        }
        let Record { topic, partition, offset, .. } = record;
        warn!(
            stage = self.stage, kafka.topic = %topic, kafka.partition = partition, kafka.offset = offset, cause = cause.label, error = cause.detail,
            "{topic}/{partition}@{offset} went to dead-letters: {}", cause.label
        );
        self.metrics.dead_letters_total.with_label_values(&[topic, cause.label]).inc();
        End::Buried
    }

    fn complain(&self, record: &Record, unavailable: &Unavailable) {
        if self.complaints.now() {
            let Record { topic, partition, offset, .. } = record;
            let stage = &self.stage;
            let error: &dyn std::error::Error = unavailable;
            warn!(
                stage, kafka.topic = %topic, kafka.partition = partition, kafka.offset = offset, error,
                "Stage {stage} waits, {unavailable}; {topic}/{partition}@{offset} and perhaps others are tried again until it works"
            );
        }
    }
}

/// Whether the fault may be ours rather than the record's.
pub(super) fn may_be_ours(cause: &Cause) -> bool {
    cause.label == REFUSED || cause.label == Cause::panicked("").label
}

/// Runs a piece of the handler that has to answer at once; a panic in it is the record's end, not ours.
pub(super) fn guarded<T>(decide: impl FnOnce() -> T) -> Result<T, Cause> {
    std::panic::catch_unwind(AssertUnwindSafe(decide)).map_err(|panic| Cause::panicked(words(&*panic)))
}

/// Waits for the pause after that many failures; false = stopped.
async fn waited(failures: u32, stop: &Stop) -> bool {
    tokio::select! {
        biased;
        () = stop.wait() => false,
        () = tokio::time::sleep(retry::pause(failures, rand::random())) => true,
    }
}

/// What a panic said.
pub(super) fn words(panic: &(dyn Any + Send)) -> String {
    let text =
        panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("a panic without words").to_owned()
}
