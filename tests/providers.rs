//! The clients of Expo and FCM against a server whose answers a test scripts, over real sockets. The clock is
//! paused and advances only while all tasks are idle, so that a slow machine causes no time-outs.

#![expect(clippy::unwrap_used, reason = "clippy takes helpers of an integration test for production code")]

use std::{
    collections::{BTreeSet, VecDeque},
    io::Read as _,
    sync::{Arc, LazyLock, Mutex},
    time::Duration,
};

use aws_lc_rs::{
    encoding::{AsDer as _, Pkcs8V1Der},
    rsa::{KeyPair, KeySize},
};
use axum::{
    Router,
    body::Bytes,
    extract::{ConnectInfo, State},
    http::{HeaderMap, StatusCode, Uri, Version, header},
    response::{IntoResponse as _, Response},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use flate2::read::GzDecoder;
use pushcast::{
    dispatch::{Provider, PushMessage, Receipt, ReceiptSource as _, Reply, Verdict},
    domain::{Notification, NotificationId, Platform, Timestamp, Token},
    expo::{self, Expo},
    fcm::{self, Fcm},
    metrics::Metrics,
};
use serde_json::{Value, json};
use tokio::{
    io::AsyncReadExt as _,
    net::{TcpListener, TcpSocket},
    task::JoinSet,
};

/// A request that the server got.
#[derive(Clone, Debug)]
struct Received {
    path: String,
    version: Version,
    headers: HeaderMap,
    body: Value,
    from: std::net::SocketAddr,
}

/// A scripted answer.
enum Answer {
    With(u16, &'static str, String),
    Never,
}

#[derive(Default)]
struct Script {
    received: Mutex<Vec<Received>>,
    sends: Mutex<VecDeque<Answer>>,
    tokens: Mutex<VecDeque<(u16, Value)>>,
    tokens_issued: Mutex<usize>,
}

/// A push service and its token endpoint: accepts everything, except where an answer is scripted.
struct Fake {
    origin: String,
    script: Arc<Script>,
    _server: JoinSet<()>,
}

impl Fake {
    async fn start() -> Self {
        let script = Arc::new(Script::default());
        let app = Router::new().fallback(answer).with_state(script.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let origin = format!("http://{}", listener.local_addr().unwrap());
        let mut server = JoinSet::new();
        server.spawn(async move {
            axum::serve(listener, app.into_make_service_with_connect_info::<std::net::SocketAddr>())
                .await
                .unwrap();
        });
        Self { origin, script, _server: server }
    }

    fn answers(&self, status: u16, body: impl ToString) {
        self.answers_with(status, "", body);
    }

    fn answers_with(&self, status: u16, retry_after: &'static str, body: impl ToString) {
        self.script.sends.lock().unwrap().push_back(Answer::With(status, retry_after, body.to_string()));
    }

    fn never_answers(&self) {
        self.script.sends.lock().unwrap().push_back(Answer::Never);
    }

    fn token_endpoint_answers(&self, status: u16, body: Value) {
        self.script.tokens.lock().unwrap().push_back((status, body));
    }

    fn sends(&self) -> Vec<Received> {
        let received = self.script.received.lock().unwrap();
        received.iter().filter(|request| request.path != "/token").cloned().collect()
    }

    fn token_fetches(&self) -> usize {
        self.script.received.lock().unwrap().iter().filter(|request| request.path == "/token").count()
    }

    fn expo(&self) -> expo::Settings {
        expo::Settings {
            enabled: true,
            url: format!("{}/--/api/v2/push/send", self.origin),
            access_token: "".into(),
            rate_per_second: 0,
            requests_in_flight: 4,
            request_timeout: Duration::from_secs(10),
            gzip: true,
            receipts: true,
            receipt_delay: Duration::ZERO,
            dead_token_errors: vec!["DeviceNotRegistered".into()],
        }
    }

    fn fcm(&self) -> fcm::Settings {
        fcm::Settings {
            url: self.origin.clone(),
            project_id: "walks".into(),
            credentials_file: String::new(),
            client_email: "push@walks.iam.gserviceaccount.com".into(),
            private_key: PRIVATE_KEY.replace('\n', "\\n").into(),
            token_url: format!("{}/token", self.origin),
            rate_per_second: 0,
            ramp_up: Duration::ZERO,
            requests_in_flight: 10,
            connections: 2,
            request_timeout: Duration::from_secs(10),
            validate_only: false,
        }
    }
}

async fn answer(
    State(script): State<Arc<Script>>,
    ConnectInfo(from): ConnectInfo<std::net::SocketAddr>,
    uri: Uri,
    version: Version,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let path = uri.path().to_owned();
    let mut plain = Vec::new();
    if headers.get(header::CONTENT_ENCODING).is_some_and(|encoding| encoding == "gzip") {
        GzDecoder::new(&body[..]).read_to_end(&mut plain).unwrap();
    } else {
        plain.extend_from_slice(&body);
    }
    let body: Value = serde_json::from_slice(&plain).unwrap_or_default();
    let received = Received { path: path.clone(), version, headers, body: body.clone(), from };
    script.received.lock().unwrap().push(received);

    if path == "/token" {
        let mut issued = script.tokens_issued.lock().unwrap();
        *issued += 1;
        let default = (
            200,
            json!({"access_token": format!("ya29.{issued}"), "expires_in": 3599, "token_type": "Bearer"}),
        );
        let (status, body) = script.tokens.lock().unwrap().pop_front().unwrap_or(default);
        return (StatusCode::from_u16(status).unwrap(), body.to_string()).into_response();
    }
    let scripted = script.sends.lock().unwrap().pop_front();
    match scripted {
        Some(Answer::With(status, "", body)) => (StatusCode::from_u16(status).unwrap(), body).into_response(),
        Some(Answer::With(status, wait, body)) => {
            (StatusCode::from_u16(status).unwrap(), [(header::RETRY_AFTER, wait)], body).into_response()
        }
        Some(Answer::Never) => std::future::pending().await,
        None if path.ends_with("messages:send") => {
            json!({"name": "projects/walks/messages/1"}).to_string().into_response()
        }
        None if path.ends_with("getReceipts") => json!({"data": {}}).to_string().into_response(),
        None => {
            let tickets: Vec<Value> = body
                .as_array()
                .unwrap()
                .iter()
                .flat_map(|message| {
                    recipients(message).map(|to| json!({"status": "ok", "id": format!("ticket of {to}")}))
                })
                .collect();
            json!({ "data": tickets }).to_string().into_response()
        }
    }
}

/// The tokens of a message object of Expo's: one, or several.
fn recipients(message: &Value) -> impl Iterator<Item = &str> {
    let to = &message["to"];
    let all = to.as_array().map_or(std::slice::from_ref(to), Vec::as_slice);
    all.iter().map(|token| token.as_str().unwrap())
}

static PRIVATE_KEY: LazyLock<String> = LazyLock::new(|| {
    let der: Pkcs8V1Der<'_> = KeyPair::generate(KeySize::Rsa2048).unwrap().as_der().unwrap();
    format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", STANDARD.encode(der.as_ref()))
});

/// A port that is in use as long as the socket exists, and that no process listens on.
fn refusing_port() -> (TcpSocket, String) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let origin = format!("http://{}", socket.local_addr().unwrap());
    (socket, origin)
}

/// A server that reads all of a small request, and closes the connection.
async fn closing_server() -> (JoinSet<()>, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let origin = format!("http://{}", listener.local_addr().unwrap());
    let mut server = JoinSet::new();
    server.spawn(async move {
        loop {
            let (mut connection, _) = listener.accept().await.unwrap();
            let mut read = Vec::new();
            let mut bytes = [0; 4096];
            while !String::from_utf8_lossy(&read).contains("New Reflection") {
                match connection.read(&mut bytes).await {
                    Ok(count @ 1..) => read.extend_from_slice(&bytes[..count]),
                    Ok(0) | Err(_) => break,
                }
            }
        }
    });
    (server, origin)
}

fn notification() -> Notification {
    Notification {
        id: NotificationId::new("post:p1"),
        title: "New Reflection from Ann".into(),
        body: "On walking".into(),
        data: [("post_id".to_owned(), "p1".into())].into(),
        sound: Some("default".into()),
        channel: "default".into(),
        expires_at: Timestamp::UNIX_EPOCH,
    }
}

/// One request to these tokens, on these platforms in turn.
async fn send<P: Provider>(provider: &P, tokens: &[String], platforms: &[Platform]) -> Reply {
    let body = provider.body(&notification()).unwrap();
    let tokens: Vec<Token> = tokens.iter().map(|token| Token::parse(token).unwrap()).collect();
    let ttl = Duration::from_secs(3600);
    let message = |(token, platform)| PushMessage { body: &body, token, platform: Some(platform), ttl };
    let messages: Vec<_> = tokens.iter().zip(platforms.iter().copied().cycle()).map(message).collect();
    provider.send(&messages).await
}

fn expo_tokens(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("ExponentPushToken[{number:03}]")).collect()
}

async fn expo_send(expo: &Expo, count: usize) -> Reply {
    send(expo, &expo_tokens(count), &[Platform::Android]).await
}

async fn fcm_send(fcm: &Fcm) -> Reply {
    send(fcm, &[format!("t:{}", "x".repeat(100))], &[Platform::Android]).await
}

async fn fcm(settings: &fcm::Settings) -> Fcm {
    fcm_with(settings, Arc::new(Metrics::new())).await
}

/// With an OAuth token, unless the token endpoint refuses or fails.
async fn fcm_with(settings: &fcm::Settings, metrics: Arc<Metrics>) -> Fcm {
    let fcm = Fcm::new(settings, metrics).await.unwrap().unwrap();
    let _refused_or_down = fcm.authorised().await;
    fcm
}

fn bearer(request: &Received) -> &str {
    request.headers.get(header::AUTHORIZATION).map_or("", |value| value.to_str().unwrap())
}

const ACCEPTED: fn() -> Reply = || Reply::Each(vec![Verdict::Accepted { ticket: None }]);

const UNAUTHENTICATED: &str = concat!(
    r#"{"error":{"code":401,"message":"Request had invalid authentication credentials.","#,
    r#""status":"UNAUTHENTICATED"}}"#,
);

#[tokio::test(start_paused = true)]
async fn expo_takes_a_hundred_messages_in_one_compressed_request() {
    let fake = Fake::start().await;
    let metrics = Arc::new(Metrics::new());
    let expo =
        Expo::new(&expo::Settings { access_token: "secret".into(), ..fake.expo() }, metrics.clone()).unwrap();
    let Reply::Each(verdicts) = expo_send(&expo, 100).await else { panic!("no verdicts") };
    assert_eq!(verdicts.len(), 100);
    assert_eq!(verdicts[42], Verdict::Accepted { ticket: Some("ticket of ExponentPushToken[042]".into()) });

    let [request] = &fake.sends()[..] else { panic!("one request") };
    assert_eq!((request.path.as_str(), request.version), ("/--/api/v2/push/send", Version::HTTP_11));
    assert_eq!(bearer(request), "Bearer secret");
    assert_eq!(request.headers[header::CONTENT_ENCODING], "gzip");
    let to: Vec<&str> = request.body.as_array().unwrap().iter().flat_map(recipients).collect();
    assert_eq!((to.len(), to[7]), (100, "ExponentPushToken[007]"));
    assert!(
        metrics.exposition().contains(r#"pushcast_provider_requests_total{provider="expo",status="200"} 1"#)
    );
    assert!(!format!("{expo:?}").contains("secret"));
}

#[tokio::test(start_paused = true)]
async fn without_receipts_no_ticket_is_kept() {
    let fake = Fake::start().await;
    let expo =
        Expo::new(&expo::Settings { receipts: false, ..fake.expo() }, Arc::new(Metrics::new())).unwrap();
    assert_eq!(expo_send(&expo, 2).await, Reply::Each(vec![Verdict::Accepted { ticket: None }; 2]));
}

#[tokio::test(start_paused = true)]
async fn messages_that_share_an_object_get_their_own_verdicts() {
    let fake = Fake::start().await;
    let expo = Expo::new(&fake.expo(), Arc::new(Metrics::new())).unwrap();
    let tokens = expo_tokens(7);
    let platforms = [Platform::Ios, Platform::Android];
    let Reply::Each(verdicts) = send(&expo, &tokens, &platforms).await else { panic!("no verdicts") };
    let ticket = |token: &String| Verdict::Accepted { ticket: Some(format!("ticket of {token}").into()) };
    assert_eq!(verdicts, tokens.iter().map(ticket).collect::<Vec<_>>());
    assert_eq!(
        fake.sends()[0].body.as_array().unwrap().len(),
        2,
        "messages of the same content share an object"
    );

    let projects = json!({
        "@us/app": [tokens[0], tokens[1], tokens[4]],
        "@them/app": [tokens[2], tokens[3], tokens[5], tokens[6]],
    });
    let error = json!({ "code": "PUSH_TOO_MANY_EXPERIENCE_IDS", "message": "", "details": projects });
    fake.answers(400, json!({ "errors": [error] }));
    let Reply::Split(mut groups) = send(&expo, &tokens, &platforms).await else { panic!("no split") };
    groups.iter_mut().for_each(|group| group.sort_unstable());
    groups.sort();
    assert_eq!(groups, [vec![0, 1, 4], vec![2, 3, 5, 6]]);
}

#[tokio::test(start_paused = true)]
async fn a_small_request_to_expo_is_not_compressed_and_has_no_bearer_if_none_is_set() {
    let fake = Fake::start().await;
    let expo = Expo::new(&fake.expo(), Arc::new(Metrics::new())).unwrap();
    assert!(matches!(expo_send(&expo, 1).await, Reply::Each(_)));
    let [request] = &fake.sends()[..] else { panic!("one request") };
    assert!(!request.headers.contains_key(header::CONTENT_ENCODING) && bearer(request).is_empty());
}

#[tokio::test(start_paused = true)]
async fn the_wait_that_expo_asks_for_is_in_the_reply() {
    let fake = Fake::start().await;
    let expo = Expo::new(&fake.expo(), Arc::new(Metrics::new())).unwrap();
    fake.answers_with(429, "7", r#"{"errors":[{"code":"TOO_MANY_REQUESTS"}]}"#);
    assert_eq!(expo_send(&expo, 2).await, Reply::Throttled { retry_after: Some(Duration::from_secs(7)) });
}

#[tokio::test(start_paused = true)]
async fn a_time_out_of_expo_is_ambiguous_and_a_refused_connection_is_not() {
    let fake = Fake::start().await;
    let metrics = Arc::new(Metrics::new());
    let expo = Expo::new(
        &expo::Settings { request_timeout: Duration::from_millis(300), ..fake.expo() },
        metrics.clone(),
    )
    .unwrap();
    fake.never_answers();
    assert!(matches!(expo_send(&expo, 1).await, Reply::Down { ambiguous: true, .. }));

    let (_port, origin) = refusing_port();
    let expo =
        Expo::new(&expo::Settings { url: format!("{origin}/push/send"), ..fake.expo() }, metrics.clone())
            .unwrap();
    assert!(matches!(expo_send(&expo, 1).await, Reply::Down { ambiguous: false, .. }));
    assert!(
        metrics.exposition().contains(r#"pushcast_provider_requests_total{provider="expo",status="none"} 2"#)
    );
}

#[tokio::test(start_paused = true)]
async fn unrecognised_answers_of_expo_are_counted() {
    let fake = Fake::start().await;
    let metrics = Arc::new(Metrics::new());
    let expo = Expo::new(&fake.expo(), metrics.clone()).unwrap();
    fake.answers(418, "{}");
    assert!(matches!(expo_send(&expo, 1).await, Reply::Unrecognised { status: 418, .. }));
    fake.answers(200, r#"{"data":[{"status":"error","details":{"error":"New"}},{"status":"ok","id":"1"}]}"#);
    assert!(matches!(expo_send(&expo, 2).await, Reply::Each(_)));
    assert!(metrics.exposition().contains(r#"pushcast_unrecognised_answers_total{provider="expo"} 2"#));
}

#[tokio::test(start_paused = true)]
async fn receipts_are_asked_for_beside_the_url_for_sending() {
    let fake = Fake::start().await;
    let expo = Expo::new(&fake.expo(), Arc::new(Metrics::new())).unwrap();
    fake.answers(200, r#"{"data":{"t1":{"status":"ok"}}}"#);
    let receipts = expo.receipts(&["t1".into(), "t2".into()]).await.unwrap();
    assert_eq!(receipts, [("t1".to_owned(), Receipt::Delivered)]);
    let [request] = &fake.sends()[..] else { panic!("one request") };
    assert_eq!(request.path, "/--/api/v2/push/getReceipts");
    assert_eq!(request.body, json!({"ids": ["t1", "t2"]}));

    fake.answers(503, "");
    assert!(expo.receipts(&["t1".into()]).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn messages_to_fcm_are_spread_over_its_connections_with_one_oauth_token() {
    let fake = Fake::start().await;
    let fcm = fcm(&fake.fcm()).await;
    // More at once than a connection carries before the peer's SETTINGS arrive.
    let replies = futures::future::join_all((0..500).map(|_| fcm_send(&fcm))).await;
    assert!(replies.iter().all(|reply| *reply == ACCEPTED()), "{replies:?}");
    let sends = fake.sends();
    assert_eq!(sends.len(), 500);
    assert!(
        sends.iter().all(|request| request.version == Version::HTTP_2 && bearer(request) == "Bearer ya29.1")
    );
    assert_eq!(sends[0].path, "/v1/projects/walks/messages:send");
    assert_eq!(sends[0].body["message"]["notification"]["title"], "New Reflection from Ann");
    assert_eq!(sends.iter().map(|request| request.from).collect::<BTreeSet<_>>().len(), 2);
    assert_eq!(fake.token_fetches(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_refused_oauth_token_is_renewed_before_the_message_is_returned() {
    let fake = Fake::start().await;
    let fcm = fcm(&fake.fcm()).await;
    fake.answers(401, UNAUTHENTICATED);
    let reply = fcm_send(&fcm).await;
    assert!(
        matches!(&reply, Reply::Reauthorised { refused: Some(why) } if why.contains("UNAUTHENTICATED")),
        "{reply:?}"
    );
    assert_eq!((fake.sends().len(), fake.token_fetches()), (1, 2));
    assert_eq!(fcm_send(&fcm).await, ACCEPTED());
    assert_eq!(fake.sends().iter().map(bearer).collect::<Vec<_>>(), ["Bearer ya29.1", "Bearer ya29.2"]);
}

#[tokio::test(start_paused = true)]
async fn a_message_before_the_first_oauth_token_waits_for_it_and_is_returned_unsent() {
    let fake = Fake::start().await;
    let fcm = Fcm::new(&fake.fcm(), Arc::new(Metrics::new())).await.unwrap().unwrap();
    assert_eq!(fcm_send(&fcm).await, Reply::Reauthorised { refused: None });
    assert!(fake.sends().is_empty());
    assert_eq!(fcm_send(&fcm).await, ACCEPTED());
}

#[tokio::test(start_paused = true)]
async fn a_wrong_apns_key_does_not_renew_the_oauth_token() {
    let fake = Fake::start().await;
    let fcm = fcm(&fake.fcm()).await;
    fake.answers(
        401,
        r#"{"error":{"code":401,"message":"Auth error from APNS","status":"UNAUTHENTICATED","details":[
            {"@type":"type.googleapis.com/google.firebase.fcm.v1.FcmError",
             "errorCode":"THIRD_PARTY_AUTH_ERROR"}]}}"#,
    );
    let Reply::Each(verdicts) = fcm_send(&fcm).await else { panic!("no verdict") };
    assert!(matches!(verdicts[..], [Verdict::CredentialsRefused { .. }]), "{verdicts:?}");
    assert_eq!((fake.sends().len(), fake.token_fetches()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn while_the_token_endpoint_fails_nothing_is_sent_and_fetches_are_retried() {
    let fake = Fake::start().await;
    // yup-oauth2 would cache this answer for ever.
    fake.token_endpoint_answers(
        503,
        json!({"error": {"code": 503, "message": "unavailable", "status": "UNAVAILABLE"}}),
    );
    let fcm = fcm(&fake.fcm()).await;
    let first = fcm_send(&fcm).await;
    assert!(matches!(first, Reply::Down { ambiguous: false, .. }), "{first:?}");
    assert!(fake.sends().is_empty());
    let recovered = async {
        while fcm_send(&fcm).await != ACCEPTED() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), recovered).await.expect("the next fetch brings a token");
}

#[tokio::test(start_paused = true)]
async fn an_account_that_google_refuses_is_reported_as_refused_credentials() {
    let fake = Fake::start().await;
    fake.token_endpoint_answers(
        400,
        json!({"error": "invalid_grant", "error_description": "Invalid JWT Signature."}),
    );
    let reply = fcm_send(&fcm(&fake.fcm()).await).await;
    assert!(
        matches!(&reply, Reply::CredentialsRefused { why } if why.contains("Invalid JWT Signature")),
        "{reply:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn unrecognised_answers_of_fcm_are_counted() {
    let fake = Fake::start().await;
    let metrics = Arc::new(Metrics::new());
    let fcm = fcm_with(&fake.fcm(), metrics.clone()).await;
    fake.answers(418, "{}");
    assert!(matches!(fcm_send(&fcm).await, Reply::Unrecognised { status: 418, .. }));
    assert!(metrics.exposition().contains(r#"pushcast_unrecognised_answers_total{provider="fcm"} 1"#));
}

#[tokio::test(start_paused = true)]
async fn a_time_out_of_fcm_is_ambiguous() {
    let fake = Fake::start().await;
    let fcm = fcm(&fcm::Settings { request_timeout: Duration::from_secs(2), ..fake.fcm() }).await;
    fake.never_answers();
    let reply = fcm_send(&fcm).await;
    assert!(
        matches!(&reply, Reply::Down { ambiguous: true, why, .. } if why == "no answer within 2s"),
        "{reply:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_refused_connection_to_fcm_is_not_ambiguous() {
    let fake = Fake::start().await;
    let (_port, url) = refusing_port();
    let reply = fcm_send(&fcm(&fcm::Settings { url, ..fake.fcm() }).await).await;
    assert!(matches!(reply, Reply::Down { ambiguous: false, .. }), "{reply:?}");
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_expo_closes_without_an_answer_is_ambiguous() {
    let fake = Fake::start().await;
    let (_server, origin) = closing_server().await;
    let expo = Expo::new(
        &expo::Settings { url: format!("{origin}/push/send"), ..fake.expo() },
        Arc::new(Metrics::new()),
    )
    .unwrap();
    let reply = expo_send(&expo, 1).await;
    assert!(matches!(reply, Reply::Down { ambiguous: true, .. }), "{reply:?}");
}

#[tokio::test(start_paused = true)]
async fn fcm_without_credentials_is_not_in_use() {
    let fake = Fake::start().await;
    let settings = fcm::Settings { client_email: String::new(), private_key: "".into(), ..fake.fcm() };
    assert!(Fcm::new(&settings, Arc::new(Metrics::new())).await.unwrap().is_none());
}

#[tokio::test(start_paused = true)]
async fn an_invalid_url_is_refused_at_the_start() {
    let fake = Fake::start().await;
    for url in ["", "exp.host", "ftp://exp.host/push/send"] {
        assert!(
            Expo::new(&expo::Settings { url: url.into(), ..fake.expo() }, Arc::new(Metrics::new())).is_err(),
            "{url}"
        );
        assert!(
            Fcm::new(&fcm::Settings { url: url.into(), ..fake.fcm() }, Arc::new(Metrics::new()))
                .await
                .is_err(),
            "{url}"
        );
    }
}
