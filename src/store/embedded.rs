//! SQLite: the store of the demo, of tests and of small installations with one process.
//!
//! **One transaction is the whole protocol.** What takes a store of many nodes hints, markers and read-backs
//! is here a closure that the one writer thread runs. It takes all waiting operations into one transaction
//! (group commit), so that they share one flush of the disk, and answers each of them after the commit.
//! Readers have connections of their own and see what is committed; in memory there is only one connection,
//! so reads go through the writer as well.
//!
//! **Invariant:** rusqlite blocks, so it is never called on a worker of tokio.
//!
//! **Invariant:** one process per file. A lock on a file beside it enforces that; the system releases it when
//! the process ends, in whatever way. `sqlite3 file` may read at the same time.

mod broadcasts;
mod doses;
mod errors;
mod lock;
mod purge;
mod readers;
mod regimens;
mod ring;
mod routes;
mod schema;
mod tokens;
mod values;
mod writer;

#[cfg(test)]
mod tests;

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use rusqlite::Connection;

use self::{
    lock::Lock,
    readers::Readers,
    writer::{Durability, Writer},
};
use super::{Clock, Store, StoreResult};
use crate::domain::Timestamp;

/// A store in a file or in memory. Clones share it. Dropping the last one waits for the queued operations and
/// closes the file.
#[derive(Clone)]
pub struct EmbeddedStore {
    inner: Arc<EmbeddedInner>,
}

struct EmbeddedInner {
    /// None in memory, where a second connection would be a second, empty store.
    readers: Option<Readers>,
    writer: Writer,
}

/// Why a store could not be opened, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum EmbeddedOpenError {
    /// The folder does not exist, or the file can't be written.
    #[error(
        "cannot write {path}: {source}; create the folder, give this user the right to write in it, or \
         change store.url"
    )]
    NotWritable {
        /// The store's file, or the lock file beside it.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// Another process, or this one, has it open.
    #[error(
        "{path} is in use by {holder}; an embedded store belongs to one process: stop that one, or give this \
         one a store.url of its own"
    )]
    InUse {
        /// The store's file.
        path: PathBuf,
        /// The process id and when it opened the store, if the lock file has them.
        holder: String,
    },
    /// The file is a database of another program, or none.
    #[error("{path} is not a pushcast store; nothing was changed in it: set store.url to another file")]
    NotOurs {
        /// The file that `store.url` names.
        path: PathBuf,
    },
    /// Written by a later release.
    #[error(
        "{path} was written by a newer pushcast (its schema is {found}, this one knows {known}): start that \
         release"
    )]
    Newer {
        /// The store's file.
        path: PathBuf,
        /// The schema in the file.
        found: usize,
        /// The newest schema known here.
        known: usize,
    },
    /// Any other failure to open it.
    #[error("cannot open {path}: {source}")]
    Broken {
        /// The store's file, or `memory`.
        path: PathBuf,
        /// The error of SQLite or of the system.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

// === impl EmbeddedStore ===

impl EmbeddedStore {
    /// Opens the store in this file; creates the file if there is none. Rows age by the machine's clock.
    ///
    /// Blocks for as long as SQLite needs to recover after a crash: call it at the start.
    ///
    /// # Errors
    /// The file can't be written, is not ours, is too new, or is in use.
    pub fn open(path: &Path) -> Result<Self, EmbeddedOpenError> {
        Self::open_at(path, Arc::new(Timestamp::now))
    }

    /// The same with this clock, which dates the rows and decides which of them are old enough to be removed.
    ///
    /// # Errors
    /// As those of [`EmbeddedStore::open`].
    pub fn open_at(path: &Path, clock: Clock) -> Result<Self, EmbeddedOpenError> {
        let path = lock::full(path)?;
        let lock = Lock::take(&path, clock())?;
        let writer = schema::open_file(&path)?;
        let readers = Readers::open(&path).map_err(|source| broken(&path, source))?;
        Self::start(&path, writer, Some(readers), Some(lock), clock)
    }

    /// A store in memory, lost when its last clone is dropped. Rows age by the machine's clock.
    ///
    /// # Errors
    /// There is no memory or no thread left.
    pub fn memory() -> Result<Self, EmbeddedOpenError> {
        Self::memory_at(Arc::new(Timestamp::now))
    }

    /// The same with this clock, which dates the rows and decides which of them are old enough to be removed.
    ///
    /// # Errors
    /// As those of [`EmbeddedStore::memory`].
    pub fn memory_at(clock: Clock) -> Result<Self, EmbeddedOpenError> {
        Self::start(Path::new("memory"), schema::open_memory()?, None, None, clock)
    }

    fn start(
        path: &Path,
        db: Connection,
        readers: Option<Readers>,
        lock: Option<Lock>,
        clock: Clock,
    ) -> Result<Self, EmbeddedOpenError> {
        let writer = Writer::start(db, lock, clock).map_err(|source| broken(path, source))?;
        Ok(Self { inner: Arc::new(EmbeddedInner { readers, writer }) })
    }

    /// Runs `work` in a transaction of the writer, which it may share with others; returns when it is
    /// durable. If it fails, its own writes are rolled back, and no others. It gets the time of the
    /// transaction.
    async fn write<T: Send + 'static>(
        &self,
        context: &'static str,
        work: impl Fn(&Connection, Timestamp) -> rusqlite::Result<T> + Send + 'static,
    ) -> StoreResult<T> {
        self.inner.writer.run(context, Durability::Immediate, work).await
    }

    /// Runs `work` on a connection for reading.
    async fn read<T: Send + 'static>(
        &self,
        context: &'static str,
        work: impl Fn(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> StoreResult<T> {
        match &self.inner.readers {
            Some(readers) => readers.run(context, work).await,
            None => self.inner.writer.run(context, Durability::Immediate, move |db, _| work(db)).await,
        }
    }
}

impl Store for EmbeddedStore {
    async fn ping(&self) -> StoreResult<()> {
        self.inner.writer.is_running()?;
        self.read("ping", |db| db.query_row("SELECT 1", [], |_| Ok(()))).await
    }
}

fn broken(path: &Path, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> EmbeddedOpenError {
    EmbeddedOpenError::Broken { path: path.to_owned(), source: source.into() }
}
