//! SIGKILL in the middle of broadcasts and reminders: no message is lost, and few are sent twice.

use std::{env, time::Duration};

use pushcast::domain::Timestamp;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use sandbox::{Faults, ProviderFaults};
use serde_json::{Value, json};

use crate::{
    process::Deployment,
    world::{Phone, dose_id, dose_tick, until},
};

const PAGES: u64 = 4;
const PAGE: u64 = 100;

async fn outcome_of(deployment: &Deployment, id: &str) -> Value {
    until(&format!("the outcome of {id}"), async || {
        let mut outcomes =
            deployment.kafka.received("push-outcomes").into_iter().map(|received| received.json());
        outcomes.find(|outcome| outcome["notificationId"] == id)
    })
    .await
}

async fn wait_until_taken(deployment: &Deployment, count: u64) {
    until(&format!("{count} messages"), async || {
        (deployment.statistics().await.expo.taken >= count).then_some(())
    })
    .await;
}

/// How many broadcasts are killed in their middle: `ROUNDS`, else three. `REAL_SEED` repeats a run's timing.
fn rounds() -> (u32, StdRng) {
    let number = |name: &str| env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let seed = number("REAL_SEED").unwrap_or_else(rand::random);
    let rounds = number("ROUNDS").unwrap_or(3);
    println!("REAL_SEED={seed}, {rounds} rounds");
    (u32::try_from(rounds).unwrap(), StdRng::seed_from_u64(seed))
}

/// Each round a broadcast and two doses, one of them just before the kill.
#[tokio::test(flavor = "multi_thread")]
async fn a_process_killed_in_the_middle_of_each_broadcast_loses_no_message() {
    const PHONES: u64 = 3_000;
    let mut deployment = Deployment::start().await;
    deployment.set("expo.rate_per_second", "1000");
    deployment.set("push.open_pages", &PAGES.to_string());
    deployment.set("push.page_size", &PAGE.to_string());
    let mut pushcast = deployment.start_pushcast().await;
    let phones = Phone::many(usize::try_from(PHONES).unwrap());
    let logins = phones.iter().map(|phone| json!({"token": phone.0, "userId": phone.0}).to_string());
    deployment.kafka.produce_all("device-tokens", logins).await;
    deployment.wait_until_settled().await;

    let (rounds, mut random) = rounds();
    for round in 0..rounds {
        deployment.reset_sandbox().await;
        let post = json!({"postId": format!("p{round}"), "authorId": "ann", "title": "p"}).to_string();
        deployment.kafka.produce_all("posts-created", [post]).await;
        // A second apart, so that they are two doses.
        let now = Timestamp::now().as_second();
        let doses = [(&phones[1], now), (&phones[2], now - 1)]
            .map(|(phone, at)| (phone, Timestamp::from_second(at).unwrap()));
        deployment
            .kafka
            .produce_all("medication-ticks", [dose_tick(&doses[0].0.0, doses[0].1).to_string()])
            .await;
        wait_until_taken(&deployment, random.random_range(1..PHONES * 9 / 10)).await;
        deployment
            .kafka
            .produce_all("medication-ticks", [dose_tick(&doses[1].0.0, doses[1].1).to_string()])
            .await;
        tokio::time::sleep(Duration::from_millis(random.random_range(0..100))).await;
        pushcast.kill();
        let before = deployment.statistics().await.expo;
        assert!(before.distinct_tokens < PHONES, "the kill came too late");
        expire_leases(&deployment);

        pushcast = deployment.start_pushcast().await;
        let outcome = outcome_of(&deployment, &format!("post:p{round}")).await;
        deployment.wait_until_settled().await;
        let seen = deployment.statistics().await.expo;
        println!(
            "round {round}: killed when Expo had taken {}, {} duplicates",
            before.taken, seen.duplicates
        );
        assert_eq!((seen.distinct_tokens, &outcome["sent"]), (PHONES, &json!(PHONES)));
        assert!(seen.duplicates <= PAGES * PAGE + 2, "{} duplicates", seen.duplicates);
        for (phone, at) in doses {
            assert_eq!(outcome_of(&deployment, &dose_id(&phone.0, at)).await["outcome"], "sent");
            let messages = deployment.messages_to(phone).await;
            let sent = messages.iter().filter(|message| message.data["screen"] == "medication").count();
            assert!((1..=2).contains(&sent), "a reminder was sent {sent} times: {messages:#?}");
        }
    }
    pushcast.terminate().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reminder_on_the_wire_when_the_process_is_killed_is_sent_at_most_once_more() {
    let deployment = Deployment::start().await;
    let phone = Phone::expo("pats");
    let slow = ProviderFaults { latency: Duration::from_secs(10), ..ProviderFaults::default() };
    deployment.set_faults(&Faults { expo: slow, ..Faults::default() }).await;
    let pushcast = deployment.start_pushcast().await;
    deployment
        .kafka
        .produce_all("device-tokens", [json!({"token": phone.0, "userId": "pat"}).to_string()])
        .await;
    deployment.wait_until_settled().await;
    let at = Timestamp::from_second(Timestamp::now().as_second()).unwrap();
    deployment.kafka.produce_all("medication-ticks", [dose_tick("pat", at).to_string()]).await;
    until("the reminder on the wire", async || {
        (deployment.statistics().await.expo.requests == 1).then_some(())
    })
    .await;
    pushcast.kill();

    deployment.set_faults(&Faults::default()).await;
    assert_eq!(expire_leases(&deployment), 1, "the dose was claimed");
    let pushcast = deployment.start_pushcast().await;
    assert_eq!(outcome_of(&deployment, &dose_id("pat", at)).await["outcome"], "sent");
    deployment.wait_until_settled().await;
    assert!((1..=2).contains(&deployment.messages_to(&phone).await.len()));
    pushcast.terminate().await;
}

/// Ends the leases of the doses that the killed process had claimed, as if a minute had passed. Returns how
/// many there were.
fn expire_leases(deployment: &Deployment) -> usize {
    let store = rusqlite::Connection::open(deployment.folder.path().join("push.db")).unwrap();
    store.execute("UPDATE dose_log SET lease_until = 0 WHERE marked_at IS NULL", []).unwrap()
}
