//! The store in a file.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Mutex,
    time::Duration,
};

use futures::{StreamExt, stream};
use pushcast::store::{Registry, embedded::EmbeddedStore};
use tempfile::TempDir;
use tokio::{
    runtime::Runtime,
    time::{Instant, timeout_at},
};

use crate::{
    child::{Figures, Meter, Task},
    tokens::{Names, version},
};

/// How long a run registers.
const MEASURED: Duration = Duration::from_secs(4);
/// Registrations whose commits are counted.
const COUNTED: u64 = 1_024;
/// Concurrent operations while the file is filled.
const FILLED_AT_ONCE: usize = 1_024;

/// A file with tokens, which is deleted at the end. On the disk that cargo builds on: folders for temporary
/// files may be in memory, where a flush costs nothing.
pub struct Filled {
    folder: TempDir,
}

impl Filled {
    pub fn new(tokens: u64) -> Self {
        let folder = TempDir::new_in(concat!(env!("CARGO_MANIFEST_DIR"), "/target")).unwrap();
        let filled = Self { folder };
        let runtime = Runtime::new().unwrap();
        runtime.block_on(fill(filled.path().as_path(), tokens));
        filled
    }

    pub fn location(&self) -> String {
        self.path().into_os_string().into_string().unwrap()
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("push.db")
    }
}

async fn fill(path: &Path, tokens: u64) {
    let store = EmbeddedStore::open(path).unwrap();
    let names = Names::new();
    let step = tokens.div_ceil(10);
    for from in (0..tokens).step_by(usize::try_from(step).unwrap()) {
        let begun = Instant::now();
        let until = (from + step).min(tokens);
        register_all(&store, names, from..until, FILLED_AT_ONCE).await;
        eprintln!(
            "{until} of {tokens} tokens are in the file, {:.0}/s",
            (until - from) as f64 / begun.elapsed().as_secs_f64()
        );
    }
}

async fn register_all(store: &EmbeddedStore, names: Names, numbers: std::ops::Range<u64>, at_once: usize) {
    let apply = async |n| store.apply(&names.registered(n), version(n)).await.unwrap();
    stream::iter(numbers).for_each_concurrent(at_once, apply).await;
}

pub async fn register(task: &Task) -> Figures {
    let path = Path::new(&task.location);
    let store = EmbeddedStore::open(path).unwrap();
    let names = Names::new();
    let meter = Mutex::new(Meter::begin(0));
    let until = Instant::now() + MEASURED;
    let apply = async |n| {
        store.apply(&names.registered(n), version(n)).await.unwrap();
        meter.lock().unwrap().count(1);
    };
    let _time_is_over = timeout_at(until, stream::iter(0..).for_each_concurrent(task.at_once, apply)).await;
    let figures = meter.into_inner().unwrap().end();
    Figures { per_commit: registrations_per_commit(&store, path, task.at_once).await, ..figures }
}

async fn registrations_per_commit(store: &EmbeddedStore, path: &Path, at_once: usize) -> f64 {
    // A reader keeps SQLite from restarting the log, so that it holds all commits from now on.
    let reader = rusqlite::Connection::open(path).unwrap();
    reader.execute_batch("BEGIN; SELECT count(*) FROM routes").unwrap();
    let before = commits(path);
    register_all(store, Names::new(), 0..COUNTED, at_once).await;
    let after = commits(path);
    let commits = if after.0 == before.0 { after.1 - before.1 } else { after.1 };
    COUNTED as f64 / commits as f64
}

/// The salt of SQLite's log, and how many commits are in it: each ends with a page whose header says how
/// large the file then is. Pages with another salt are left over from before the log was restarted.
fn commits(path: &Path) -> (Vec<u8>, usize) {
    let log = fs::read(path.with_extension("db-wal")).unwrap();
    let number = |at: usize| u32::from_be_bytes(log[at..at + 4].try_into().unwrap());
    let frame = 24 + number(8) as usize;
    let salt = &log[16..24];
    let is_commit = |&at: &usize| &log[at + 8..at + 16] == salt && number(at + 4) > 0;
    (
        salt.to_vec(),
        (32..log.len())
            .step_by(frame)
            .take_while(|at| &log[at + 8..at + 16] == salt)
            .filter(is_commit)
            .count(),
    )
}
