//! Signal 9, in the middle of it all: whoever was to ring rings, and hardly anybody twice.

use std::{env, time::Duration};

use pushcast::domain::Timestamp;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use sandbox::{Faults, ProviderFaults};
use serde_json::{Value, json};

use crate::{
    process::Town,
    world::{Phone, dose_id, dose_tick, until},
};

const PAGES: u64 = 4;
const PAGE: u64 = 100;

async fn outcome_of(town: &Town, id: &str) -> Value {
    until(&format!("the outcome of {id}"), async || {
        let mut outcomes =
            town.neighbour.received("push-outcomes").into_iter().map(|received| received.json());
        outcomes.find(|outcome| outcome["notificationId"] == id)
    })
    .await
}

async fn taken(town: &Town, count: u64) {
    until(&format!("{count} messages"), async || (town.statistics().await.expo.taken >= count).then_some(()))
        .await;
}

/// How many broadcasts are killed in their middle: `ROUNDS`, else three. `REAL_SEED` repeats a run's moments.
fn rounds() -> (u32, StdRng) {
    let number = |name: &str| env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let seed = number("REAL_SEED").unwrap_or_else(rand::random);
    let rounds = number("ROUNDS").unwrap_or(3);
    println!("REAL_SEED={seed}, {rounds} rounds");
    (u32::try_from(rounds).unwrap(), StdRng::seed_from_u64(seed))
}

/// Each round a broadcast and two doses, one of them a moment before the end comes.
#[tokio::test(flavor = "multi_thread")]
async fn a_process_killed_in_the_middle_of_each_broadcast_loses_nobody() {
    const PEOPLE: u64 = 3_000;
    let mut town = Town::begins().await;
    town.set("expo.rate_per_second", "1000");
    town.set("push.open_pages", &PAGES.to_string());
    town.set("push.page_size", &PAGE.to_string());
    let mut pushcast = town.pushcast().await;
    let phones = Phone::many(usize::try_from(PEOPLE).unwrap());
    let logins = phones.iter().map(|phone| json!({"token": phone.0, "userId": phone.0}).to_string());
    town.neighbour.writes_all("device-tokens", logins).await;
    town.settles().await;

    let (rounds, mut random) = rounds();
    for round in 0..rounds {
        town.forgets().await;
        let post = json!({"postId": format!("p{round}"), "authorId": "ann", "title": "p"}).to_string();
        town.neighbour.writes_all("posts-created", [post]).await;
        // A second apart, so that they are two doses.
        let now = Timestamp::now().as_second();
        let doses = [(&phones[1], now), (&phones[2], now - 1)]
            .map(|(phone, at)| (phone, Timestamp::from_second(at).unwrap()));
        town.neighbour
            .writes_all("medication-ticks", [dose_tick(&doses[0].0.0, doses[0].1).to_string()])
            .await;
        taken(&town, random.random_range(1..PEOPLE * 9 / 10)).await;
        town.neighbour
            .writes_all("medication-ticks", [dose_tick(&doses[1].0.0, doses[1].1).to_string()])
            .await;
        tokio::time::sleep(Duration::from_millis(random.random_range(0..100))).await;
        pushcast.kill();
        let before = town.statistics().await.expo;
        assert!(before.distinct_tokens < PEOPLE, "it was in the middle");
        leases_run_out(&town);

        pushcast = town.pushcast().await;
        let outcome = outcome_of(&town, &format!("post:p{round}")).await;
        town.settles().await;
        let seen = town.statistics().await.expo;
        println!("round {round}: killed when Expo had taken {}, {} doubles", before.taken, seen.doubles);
        assert_eq!((seen.distinct_tokens, &outcome["sent"]), (PEOPLE, &json!(PEOPLE)));
        assert!(seen.doubles <= PAGES * PAGE + 2, "{} doubles", seen.doubles);
        for (phone, at) in doses {
            assert_eq!(outcome_of(&town, &dose_id(&phone.0, at)).await["outcome"], "sent");
            let messages = town.messages_to(phone).await;
            let rung = messages.iter().filter(|message| message.data["screen"] == "medication").count();
            assert!((1..=2).contains(&rung), "a dose rang {rung} times: {messages:#?}");
        }
    }
    pushcast.ends().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dose_on_the_wire_when_the_process_is_killed_rings_at_most_once_more() {
    let town = Town::begins().await;
    let phone = Phone::expo("pats");
    let slow = ProviderFaults { latency: Duration::from_secs(10), ..ProviderFaults::default() };
    town.faults(&Faults { expo: slow, ..Faults::default() }).await;
    let pushcast = town.pushcast().await;
    town.neighbour
        .writes_all("device-tokens", [json!({"token": phone.0, "userId": "pat"}).to_string()])
        .await;
    town.settles().await;
    let at = Timestamp::from_second(Timestamp::now().as_second()).unwrap();
    town.neighbour.writes_all("medication-ticks", [dose_tick("pat", at).to_string()]).await;
    until("the dose on the wire", async || (town.statistics().await.expo.requests == 1).then_some(())).await;
    pushcast.kill();

    town.faults(&Faults::default()).await;
    assert_eq!(leases_run_out(&town), 1, "the dose was claimed");
    let pushcast = town.pushcast().await;
    assert_eq!(outcome_of(&town, &dose_id("pat", at)).await["outcome"], "sent");
    town.settles().await;
    assert!((1..=2).contains(&town.messages_to(&phone).await.len()));
    pushcast.ends().await;
}

/// The minute passes for which the dead process had claimed doses. How many those are.
fn leases_run_out(town: &Town) -> usize {
    let store = rusqlite::Connection::open(town.folder.path().join("push.db")).unwrap();
    store.execute("UPDATE dose_log SET lease_until = 0 WHERE marked_at IS NULL", []).unwrap()
}
