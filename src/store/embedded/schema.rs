//! Opens a database: checks that it is ours, and creates or migrates its schema.

use std::path::Path;

use rusqlite::{Connection, ErrorCode, OpenFlags, Transaction, TransactionBehavior};

use super::{EmbeddedOpenError, broken};

/// "push": distinguishes our files from other SQLite databases (`file pushcast.db` shows it).
const APPLICATION_ID: i32 = 0x7075_7368;

/// Migration n takes schema n to n + 1. Append only.
const MIGRATIONS: [&str; 1] = [include_str!("migrations/0001_first.sql")];

/// The capacity of a connection's cache of prepared statements; more than there are.
pub(super) const STATEMENTS_MAX: usize = 64;

/// Opens the writer's connection to a file.
pub(super) fn open_file(path: &Path) -> Result<Connection, EmbeddedOpenError> {
    let flags =
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut db = Connection::open_with_flags(path, flags).map_err(|error| explain(path, error))?;
    // SQLite opens a file read-only when it may not write.
    if db.is_readonly("main").map_err(|error| explain(path, error))? {
        return Err(EmbeddedOpenError::NotWritable {
            path: path.to_owned(),
            source: std::io::ErrorKind::PermissionDenied.into(),
        });
    }
    let found = recognise(&db, path)?;
    db.execute_batch(
        "PRAGMA busy_timeout = 5000; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;
         PRAGMA wal_autocheckpoint = 4000; PRAGMA journal_size_limit = 67108864;",
    )
    .map_err(|error| explain(path, error))?;
    prepare(&mut db, found).map_err(|error| explain(path, error))?;
    Ok(db)
}

/// Opens the one connection of a store in memory.
pub(super) fn open_memory() -> Result<Connection, EmbeddedOpenError> {
    let open = || {
        let mut db = Connection::open_in_memory()?;
        prepare(&mut db, 0)?;
        Ok(db)
    };
    open().map_err(|error: rusqlite::Error| broken(Path::new("memory"), error))
}

/// The schema version of the file; 0 = it is new.
fn recognise(db: &Connection, path: &Path) -> Result<usize, EmbeddedOpenError> {
    let look = || -> rusqlite::Result<(i32, u32, u32)> {
        Ok((
            db.query_row("PRAGMA application_id", [], |row| row.get(0))?,
            db.query_row("PRAGMA user_version", [], |row| row.get(0))?,
            db.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?,
        ))
    };
    match look().map_err(|error| explain(path, error))? {
        (0, 0, 0) => Ok(0),
        (APPLICATION_ID, found, _) if found as usize > MIGRATIONS.len() => Err(EmbeddedOpenError::Newer {
            path: path.to_owned(),
            found: found as usize,
            known: MIGRATIONS.len(),
        }),
        (APPLICATION_ID, found, _) => Ok(found as usize),
        _ => Err(EmbeddedOpenError::NotOurs { path: path.to_owned() }),
    }
}

/// Brings the schema up to date, each migration in a transaction.
fn prepare(db: &mut Connection, found: usize) -> rusqlite::Result<()> {
    // 16 MiB: the upper levels of the B-trees of a million tokens. The rest is in the system's cache anyway.
    db.execute_batch("PRAGMA cache_size = -16384; PRAGMA temp_store = MEMORY;")?;
    db.set_prepared_statement_cache_capacity(STATEMENTS_MAX);
    for (step, migration) in MIGRATIONS.iter().enumerate().skip(found) {
        let transaction = Transaction::new(db, TransactionBehavior::Immediate)?;
        transaction.execute_batch(migration)?;
        transaction.execute_batch(&format!(
            "PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {};",
            step + 1
        ))?;
        transaction.commit()?;
    }
    Ok(())
}

fn explain(path: &Path, error: rusqlite::Error) -> EmbeddedOpenError {
    let path = path.to_owned();
    match error.sqlite_error_code() {
        Some(ErrorCode::NotADatabase) => EmbeddedOpenError::NotOurs { path },
        Some(ErrorCode::CannotOpen | ErrorCode::ReadOnly | ErrorCode::PermissionDenied) => {
            EmbeddedOpenError::NotWritable { path, source: std::io::Error::other(error) }
        }
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            EmbeddedOpenError::InUse { path, holder: "a program that has locked it (sqlite3?)".to_owned() }
        }
        _ => broken(&path, error),
    }
}
