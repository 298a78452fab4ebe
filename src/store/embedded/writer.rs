//! The one thread that writes.
//!
//! A flush of the disk costs milliseconds, an operation microseconds: so all operations that wait when the
//! thread is free go into one transaction, and share its flush. Operations that need not be durable at once
//! wait a moment for others (group commit). All are answered after the commit. An operation that fails or
//! panics must not affect the others: each runs in a savepoint of its own, and only that is rolled back. If
//! the thread itself ends, the callers' channels close, and each of them gets an error.

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

use super::{errors::failed, lock::Lock, purge::Purge};
use crate::{
    domain::Timestamp,
    store::{Clock, StoreError, StoreResult},
};

/// The capacity of the queue; callers wait while it is full.
const QUEUE_MAX: usize = 1_024;

/// Operations in one transaction.
const BATCH_MAX: usize = 1_024;

/// How long a batch with nothing but [`Durability::GroupCommit`] waits for more operations. A broadcast at
/// full speed has a checkpoint each millisecond.
const GROUP_COMMIT_WINDOW: Duration = Duration::from_millis(3);

type Failure = Box<dyn Error + Send + Sync>;

/// The handle of the thread.
pub(super) struct Writer {
    /// Taken when the store closes: the thread ends when its queue is empty and has no sender.
    queue: Option<mpsc::Sender<Box<dyn WriteJob>>>,
    thread: Option<JoinHandle<()>>,
}

/// How soon an operation has to be durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Durability {
    /// With the next commit.
    Immediate,
    /// A few milliseconds later, if that saves a flush.
    GroupCommit,
}

/// An operation and the channel to its caller.
trait WriteJob: Send {
    fn durability(&self) -> Durability;

    /// Runs the operation and keeps its result. An error, as text, means that its writes must be rolled back.
    fn run(&mut self, db: &Connection, now: Timestamp) -> Result<(), String>;

    /// Sends the result to the caller, or the transaction's failure, if that failed.
    fn answer(self: Box<Self>, transaction: Result<(), &str>);
}

struct Operation<T, F> {
    context: &'static str,
    work: F,
    durability: Durability,
    result: Option<StoreResult<T>>,
    caller: oneshot::Sender<StoreResult<T>>,
}

// === impl Writer ===

impl Writer {
    /// Starts the thread, which holds `lock` until it ends. `clock` is read once per transaction.
    pub(super) fn start(db: Connection, lock: Option<Lock>, clock: Clock) -> io::Result<Self> {
        let (queue, jobs) = mpsc::channel(QUEUE_MAX);
        // In memory there is no flush to share.
        let window = if lock.is_some() { GROUP_COMMIT_WINDOW } else { Duration::ZERO };
        let thread = thread::Builder::new().name("store-writer".to_owned()).spawn(move || {
            write_all(&db, jobs, window, &clock);
            drop(db);
            drop(lock); // only now may another process open the file
        })?;
        Ok(Self { queue: Some(queue), thread: Some(thread) })
    }

    /// Runs `work` in a transaction and returns when that is durable.
    ///
    /// # Errors
    /// As [`failed`] classifies that of `work`; unavailable if the transaction fails or the thread has ended.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        context: &'static str,
        durability: Durability,
        work: impl Fn(&Connection, Timestamp) -> rusqlite::Result<T> + Send + 'static,
    ) -> StoreResult<T> {
        let (caller, answer) = oneshot::channel();
        let job: Box<dyn WriteJob> = Box::new(Operation { context, work, durability, result: None, caller });
        let queue = self.queue.as_ref().ok_or_else(has_ended)?;
        queue.send(job).await.map_err(|_| has_ended())?;
        answer.await.map_err(|_| has_ended())?
    }

    /// Fails if the thread has ended.
    pub(super) fn is_running(&self) -> StoreResult<()> {
        self.queue.as_ref().filter(|queue| !queue.is_closed()).map(|_| ()).ok_or_else(has_ended)
    }
}

#[cfg(test)]
impl Writer {
    /// One whose thread has ended.
    pub(super) fn ended() -> Self {
        Self { queue: Some(mpsc::channel(1).0), thread: None }
    }
}

impl Drop for Writer {
    /// Waits for the queued operations, so that the file is complete and unlocked when the last clone of the
    /// store is dropped.
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!(
                "The store's writer thread panicked; operations that it had not committed were not \
                 acknowledged"
            );
        }
    }
}

// === impl Operation ===

impl<T: Send, F: Fn(&Connection, Timestamp) -> rusqlite::Result<T> + Send> WriteJob for Operation<T, F> {
    fn durability(&self) -> Durability {
        self.durability
    }

    fn run(&mut self, db: &Connection, now: Timestamp) -> Result<(), String> {
        let (text, failure) = match catch_unwind(AssertUnwindSafe(|| (self.work)(db, now))) {
            Ok(Ok(value)) => {
                self.result = Some(Ok(value));
                return Ok(());
            }
            Ok(Err(err)) => (err.to_string(), failed(self.context, err)),
            Err(panic) => {
                let text = format!("the operation panicked: {}", panic_message(&*panic));
                (text.clone(), StoreError::unavailable(self.context, text))
            }
        };
        self.result = Some(Err(failure));
        Err(text)
    }

    fn answer(self: Box<Self>, transaction: Result<(), &str>) {
        let Self { context, result, caller, .. } = *self;
        let answer = match transaction {
            Ok(()) => {
                result.unwrap_or_else(|| Err(StoreError::unavailable(context, "the operation was not run")))
            }
            Err(failure) => Err(StoreError::unavailable(context, failure)),
        };
        // A caller that was dropped loses nothing: its record is handled again.
        let _caller_was_dropped = caller.send(answer);
    }
}

/// Runs on the thread, until the store closes.
fn write_all(db: &Connection, mut jobs: mpsc::Receiver<Box<dyn WriteJob>>, window: Duration, clock: &Clock) {
    let mut purge = Purge::default();
    while let Some(first) = jobs.blocking_recv() {
        let mut batch = vec![first];
        take_waiting(&mut jobs, &mut batch);
        if batch.iter().all(|job| job.durability() == Durability::GroupCommit) {
            thread::sleep(window);
            take_waiting(&mut jobs, &mut batch);
        }
        let now = clock();
        let transaction = commit(db, &mut batch, now).map_err(|failure| failure.to_string());
        for job in batch {
            job.answer(transaction.as_ref().map(drop).map_err(String::as_str));
        }
        if let Err(error) = purge.step_if_due(db, now) {
            tracing::warn!(
                error = %error,
                "Old rows of the store could not be removed, trying again in a minute"
            );
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

/// Runs all operations in one transaction. The writes of those that fail are rolled back.
///
/// # Errors
/// The transaction itself failed and was rolled back: a full disk, another program's lock.
fn commit(db: &Connection, batch: &mut [Box<dyn WriteJob>], now: Timestamp) -> Result<(), Failure> {
    let transaction = Transaction::new_unchecked(db, TransactionBehavior::Immediate)?;
    for job in batch {
        transaction.prepare_cached("SAVEPOINT job")?.execute([])?;
        if let Err(failure) = job.run(&transaction, now) {
            if transaction.is_autocommit() {
                return Err(format!("an operation ended the transaction that it shared: {failure}").into());
            }
            transaction.prepare_cached("ROLLBACK TO job")?.execute([])?;
        }
        transaction.prepare_cached("RELEASE job")?.execute([])?;
    }
    Ok(transaction.commit()?)
}

fn panic_message(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}

fn has_ended() -> StoreError {
    StoreError::unavailable("run an operation", "the writer thread has ended; restart the process")
}
