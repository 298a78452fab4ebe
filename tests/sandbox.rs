//! The fake providers, as a plain HTTP client sees them.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{io::Write as _, time::Duration};

use flate2::{Compression, write::GzEncoder};
use pushcast::sandbox::{Answer, Faults, Options, Outage, Provider, Sandbox, Statistics, TakenMessage, TokenFault, TokenRule};
use reqwest::{Client, RequestBuilder, StatusCode, Version};
use serde_json::{Value, json};
use yup_oauth2::{ServiceAccountAuthenticator, ServiceAccountKey};

const SCOPE: &str = "https://www.googleapis.com/auth/firebase.messaging";

/// A sandbox and one client for each version of HTTP.
struct World {
    sandbox: Sandbox,
    http1: Client,
    http2: Client,
}

struct Answered {
    status: StatusCode,
    version: Version,
    retry_after: Option<String>,
    text: String,
}

impl Answered {
    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|_| panic!("not JSON: {}", self.text))
    }
}

impl World {
    async fn start(options: Options) -> Self {
        let sandbox = Sandbox::start(options).await.unwrap();
        let http2 = Client::builder().http2_prior_knowledge().build().unwrap();
        Self { sandbox, http1: Client::builder().http1_only().build().unwrap(), http2 }
    }

    /// FCM wants no access token here.
    async fn open() -> Self {
        Self::start(Options { require_bearer: false, ..Options::remembering() }).await
    }

    fn set(&self, change: impl FnOnce(&mut Faults)) {
        self.sandbox.faults().change(change);
    }

    async fn expo(&self, body: Value) -> Answered {
        answered(self.http1.post(self.sandbox.expo_url()).body(body.to_string())).await
    }

    async fn receipts(&self, ids: &[String]) -> Answered {
        let url = format!("{}/--/api/v2/push/getReceipts", self.sandbox.url());
        answered(self.http1.post(url).body(json!({ "ids": ids }).to_string())).await
    }

    fn fcm_request(&self, message: &Value) -> RequestBuilder {
        let url = format!("{}/v1/projects/sandbox/messages:send", self.sandbox.fcm_url());
        self.http2.post(url).body(json!({ "message": message }).to_string())
    }

    async fn fcm(&self, message: Value) -> Answered {
        answered(self.fcm_request(&message)).await
    }

    fn expo_statistics(&self) -> pushcast::sandbox::ProviderStatistics {
        self.sandbox.statistics().expo
    }

    async fn access_token(&self) -> Result<String, yup_oauth2::Error> {
        let key: ServiceAccountKey = serde_json::from_str(&self.sandbox.service_account()).unwrap();
        let authenticator = ServiceAccountAuthenticator::builder(key).build().await.unwrap();
        Ok(authenticator.token(&[SCOPE]).await?.token().unwrap().to_owned())
    }
}

async fn answered(request: RequestBuilder) -> Answered {
    let response = request.send().await.unwrap();
    Answered {
        status: response.status(),
        version: response.version(),
        retry_after: response.headers().get("retry-after").map(|after| after.to_str().unwrap().to_owned()),
        text: response.text().await.unwrap(),
    }
}

fn expo_token(name: impl std::fmt::Display) -> String {
    format!("ExponentPushToken[{name}]")
}

fn messages(names: &[&str]) -> Value {
    names.iter().map(|name| json!({ "to": expo_token(name), "title": "T", "body": "B" })).collect()
}

fn text_to(token: &str) -> Value {
    json!({ "token": token, "notification": { "title": "T", "body": "B" } })
}

fn ids(tickets: &Value) -> Vec<String> {
    tickets["data"].as_array().unwrap().iter().map(|ticket| ticket["id"].as_str().unwrap().to_owned()).collect()
}

fn error_code(body: &Value) -> &str {
    body["errors"][0]["code"].as_str().unwrap_or_else(|| panic!("no error code: {body}"))
}

fn details(body: &Value) -> Vec<&str> {
    let details = body["error"]["details"].as_array().unwrap_or_else(|| panic!("no details: {body}"));
    details.iter().map(|detail| detail["@type"].as_str().unwrap().rsplit('.').next().unwrap()).collect()
}

// === Expo ===

#[tokio::test]
async fn expo_gives_a_ticket_per_recipient_in_their_order() {
    let world = World::open().await;
    let body = json!([
        { "to": [expo_token("a"), expo_token("dead-b")], "body": "x" },
        { "to": expo_token("c"), "body": "y" },
    ]);
    let answer = world.expo(body).await;
    assert_eq!((answer.status, answer.version), (StatusCode::OK, Version::HTTP_11));
    let tickets = answer.json();
    let statuses: Vec<_> = tickets["data"].as_array().unwrap().iter().map(|ticket| ticket["status"].as_str().unwrap()).collect();
    assert_eq!(statuses, ["ok", "error", "ok"]);
    assert_eq!(tickets["data"][1]["details"], json!({ "error": "DeviceNotRegistered", "expoPushToken": expo_token("dead-b") }));

    let statistics = world.expo_statistics();
    assert_eq!((statistics.taken, statistics.answered(Answer::Ok), statistics.answered(Answer::Dead)), (2, 2, 1));
    let taken: Vec<_> = world.sandbox.messages().into_iter().map(|message| message.token).collect();
    assert_eq!(taken, [expo_token("a"), expo_token("c")]);
}

#[tokio::test]
async fn a_lone_message_to_expo_gets_a_lone_ticket() {
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
    let request = world.http2.post(world.sandbox.expo_url()).header("content-encoding", "gzip").body(gzip.finish().unwrap());
    let answer = answered(request).await;
    assert_eq!((answer.status, answer.version), (StatusCode::OK, Version::HTTP_2));
    assert_eq!(ids(&answer.json()).len(), 2);
    assert_eq!(world.expo_statistics().http_versions, [("HTTP/2.0".to_owned(), 1)].into());
}

#[tokio::test]
async fn expo_refuses_what_is_malformed_or_too_much() {
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
async fn expo_refuses_a_request_for_two_projects_and_tells_which_tokens_are_whose() {
    let world = World::open().await;
    let answer = world.expo(messages(&["a", "foreign", "b"])).await;
    let body = answer.json();
    assert_eq!((answer.status.as_u16(), error_code(&body)), (400, "PUSH_TOO_MANY_EXPERIENCE_IDS"));
    let expected = json!({ "@pushcast/sandbox": [expo_token("a"), expo_token("b")], "@stranger/other": [expo_token("foreign")] });
    assert_eq!(body["errors"][0]["details"], expected);
    assert_eq!(world.expo_statistics().answered(Answer::Foreign), 3);

    assert_eq!(world.expo(messages(&["foreign"])).await.status, StatusCode::OK, "alone it goes to its own project");
}

#[tokio::test]
async fn expo_refuses_what_goes_beyond_the_rate_and_takes_nothing_of_it() {
    let world = World::open().await;
    world.set(|faults| faults.expo.rate_limit = Some(3));
    let answer = world.expo(messages(&["a", "b", "c", "d"])).await;
    assert_eq!((answer.status.as_u16(), error_code(&answer.json())), (429, "TOO_MANY_REQUESTS"));
    assert!(answer.text.contains("Exceeded 3 notifications per second, please try again."), "{}", answer.text);
    assert_eq!(answer.retry_after, None);
    assert_eq!(world.expo(messages(&["a", "b"])).await.status, StatusCode::OK);
    let statistics = world.expo_statistics();
    assert_eq!((statistics.taken, statistics.answered(Answer::Throttled)), (2, 4));
    assert_eq!(statistics.statuses, [(200, 1), (429, 1)].into());
}

#[tokio::test]
async fn expo_wants_its_access_token() {
    let world = World::start(Options { expo_access_token: Some("secret".to_owned()), ..Options::remembering() }).await;
    let answer = world.expo(messages(&["a"])).await;
    assert_eq!((answer.status.as_u16(), error_code(&answer.json())), (403, "UNAUTHORIZED"));
    let request = || world.http1.post(world.sandbox.expo_url()).bearer_auth("secret").body(messages(&["a"]).to_string());
    assert_eq!(answered(request()).await.status, StatusCode::OK);
    assert!(!world.sandbox.messages()[0].headers.contains_key("authorization"));

    world.set(|faults| faults.expo.credentials_refused = true);
    assert_eq!(answered(request()).await.status, StatusCode::FORBIDDEN);
    assert_eq!(world.expo_statistics().answered(Answer::CredentialsRefused), 2);
}

#[tokio::test]
async fn an_outage_of_expo_hits_so_many_requests_with_html() {
    let world = World::open().await;
    let outage = Outage { status: 502, requests: Some(2), retry_after: Some(Duration::from_millis(1500)), ..Outage::default() };
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
    assert_eq!((statistics.taken, statistics.answered(Answer::Down), statistics.answered(Answer::Ok)), (1, 2, 1));
}

#[tokio::test]
async fn an_outage_lasts_until_the_faults_are_set_anew() {
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
async fn a_lying_outage_takes_the_messages_and_the_repeat_is_a_double() {
    let world = World::open().await;
    let outage = Outage { status: 504, requests: Some(1), take_anyway: true, ..Outage::default() };
    world.set(|faults| faults.expo.down = Some(outage));
    assert_eq!(world.expo(messages(&["a", "b", "dead"])).await.status, StatusCode::GATEWAY_TIMEOUT);
    assert_eq!(world.expo_statistics().taken, 2);
    assert_eq!(world.expo(messages(&["a", "b", "dead"])).await.status, StatusCode::OK);
    let statistics = world.expo_statistics();
    assert_eq!((statistics.taken, statistics.distinct_tokens, statistics.doubles), (4, 2, 2));
    assert_eq!((statistics.answered(Answer::Down), statistics.answered(Answer::Ok), statistics.answered(Answer::Dead)), (3, 2, 1));
}

#[tokio::test]
async fn receipts_tell_what_became_of_the_tickets() {
    let world = World::open().await;
    let body = json!([
        { "to": expo_token("a"), "body": "x" },
        { "to": expo_token("ghost"), "body": "x" },
        { "to": expo_token("busy"), "body": "x" },
        { "to": expo_token("uncredentialed"), "body": "x" },
        { "to": expo_token("b"), "body": "x".repeat(4097) },
    ]);
    let tickets = ids(&world.expo(body).await.json());
    let stranger = "XXXXXXXX-XXXX-XXXX-XXXX-XXXXXXXXXXXX".to_owned();
    let receipts = world.receipts(&[&tickets[..], &[stranger]].concat()).await.json();
    let found = receipts["data"].as_object().unwrap();
    assert_eq!(found.len(), 5, "a stranger's id is not there");
    assert_eq!(found[&tickets[0]], json!({ "status": "ok" }));
    let errors: Vec<_> = tickets[1..].iter().map(|id| found[id]["details"]["error"].as_str().unwrap()).collect();
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

// === FCM ===

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
        assert_eq!((answer.status.as_u16(), body["error"]["code"].as_u64().unwrap()), (http, u64::from(http)), "{token}");
        assert_eq!((&body["error"]["status"], &body["error"]["details"][0]["errorCode"]), (&json!(status), &json!(code)));
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
async fn fcm_tells_a_bad_payload_from_a_bad_token() {
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
    assert_eq!(answer.json()["error"]["details"], Value::Null, "nothing that speaks of the token");
}

#[tokio::test]
async fn fcm_refuses_what_goes_beyond_the_rate_without_an_fcm_error() {
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
async fn an_outage_of_fcm_speaks_as_google_does() {
    let world = World::open().await;
    for (status, word) in [(500, "INTERNAL"), (503, "UNAVAILABLE"), (429, "RESOURCE_EXHAUSTED"), (401, "UNAUTHENTICATED")] {
        let outage = Outage { status, requests: Some(1), retry_after: Some(Duration::from_secs(7)), ..Outage::default() };
        world.set(|faults| faults.fcm.down = Some(outage));
        let answer = world.fcm(text_to("a")).await;
        assert_eq!((answer.status.as_u16(), answer.retry_after.as_deref()), (status, Some("7")));
        assert_eq!(answer.json()["error"]["status"], word);
    }
    let outage = Outage { requests: Some(1), take_anyway: true, ..Outage::default() };
    world.set(|faults| faults.fcm.down = Some(outage));
    for status in [StatusCode::SERVICE_UNAVAILABLE, StatusCode::OK] {
        assert_eq!(world.fcm(text_to("a")).await.status, status);
    }
    let statistics = world.sandbox.statistics().fcm;
    assert_eq!((statistics.taken, statistics.doubles), (2, 1));
}

#[tokio::test]
async fn validating_takes_nothing() {
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
    let statuses: Vec<_> = futures::future::join_all(all).await.into_iter().map(|answer| answer.status).collect();
    assert_eq!(statuses, [StatusCode::OK; 300]);
    assert_eq!(world.sandbox.statistics().fcm.distinct_tokens, 300);
}

// === credentials ===

#[tokio::test]
async fn fcm_wants_an_access_token_that_the_service_account_gets() {
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
    // yup-oauth2 would keep asking for one that lives on; this one is dead on arrival.
    let bearer = world.access_token().await.unwrap();
    assert_eq!(answered(world.fcm_request(&text_to("a")).bearer_auth(bearer)).await.status, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn a_service_account_of_another_key_gets_nothing() {
    let world = World::start(Options::default()).await;
    let stranger = Sandbox::start(Options::default()).await.unwrap();
    let mut key: ServiceAccountKey = serde_json::from_str(&stranger.service_account()).unwrap();
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

// === statistics and control ===

#[tokio::test]
async fn doubles_are_told_apart_by_tag_or_collapse_id_else_by_text() {
    let world = World::open().await;
    let expo = |fields: Value| {
        let mut message = json!([{ "to": expo_token("a"), "body": "x" }]);
        message[0].as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        message
    };
    for (fields, doubles) in [
        (json!({ "tag": "t1" }), 0),
        (json!({ "tag": "t2" }), 0),
        (json!({ "tag": "t1", "body": "y" }), 1),
        (json!({ "collapseId": "t2" }), 2),
        (json!({}), 2),
        (json!({ "body": "y" }), 2),
        (json!({}), 3),
    ] {
        world.expo(expo(fields.clone())).await;
        assert_eq!(world.expo_statistics().doubles, doubles, "{fields}");
    }
}

#[tokio::test]
async fn the_peak_counts_what_arrives_whatever_it_is_answered() {
    let world = World::open().await;
    world.set(|faults| faults.expo.rate_limit = Some(0));
    for _ in 0..3 {
        assert_eq!(world.expo(messages(&["a", "b", "c", "d", "e"])).await.status, StatusCode::TOO_MANY_REQUESTS);
    }
    let statistics = world.expo_statistics();
    // On a slow machine the three may lie in different seconds, but five messages came at once.
    assert!([5, 10, 15].contains(&statistics.peak_per_second), "{statistics:?}");
    assert_eq!(statistics.requests, 3);
    assert!(statistics.first_at.unwrap() < statistics.last_at.unwrap());
}

#[tokio::test]
async fn a_remembered_message_is_whole() {
    let world = World::open().await;
    let message = json!({
        "to": expo_token("a"), "title": "T", "body": "B", "data": { "post_id": "p1" }, "tag": "t", "collapseId": "c", "priority": "high",
    });
    let request = world.http1.post(world.sandbox.expo_url()).header("x-test", "1").bearer_auth("secret").body(message.to_string());
    answered(request).await;
    let taken = world.sandbox.messages().remove(0);
    assert_eq!((taken.provider, taken.token, taken.raw), (Provider::Expo, expo_token("a"), message));
    assert_eq!((taken.title.as_deref(), taken.body.as_deref(), taken.data), (Some("T"), Some("B"), json!({ "post_id": "p1" })));
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
    assert_eq!((taken.provider, taken.token.as_str(), taken.http_version.as_str()), (Provider::Fcm, "f", "HTTP/2.0"));
    assert_eq!((taken.title.as_deref(), taken.body.as_deref(), taken.data), (Some("T"), Some("B"), json!({ "k": "v" })));
    assert_eq!((taken.tag.as_deref(), taken.collapse_id.as_deref()), (Some("t"), Some("c")));
}

#[tokio::test]
async fn only_the_latest_messages_are_remembered() {
    let world = World::start(Options { remember: 2, ..Options::default() }).await;
    world.expo(messages(&["a", "b", "c"])).await;
    let tokens: Vec<_> = world.sandbox.messages().into_iter().map(|message| message.token).collect();
    assert_eq!(tokens, [expo_token("b"), expo_token("c")]);

    let world = World::start(Options::default()).await;
    world.expo(messages(&["a"])).await;
    assert_eq!((world.sandbox.messages(), world.expo_statistics().taken), (vec![], 1));
}

#[tokio::test]
async fn faults_can_be_put_and_seen_over_http() {
    let world = World::open().await;
    let url = format!("{}/sandbox/faults", world.sandbox.url());
    let put = async |body: Value| answered(world.http1.put(&url).body(body.to_string())).await;
    let script = json!({
        "expo": {
            "latency": "1ms", "rateLimit": 5, "receiptDelay": "15m",
            "down": { "status": 502, "requests": 3, "takeAnyway": true },
            "tokens": [{ "containing": "x", "fault": "dead" }, { "fraction": 0.5, "fault": "ghost" }, { "tokens": ["t"], "fault": "busy" }],
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
    let statistics: Statistics = serde_json::from_str(&answered(world.http1.get(url("statistics"))).await.text).unwrap();
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
    let (expo, fcm, ()) = tokio::time::timeout(Duration::from_secs(60), all).await.expect("a stop cuts what is under way");
    assert!(expo.is_err() && fcm.is_err(), "their connections were cut");
    drop((http1, http2));
    let ended = async {
        while alive.num_alive_tasks() > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), ended).await.expect("no task is left behind");
    Sandbox::start(Options { listen: address, ..Options::default() }).await.unwrap();
}
