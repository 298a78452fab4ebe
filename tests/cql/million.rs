//! A large ring, read in slices and resumed anywhere: every active token once. It takes minutes, so it is run by hand:
//! `cargo test --release --test cql -- --ignored --nocapture a_large_ring` (PUSHCAST_TEST_TOKENS, default a million).

use std::{collections::HashSet, env, time::Duration};

use futures::{StreamExt as _, TryStreamExt as _, stream};
use pushcast::{
    domain::{ProviderId, Slice},
    store::Audience,
};
use rand::prelude::*;
use scylla::{DeserializeValue, SerializeValue};
use tokio::time::{Instant, sleep};

use crate::keyspace::{self, emptied};

/// The cell of a token, as `schemas/cql` has it.
#[derive(SerializeValue, DeserializeValue)]
struct State {
    ver: i64,
    active: bool,
    user_id: Option<String>,
    kind: String,
    platform: Option<String>,
    device_id: Option<String>,
    device_info: Option<String>,
    created_at: Option<i64>,
    reason: Option<String>,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes"]
async fn a_large_ring_is_read_in_slices_and_resumed_anywhere() {
    let number: u64 = env::var("PUSHCAST_TEST_TOKENS").map_or(1_000_000, |number| number.parse().unwrap());
    let (store, _alone) = emptied().await;
    let session = keyspace::session();
    let table = format!("{}.tokens", keyspace::name());
    let insert = session.prepare(format!("INSERT INTO {table} (push_token, st) VALUES (?, ?) USING TIMESTAMP ?")).await.unwrap();
    let begun = Instant::now();
    // Long runs of dead ones: a page has to wade through them.
    let active = |n: u64| n % 10_000 < 3_000 || n.is_multiple_of(7);
    stream::iter(0..number)
        .map(|n| {
            let state = State {
                ver: 2,
                active: active(n),
                user_id: active(n).then(|| format!("u{n}")),
                kind: "expo".to_owned(),
                platform: Some("ios".to_owned()),
                device_id: active(n).then(|| format!("d{n}")),
                device_info: None,
                created_at: Some(1),
                reason: None,
            };
            (format!("ExponentPushToken[n{n}]"), state, 2_i64)
        })
        .for_each_concurrent(64, async |row| {
            // A small server is too busy at times.
            while session.execute_unpaged(&insert, &row).await.is_err() {
                sleep(Duration::from_millis(200)).await;
            }
        })
        .await;
    println!("{number} tokens written in {:?}", begun.elapsed());

    let begun = Instant::now();
    let mut random = StdRng::seed_from_u64(5);
    let (mut met, mut pages, mut resumed) = (HashSet::new(), 0_u64, 0_u64);
    for index in 0..64 {
        let mut after = None;
        loop {
            let page = store.page_of_slice(ProviderId::Expo, Slice { index, of: 64 }, after, 500).await.unwrap();
            pages += 1;
            // A process dies in the middle of a page: the next one goes on after some position of it.
            let whole = page.registrations.len();
            let kept = if whole > 1 && random.random_bool(0.05) { random.random_range(1..whole) } else { whole };
            for registration in &page.registrations[..kept] {
                assert!(met.insert(registration.token.clone()), "met twice");
            }
            if kept < whole {
                resumed += 1;
                after = Some(page.positions[kept - 1]);
            } else if page.last {
                break;
            } else {
                after = Some(page.end);
            }
        }
    }
    let took = begun.elapsed();
    assert_eq!(met.len() as u64, (0..number).filter(|n| active(*n)).count() as u64);
    println!("{} active tokens in {pages} pages, {resumed} times resumed inside one, in {took:?}", met.len());

    // The same rows by the driver alone, as the bar for the speed.
    let mut scan = session
        .prepare(format!("SELECT token(push_token), push_token, st FROM {table} WHERE token(push_token) >= ? AND token(push_token) <= ?"))
        .await
        .unwrap();
    scan.set_page_size(501);
    let begun = Instant::now();
    let mut rows = 0_u64;
    for index in 0..64 {
        let bounds = Slice { index, of: 64 }.bounds();
        let mut stream = session.execute_iter(scan.clone(), bounds).await.unwrap().rows_stream::<(i64, String, State)>().unwrap();
        while let Some(row) = stream.try_next().await.unwrap() {
            rows += u64::from(row.2.ver == 2);
        }
    }
    println!("{rows} rows by the driver alone in {:?}", begun.elapsed());
    assert_eq!(rows, number);
}
