//! The one thread that writes.
//!
//! A flush of the disk costs milliseconds, an operation microseconds: so whatever waits when the thread comes back goes
//! into one transaction. Everybody is answered after the commit. An operation that fails or panics must not take its
//! neighbours down: the transaction is rolled back and each is run again in one of its own. If the thread itself ends,
//! every waiting caller is told so by the closing of his channel.

use std::{
    any::Any,
    error::Error,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    thread::{self, JoinHandle},
};

use rusqlite::{Connection, Transaction, TransactionBehavior};
use tokio::sync::{mpsc, oneshot};

use super::{lock::Lock, purge::Purge};
use crate::domain::{Timestamp, Unavailable};

/// Operations that may wait; whoever comes then waits to be let in.
const QUEUE_MAX: usize = 1_024;

/// Operations in one transaction.
const BATCH_MAX: usize = 1_024;

type Failure = Box<dyn Error + Send + Sync>;

/// The way to the thread.
pub(super) struct Writer {
    /// Taken when the store closes: the thread ends when its queue is empty and has no sender.
    queue: Option<mpsc::Sender<Box<dyn Job>>>,
    thread: Option<JoinHandle<()>>,
}

/// An operation and whom to answer.
trait Job: Send {
    /// Does it; keeps what came out.
    fn run(&mut self, db: &Connection, now: Timestamp) -> rusqlite::Result<()>;

    /// Answers, with what came out of the last run if `outcome` is `Ok`.
    fn answer(self: Box<Self>, outcome: Result<(), Failure>);
}

struct Asked<T, F> {
    work: F,
    result: Option<T>,
    caller: oneshot::Sender<Result<T, Failure>>,
}

// === impl Writer ===

impl Writer {
    /// Starts the thread. `lock` lives as long as the thread does.
    pub(super) fn start(db: Connection, lock: Option<Lock>) -> io::Result<Self> {
        let (queue, jobs) = mpsc::channel(QUEUE_MAX);
        let thread = thread::Builder::new().name("store-writer".to_owned()).spawn(move || {
            write_all(&db, jobs);
            drop(db);
            drop(lock); // only now may somebody else open the file
        })?;
        Ok(Self { queue: Some(queue), thread: Some(thread) })
    }

    /// Runs `work` in a transaction and answers when that is durable.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        context: &'static str,
        work: impl Fn(&Connection, Timestamp) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, Unavailable> {
        let (caller, answer) = oneshot::channel();
        let job: Box<dyn Job> = Box::new(Asked { work, result: None, caller });
        let queue = self.queue.as_ref().ok_or_else(gone)?;
        queue.send(job).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?.map_err(|failure| Unavailable::store(context, failure))
    }

    /// Whether the thread still takes work.
    pub(super) fn alive(&self) -> Result<(), Unavailable> {
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
            tracing::error!("The store's writer had panicked; what it had not committed was not acknowledged");
        }
    }
}

// === impl Asked ===

impl<T: Send, F: Fn(&Connection, Timestamp) -> rusqlite::Result<T> + Send> Job for Asked<T, F> {
    fn run(&mut self, db: &Connection, now: Timestamp) -> rusqlite::Result<()> {
        self.result = Some((self.work)(db, now)?);
        Ok(())
    }

    fn answer(self: Box<Self>, outcome: Result<(), Failure>) {
        let Self { result, caller, .. } = *self;
        let answer = outcome.and_then(|()| result.ok_or_else(|| "the operation was not run".into()));
        // A caller who no longer listens has lost nothing: his record is handled again.
        let _caller_gone = caller.send(answer);
    }
}

/// The thread's life.
fn write_all(db: &Connection, mut jobs: mpsc::Receiver<Box<dyn Job>>) {
    let mut purge = Purge::default();
    while let Some(first) = jobs.blocking_recv() {
        let mut batch = vec![first];
        while batch.len() < BATCH_MAX
            && let Ok(job) = jobs.try_recv()
        {
            batch.push(job);
        }
        let now = Timestamp::now();
        settle(db, batch, now);
        if let Err(error) = purge.step_if_due(db, now) {
            tracing::warn!(error = %error, "Old rows of the store could not be removed, trying again in a minute");
        }
    }
}

/// One transaction for all; if one of them spoils it, one each.
fn settle(db: &Connection, mut batch: Vec<Box<dyn Job>>, now: Timestamp) {
    match attempt(db, &mut batch, now) {
        Err(Spoilt::ByJob(_)) if batch.len() > 1 => {
            for job in batch {
                settle(db, vec![job], now);
            }
        }
        outcome => {
            let failure = outcome.err().map(|(Spoilt::ByJob(failure) | Spoilt::ByStore(failure))| failure.to_string());
            for job in batch {
                job.answer(failure.clone().map_or(Ok(()), |text| Err(text.into())));
            }
        }
    }
}

enum Spoilt {
    /// An operation failed or panicked.
    ByJob(Failure),
    /// The transaction itself: a full disk, another program's lock.
    ByStore(Failure),
}

fn attempt(db: &Connection, batch: &mut [Box<dyn Job>], now: Timestamp) -> Result<(), Spoilt> {
    let by_store = |error: rusqlite::Error| Spoilt::ByStore(error.into());
    let transaction = Transaction::new_unchecked(db, TransactionBehavior::Immediate).map_err(by_store)?;
    for job in batch {
        match catch_unwind(AssertUnwindSafe(|| job.run(&transaction, now))) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(Spoilt::ByJob(error.into())),
            Err(panic) => return Err(Spoilt::ByJob(format!("the operation panicked: {}", words(&*panic)).into())),
        }
    }
    transaction.commit().map_err(by_store)
}

fn words(panic: &(dyn Any + Send)) -> &str {
    panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no words")
}

fn gone() -> Unavailable {
    Unavailable::store("reaching the writer", "its thread has ended; restart the process")
}
