//! Connections for reading: a few, lent to blocking threads.

use std::{
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use rusqlite::{Connection, OpenFlags};
use tokio::sync::Semaphore;

use super::schema::STATEMENTS_MAX;
use crate::store::StoreError;

/// Reads that may run at once; SQLite has one writer but any number of readers.
const READERS: usize = 4;

/// The connections.
pub(super) struct Readers {
    pool: Arc<ConnectionPool>,
    seats: Arc<Semaphore>,
}

/// Where they lie while nobody reads. A seat is a right to one of them.
struct ConnectionPool(Mutex<Vec<Connection>>);

/// A connection that goes back to its pool, panic or not.
struct PooledConnection {
    db: Option<Connection>,
    pool: Arc<ConnectionPool>,
}

impl Readers {
    /// Opens them all. The file has its schema already.
    pub(super) fn open(path: &Path) -> rusqlite::Result<Self> {
        let pool = (0..READERS).map(|_| open(path)).collect::<Result<_, _>>()?;
        Ok(Self {
            pool: Arc::new(ConnectionPool(Mutex::new(pool))),
            seats: Arc::new(Semaphore::new(READERS)),
        })
    }

    /// Runs `work` on one of them, on a thread that may block.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        context: &'static str,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let seat = self
            .seats
            .clone()
            .acquire_owned()
            .await
            .map_err(|error| StoreError::unavailable(context, error))?;
        let pool = self.pool.clone();
        let reading = tokio::task::spawn_blocking(move || {
            // Declared first, dropped last: a seat is free only when its connection is back, even if the
            // caller has left.
            let _seat = seat;
            let lent = PooledConnection::from(pool);
            match &lent.db {
                Some(db) => work(db),
                None => Err(rusqlite::Error::InvalidQuery),
            }
        });
        match reading.await {
            Ok(answer) => answer.map_err(|error| StoreError::unavailable(context, error)),
            Err(panic) => Err(StoreError::unavailable(context, panic)),
        }
    }
}

// === impl PooledConnection ===

impl From<Arc<ConnectionPool>> for PooledConnection {
    fn from(pool: Arc<ConnectionPool>) -> Self {
        let db = pool.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        Self { db, pool }
    }
}

impl Drop for PooledConnection {
    fn drop(&mut self) {
        self.pool.0.lock().unwrap_or_else(PoisonError::into_inner).extend(self.db.take());
    }
}

fn open(path: &Path) -> rusqlite::Result<Connection> {
    let db = Connection::open_with_flags(
        path,
        OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX,
    )?;
    // Small: what a page or a user's tokens need. The system's cache holds the rest once for all of us.
    db.execute_batch("PRAGMA busy_timeout = 5000; PRAGMA cache_size = -1024; PRAGMA temp_store = MEMORY;")?;
    db.set_prepared_statement_cache_capacity(STATEMENTS_MAX);
    Ok(db)
}
