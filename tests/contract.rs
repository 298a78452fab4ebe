//! The contract of every store, held against the embedded one in memory and in a file.

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

/// The suite's own clock, for its own dates: the machine's never decides what is old. It begins at the first of
/// them, and each look at it finds it a minute later, so that every write is followed by a removal of old rows.
/// No test writes so often that its rows grow old.
fn clock() -> Clock {
    const MINUTE_OF_MOMENTS: i64 = 60 * 100;
    let looks = AtomicI64::new(0);
    Arc::new(move || at(looks.fetch_add(1, Ordering::Relaxed) * MINUTE_OF_MOMENTS))
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
async fn what_was_acknowledged_is_there_after_reopening() {
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
async fn a_second_open_is_refused_and_names_who_has_the_file() {
    let (store, folder) = in_a_file().await;
    let path = folder.path().join("push.db");
    let refusal = open(&path).err().expect("one store a file");
    assert!(matches!(refusal, EmbeddedOpenError::InUse { .. }));
    let text = refusal.to_string();
    assert!(text.contains(&format!("process {} since 20", std::process::id())), "{text}");
    assert!(text.contains("store.url"), "{text}");
    // The refusal has done no harm to the one who has it.
    store.apply(&TokenChange::UserDeleted(UserId::new("ann")), v(1)).await.unwrap();
    drop(store);
    open(&path).expect("free again");
}

#[cfg(unix)]
#[tokio::test]
async fn another_name_of_the_same_file_is_the_same_file() {
    let (_store, folder) = in_a_file().await;
    let link = folder.path().join("link.db");
    std::os::unix::fs::symlink(folder.path().join("push.db"), &link).unwrap();
    assert!(matches!(open(&link), Err(EmbeddedOpenError::InUse { .. })));
}

#[tokio::test]
async fn somebody_elses_file_is_left_alone() {
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
async fn a_file_of_a_newer_release_is_left_alone() {
    let (store, folder) = in_a_file().await;
    let path = folder.path().join("push.db");
    drop(store);
    rusqlite::Connection::open(&path).unwrap().execute_batch("PRAGMA user_version = 99").unwrap();
    assert!(matches!(open(&path), Err(EmbeddedOpenError::Newer { found: 99, .. })));
}

#[tokio::test]
async fn a_folder_that_is_not_there_is_named() {
    let folder = TempDir::new().unwrap();
    let refusal = open(&folder.path().join("missing/push.db")).err().unwrap();
    assert!(matches!(refusal, EmbeddedOpenError::NotWritable { .. }));
    assert!(refusal.to_string().contains("missing/push.db"), "{refusal}");
}

/// Runs itself as a second process, which registers tokens in bursts until it is killed.
#[test]
fn a_killed_process_leaves_the_file_free_and_whole() {
    const ITSELF: &str = "a_killed_process_leaves_the_file_free_and_whole";
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
    let mut told: Vec<i64> = acknowledged.by_ref().take(500).collect();
    let refusal = open(&path).err().map(|refusal| refusal.to_string());
    holder.kill().unwrap();
    holder.wait().unwrap();
    told.extend(acknowledged);
    assert!(told.len() >= 500, "the other process wrote");
    let refusal = refusal.expect("the other process has the file");
    assert!(refusal.contains(&format!("process {} since", holder.id())), "{refusal}");

    let store = open(&path).unwrap();
    let kept = runtime.block_on(store.tokens_of(&user("ann"))).unwrap();
    let kept: HashSet<Token> = kept.into_iter().map(|registration| registration.token).collect();
    let lost: Vec<&i64> = told.iter().filter(|n| !kept.contains(&expo(&format!("t{n}")))).collect();
    assert!(lost.is_empty(), "acknowledged and lost: {lost:?}");
}
