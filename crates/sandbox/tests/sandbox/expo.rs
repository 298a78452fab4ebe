//! The fake Expo.

use std::{io::Write as _, time::Duration};

use flate2::{Compression, write::GzEncoder};
use reqwest::{StatusCode, Version};
use sandbox::{Answer, Faults, Options, Outage};
use serde_json::{Value, json};

use super::{World, answered, expo_token, ids, messages};

fn error_code(body: &Value) -> &str {
    body["errors"][0]["code"].as_str().unwrap_or_else(|| panic!("no error code: {body}"))
}

#[tokio::test]
async fn expo_returns_a_ticket_per_recipient_in_their_order() {
    let world = World::open().await;
    let body = json!([
        { "to": [expo_token("a"), expo_token("dead-b")], "body": "x" },
        { "to": expo_token("c"), "body": "y" },
    ]);
    let answer = world.expo(body).await;
    assert_eq!((answer.status, answer.version), (StatusCode::OK, Version::HTTP_11));
    let tickets = answer.json();
    let statuses: Vec<_> =
        tickets["data"].as_array().unwrap().iter().map(|ticket| ticket["status"].as_str().unwrap()).collect();
    assert_eq!(statuses, ["ok", "error", "ok"]);
    assert_eq!(
        tickets["data"][1]["details"],
        json!({ "error": "DeviceNotRegistered", "expoPushToken": expo_token("dead-b") })
    );

    let statistics = world.expo_statistics();
    assert_eq!(
        (statistics.taken, statistics.answered(Answer::Ok), statistics.answered(Answer::Dead)),
        (2, 2, 1)
    );
    let taken: Vec<_> = world.sandbox.messages().into_iter().map(|message| message.token).collect();
    assert_eq!(taken, [expo_token("a"), expo_token("c")]);
}

#[tokio::test]
async fn the_ticket_of_a_single_message_to_expo_is_not_in_an_array() {
    let world = World::open().await;
    let tickets = world.expo(json!({ "to": expo_token("a"), "body": "x" })).await.json();
    assert_eq!(tickets["data"]["status"], "ok");
    let tickets = world.expo(json!({ "to": expo_token("dead"), "body": "x" })).await.json();
    assert_eq!(tickets["data"]["details"]["error"], "DeviceNotRegistered");
}

#[tokio::test]
async fn expo_reads_gzip_and_http2() {
    let world = World::open().await;
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(messages(&["a", "b"]).to_string().as_bytes()).unwrap();
    let request = world
        .http2
        .post(world.sandbox.expo_url())
        .header("content-encoding", "gzip")
        .body(gzip.finish().unwrap());
    let answer = answered(request).await;
    assert_eq!((answer.status, answer.version), (StatusCode::OK, Version::HTTP_2));
    assert_eq!(ids(&answer.json()).len(), 2);
    assert_eq!(world.expo_statistics().http_versions, [("HTTP/2.0".to_owned(), 1)].into());
}

#[tokio::test]
async fn expo_refuses_what_is_malformed_or_too_large() {
    let world = World::open().await;
    let hundred_and_one: Vec<_> = (0..101).map(expo_token).collect();
    for (body, code) in [
        (json!([{ "to": hundred_and_one, "body": "x" }]), "PUSH_TOO_MANY_NOTIFICATIONS"),
        (json!([{ "body": "x" }]), "VALIDATION_ERROR"),
        (json!([]), "VALIDATION_ERROR"),
        (json!([{ "to": expo_token("a"), "data": "text" }]), "VALIDATION_ERROR"),
        (json!([{ "to": expo_token("a") }, { "to": "no token" }]), "VALIDATION_ERROR"),
        (json!([{ "to": expo_token("malformed") }]), "VALIDATION_ERROR"),
    ] {
        let answer = world.expo(body.clone()).await;
        assert_eq!((answer.status.as_u16(), error_code(&answer.json())), (400, code), "{body}");
    }
    let too_many: Vec<_> = (0..1001).map(|id| id.to_string()).collect();
    let answer = world.receipts(&too_many).await;
    assert_eq!((answer.status.as_u16(), error_code(&answer.json())), (400, "PUSH_TOO_MANY_RECEIPTS"));
    assert_eq!(world.expo_statistics().taken, 0);
}

#[tokio::test]
async fn expo_refuses_a_request_for_two_projects_and_lists_the_tokens_of_each() {
    let world = World::open().await;
    let answer = world.expo(messages(&["a", "foreign", "b"])).await;
    let body = answer.json();
    assert_eq!((answer.status.as_u16(), error_code(&body)), (400, "PUSH_TOO_MANY_EXPERIENCE_IDS"));
    let expected =
        json!({ "@sandbox/app": [expo_token("a"), expo_token("b")], "@other/app": [expo_token("foreign")] });
    assert_eq!(body["errors"][0]["details"], expected);
    assert_eq!(world.expo_statistics().answered(Answer::Foreign), 3);

    assert_eq!(
        world.expo(messages(&["foreign"])).await.status,
        StatusCode::OK,
        "alone it goes to its own project"
    );
}

#[tokio::test]
async fn expo_refuses_a_request_over_the_rate_and_takes_nothing_of_it() {
    let world = World::open().await;
    world.set(|faults| faults.expo.rate_limit = Some(3));
    let answer = world.expo(messages(&["a", "b", "c", "d"])).await;
    assert_eq!((answer.status.as_u16(), error_code(&answer.json())), (429, "TOO_MANY_REQUESTS"));
    assert!(
        answer.text.contains("Exceeded 3 notifications per second, please try again."),
        "{}",
        answer.text
    );
    assert_eq!(answer.retry_after, None);
    assert_eq!(world.expo(messages(&["a", "b"])).await.status, StatusCode::OK);
    let statistics = world.expo_statistics();
    assert_eq!((statistics.taken, statistics.answered(Answer::Throttled)), (2, 4));
    assert_eq!(statistics.statuses, [(200, 1), (429, 1)].into());
}

#[tokio::test]
async fn expo_demands_its_access_token() {
    let world =
        World::start(Options { expo_access_token: Some("secret".to_owned()), ..Options::remembering() })
            .await;
    let answer = world.expo(messages(&["a"])).await;
    assert_eq!((answer.status.as_u16(), error_code(&answer.json())), (403, "UNAUTHORIZED"));
    let request = || {
        world.http1.post(world.sandbox.expo_url()).bearer_auth("secret").body(messages(&["a"]).to_string())
    };
    assert_eq!(answered(request()).await.status, StatusCode::OK);
    assert!(!world.sandbox.messages()[0].headers.contains_key("authorization"));

    world.set(|faults| faults.expo.credentials_refused = true);
    assert_eq!(answered(request()).await.status, StatusCode::FORBIDDEN);
    assert_eq!(world.expo_statistics().answered(Answer::CredentialsRefused), 2);
}

#[tokio::test]
async fn an_outage_of_expo_answers_that_many_requests_with_html() {
    let world = World::open().await;
    let outage = Outage {
        status: 502,
        requests: Some(2),
        retry_after: Some(Duration::from_millis(1500)),
        ..Outage::default()
    };
    world.set(|faults| faults.expo.down = Some(outage));
    for left in [Some(1), Some(0)] {
        let answer = world.expo(messages(&["a"])).await;
        assert_eq!((answer.status, answer.retry_after.as_deref()), (StatusCode::BAD_GATEWAY, Some("2")));
        assert!(answer.text.starts_with("<html>"), "{}", answer.text);
        let shown = world.sandbox.faults().get().expo.down;
        assert_eq!(shown.and_then(|outage| outage.requests), left.filter(|left| *left > 0));
    }
    assert_eq!(world.expo(messages(&["a"])).await.status, StatusCode::OK);
    let statistics = world.expo_statistics();
    assert_eq!(
        (statistics.taken, statistics.answered(Answer::Down), statistics.answered(Answer::Ok)),
        (1, 2, 1)
    );
}

#[tokio::test]
async fn an_outage_lasts_until_the_faults_are_set_again() {
    let world = World::open().await;
    world.set(|faults| faults.expo.down = Some(Outage { status: 500, ..Outage::default() }));
    for _ in 0..3 {
        let answer = world.expo(messages(&["a"])).await;
        assert_eq!((answer.status.as_u16(), error_code(&answer.json())), (500, "INTERNAL_SERVER_ERROR"));
    }
    world.sandbox.faults().set(Faults::default());
    assert_eq!(world.expo(messages(&["a"])).await.status, StatusCode::OK);
}

#[tokio::test]
async fn an_outage_may_take_the_messages_and_the_repeat_is_a_duplicate() {
    let world = World::open().await;
    let outage = Outage { status: 504, requests: Some(1), take_anyway: true, ..Outage::default() };
    world.set(|faults| faults.expo.down = Some(outage));
    assert_eq!(world.expo(messages(&["a", "b", "dead"])).await.status, StatusCode::GATEWAY_TIMEOUT);
    assert_eq!(world.expo_statistics().taken, 2);
    assert_eq!(world.expo(messages(&["a", "b", "dead"])).await.status, StatusCode::OK);
    let statistics = world.expo_statistics();
    assert_eq!((statistics.taken, statistics.distinct_tokens, statistics.duplicates), (4, 2, 2));
    assert_eq!(
        (
            statistics.answered(Answer::Down),
            statistics.answered(Answer::Ok),
            statistics.answered(Answer::Dead)
        ),
        (3, 2, 1)
    );
}

#[tokio::test]
async fn receipts_report_what_became_of_the_tickets() {
    let world = World::open().await;
    let body = json!([
        { "to": expo_token("a"), "body": "x" },
        { "to": expo_token("ghost"), "body": "x" },
        { "to": expo_token("busy"), "body": "x" },
        { "to": expo_token("uncredentialed"), "body": "x" },
        { "to": expo_token("b"), "body": "x".repeat(4097) },
    ]);
    let tickets = ids(&world.expo(body).await.json());
    let unknown = "XXXXXXXX-XXXX-XXXX-XXXX-XXXXXXXXXXXX".to_owned();
    let receipts = world.receipts(&[&tickets[..], &[unknown]].concat()).await.json();
    let found = receipts["data"].as_object().unwrap();
    assert_eq!(found.len(), 5, "an unknown id has no receipt");
    assert_eq!(found[&tickets[0]], json!({ "status": "ok" }));
    let errors: Vec<_> =
        tickets[1..].iter().map(|id| found[id]["details"]["error"].as_str().unwrap()).collect();
    assert_eq!(errors, ["DeviceNotRegistered", "MessageRateExceeded", "InvalidCredentials", "MessageTooBig"]);
    let statistics = world.sandbox.statistics().receipts;
    assert_eq!((statistics.requests, statistics.asked, statistics.given, statistics.bad), (1, 6, 5, 4));
}

#[tokio::test]
async fn a_receipt_is_absent_while_it_is_not_ready() {
    let world = World::open().await;
    world.set(|faults| faults.expo.receipt_delay = Duration::from_secs(900));
    let tickets = ids(&world.expo(messages(&["a"])).await.json());
    assert_eq!(world.receipts(&tickets).await.json(), json!({ "data": {} }));
    world.set(|faults| faults.expo.receipt_delay = Duration::ZERO);
    assert_eq!(world.receipts(&tickets).await.json()["data"][&tickets[0]]["status"], "ok");

    world.set(|faults| faults.expo.receipts_down = Some(Outage { requests: Some(1), ..Outage::default() }));
    assert_eq!(world.receipts(&tickets).await.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(world.receipts(&tickets).await.status, StatusCode::OK);
}
