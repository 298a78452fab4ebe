//! A large ring, read in slices and resumed anywhere: every active token once. A million takes minutes, so
//! that is run by hand: `cargo test --release --test cql -- --ignored --nocapture a_million`
//! (PUSHCAST_TEST_TOKENS: another number). What runs each time is a smaller one with the same holes:
//! stretches of the ring without an active token, with more rows than are read for a page.

use std::{collections::HashSet, env, time::Duration};

use futures::{StreamExt as _, TryStreamExt as _, stream};
use pushcast::{
    domain::{Listeners, ProviderId, Slice},
    store::Audience,
};
use rand::prelude::*;
use scylla::{DeserializeValue, SerializeValue};
use tokio::time::{Instant, sleep};

use crate::keyspace::{self, emptied};

/// The cell of a token, as defined in `schemas/cql`.
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
async fn a_ring_with_holes_is_read_in_slices_and_resumed_anywhere() {
    every_active_token_is_found_once(50_000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes"]
async fn a_million_tokens_are_read_in_slices_and_resumed_anywhere() {
    let number = env::var("PUSHCAST_TEST_TOKENS").map_or(1_000_000, |number| number.parse().unwrap());
    every_active_token_is_found_once(number).await;
}

async fn every_active_token_is_found_once(number: u32) {
    // Each has more rows than are read for a page.
    let slices = (number / 40_000).next_power_of_two().max(2);
    let (store, _alone) = emptied().await;
    let session = keyspace::session();
    let table = format!("{}.tokens", keyspace::name());
    let insert = session
        .prepare(format!("INSERT INTO {table} (push_token, st) VALUES (?, ?) USING TIMESTAMP ?"))
        .await
        .unwrap();
    let begun = Instant::now();
    // Chosen by position, to leave holes: none on the first half of the ring, four of five on the rest.
    let active = |token: &str| {
        let position = insert.calculate_token(&(token, None::<State>, 2_i64)).unwrap().unwrap().value();
        position >= 0 && position % 5 != 0
    };
    let mut rows = Vec::new();
    let mut expected = HashSet::new();
    for n in 0..number {
        let token = format!("ExponentPushToken[n{n}]");
        let active = active(&token);
        if active {
            expected.insert(token.clone());
        }
        rows.push((token, active));
    }
    stream::iter(rows.iter().enumerate())
        .map(|(n, (token, active))| {
            let state = State {
                ver: 2,
                active: *active,
                user_id: active.then(|| format!("u{n}")),
                kind: "expo".to_owned(),
                platform: Some("ios".to_owned()),
                device_id: active.then(|| format!("d{n}")),
                device_info: None,
                created_at: Some(1),
                reason: None,
            };
            (token, state, 2_i64)
        })
        .for_each_concurrent(64, async |row| {
            // A small server is overloaded at times.
            while session.execute_unpaged(&insert, &row).await.is_err() {
                sleep(Duration::from_millis(200)).await;
            }
        })
        .await;
    println!("{number} tokens written in {:?}", begun.elapsed());

    let begun = Instant::now();
    let mut random = StdRng::seed_from_u64(5);
    let mut found = HashSet::new();
    let mut pages = 0_u64;
    let mut empty = 0_u64;
    let mut resumed = 0_u64;
    for index in 0..slices {
        let mut after = None;
        loop {
            let page = store
                .page_of_slice(ProviderId::Expo, Slice { index, of: slices }, &Listeners::ALL, after, 500)
                .await
                .unwrap();
            pages += 1;
            empty += u64::from(page.recipients.is_empty() && !page.last);
            // The process crashes in the middle of a page: the next one resumes after some position of it.
            let whole = page.recipients.len();
            let kept =
                if whole > 1 && random.random_bool(0.05) { random.random_range(1..whole) } else { whole };
            for recipient in &page.recipients[..kept] {
                assert!(found.insert(recipient.token.as_str().to_owned()), "found twice");
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
    assert!(found == expected, "{} found, {} are active", found.len(), expected.len());
    println!(
        "{} active tokens in {pages} pages, {empty} of them empty, {resumed} times resumed inside one, \
         in {took:?}",
        found.len()
    );
    assert!(resumed > 0, "never resumed inside a page");
    assert!(empty > 0, "no page was empty and had a next one");

    // The same rows by the driver alone, to compare the speed.
    let select = format!(
        "SELECT token(push_token), push_token, st FROM {table}
         WHERE token(push_token) >= ? AND token(push_token) <= ?"
    );
    let mut scan = session.prepare(select).await.unwrap();
    scan.set_page_size(501);
    let begun = Instant::now();
    let mut rows = 0_u32;
    for index in 0..slices {
        let bounds = Slice { index, of: slices }.bounds();
        let mut stream = session
            .execute_iter(scan.clone(), bounds)
            .await
            .unwrap()
            .rows_stream::<(i64, String, State)>()
            .unwrap();
        while let Some(row) = stream.try_next().await.unwrap() {
            rows += u32::from(row.2.ver == 2);
        }
    }
    println!("{rows} rows by the driver alone in {:?}", begun.elapsed());
    assert_eq!(rows, number);
}
