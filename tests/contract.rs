//! The contract of every store, tested against the embedded one in memory and in a file.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

#[path = "contract/convergence.rs"]
mod convergence;
#[path = "contract/suite.rs"]
mod suite;

use std::{
    collections::HashSet,
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
};

use futures::{StreamExt as _, stream};
use pushcast::{
    domain::{Token, TokenChange, UserId},
    store::{
        Clock, Registry, Store,
        embedded::{EmbeddedOpenError, EmbeddedStore},
    },
};
use suite::{at, expo, login, user, v};
use tempfile::TempDir;

/// The suite's own clock, for its own dates: rows never age by the machine's. It begins at the first of them
/// and advances by a minute each time it is read, so that every write is followed by a removal of old rows.
/// No test writes so often that its rows grow old.
fn clock() -> Clock {
    const MOMENTS_PER_MINUTE: i64 = 60 * 100;
    let reads = AtomicI64::new(0);
    Arc::new(move || at(reads.fetch_add(1, Ordering::Relaxed) * MOMENTS_PER_MINUTE))
}

fn open(path: &Path) -> Result<EmbeddedStore, EmbeddedOpenError> {
    EmbeddedStore::open_at(path, clock())
}

async fn in_memory() -> (EmbeddedStore, ()) {
    (EmbeddedStore::memory_at(clock()).unwrap(), ())
}

async fn in_a_file() -> (EmbeddedStore, TempDir) {
    let folder = TempDir::new().unwrap();
    (open(&folder.path().join("push.db")).unwrap(), folder)
}

mod memory {
    use super::*;
    suite::contract!(in_memory);
}

mod file {
    use super::*;
    suite::contract!(in_a_file);
}

#[tokio::test]
async fn the_same_events_in_any_order_end_in_the_same_state() {
    convergence::the_same_events_in_any_order_end_in_the_same_state(&in_memory().await.0).await;
    let (store, _folder) = in_a_file().await;
    convergence::the_same_events_in_any_order_end_in_the_same_state(&store).await;
}

#[tokio::test]
async fn acknowledged_writes_are_there_after_reopening() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("push.db");
    let store = open(&path).unwrap();
    login("t1").by("ann").at(1).apply(&store).await;
    drop(store);
    let store = open(&path).unwrap();
    assert_eq!(store.tokens_of(&user("ann")).await.unwrap().len(), 1);
    store.ping().await.unwrap();
}

#[tokio::test]
async fn a_second_open_fails_and_names_the_process_that_has_the_file() {
    let (store, folder) = in_a_file().await;
    let path = folder.path().join("push.db");
    let refusal = open(&path).err().expect("one store per file");
    assert!(matches!(refusal, EmbeddedOpenError::InUse { .. }));
    let text = refusal.to_string();
    assert!(text.contains(&format!("process {} since 20", std::process::id())), "{text}");
    assert!(text.contains("store.url"), "{text}");
    // The store that has the file still works.
    store.apply(&TokenChange::UserDeleted(UserId::new("ann")), v(1)).await.unwrap();
    drop(store);
    open(&path).expect("unlocked again");
}

#[cfg(unix)]
#[tokio::test]
async fn a_link_to_the_file_is_the_same_file() {
    let (_store, folder) = in_a_file().await;
    let link = folder.path().join("link.db");
    std::os::unix::fs::symlink(folder.path().join("push.db"), &link).unwrap();
    assert!(matches!(open(&link), Err(EmbeddedOpenError::InUse { .. })));
}

#[tokio::test]
async fn a_file_of_another_program_is_not_changed() {
    let folder = TempDir::new().unwrap();
    let text = folder.path().join("notes.txt");
    std::fs::write(
        &text,
        "not a database, and longer than the header of one, which has a hundred bytes. ".repeat(20),
    )
    .unwrap();
    let before = std::fs::read(&text).unwrap();
    assert!(matches!(open(&text), Err(EmbeddedOpenError::NotOurs { .. })));
    assert_eq!(std::fs::read(&text).unwrap(), before);

    let foreign = folder.path().join("foreign.db");
    rusqlite::Connection::open(&foreign).unwrap().execute_batch("CREATE TABLE t (x)").unwrap();
    let before = std::fs::read(&foreign).unwrap();
    assert!(matches!(open(&foreign), Err(EmbeddedOpenError::NotOurs { .. })));
    assert_eq!(std::fs::read(&foreign).unwrap(), before);
}

#[tokio::test]
async fn a_file_of_a_newer_release_is_not_opened() {
    let (store, folder) = in_a_file().await;
    let path = folder.path().join("push.db");
    drop(store);
    rusqlite::Connection::open(&path).unwrap().execute_batch("PRAGMA user_version = 99").unwrap();
    assert!(matches!(open(&path), Err(EmbeddedOpenError::Newer { found: 99, .. })));
}

#[tokio::test]
async fn a_missing_folder_is_named_in_the_error() {
    let folder = TempDir::new().unwrap();
    let refusal = open(&folder.path().join("missing/push.db")).err().unwrap();
    assert!(matches!(refusal, EmbeddedOpenError::NotWritable { .. }));
    assert!(refusal.to_string().contains("missing/push.db"), "{refusal}");
}

/// Runs itself as a second process, which registers tokens in bursts until it is killed.
#[test]
fn a_killed_process_leaves_the_file_unlocked_and_complete() {
    const ITSELF: &str = "a_killed_process_leaves_the_file_unlocked_and_complete";
    const HOLD: &str = "PUSHCAST_TEST_HOLD";
    const ACKNOWLEDGED: &str = "acknowledged ";
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    if let Some(path) = std::env::var_os(HOLD) {
        let store = open(path.as_ref()).unwrap();
        runtime.block_on(stream::iter(0..).for_each_concurrent(64, async |n| {
            login(&format!("t{n}")).by("ann").at(n).apply(&store).await;
            println!("{ACKNOWLEDGED}{n}");
        }));
    }
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("push.db");
    let mut holder = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", ITSELF, "--nocapture"])
        .env(HOLD, &path)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(holder.stdout.take().unwrap()).lines().map(Result::unwrap);
    // The harness may write something before the first of them, on the same line.
    let mut acknowledged = lines.filter_map(|line| line.rsplit_once(ACKNOWLEDGED)?.1.parse::<i64>().ok());
    let mut written: Vec<i64> = acknowledged.by_ref().take(500).collect();
    let refusal = open(&path).err().map(|refusal| refusal.to_string());
    holder.kill().unwrap();
    holder.wait().unwrap();
    written.extend(acknowledged);
    assert!(written.len() >= 500, "the other process wrote");
    let refusal = refusal.expect("the other process has the file");
    assert!(refusal.contains(&format!("process {} since", holder.id())), "{refusal}");

    let store = open(&path).unwrap();
    let kept = runtime.block_on(store.tokens_of(&user("ann"))).unwrap();
    let kept: HashSet<Token> = kept.into_iter().map(|registration| registration.token).collect();
    let lost: Vec<&i64> = written.iter().filter(|n| !kept.contains(&expo(&format!("t{n}")))).collect();
    assert!(lost.is_empty(), "acknowledged and lost: {lost:?}");
}
