//! SQLite: the store of the demo, of tests and of small installations with one process.
//!
//! **One transaction is the whole protocol.** What takes a store of many nodes hints, flags and read-backs is
//! here a closure run by the one writer thread. It takes whatever waits into one transaction, so that a
//! disk's one flush pays for many operations, and answers everybody after the commit. Readers have
//! connections of their own and see what is committed; in memory there is only one connection, so reads go
//! through the writer as well.
//!
//! **Invariant:** rusqlite blocks, so it is never called on a worker of tokio.
//!
//! **Invariant:** one process a file. A lock on a file beside it says so; it ends with the process, however
//! that ends. `sqlite3 file` may read along.

mod broadcasts;
mod doses;
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
use super::{Clock, Store, StoreError};
use crate::domain::Timestamp;

/// A store in a file or in memory. Clones share it. Dropping the last one waits for what is queued and closes
/// the file.
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
    /// The place is wrong or closed to us.
    #[error(
        "cannot write {path}: {source}; create the folder, give this user the right to write in it, or change store.url"
    )]
    NotWritable {
        /// What was to be written.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another process, or this one, has it open.
    #[error(
        "{path} is in use by {holder}; an embedded store belongs to one process: stop that one, or give this one a store.url of its own"
    )]
    InUse {
        /// The store's file.
        path: PathBuf,
        /// Process id and start, as far as the lock file tells.
        holder: String,
    },
    /// A file of somebody else's.
    #[error("{path} is not a pushcast store; nothing was changed in it: set store.url to another file")]
    NotOurs {
        /// The file.
        path: PathBuf,
    },
    /// Written by a later release.
    #[error(
        "{path} was written by a newer pushcast (its schema is {found}, this one knows {known}): start that release"
    )]
    Newer {
        /// The store's file.
        path: PathBuf,
        /// The schema in the file.
        found: usize,
        /// The newest schema known here.
        known: usize,
    },
    /// Anything else.
    #[error("cannot open {path}: {source}")]
    Broken {
        /// The store's file, or `memory`.
        path: PathBuf,
        /// What SQLite, or the system, said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

// === impl EmbeddedStore ===

impl EmbeddedStore {
    /// Opens the store in this file; makes the file if there is none. The machine's clock says what is old.
    ///
    /// Blocks for as long as SQLite needs to recover after a crash: call it at start.
    ///
    /// # Errors
    /// The file can't be written, is not ours, is too new, or is in use.
    pub fn open(path: &Path) -> Result<Self, EmbeddedOpenError> {
        Self::open_at(path, Arc::new(Timestamp::now))
    }

    /// The same by this clock, which dates the rows and says which of them are old enough to be removed.
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

    /// A store that is gone when its last clone is. The machine's clock says what is old.
    ///
    /// # Errors
    /// There is no memory or no thread left.
    pub fn memory() -> Result<Self, EmbeddedOpenError> {
        Self::memory_at(Arc::new(Timestamp::now))
    }

    /// The same by this clock, which dates the rows and says which of them are old enough to be removed.
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

    /// Runs `work` in a transaction of the writer, which it may share with others; answers when it is
    /// durable. What it wrote is undone if it fails, and only that. It is told the time.
    async fn write<T: Send + 'static>(
        &self,
        context: &'static str,
        work: impl Fn(&Connection, Timestamp) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.inner.writer.run(context, Durability::Immediate, work).await
    }

    /// Runs `work` on a connection for reading.
    async fn read<T: Send + 'static>(
        &self,
        context: &'static str,
        work: impl Fn(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        match &self.inner.readers {
            Some(readers) => readers.run(context, work).await,
            None => self.inner.writer.run(context, Durability::Immediate, move |db, _| work(db)).await,
        }
    }
}

impl Store for EmbeddedStore {
    async fn ping(&self) -> Result<(), StoreError> {
        self.inner.writer.alive()?;
        self.read("ping", |db| db.query_row("SELECT 1", [], |_| Ok(()))).await
    }
}

fn broken(path: &Path, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> EmbeddedOpenError {
    EmbeddedOpenError::Broken { path: path.to_owned(), source: source.into() }
}
