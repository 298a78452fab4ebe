//! Connections for reading: a few, lent to blocking threads.

use std::{
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use rusqlite::{Connection, OpenFlags};
use tokio::sync::Semaphore;

use super::schema::STATEMENTS_MAX;
use crate::domain::Unavailable;

/// Reads that may run at once; SQLite has one writer but any number of readers.
const READERS: usize = 4;

/// The connections.
pub(super) struct Readers {
    shelf: Arc<Shelf>,
    seats: Arc<Semaphore>,
}

/// Where they lie while nobody reads. A seat is a right to one of them.
struct Shelf(Mutex<Vec<Connection>>);

/// A connection that goes back to its shelf, panic or not.
struct Lent {
    db: Option<Connection>,
    shelf: Arc<Shelf>,
}

impl Readers {
    /// Opens them all. The file has its schema already.
    pub(super) fn open(path: &Path) -> rusqlite::Result<Self> {
        let shelf = (0..READERS).map(|_| open(path)).collect::<Result<_, _>>()?;
        Ok(Self { shelf: Arc::new(Shelf(Mutex::new(shelf))), seats: Arc::new(Semaphore::new(READERS)) })
    }

    /// Runs `work` on one of them, on a thread that may block.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        context: &'static str,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, Unavailable> {
        let seat =
            self.seats.clone().acquire_owned().await.map_err(|error| Unavailable::store(context, error))?;
        let shelf = self.shelf.clone();
        let reading = tokio::task::spawn_blocking(move || {
            // Declared first, dropped last: a seat is free only when its connection is back, even if the
            // caller has left.
            let _seat = seat;
            let lent = Lent::from(shelf);
            match &lent.db {
                Some(db) => work(db),
                None => Err(rusqlite::Error::InvalidQuery),
            }
        });
        match reading.await {
            Ok(answer) => answer.map_err(|error| Unavailable::store(context, error)),
            Err(panic) => Err(Unavailable::store(context, panic)),
        }
    }
}

// === impl Lent ===

impl From<Arc<Shelf>> for Lent {
    fn from(shelf: Arc<Shelf>) -> Self {
        let db = shelf.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        Self { db, shelf }
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.shelf.0.lock().unwrap_or_else(PoisonError::into_inner).extend(self.db.take());
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
