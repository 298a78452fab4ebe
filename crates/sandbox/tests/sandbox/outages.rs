//! The failure modes of an outage: what the client sees, what is taken, what the control API reports.

use std::time::Duration;

use reqwest::{RequestBuilder, StatusCode};
use sandbox::{FailureMode, Outage, ProviderStatistics};
use serde_json::{Value, json};
use tokio::{task::JoinSet, time::Instant};

use super::{World, answered, expo_token, messages, text_to};

impl World {
    fn down(&self, outage: &Outage) {
        self.set(|faults| {
            faults.expo.down = Some(outage.clone());
            faults.fcm.down = Some(outage.clone());
            faults.oauth.down = Some(outage.clone());
        });
    }

    fn expo_request(&self) -> RequestBuilder {
        self.http1.post(self.sandbox.expo_url()).body(messages(&["a", "b"]).to_string())
    }

    /// From the control API, as an operator reads it.
    async fn seen(&self) -> [ProviderStatistics; 2] {
        let statistics =
            answered(self.http1.get(format!("{}/sandbox/statistics", self.sandbox.url()))).await.json();
        ["expo", "fcm"].map(|provider| serde_json::from_value(statistics[provider].clone()).unwrap())
    }
}

fn once(manner: FailureMode) -> Outage {
    Outage { manner, requests: Some(1), ..Outage::default() }
}

#[tokio::test]
async fn a_proxys_error_page_may_have_any_status() {
    let world = World::open().await;
    for status in [200, 400, 404, 502] {
        world.down(&Outage { status, ..once(FailureMode::Html) });
        for request in [world.expo_request(), world.fcm_request(&text_to("a"))] {
            let answer = answered(request).await;
            assert_eq!(
                (answer.status.as_u16(), answer.text.starts_with("<html>")),
                (status, true),
                "{}",
                answer.text
            );
        }
    }
    for seen in world.seen().await {
        assert_eq!((seen.taken, seen.outages), (0, [(FailureMode::Html, 4)].into()));
    }
}

#[tokio::test]
async fn a_request_that_hangs_is_read_and_never_answered() {
    let world = World::open().await;
    world.down(&Outage { take_anyway: true, ..once(FailureMode::Hang) });
    for request in [world.expo_request(), world.fcm_request(&text_to("a"))] {
        let error = request.timeout(Duration::from_millis(300)).send().await.unwrap_err();
        assert!(error.is_timeout(), "{error:?}");
    }
    let [expo, fcm] = world.seen().await;
    assert_eq!((expo.taken, expo.statuses), (2, [(0, 1)].into()));
    assert_eq!((fcm.taken, fcm.outages), (1, [(FailureMode::Hang, 1)].into()));
    // The next one is answered.
    assert_eq!(answered(world.expo_request()).await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_reset_ends_the_connection_and_every_request_on_it() {
    let world = World::open().await;
    world.set(|faults| faults.fcm.latency = Duration::from_secs(3600));
    let mut in_flight = JoinSet::new();
    in_flight.spawn(world.fcm_request(&text_to("a")).send());
    while world.sandbox.statistics().fcm.taken == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    world.set(|faults| faults.fcm.latency = Duration::ZERO);
    world.down(&once(FailureMode::Reset));
    for request in [world.expo_request(), world.fcm_request(&text_to("a"))] {
        let error = request.send().await.unwrap_err();
        assert!(!error.is_connect() && !error.is_timeout(), "{error:?}");
        assert!(format!("{error:?}").contains("ConnectionReset"), "{error:?}");
    }
    assert!(in_flight.join_next().await.unwrap().unwrap().is_err(), "it was on the same connection");
    for (seen, taken) in world.seen().await.iter().zip([0, 1]) {
        assert_eq!((seen.taken, &seen.outages), (taken, &[(FailureMode::Reset, 1)].into()));
    }
    assert_eq!(
        answered(world.fcm_request(&text_to("a"))).await.status,
        StatusCode::OK,
        "a new connection works"
    );
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_drips_is_complete_in_the_end() {
    let world = World::open().await;
    for (take_anyway, status, taken) in [(false, 503, 0), (true, 200, 1)] {
        world.down(&Outage { take_anyway, ..once(FailureMode::Drip) });
        let begun = Instant::now();
        let answer = answered(world.fcm_request(&text_to("a"))).await;
        assert_eq!(answer.status.as_u16(), status);
        assert!(answer.json().is_object());
        assert!(
            begun.elapsed() >= Duration::from_secs(answer.text.len() as u64 - 1),
            "{:?}",
            begun.elapsed()
        );
        assert_eq!(world.sandbox.statistics().fcm.taken, taken);
    }
}

#[tokio::test]
async fn a_short_answer_is_an_incomplete_success() {
    let world = World::open().await;
    world.down(&Outage { take_anyway: true, ..once(FailureMode::Short) });
    let tickets = answered(world.expo_request()).await;
    assert_eq!(
        (tickets.status.as_u16(), tickets.json()["data"].as_array().unwrap().len()),
        (200, 1),
        "for two messages"
    );
    let answer = answered(world.fcm_request(&text_to("a"))).await;
    assert_eq!((answer.status.as_u16(), answer.json()), (200, json!({})));
    let token = answered(world.http1.post(format!("{}/token", world.sandbox.url()))).await;
    assert_eq!((token.status.as_u16(), token.json().get("access_token")), (200, None));
    let [expo, fcm] = world.seen().await;
    assert_eq!((expo.taken, fcm.taken), (2, 1));
}

#[tokio::test]
async fn the_failure_mode_is_set_over_http() {
    let world = World::open().await;
    let url = format!("{}/sandbox/faults", world.sandbox.url());
    let put = async |body: Value| answered(world.http1.put(&url).body(body.to_string())).await;
    for manner in ["error", "html", "hang", "reset", "drip", "short"] {
        assert_eq!(
            put(json!({ "fcm": { "down": { "manner": manner } } })).await.status,
            StatusCode::OK,
            "{manner}"
        );
    }
    assert_eq!(
        put(json!({ "fcm": { "down": { "manner": "explode" } } })).await.status,
        StatusCode::BAD_REQUEST
    );
    assert_eq!(
        put(json!({ "expo": { "receiptsDown": { "manner": "reset", "requests": 1 } } })).await.status,
        StatusCode::OK
    );
    let ids: Vec<String> = vec![expo_token("no ticket")];
    let receipts = world
        .http1
        .post(format!("{}/--/api/v2/push/getReceipts", world.sandbox.url()))
        .body(json!({ "ids": ids }).to_string());
    assert!(receipts.send().await.is_err());
}
