//! Signal 9, in the middle of it all: whoever was to ring rings, and hardly anybody twice.

use pushcast::{
    domain::Timestamp,
    sandbox::{Faults, ProviderFaults},
};
use serde_json::{Value, json};

use crate::{
    process::Town,
    world::{Phone, dose_id, dose_tick, until},
};

const PAGES: u64 = 4;
const PAGE: u64 = 100;

async fn outcome_of(town: &Town, id: &str) -> Value {
    until(&format!("the outcome of {id}"), async || {
        let mut outcomes = town.neighbour.received("push-outcomes").into_iter().map(|received| received.json());
        outcomes.find(|outcome| outcome["notificationId"] == id)
    })
    .await
}

async fn taken(town: &Town, count: u64) {
    until(&format!("{count} messages"), async || (town.statistics().await.expo.taken >= count).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_killed_twice_in_the_middle_of_a_broadcast_loses_nobody() {
    let mut town = Town::begins().await;
    town.set("expo.rate_per_second", "1000");
    town.set("push.open_pages", &PAGES.to_string());
    town.set("push.page_size", &PAGE.to_string());
    let pushcast = town.pushcast().await;
    let logins = Phone::many(3_000).into_iter().map(|phone| json!({"token": phone.0, "userId": phone.0}).to_string());
    town.neighbour.writes_all("device-tokens", logins).await;
    town.settles().await;

    let post = json!({"postId": "p1", "authorId": "ann", "title": "p1"}).to_string();
    town.neighbour.writes_all("posts-created", [post]).await;
    taken(&town, 600).await;
    pushcast.is_killed();
    let pushcast = town.pushcast().await;
    taken(&town, 1_800).await;
    pushcast.is_killed();
    assert!(town.statistics().await.expo.distinct_tokens < 3_000, "it was in the middle");

    let pushcast = town.pushcast().await;
    let outcome = outcome_of(&town, "post:p1").await;
    town.settles().await;
    let seen = town.statistics().await.expo;
    assert_eq!((seen.distinct_tokens, &outcome["sent"]), (3_000, &json!(3_000)));
    assert!(seen.doubles <= 2 * PAGES * PAGE, "{} doubles", seen.doubles);
    pushcast.ends().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dose_on_the_wire_when_the_process_is_killed_rings_at_most_once_more() {
    let town = Town::begins().await;
    let phone = Phone::expo("pats");
    let slow = ProviderFaults { latency: std::time::Duration::from_secs(10), ..ProviderFaults::default() };
    town.faults(&Faults { expo: slow, ..Faults::default() }).await;
    let pushcast = town.pushcast().await;
    town.neighbour.writes_all("device-tokens", [json!({"token": phone.0, "userId": "pat"}).to_string()]).await;
    town.settles().await;
    let at = Timestamp::from_second(Timestamp::now().as_second()).unwrap();
    town.neighbour.writes_all("medication-ticks", [dose_tick("pat", at).to_string()]).await;
    until("the dose on the wire", async || (town.statistics().await.expo.requests == 1).then_some(())).await;
    pushcast.is_killed();

    town.faults(&Faults::default()).await;
    lease_runs_out(&town);
    let pushcast = town.pushcast().await;
    assert_eq!(outcome_of(&town, &dose_id("pat", at)).await["outcome"], "sent");
    town.settles().await;
    assert!((1..=2).contains(&town.messages_to(&phone).await.len()));
    pushcast.ends().await;
}

/// The minute passes for which the dead process had claimed the dose.
fn lease_runs_out(town: &Town) {
    let store = rusqlite::Connection::open(town.folder.path().join("push.db")).unwrap();
    assert_eq!(store.execute("UPDATE dose_log SET lease_until = 0 WHERE marked_at IS NULL", []).unwrap(), 1, "the dose was claimed");
}
