//! The one thread that writes.
//!
//! A flush of the disk costs milliseconds, an operation microseconds: so whatever waits when the thread comes
//! back goes into one transaction, and one flush pays for all of it. Who is in no hurry waits a moment for
//! company. Everybody is answered after the commit. An operation that fails or panics must not take its
//! neighbours down: each runs in a savepoint of its own, and only that is rolled back. If the thread itself
//! ends, every waiting caller is told so by the closing of his channel.

use std::{
    any::Any,
    error::Error,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    thread::{self, JoinHandle},
    time::Duration,
};

use rusqlite::{Connection, Transaction, TransactionBehavior};
use tokio::sync::{mpsc, oneshot};

use super::{lock::Lock, purge::Purge};
use crate::{
    domain::Timestamp,
    store::{Clock, StoreError},
};

/// Operations that may wait; whoever comes then waits to be let in.
const QUEUE_MAX: usize = 1_024;

/// Operations in one transaction.
const BATCH_MAX: usize = 1_024;

/// How long those wait for others who are in no hurry. A broadcast at full speed has a checkpoint each
/// millisecond.
const COMPANY_WITHIN: Duration = Duration::from_millis(3);

type Failure = Box<dyn Error + Send + Sync>;

/// The way to the thread.
pub(super) struct Writer {
    /// Taken when the store closes: the thread ends when its queue is empty and has no sender.
    queue: Option<mpsc::Sender<Box<dyn WriteJob>>>,
    thread: Option<JoinHandle<()>>,
}

/// When an operation is to be durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Durability {
    /// As soon as can be.
    Immediate,
    /// A few milliseconds later, if that saves a flush.
    GroupCommit,
}

/// An operation and whom to answer.
trait WriteJob: Send {
    /// When it is to be durable.
    fn durability(&self) -> Durability;

    /// Does it, and keeps what came out. An error, in words, means that nothing it wrote may stay.
    fn run(&mut self, db: &Connection, now: Timestamp) -> Result<(), String>;

    /// Answers with what came out; with the transaction's failure, if it has failed.
    fn answer(self: Box<Self>, transaction: Result<(), &str>);
}

struct Asked<T, F> {
    work: F,
    durability: Durability,
    outcome: Option<Result<T, String>>,
    caller: oneshot::Sender<Result<T, String>>,
}

// === impl Writer ===

impl Writer {
    /// Starts the thread. `lock` lives as long as the thread does; `clock` is asked once a transaction.
    pub(super) fn start(db: Connection, lock: Option<Lock>, clock: Clock) -> io::Result<Self> {
        let (queue, jobs) = mpsc::channel(QUEUE_MAX);
        // In memory there is no flush to share.
        let company_within = if lock.is_some() { COMPANY_WITHIN } else { Duration::ZERO };
        let thread = thread::Builder::new().name("store-writer".to_owned()).spawn(move || {
            write_all(&db, jobs, company_within, &clock);
            drop(db);
            drop(lock); // only now may somebody else open the file
        })?;
        Ok(Self { queue: Some(queue), thread: Some(thread) })
    }

    /// Runs `work` in a transaction and answers when that is durable.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        context: &'static str,
        durability: Durability,
        work: impl Fn(&Connection, Timestamp) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (caller, answer) = oneshot::channel();
        let job: Box<dyn WriteJob> = Box::new(Asked { work, durability, outcome: None, caller });
        let queue = self.queue.as_ref().ok_or_else(gone)?;
        queue.send(job).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?.map_err(|failure| StoreError::unavailable(context, failure))
    }

    /// Whether the thread still takes work.
    pub(super) fn alive(&self) -> Result<(), StoreError> {
        self.queue.as_ref().filter(|queue| !queue.is_closed()).map(|_| ()).ok_or_else(gone)
    }
}

#[cfg(test)]
impl Writer {
    /// One whose thread is no more.
    pub(super) fn ended() -> Self {
        Self { queue: Some(mpsc::channel(1).0), thread: None }
    }
}

impl Drop for Writer {
    /// Waits for what is queued, so that the file is free and whole when the last clone of the store is gone.
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!(
                "The store's writer had panicked; what it had not committed was not acknowledged"
            );
        }
    }
}

// === impl Asked ===

impl<T: Send, F: Fn(&Connection, Timestamp) -> rusqlite::Result<T> + Send> WriteJob for Asked<T, F> {
    fn durability(&self) -> Durability {
        self.durability
    }

    fn run(&mut self, db: &Connection, now: Timestamp) -> Result<(), String> {
        let outcome = match catch_unwind(AssertUnwindSafe(|| (self.work)(db, now))) {
            Ok(outcome) => outcome.map_err(|error| error.to_string()),
            Err(panic) => Err(format!("the operation panicked: {}", words(&*panic))),
        };
        self.outcome.insert(outcome).as_ref().map(drop).map_err(String::clone)
    }

    fn answer(self: Box<Self>, transaction: Result<(), &str>) {
        let Self { outcome, caller, .. } = *self;
        let answer = match transaction {
            Ok(()) => outcome.unwrap_or_else(|| Err("the operation was not run".to_owned())),
            Err(failure) => Err(failure.to_owned()),
        };
        // A caller who no longer listens has lost nothing: his record is handled again.
        let _caller_gone = caller.send(answer);
    }
}

/// The thread's life.
fn write_all(
    db: &Connection,
    mut jobs: mpsc::Receiver<Box<dyn WriteJob>>,
    company_within: Duration,
    clock: &Clock,
) {
    let mut purge = Purge::default();
    while let Some(first) = jobs.blocking_recv() {
        let mut batch = vec![first];
        take_waiting(&mut jobs, &mut batch);
        if batch.iter().all(|job| job.durability() == Durability::GroupCommit) {
            thread::sleep(company_within);
            take_waiting(&mut jobs, &mut batch);
        }
        let now = clock();
        let transaction = commit(db, &mut batch, now).map_err(|failure| failure.to_string());
        for job in batch {
            job.answer(transaction.as_ref().map(drop).map_err(String::as_str));
        }
        if let Err(error) = purge.step_if_due(db, now) {
            tracing::warn!(error = %error, "Old rows of the store could not be removed, trying again in a minute");
        }
    }
}

fn take_waiting(jobs: &mut mpsc::Receiver<Box<dyn WriteJob>>, batch: &mut Vec<Box<dyn WriteJob>>) {
    while batch.len() < BATCH_MAX
        && let Ok(job) = jobs.try_recv()
    {
        batch.push(job);
    }
}

/// Runs all in one transaction. What fails leaves nothing behind.
///
/// # Errors
/// The transaction itself has failed, and nothing of it stays: a full disk, another program's lock.
fn commit(db: &Connection, batch: &mut [Box<dyn WriteJob>], now: Timestamp) -> Result<(), Failure> {
    let transaction = Transaction::new_unchecked(db, TransactionBehavior::Immediate)?;
    for job in batch {
        transaction.prepare_cached("SAVEPOINT job")?.execute([])?;
        if let Err(failure) = job.run(&transaction, now) {
            if transaction.is_autocommit() {
                return Err(format!("an operation has ended the transaction of many: {failure}").into());
            }
            transaction.prepare_cached("ROLLBACK TO job")?.execute([])?;
        }
        transaction.prepare_cached("RELEASE job")?.execute([])?;
    }
    Ok(transaction.commit()?)
}

fn words(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no words")
}

fn gone() -> StoreError {
    StoreError::unavailable("reaching the writer", "its thread has ended; restart the process")
}
