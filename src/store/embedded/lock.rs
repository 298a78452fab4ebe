//! One process per file.
//!
//! The lock is the system's, on a file beside the store's: it is released when its process ends, so that
//! `kill -9` leaves nothing to clean up. The file's text only tells the operator which process holds it. It
//! is not SQLite's own file that is locked: opening and closing that a second time in one process would drop
//! the locks that SQLite has on it.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{self, Read, Write},
    path::{Path, PathBuf},
    process,
};

use super::EmbeddedOpenError;
use crate::domain::Timestamp;

/// Held until this is dropped.
pub(super) struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock of the store in `path`, a full path, and writes into it that this process has held it
    /// since `now`.
    pub(super) fn take(path: &Path, now: Timestamp) -> Result<Self, EmbeddedOpenError> {
        let beside = beside(path);
        let not_writable = |source| EmbeddedOpenError::NotWritable { path: beside.clone(), source };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&beside)
            .map_err(not_writable)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(EmbeddedOpenError::InUse { path: path.to_owned(), holder: holder(&mut file) });
            }
            Err(TryLockError::Error(source)) => return Err(not_writable(source)),
        }
        write_holder(&mut file, now).map_err(not_writable)?;
        Ok(Self { _file: file })
    }
}

/// The canonical path of a file: two paths that lead to the same file must lead to the same lock.
pub(super) fn full(path: &Path) -> Result<PathBuf, EmbeddedOpenError> {
    let resolve = || {
        if let Ok(path) = path.canonicalize() {
            return Ok(path);
        }
        let name = path
            .file_name()
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "this names no file"))?;
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        Ok(folder.canonicalize()?.join(name))
    };
    resolve().map_err(|source| EmbeddedOpenError::NotWritable { path: path.to_owned(), source })
}

fn beside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    name.into()
}

fn write_holder(file: &mut File, now: Timestamp) -> io::Result<()> {
    file.set_len(0)?;
    writeln!(file, "process {} since {:.0}", process::id(), now)
}

fn holder(file: &mut File) -> String {
    let mut text = String::new();
    // The holder may have taken the lock and not yet written its text.
    match file.take(200).read_to_string(&mut text) {
        Ok(_) if !text.trim().is_empty() => text.trim().to_owned(),
        _ => "another process".to_owned(),
    }
}
