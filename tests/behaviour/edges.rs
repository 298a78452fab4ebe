//! The edges of a process: what it says when it can't start, and what it never says.

use consumer::mock::Broker;
use pushcast::{domain::Timestamp, store::embedded::EmbeddedStore, topology};
use sandbox::{Faults, Outage, ProviderFaults};
use serde_json::json;

use crate::{
    process::{Town, fails},
    world::{Phone, dose_tick, until, variable},
};

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_is_taken_is_named_with_its_setting() {
    let (broker, taken) =
        (topology::embedded_broker(16).unwrap(), std::net::TcpListener::bind("127.0.0.1:0").unwrap());
    let address = taken.local_addr().unwrap().to_string();
    let said = fails(&[
        ("kafka.bootstrap_servers", &broker.bootstrap_servers()),
        ("store.url", "embedded:memory"),
        ("http.admin_listen", &address),
    ])
    .await;
    assert!(
        said.contains(&format!(
            "can't listen on {address} (http.admin_listen): another process listens there already"
        )),
        "{said}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kafka_that_nobody_answers_for_is_named_with_its_settings() {
    let said = fails(&[
        ("kafka.bootstrap_servers", "127.0.0.1:1"),
        ("store.url", "embedded:memory"),
        ("http.admin_listen", ""),
    ])
    .await;
    assert!(said.contains("no Kafka broker answers at 127.0.0.1:1"), "{said}");
    assert!(said.contains("check bootstrap_servers"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_topics_are_named_with_the_command_that_makes_them() {
    let broker = Broker::start([("posts-created", 1)]).unwrap();
    let said = fails(&[
        ("kafka.bootstrap_servers", &broker.bootstrap_servers()),
        ("store.url", "embedded:memory"),
        ("http.admin_listen", ""),
    ])
    .await;
    assert!(said.contains("Kafka has no dead-letters, device-tokens"), "{said}");
    assert!(said.contains("run `pushcast init`") && !said.contains("posts-created,"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_in_use_is_named_with_its_holder_and_the_way_out() {
    let (broker, folder) = (topology::embedded_broker(16).unwrap(), tempfile::TempDir::new().unwrap());
    let path = folder.path().join("push.db");
    let _ours = EmbeddedStore::open(&path).unwrap();
    let said = fails(&[
        ("kafka.bootstrap_servers", &broker.bootstrap_servers()),
        ("store.url", &format!("embedded:{}", path.display())),
        ("http.admin_listen", ""),
    ])
    .await;
    assert!(said.contains(&format!("in use by process {}", std::process::id())), "{said}");
    assert!(said.contains("store.url of its own"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_log_line_holds_a_token_or_a_credential() {
    for format in ["text", "json"] {
        let mut town = Town::begins().await;
        town.set("log.filter", "debug");
        town.set("log.format", format);
        town.set("expo.access_token", "an-access-token-SECRET");
        let expo = ["alive", "dead", "ghost", "busy", "malformed", "foreign"]
            .map(|name| Phone::expo(&format!("{name}-SECRET")));
        let fcm = ["alive", "dead", "busy", "malformed", "foreign"]
            .map(|name| Phone::fcm(&format!("{name}-SECRET")));
        let pushcast = town.pushcast().await;
        everything_happens(&town, expo.iter().chain(&fcm)).await;
        let log = pushcast.ends().await;

        let dead = expo[1].token().hash().to_string();
        assert!(log.contains(&dead), "the log speaks of tokens, by their hashes: {log}");
        let said: Vec<_> = log.lines().filter(|line| line.contains("SECRET")).collect();
        assert!(said.is_empty(), "{said:#?}");
        let account = std::fs::read_to_string(&town.environment[&variable("fcm.credentials_file")]).unwrap();
        let key = serde_json::from_str::<serde_json::Value>(&account).unwrap()["private_key"]
            .as_str()
            .unwrap()
            .to_owned();
        let piece = key.lines().nth(1).unwrap();
        let secrets = [piece, "ya29.", "Bearer "];
        assert!(secrets.iter().all(|secret| !log.contains(secret)), "a credential is logged");
    }
}

/// Logins, posts, doses, refusals, garbage and an outage: whatever makes pushcast speak of tokens.
async fn everything_happens(town: &Town, phones: impl Iterator<Item = &Phone> + Clone) {
    let logins = phones
        .clone()
        .map(|phone| json!({"token": phone.0, "userId": "bob", "deviceId": phone.0}).to_string());
    town.neighbour.writes_all("device-tokens", logins).await;
    let wrong = [
        r#"{"token":"SECRET of no form"}"#.to_owned(),
        r#"{"token":"ExponentPushToken[SECRET]","kind":"fcm"}"#.to_owned(),
        r#"{"token":"ExponentPushToken[SECRET]","#.to_owned(),
        r#""ExponentPushToken[SECRET]""#.to_owned(),
    ];
    for topic in [
        "device-tokens",
        "invalid-tokens",
        "expo-receipts",
        "push.expo.bulk",
        "posts-created",
        "medication-ticks",
    ] {
        town.neighbour.writes_all(topic, wrong.clone()).await;
    }
    town.settles().await;
    let down = ProviderFaults {
        down: Some(Outage { requests: Some(1), ..Outage::default() }),
        ..ProviderFaults::default()
    };
    town.faults(&Faults { expo: down, ..Faults::default() }).await;
    town.neighbour.writes_all("posts-created", [json!({"postId": "p1", "title": "p1"}).to_string()]).await;
    let at = Timestamp::from_second(Timestamp::now().as_second()).unwrap();
    town.neighbour.writes_all("medication-ticks", [dose_tick("bob", at).to_string()]).await;
    until("verdicts of tickets, responses and receipts", async || {
        let verdicts = town.neighbour.received("invalid-tokens").into_iter().filter_map(|received| {
            let verdict: serde_json::Value = serde_json::from_slice(received.value.as_deref()?).ok()?;
            verdict["source"].as_str().map(str::to_owned)
        });
        let sources: std::collections::BTreeSet<_> = verdicts.collect();
        (sources.len() == 3).then_some(())
    })
    .await;
}
