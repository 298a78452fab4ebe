//! A pool of connections for reading, used on blocking threads.

use std::{
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use rusqlite::{Connection, OpenFlags};
use tokio::sync::Semaphore;

use super::{errors::failed, schema::STATEMENTS_MAX};
use crate::store::{StoreError, StoreResult};

/// Reads that may run at once; SQLite has one writer but any number of readers.
const READERS: usize = 4;

/// Runs reads. Each takes a permit first, so that the pool has a connection for it.
pub(super) struct Readers {
    pool: Arc<ConnectionPool>,
    permits: Arc<Semaphore>,
}

/// The connections that no read uses.
struct ConnectionPool(Mutex<Vec<Connection>>);

/// A connection that returns to its pool when it is dropped, by a panic too.
struct PooledConnection {
    db: Option<Connection>,
    pool: Arc<ConnectionPool>,
}

impl Readers {
    /// Opens all connections. The file has its schema already.
    pub(super) fn open(path: &Path) -> rusqlite::Result<Self> {
        let pool = (0..READERS).map(|_| open(path)).collect::<Result<_, _>>()?;
        Ok(Self {
            pool: Arc::new(ConnectionPool(Mutex::new(pool))),
            permits: Arc::new(Semaphore::new(READERS)),
        })
    }

    /// Runs `work` on a connection, on a thread that may block.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        context: &'static str,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> StoreResult<T> {
        let permit = self
            .permits
            .clone()
            .acquire_owned()
            .await
            .map_err(|error| StoreError::unavailable(context, error))?;
        let pool = self.pool.clone();
        let reading = tokio::task::spawn_blocking(move || {
            // Declared first, dropped last: a permit is released only after its connection has returned to
            // the pool, even if the caller was dropped.
            let _permit = permit;
            let connection = PooledConnection::from(pool);
            match &connection.db {
                Some(db) => work(db),
                None => Err(rusqlite::Error::InvalidQuery),
            }
        });
        match reading.await {
            Ok(result) => result.map_err(|error| failed(context, error)),
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
    // Small: enough for a page or a user's tokens. The system's cache holds the rest, for all connections.
    db.execute_batch("PRAGMA busy_timeout = 5000; PRAGMA cache_size = -1024; PRAGMA temp_store = MEMORY;")?;
    db.set_prepared_statement_cache_capacity(STATEMENTS_MAX);
    Ok(db)
}
