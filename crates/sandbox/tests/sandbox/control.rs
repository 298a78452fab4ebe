//! The control API: statistics, messages, faults, start and stop.

use std::time::Duration;

use reqwest::StatusCode;
use sandbox::{Faults, Options, Provider, Sandbox, Statistics, TakenMessage, TokenFault, TokenRule};
use serde_json::{Value, json};

use super::{World, answered, expo_token, messages, text_to};

#[tokio::test]
async fn duplicates_are_found_by_tag_or_collapse_id_else_by_text() {
    let world = World::open().await;
    let expo = |fields: Value| {
        let mut message = json!([{ "to": expo_token("a"), "body": "x" }]);
        message[0].as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        message
    };
    for (fields, duplicates) in [
        (json!({ "tag": "t1" }), 0),
        (json!({ "tag": "t2" }), 0),
        (json!({ "tag": "t1", "body": "y" }), 1),
        (json!({ "collapseId": "t2" }), 2),
        (json!({}), 2),
        (json!({ "body": "y" }), 2),
        (json!({}), 3),
    ] {
        world.expo(expo(fields.clone())).await;
        assert_eq!(world.expo_statistics().duplicates, duplicates, "{fields}");
    }
}

#[tokio::test]
async fn the_peak_counts_what_arrives_whatever_the_answer() {
    let world = World::open().await;
    world.set(|faults| faults.expo.rate_limit = Some(0));
    for _ in 0..3 {
        assert_eq!(
            world.expo(messages(&["a", "b", "c", "d", "e"])).await.status,
            StatusCode::TOO_MANY_REQUESTS
        );
    }
    let statistics = world.expo_statistics();
    // On a slow machine the three may fall into different seconds, but five messages arrive at once.
    assert!([5, 10, 15].contains(&statistics.peak_per_second), "{statistics:?}");
    assert_eq!(statistics.requests, 3);
    assert!(statistics.first_at.unwrap() < statistics.last_at.unwrap());
}

#[tokio::test]
async fn a_kept_message_has_all_its_fields() {
    let world = World::open().await;
    let message = json!({
        "to": expo_token("a"), "title": "T", "body": "B", "data": { "post_id": "p1" },
        "tag": "t", "collapseId": "c", "priority": "high",
    });
    let request = world
        .http1
        .post(world.sandbox.expo_url())
        .header("x-test", "1")
        .bearer_auth("secret")
        .body(message.to_string());
    answered(request).await;
    let taken = world.sandbox.messages().remove(0);
    assert_eq!((taken.provider, taken.token, taken.raw), (Provider::Expo, expo_token("a"), message));
    assert_eq!(
        (taken.title.as_deref(), taken.body.as_deref(), taken.data),
        (Some("T"), Some("B"), json!({ "post_id": "p1" }))
    );
    assert_eq!((taken.tag.as_deref(), taken.collapse_id.as_deref()), (Some("t"), Some("c")));
    assert_eq!((taken.headers["x-test"].as_str(), taken.headers.get("authorization")), ("1", None));
    assert_eq!(taken.http_version, "HTTP/1.1");

    world
        .fcm(json!({
            "token": "f", "notification": { "title": "T", "body": "B" }, "data": { "k": "v" },
            "android": { "notification": { "tag": "t" } }, "apns": { "headers": { "apns-collapse-id": "c" } },
        }))
        .await;
    let taken = world.sandbox.messages().remove(1);
    assert_eq!(
        (taken.provider, taken.token.as_str(), taken.http_version.as_str()),
        (Provider::Fcm, "f", "HTTP/2.0")
    );
    assert_eq!(
        (taken.title.as_deref(), taken.body.as_deref(), taken.data),
        (Some("T"), Some("B"), json!({ "k": "v" }))
    );
    assert_eq!((taken.tag.as_deref(), taken.collapse_id.as_deref()), (Some("t"), Some("c")));
}

#[tokio::test]
async fn only_the_latest_messages_are_kept() {
    let world = World::start(Options { remember: 2, ..Options::default() }).await;
    world.expo(messages(&["a", "b", "c"])).await;
    let tokens: Vec<_> = world.sandbox.messages().into_iter().map(|message| message.token).collect();
    assert_eq!(tokens, [expo_token("b"), expo_token("c")]);

    let world = World::start(Options::default()).await;
    world.expo(messages(&["a"])).await;
    assert_eq!((world.sandbox.messages(), world.expo_statistics().taken), (vec![], 1));
}

#[tokio::test]
async fn messages_that_are_drained_are_removed_and_still_counted() {
    let world = World::open().await;
    let drained =
        || world.sandbox.drain_messages().into_iter().map(|message| message.token).collect::<Vec<_>>();
    world.expo(messages(&["a", "b"])).await;
    assert_eq!((drained(), drained()), (vec![expo_token("a"), expo_token("b")], vec![]));
    world.expo(messages(&["c"])).await;
    assert_eq!((drained(), world.expo_statistics().taken), (vec![expo_token("c")], 3));
}

#[tokio::test]
async fn faults_can_be_set_and_read_over_http() {
    let world = World::open().await;
    let url = format!("{}/sandbox/faults", world.sandbox.url());
    let put = async |body: Value| answered(world.http1.put(&url).body(body.to_string())).await;
    let script = json!({
        "expo": {
            "latency": "1ms", "rateLimit": 5, "receiptDelay": "15m",
            "down": { "status": 502, "requests": 3, "takeAnyway": true },
            "tokens": [
                { "containing": "x", "fault": "dead" },
                { "fraction": 0.5, "fault": "ghost" },
                { "tokens": ["t"], "fault": "busy" },
            ],
        },
    });
    assert_eq!(put(script).await.status, StatusCode::OK);
    let shown: Faults = serde_json::from_value(answered(world.http1.get(&url)).await.json()).unwrap();
    assert_eq!(shown, world.sandbox.faults().get());
    assert_eq!((shown.expo.rate_limit, shown.expo.receipt_delay), (Some(5), Duration::from_secs(900)));
    assert_eq!(shown.expo.tokens[2], TokenRule::of(TokenFault::Busy, ["t"]));
    assert_eq!(shown.fcm, Faults::default().fcm);

    let answer = put(json!({ "expo": { "latancy": "1ms" } })).await;
    assert_eq!(answer.status, StatusCode::BAD_REQUEST);
    assert!(answer.text.contains("latancy"), "{}", answer.text);
    assert_eq!(put(json!({})).await.status, StatusCode::OK);
    assert_eq!(world.sandbox.faults().get(), Faults::default());
}

#[tokio::test]
async fn statistics_messages_and_reset_over_http() {
    let world = World::open().await;
    world.expo(messages(&["a", "b"])).await;
    let url = |path: &str| format!("{}/sandbox/{path}", world.sandbox.url());
    let statistics: Statistics =
        serde_json::from_str(&answered(world.http1.get(url("statistics"))).await.text).unwrap();
    assert_eq!(statistics, world.sandbox.statistics());
    assert_eq!(statistics.expo.taken, 2);
    let only_b = world.http1.get(format!("{}?token=ExponentPushToken%5Bb%5D", url("messages")));
    let only_b: Vec<TakenMessage> = serde_json::from_str(&answered(only_b).await.text).unwrap();
    assert_eq!(only_b, world.sandbox.messages()[1..]);

    assert_eq!(answered(world.http1.post(url("reset"))).await.status, StatusCode::NO_CONTENT);
    assert_eq!((world.sandbox.statistics(), world.sandbox.messages()), (Statistics::default(), vec![]));
}

#[tokio::test]
async fn messages_count_on_arrival_not_when_they_are_answered() {
    let world = World::open().await;
    world.set(|faults| faults.expo.latency = Duration::from_secs(3600));
    let waiting = world.http1.post(world.sandbox.expo_url()).body(messages(&["a"]).to_string()).send();
    let arrived = async {
        while world.expo_statistics().taken == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::select! {
        answer = waiting => panic!("answered at once: {answer:?}"),
        () = arrived => (),
    }
}

#[tokio::test]
async fn a_stop_ends_every_task_and_frees_the_port() {
    let world = World::open().await;
    let address = world.sandbox.address();
    let alive = tokio::runtime::Handle::current().metrics();
    world.set(|faults| {
        faults.expo.latency = Duration::from_secs(3600);
        faults.fcm.latency = Duration::from_secs(3600);
    });
    let World { sandbox, http1, http2 } = world;
    let expo = http1.post(sandbox.expo_url()).body(messages(&["a"]).to_string()).send();
    let url = format!("{}/v1/projects/sandbox/messages:send", sandbox.url());
    let fcm = http2.post(url).body(json!({ "message": text_to("a") }).to_string()).send();
    let stop = async {
        while sandbox.statistics().expo.taken + sandbox.statistics().fcm.taken < 2 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        sandbox.stop().await;
    };
    let all = async { tokio::join!(expo, fcm, stop) };
    let (expo, fcm, ()) =
        tokio::time::timeout(Duration::from_secs(60), all).await.expect("a stop ends requests in flight");
    assert!(expo.is_err() && fcm.is_err(), "their connections were closed");
    drop((http1, http2));
    let ended = async {
        while alive.num_alive_tasks() > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), ended).await.expect("no task is left behind");
    Sandbox::start(Options { listen: address, ..Options::default() }).await.unwrap();
}

#[tokio::test]
async fn every_url_that_the_sandbox_writes_has_the_origin_of_its_options() {
    let options = Options { url: Some("http://localhost:1".to_owned()), ..Options::default() };
    let sandbox = Sandbox::start(options).await.unwrap();
    assert_eq!(sandbox.expo_url(), "http://localhost:1/--/api/v2/push/send");
    assert_eq!(sandbox.fcm_url(), "http://localhost:1");
    let account: Value = serde_json::from_str(&sandbox.service_account()).unwrap();
    assert_eq!(account["token_uri"], "http://localhost:1/token");
}
