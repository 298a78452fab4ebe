//! One process a file.
//!
//! The lock is the system's, on a file beside the store's: it vanishes with its process, so that `kill -9`
//! leaves nothing to clean up. The file's text only tells people who holds it. It is not SQLite's own file
//! that is locked: opening and closing that a second time in one process would drop the locks SQLite has on
//! it.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{self, Read, Write},
    path::{Path, PathBuf},
    process,
};

use super::EmbeddedOpenError;
use crate::domain::Timestamp;

/// Held for as long as this lives.
pub(super) struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock of the store in `path`, a full path, and writes into it that this process has it since
    /// `now`.
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
        sign(&mut file, now).map_err(not_writable)?;
        Ok(Self { _file: file })
    }
}

/// The one name of a file, whichever links and folders lead to it: two names must not be two locks.
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

fn sign(file: &mut File, now: Timestamp) -> io::Result<()> {
    file.set_len(0)?;
    writeln!(file, "process {} since {:.0}", process::id(), now)
}

fn holder(file: &mut File) -> String {
    let mut text = String::new();
    // The holder may be between taking the lock and signing it.
    match file.take(200).read_to_string(&mut text) {
        Ok(_) if !text.trim().is_empty() => text.trim().to_owned(),
        _ => "another process".to_owned(),
    }
}
