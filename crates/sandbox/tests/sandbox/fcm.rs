//! The fake FCM and its credentials.

use std::time::Duration;

use reqwest::{StatusCode, Version};
use sandbox::{Answer, Options, Outage, Sandbox};
use serde_json::{Value, json};
use yup_oauth2::{ServiceAccountAuthenticator, ServiceAccountKey};

use super::{SCOPE, World, answered, text_to};

fn details(body: &Value) -> Vec<&str> {
    let details = body["error"]["details"].as_array().unwrap_or_else(|| panic!("no details: {body}"));
    details.iter().map(|detail| detail["@type"].as_str().unwrap().rsplit('.').next().unwrap()).collect()
}

#[tokio::test]
async fn fcm_takes_a_message_to_a_token_or_an_installation() {
    let world = World::open().await;
    let answer = world.fcm(text_to("abc:1")).await;
    assert_eq!((answer.status, answer.version), (StatusCode::OK, Version::HTTP_2));
    assert!(answer.json()["name"].as_str().unwrap().starts_with("projects/sandbox/messages/"));
    assert_eq!(world.fcm(json!({ "fid": "cAFEcafeCAFEcafeCAFE12" })).await.status, StatusCode::OK);
    let statistics = world.sandbox.statistics();
    assert_eq!((statistics.fcm.taken, statistics.fcm.distinct_tokens, statistics.expo.taken), (2, 2, 0));
}

#[tokio::test]
async fn fcm_answers_each_fault_of_a_token_in_its_own_way() {
    let world = World::open().await;
    for (token, http, status, code, kinds) in [
        ("dead", 404, "NOT_FOUND", "UNREGISTERED", &["FcmError"][..]),
        ("foreign", 403, "PERMISSION_DENIED", "SENDER_ID_MISMATCH", &["FcmError"]),
        ("busy", 429, "RESOURCE_EXHAUSTED", "QUOTA_EXCEEDED", &["FcmError", "QuotaFailure"]),
        ("malformed", 400, "INVALID_ARGUMENT", "INVALID_ARGUMENT", &["FcmError"]),
        ("no token!", 400, "INVALID_ARGUMENT", "INVALID_ARGUMENT", &["FcmError"]),
        ("uncredentialed", 401, "UNAUTHENTICATED", "THIRD_PARTY_AUTH_ERROR", &["FcmError"]),
    ] {
        let answer = world.fcm(text_to(token)).await;
        let body = answer.json();
        assert_eq!(
            (answer.status.as_u16(), body["error"]["code"].as_u64().unwrap()),
            (http, u64::from(http)),
            "{token}"
        );
        assert_eq!(
            (&body["error"]["status"], &body["error"]["details"][0]["errorCode"]),
            (&json!(status), &json!(code))
        );
        assert_eq!(details(&body), kinds, "{token}");
    }
    assert_eq!(world.fcm(text_to("ghost")).await.status, StatusCode::OK, "FCM has no receipts");
    let answers = world.sandbox.statistics().fcm.answers;
    let expected = [
        (Answer::Ok, 1),
        (Answer::Dead, 1),
        (Answer::Foreign, 1),
        (Answer::Busy, 1),
        (Answer::Invalid, 2),
        (Answer::CredentialsRefused, 1),
    ];
    assert_eq!(answers, expected.into());
}

#[tokio::test]
async fn fcm_answers_an_invalid_payload_unlike_an_invalid_token() {
    let world = World::open().await;
    let body = world.fcm(json!({ "token": "a", "data": { "count": 5 } })).await.json();
    assert_eq!(details(&body), ["BadRequest"]);
    assert_eq!(body["error"]["details"][0]["fieldViolations"][0]["field"], "message.data[0].value");
    let body = world.fcm(json!({ "token": "a", "notification": { "title": "x".repeat(5000) } })).await.json();
    assert_eq!(details(&body), ["FcmError", "BadRequest"]);
    let answer = answered(world.fcm_request(&json!({ "token": "a" })).body("{")).await;
    assert_eq!((answer.status, details(&answer.json())), (StatusCode::BAD_REQUEST, vec!["BadRequest"]));
    assert_eq!(world.sandbox.statistics().fcm.statuses, [(400, 3)].into());
}

#[tokio::test]
async fn fcm_knows_one_project() {
    let world = World::open().await;
    let url = format!("{}/v1/projects/another/messages:send", world.sandbox.fcm_url());
    let answer = answered(world.http2.post(url).body(json!({ "message": text_to("a") }).to_string())).await;
    assert_eq!(answer.status, StatusCode::NOT_FOUND);
    assert_eq!(answer.json()["error"]["details"], Value::Null, "nothing about the token");
}

#[tokio::test]
async fn fcm_refuses_a_message_over_the_rate_without_an_fcm_error() {
    let world = World::open().await;
    world.set(|faults| faults.fcm.rate_limit = Some(0));
    let answer = world.fcm(text_to("a")).await;
    let body = answer.json();
    assert_eq!((answer.status.as_u16(), answer.retry_after.as_deref()), (429, Some("1")));
    assert_eq!(details(&body), ["ErrorInfo", "Help"]);
    assert_eq!(body["error"]["details"][0]["reason"], "RATE_LIMIT_EXCEEDED");
    world.set(|faults| faults.fcm.retry_after = Some(Duration::from_secs(60)));
    assert_eq!(world.fcm(text_to("a")).await.retry_after.as_deref(), Some("60"));
    assert_eq!(world.sandbox.statistics().fcm.answered(Answer::Throttled), 2);
}

#[tokio::test]
async fn an_outage_of_fcm_has_googles_status() {
    let world = World::open().await;
    for (status, name) in
        [(500, "INTERNAL"), (503, "UNAVAILABLE"), (429, "RESOURCE_EXHAUSTED"), (401, "UNAUTHENTICATED")]
    {
        let outage = Outage {
            status,
            requests: Some(1),
            retry_after: Some(Duration::from_secs(7)),
            ..Outage::default()
        };
        world.set(|faults| faults.fcm.down = Some(outage));
        let answer = world.fcm(text_to("a")).await;
        assert_eq!((answer.status.as_u16(), answer.retry_after.as_deref()), (status, Some("7")));
        assert_eq!(answer.json()["error"]["status"], name);
    }
    let outage = Outage { requests: Some(1), take_anyway: true, ..Outage::default() };
    world.set(|faults| faults.fcm.down = Some(outage));
    for status in [StatusCode::SERVICE_UNAVAILABLE, StatusCode::OK] {
        assert_eq!(world.fcm(text_to("a")).await.status, status);
    }
    let statistics = world.sandbox.statistics().fcm;
    assert_eq!((statistics.taken, statistics.duplicates), (2, 1));
}

#[tokio::test]
async fn a_message_that_is_only_validated_is_not_taken() {
    let world = World::open().await;
    let body = json!({ "validate_only": true, "message": text_to("a") }).to_string();
    assert_eq!(answered(world.fcm_request(&json!({})).body(body)).await.status, StatusCode::OK);
    let statistics = world.sandbox.statistics().fcm;
    assert_eq!((statistics.taken, statistics.answered(Answer::Ok)), (0, 1));
    assert_eq!(world.sandbox.messages(), []);
}

#[tokio::test]
async fn a_connection_carries_as_many_requests_at_once_as_fcm_allows() {
    let world = World::open().await;
    world.set(|faults| faults.fcm.latency = Duration::from_millis(50));
    let all = (0..300).map(|n| world.fcm(text_to(&format!("t{n}"))));
    let statuses: Vec<_> =
        futures::future::join_all(all).await.into_iter().map(|answer| answer.status).collect();
    assert_eq!(statuses, [StatusCode::OK; 300]);
    assert_eq!(world.sandbox.statistics().fcm.distinct_tokens, 300);
}

// === credentials ===

#[tokio::test]
async fn fcm_demands_an_access_token_of_the_service_account() {
    let world = World::start(Options::default()).await;
    let send = async |bearer: &str| answered(world.fcm_request(&text_to("a")).bearer_auth(bearer)).await;
    let refused = world.fcm(text_to("a")).await;
    assert_eq!((refused.status, details(&refused.json())), (StatusCode::UNAUTHORIZED, vec!["ErrorInfo"]));
    assert_eq!(send("invented").await.status, StatusCode::UNAUTHORIZED);

    let bearer = world.access_token().await.unwrap();
    assert_eq!(send(&bearer).await.status, StatusCode::OK);
    assert_eq!(world.sandbox.statistics().credentials_issued, 1);

    world.sandbox.revoke_credentials();
    assert_eq!(send(&bearer).await.status, StatusCode::UNAUTHORIZED);
    let fresh = world.access_token().await.unwrap();
    assert_eq!(send(&fresh).await.status, StatusCode::OK);
    world.set(|faults| faults.fcm.credentials_refused = true);
    assert_eq!(send(&fresh).await.status, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn an_access_token_expires() {
    let world = World::start(Options::default()).await;
    world.set(|faults| faults.oauth.lifetime = Duration::ZERO);
    // Zero, because yup-oauth2 replaces a token before it expires.
    let bearer = world.access_token().await.unwrap();
    assert_eq!(
        answered(world.fcm_request(&text_to("a")).bearer_auth(bearer)).await.status,
        StatusCode::UNAUTHORIZED
    );
}

#[tokio::test]
async fn a_service_account_with_another_key_is_refused() {
    let world = World::start(Options::default()).await;
    let other = Sandbox::start(Options::default()).await.unwrap();
    let mut key: ServiceAccountKey = serde_json::from_str(&other.service_account()).unwrap();
    let own: Value = serde_json::from_str(&world.sandbox.service_account()).unwrap();
    key.token_uri = own["token_uri"].as_str().unwrap().to_owned();
    let authenticator = ServiceAccountAuthenticator::builder(key).build().await.unwrap();
    let err = authenticator.token(&[SCOPE]).await.unwrap_err();
    assert!(err.to_string().contains("Invalid JWT Signature"), "{err}");
}

#[tokio::test]
async fn the_token_endpoint_has_faults_of_its_own() {
    let world = World::start(Options::default()).await;
    let url = format!("{}/token", world.sandbox.url());
    world.set(|faults| faults.oauth.refused = true);
    let err = world.access_token().await.unwrap_err();
    assert!(err.to_string().contains("invalid_grant"), "{err}");
    world.set(|faults| {
        faults.oauth.refused = false;
        faults.oauth.down = Some(Outage { requests: Some(1), ..Outage::default() });
    });
    let answer = answered(world.http1.post(&url).body("")).await;
    assert_eq!((answer.status.as_u16(), &answer.json()["error"]["code"]), (503, &json!(503)));
    let answer = answered(world.http1.post(&url).body("grant_type=password")).await;
    assert_eq!((answer.status.as_u16(), &answer.json()["error"]), (400, &json!("invalid_grant")));
    world.access_token().await.unwrap();
}
