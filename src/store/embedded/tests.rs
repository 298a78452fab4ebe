//! What only this store promises, or what only its internals can show.

use std::sync::atomic::{AtomicI64, Ordering};

use jiff::{
    civil::{date, time},
    tz::TimeZone,
};

use super::*;
use crate::{
    domain::{
        BroadcastId, Cursor, DeviceId, DoseKey, DueRow, EveryDay, Judged, Listeners, PartId, Plan, ProfileId,
        ProviderId, Regimen, RegimenId, Rule, Slice, Token, TokenChange, UserId, Version,
    },
    store::{Audience, Broadcasts, Claim, Doses, Registry, Shard, StoreError},
};

fn token(name: &str) -> Token {
    Token::parse(&format!("ExponentPushToken[{name}]")).unwrap()
}

fn at(ms: i64) -> Timestamp {
    Timestamp::from_millisecond(1_795_000_000_000 + ms).unwrap()
}

/// A store whose clock is stopped at the first moment of these tests: their dates are never compared with the
/// machine's clock.
fn memory() -> EmbeddedStore {
    EmbeddedStore::memory_at(Arc::new(|| at(0))).unwrap()
}

/// The same in a file.
fn open(path: &Path) -> EmbeddedStore {
    EmbeddedStore::open_at(path, Arc::new(|| at(0))).unwrap()
}

fn v(n: i64) -> Version {
    Version::of_record(at(n * 10), 0)
}

fn registered(name: &str, user: &str, device: Option<&str>) -> TokenChange {
    TokenChange::Registered {
        token: token(name),
        user: Some(UserId::new(user)),
        platform: None,
        device: device.map(DeviceId::new),
        device_info: None,
        previous: None,
    }
}

async fn count(store: &EmbeddedStore, table: &'static str) -> i64 {
    store
        .read("count", move |db| db.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0)))
        .await
        .unwrap()
}

#[tokio::test]
async fn a_device_id_that_many_users_share_deactivates_none_of_their_tokens() {
    let store = memory();
    for n in 0..40 {
        store.apply(&registered(&format!("t{n}"), &format!("u{n}"), Some("unknown")), v(n)).await.unwrap();
    }
    let mut active = Vec::new();
    for n in 0..40 {
        if !store.tokens_of(&UserId::new(format!("u{n}"))).await.unwrap().is_empty() {
            active.push(n);
        }
    }
    // Each of the first twenty took the device from the one before; the twenty-first showed that it is none.
    assert_eq!(active, (19..40).collect::<Vec<_>>());
}

#[tokio::test]
async fn tokens_on_one_position_are_on_one_page() {
    let store = memory();
    for n in 0..7 {
        store.apply(&registered(&format!("t{n}"), "ann", None), v(n)).await.unwrap();
    }
    store
        .write("collide", |db, _| {
            db.execute("UPDATE tokens SET position = 5 WHERE push_token < 'ExponentPushToken[t4]'", [])
        })
        .await
        .unwrap();
    store
        .write("order", |db, _| db.execute("UPDATE tokens SET position = 6 WHERE position != 5", []))
        .await
        .unwrap();
    let slice = Slice { index: 0, of: 1 };
    let first = store.page_of_slice(ProviderId::Expo, slice, &Listeners::ALL, None, 2).await.unwrap();
    assert_eq!((first.recipients.len(), first.end, first.last), (4, Cursor(5), false));
    let second =
        store.page_of_slice(ProviderId::Expo, slice, &Listeners::ALL, Some(first.end), 2).await.unwrap();
    assert_eq!((second.recipients.len(), second.last), (3, true));
}

#[tokio::test]
async fn no_token_has_the_smallest_position() {
    assert!((0..1000).all(|n| ring::position(&token(&n.to_string())) > i64::MIN));
}

#[tokio::test]
async fn old_rows_are_removed_and_active_tokens_kept() {
    let store = memory();
    for (name, device) in [("dead", "d1"), ("alive", "d2")] {
        store.apply(&registered(name, "ann", Some(device)), v(1)).await.unwrap();
    }
    store.apply(&TokenChange::Seen(token("never-registered")), v(1)).await.unwrap();
    assert!(store.revoke(&token("dead"), Judged::Registration(v(1)), "dead").await.unwrap());
    let broadcast = BroadcastId::new("post:p1");
    let now = at(0);
    store.plan(&broadcast, &Plan { spec: String::new(), parts: 1 }, now).await.unwrap();
    store.take_over(&PartId { broadcast, provider: ProviderId::Expo, part: 0 }).await.unwrap();
    store
        .insert_due(Shard(0), &DueRow { due_at: now, regimen: RegimenId::new("r1"), payload: None })
        .await
        .unwrap();
    let dose = DoseKey {
        profile: ProfileId::new("p"),
        regimen: RegimenId::new("r1"),
        schedule_time: now,
        provider: ProviderId::Expo,
    };
    assert!(matches!(store.claim(&dose, "me", now, now).await.unwrap(), Claim::Mine(_)));

    let tables = ["tokens", "devices", "broadcasts", "broadcast_parts", "regimen_due", "dose_log"];
    for (days, left) in [
        (0, [3, 2, 1, 1, 1, 1]),
        (8, [3, 2, 1, 1, 0, 1]),
        (31, [3, 2, 0, 0, 0, 1]),
        (91, [1, 1, 0, 0, 0, 1]),
        (401, [1, 1, 0, 0, 0, 0]),
    ] {
        let then = now + jiff::SignedDuration::from_hours(24 * days + 1);
        store.write("purge", move |db, _| purge::Purge::default().remove(db, then)).await.unwrap();
        for (table, left) in tables.iter().zip(left) {
            assert_eq!(count(&store, table).await, left, "{table} after {days} days");
        }
    }
    assert_eq!(store.tokens_of(&UserId::new("ann")).await.unwrap().len(), 1);
}

#[tokio::test]
async fn rows_age_by_the_clock_of_the_store() {
    let days = Arc::new(AtomicI64::new(0));
    let clock = days.clone();
    let store = EmbeddedStore::memory_at(Arc::new(move || {
        at(0) + jiff::SignedDuration::from_hours(24 * clock.load(Ordering::Relaxed))
    }))
    .unwrap();
    let due = DueRow { due_at: at(0), regimen: RegimenId::new("r1"), payload: None };
    for (day, kept) in [(0, 1), (6, 1), (7, 1), (8, 0)] {
        days.store(day, Ordering::Relaxed);
        if day == 0 {
            store.insert_due(Shard(0), &due).await.unwrap();
        }
        // Old rows are removed after a write, whichever it is.
        store.apply(&TokenChange::Seen(token("t1")), v(1)).await.unwrap();
        assert_eq!(count(&store, "regimen_due").await, kept, "on day {day}");
    }
}

#[tokio::test]
async fn old_rows_are_removed_in_small_steps() {
    let store = memory();
    store
        .write("fill", |db, now| {
            let mut insert = db.prepare(
                "INSERT INTO broadcasts (broadcast_id, state, created_at) VALUES (?1, 'done', ?2)",
            )?;
            (0..700).try_for_each(|n| insert.execute((n.to_string(), values::micros(now))).map(drop))
        })
        .await
        .unwrap();
    let later = at(0) + jiff::SignedDuration::from_hours(24 * 31);
    let step =
        async || store.write("purge", move |db, _| purge::Purge::default().remove(db, later)).await.unwrap();
    assert!(step().await, "there is more to do");
    assert_eq!(count(&store, "broadcasts").await, 200);
    assert!(!step().await);
    assert_eq!(count(&store, "broadcasts").await, 0);
}

#[tokio::test]
async fn the_purge_reads_all_devices_and_begins_again() {
    let store = memory();
    store
        .write("fill", |db, _| {
            let mut insert = db.prepare(
                "INSERT INTO devices (device_id, kind, version, position, push_token, holders)
                 VALUES (?1, 'expo', ?2, 0, 't', 1)",
            )?;
            // Every other one is old.
            let version = |n| if n % 2 == 0 { 0 } else { i64::MAX };
            (0..1200).try_for_each(|n| insert.execute((format!("d{n:04}"), version(n))).map(drop))
        })
        .await
        .unwrap();
    store
        .write("purge", |db, now| {
            let mut purge = purge::Purge::default();
            (0..4).try_for_each(|_| purge.remove(db, now).map(drop))
        })
        .await
        .unwrap();
    assert_eq!(count(&store, "devices").await, 600);
}

/// Blocks the writer until the returned function is called, so that all operations that are queued meanwhile
/// go into one transaction.
async fn gate(store: &EmbeddedStore) -> (impl FnOnce(), impl Future<Output = StoreResult<()>>) {
    let (open, gate) = std::sync::mpsc::channel::<()>();
    let gate = std::sync::Mutex::new(gate);
    let begun = Arc::new(tokio::sync::Notify::new());
    let begins = begun.clone();
    let mut closed = Box::pin(store.write("wait", move |_, _| {
        begins.notify_one();
        let _opened = gate.lock().map(|gate| gate.recv());
        Ok(())
    }));
    // The writer has taken this one alone: no other operation is queued yet.
    assert!(futures::poll!(closed.as_mut()).is_pending());
    begun.notified().await;
    (move || drop(open), closed)
}

/// Transactions in a store's log: each ends with a page whose header says how large the file then is.
fn commits(path: &Path) -> usize {
    let log = std::fs::read(path.with_extension("db-wal")).unwrap();
    let number = |at: usize| u32::from_be_bytes(log[at..at + 4].try_into().unwrap()) as usize;
    let frame = 24 + number(8);
    (32..log.len()).step_by(frame).filter(|&header| number(header + 4) > 0).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operation_that_fails_or_panics_harms_only_itself() {
    let folder = tempfile::TempDir::new().unwrap();
    let store = open(&folder.path().join("push.db"));
    let (open, closed) = gate(&store).await;
    let fails = store.write("fail", |db, _| {
        db.execute("INSERT INTO users_deleted (user_id, version) VALUES ('half', 1)", [])?;
        db.execute("INSERT INTO nowhere VALUES (1)", [])
    });
    let panics = store.write("panic", |db, _| -> rusqlite::Result<()> {
        db.execute("INSERT INTO users_deleted (user_id, version) VALUES ('half', 1)", [])?;
        panic!("on purpose")
    });
    let before = registered("before", "ann", None);
    let after = registered("after", "ann", None);
    let (closed, before, fails, panics, after, ()) =
        futures::join!(closed, store.apply(&before, v(1)), fails, panics, store.apply(&after, v(2)), async {
            open()
        });
    closed.unwrap();
    assert!(format!("{:?}", fails.unwrap_err()).contains("nowhere"));
    assert!(format!("{:?}", panics.unwrap_err()).contains("on purpose"));
    before.unwrap();
    after.unwrap();
    assert_eq!(store.tokens_of(&UserId::new("ann")).await.unwrap().len(), 2);
    assert_eq!(count(&store, "users_deleted").await, 0, "the failed operations left nothing behind");
    store.ping().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn operations_that_wait_together_share_one_commit_even_if_some_fail() {
    let folder = tempfile::TempDir::new().unwrap();
    let path = folder.path().join("push.db");
    let store = open(&path);
    let before = commits(&path);
    let (open, closed) = gate(&store).await;
    let burst = futures::future::join_all(
        (0..300).map(async |n| store.apply(&registered(&format!("t{n}"), "ann", None), v(n)).await),
    );
    // All of them are queued before the gate opens; tokio would make a task that does so much yield before.
    let burst = tokio::task::unconstrained(burst);
    let fails = store.write("fail", |db, _| db.execute("INSERT INTO nowhere VALUES (1)", []));
    let (closed, fails, burst, ()) = futures::join!(closed, fails, burst, async { open() });
    closed.unwrap();
    fails.unwrap_err();
    assert!(burst.into_iter().all(|answer| answer.is_ok()));
    assert_eq!(commits(&path) - before, 1);
    for n in 0..3 {
        store.apply(&registered(&format!("alone{n}"), "ann", None), v(n)).await.unwrap();
    }
    assert_eq!(commits(&path) - before, 4, "an operation that is alone has a commit of its own");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_operation_of_a_transaction_that_is_rolled_back_fails_as_unavailable() {
    let folder = tempfile::TempDir::new().unwrap();
    let store = open(&folder.path().join("push.db"));
    let (open, closed) = gate(&store).await;
    // What SQLite does by itself when the disk is full.
    let ends = store.write("end", |db, _| {
        db.execute_batch("ROLLBACK")?;
        db.execute("INSERT INTO nowhere VALUES (1)", [])
    });
    let before = registered("before", "ann", None);
    let after = registered("after", "ann", None);
    let (closed, before, ends, after, ()) =
        futures::join!(closed, store.apply(&before, v(1)), ends, store.apply(&after, v(2)), async { open() });
    closed.unwrap();
    for result in [before, ends.map(drop), after] {
        let failure = result.unwrap_err();
        assert!(matches!(failure, StoreError::Unavailable { .. }), "{failure:?}");
        assert!(format!("{failure:?}").contains("nowhere"), "each error names the cause: {failure:?}");
    }
    assert_eq!(count(&store, "tokens").await, 0);
    store.apply(&registered("later", "ann", None), v(3)).await.unwrap();
    assert_eq!(count(&store, "tokens").await, 1);
}

#[tokio::test]
async fn a_commit_in_a_file_is_durable() {
    let folder = tempfile::TempDir::new().unwrap();
    let store = open(&folder.path().join("push.db"));
    let (log, flush): (String, i32) = store
        .write("look", |db, _| {
            Ok((
                db.query_row("PRAGMA journal_mode", [], |row| row.get(0))?,
                db.query_row("PRAGMA synchronous", [], |row| row.get(0))?,
            ))
        })
        .await
        .unwrap();
    assert_eq!((log.as_str(), flush), ("wal", 2), "2 = FULL: the log is flushed with every commit");
}

#[tokio::test]
async fn a_read_that_panics_returns_its_connection() {
    let folder = tempfile::TempDir::new().unwrap();
    let store = open(&folder.path().join("push.db"));
    for _ in 0..10 {
        store.read("panic", |_| -> rusqlite::Result<()> { panic!("on purpose") }).await.unwrap_err();
    }
    store.ping().await.unwrap();
}

#[tokio::test]
async fn a_read_that_is_dropped_returns_its_connection() {
    let folder = tempfile::TempDir::new().unwrap();
    let store = open(&folder.path().join("push.db"));
    for _ in 0..50 {
        let read = store.read("left", |db| db.query_row("SELECT 1", [], |_| Ok(())));
        futures::pin_mut!(read);
        let _dropped_half_way = futures::poll!(read);
    }
    store.ping().await.unwrap();
}

#[tokio::test]
async fn an_operation_fails_when_the_writer_has_ended() {
    let ended = writer::Writer::ended();
    assert!(ended.is_running().is_err());
    let failure = ended.run("write", writer::Durability::Immediate, |_, _| Ok(())).await.unwrap_err();
    assert!(format!("{failure:?}").contains("thread has ended"), "{failure:?}");
}

/// Registers a token, writes a regimen, runs `damage`, and reads the two by every path: through the writer
/// and through the readers.
async fn failures_after(damage: &'static str) -> [StoreError; 5] {
    let folder = tempfile::TempDir::new().unwrap();
    let store = open(&folder.path().join("push.db"));
    let ann = UserId::new("ann");
    let regimen = RegimenId::new("r1");
    let definition = Regimen {
        profile: ProfileId::new("pr1"),
        user: ann.clone(),
        medicine_name: "Metformin".to_owned(),
        dosage: "1".to_owned(),
        timezone: TimeZone::UTC,
        rule: Rule::Times { times: vec![time(8, 0, 0, 0)], days: EveryDay::Nth(1) },
        start_date: date(2026, 11, 1),
        end_date: None,
        enabled: true,
    };
    store.apply(&registered("t1", "ann", None), v(1)).await.unwrap();
    store.put_regimen(&regimen, Some(&definition), v(1)).await.unwrap();
    assert_eq!(store.tokens_of(&ann).await.unwrap().len(), 1);
    assert_eq!(store.regimen(&regimen).await.unwrap(), Some(definition));
    store.write("damage", move |db, _| db.execute_batch(damage)).await.unwrap();
    [
        store.tokens_of(&ann).await.unwrap_err(),
        store.inspect(&token("t1")).await.unwrap_err(),
        store.apply(&registered("t1", "ann", None), v(2)).await.unwrap_err(),
        store.regimen(&regimen).await.unwrap_err(),
        store.regimens(None, 10).await.unwrap_err(),
    ]
}

#[tokio::test]
async fn a_row_that_no_release_wrote_is_corrupt() {
    for damage in [
        // Text that can't be parsed.
        "UPDATE tokens SET platform = 'toaster'; UPDATE regimens SET rule = 'now and then'",
        // Values of another type.
        "UPDATE tokens SET platform = x'00'; UPDATE regimens SET timezone = x'00'",
        // Bytes that are no UTF-8.
        "UPDATE tokens SET platform = CAST(x'ff' AS TEXT); UPDATE regimens SET rule = CAST(x'ff' AS TEXT)",
    ] {
        for failure in failures_after(damage).await {
            assert!(matches!(failure, StoreError::Corrupt { .. }), "{damage}: {failure:?}");
        }
    }
}

#[tokio::test]
async fn a_write_that_breaks_a_constraint_is_rejected() {
    let store = memory();
    let insert = "INSERT INTO users_deleted (user_id, version) VALUES ('ann', 1)";
    store.write("insert", move |db, _| db.execute(insert, [])).await.unwrap();
    let failure = store.write("insert again", move |db, _| db.execute(insert, [])).await.unwrap_err();
    assert!(matches!(failure, StoreError::Rejected { .. }), "{failure:?}");
}

#[tokio::test]
async fn sqlite3_can_read_at_the_same_time() {
    let folder = tempfile::TempDir::new().unwrap();
    let path = folder.path().join("push.db");
    let store = open(&path);
    store.apply(&registered("t1", "ann", None), v(1)).await.unwrap();
    let shell = Connection::open(&path).unwrap();
    let users: String = shell.query_row("SELECT user_id FROM tokens", [], |row| row.get(0)).unwrap();
    assert_eq!(users, "ann");
}
