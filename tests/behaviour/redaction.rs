//! No log line holds a token or a credential.

use std::{collections::BTreeSet, fs};

use pushcast::domain::Timestamp;
use sandbox::{Faults, Outage, ProviderFaults};
use serde_json::{Value, json};

use crate::{
    process::Deployment,
    world::{Phone, dose_tick, until, variable},
};

#[tokio::test(flavor = "multi_thread")]
async fn no_log_line_holds_a_token_or_a_credential() {
    for format in ["text", "json"] {
        let mut deployment = Deployment::start().await;
        deployment.set("log.filter", "debug");
        deployment.set("log.format", format);
        deployment.set("expo.access_token", "an-access-token-SECRET");
        let expo = ["alive", "dead", "ghost", "busy", "malformed", "foreign"]
            .map(|name| Phone::expo(&format!("{name}-SECRET")));
        let fcm = ["alive", "dead", "busy", "malformed", "foreign"]
            .map(|name| Phone::fcm(&format!("{name}-SECRET")));
        let pushcast = deployment.start_pushcast().await;
        log_everything(&deployment, expo.iter().chain(&fcm)).await;
        let log = pushcast.terminate().await;

        let dead = expo[1].token().hash().to_string();
        assert!(log.contains(&dead), "the log names tokens by their hashes: {log}");
        let leaks: Vec<_> = log.lines().filter(|line| line.contains("SECRET")).collect();
        assert!(leaks.is_empty(), "{leaks:#?}");
        let account = fs::read_to_string(&deployment.environment[&variable("fcm.credentials_file")]).unwrap();
        let account: Value = serde_json::from_str(&account).unwrap();
        let piece_of_key = account["private_key"].as_str().unwrap().lines().nth(1).unwrap();
        let secrets = [piece_of_key, "ya29.", "Bearer "];
        assert!(secrets.iter().all(|secret| !log.contains(secret)), "a credential is logged");
    }
}

/// Logins, posts, doses, refusals, garbage and an outage: everything that makes pushcast log tokens.
async fn log_everything(deployment: &Deployment, phones: impl Iterator<Item = &Phone> + Clone) {
    let logins = phones
        .clone()
        .map(|phone| json!({"token": phone.0, "userId": "bob", "deviceId": phone.0}).to_string());
    deployment.kafka.produce_all("device-tokens", logins).await;
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
        deployment.kafka.produce_all(topic, wrong.clone()).await;
    }
    deployment.wait_until_settled().await;
    let down = ProviderFaults {
        down: Some(Outage { requests: Some(1), ..Outage::default() }),
        ..ProviderFaults::default()
    };
    deployment.set_faults(&Faults { expo: down, ..Faults::default() }).await;
    deployment.kafka.produce_all("posts-created", [json!({"postId": "p1", "title": "p1"}).to_string()]).await;
    let at = Timestamp::from_second(Timestamp::now().as_second()).unwrap();
    deployment.kafka.produce_all("medication-ticks", [dose_tick("bob", at).to_string()]).await;
    until("verdicts of tickets, responses and receipts", async || {
        let verdicts = deployment.kafka.received("invalid-tokens").into_iter().filter_map(|received| {
            let verdict: Value = serde_json::from_slice(received.value.as_deref()?).ok()?;
            verdict["source"].as_str().map(str::to_owned)
        });
        let sources: BTreeSet<_> = verdicts.collect();
        (sources.len() == 3).then_some(())
    })
    .await;
}
