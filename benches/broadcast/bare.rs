//! Loops around reqwest that post bodies and do nothing else: no Kafka, no store, no rate limit, no retries.
//! The tokens are in memory before the clock starts.

use std::{io::Write as _, path::Path, sync::Arc};

use flate2::{Compression, write::GzEncoder};
use futures::{StreamExt as _, stream};
use reqwest::{
    Client,
    header::{AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE},
};
use serde::Deserialize;
use tokio::time::Instant;
use yup_oauth2::{ServiceAccountAuthenticator, read_service_account_key};

use crate::{
    Figures,
    child::{Child, SENDER},
    process::cpu_seconds,
    sender::token,
    world::World,
};

pub const ROLE: &str = "bare";
/// Requests in flight, as in config/default.toml.
const EXPO_IN_FLIGHT: usize = 64;
/// Requests in flight: the streams of one HTTP/2 connection.
const FCM_IN_FLIGHT: usize = 100;
const BATCH: usize = 100;
const SCOPE: &str = "https://www.googleapis.com/auth/firebase.messaging";

#[derive(Deserialize)]
struct Tickets<'a> {
    #[serde(borrow)]
    data: Vec<Ticket<'a>>,
}

#[derive(Deserialize)]
struct Ticket<'a> {
    status: &'a str,
    id: &'a str,
}

#[derive(Deserialize)]
struct Sent<'a> {
    name: &'a str,
}

/// A bare loop.
#[derive(Clone, Copy)]
pub struct Bare {
    pub provider: &'static str,
    /// Of Expo: `grouped` = as pushcast posts them, `single` = an object for each message.
    pub bodies: &'static str,
    pub gzip: &'static str,
}

/// One run in a process of its own.
pub async fn run(world: &World, Bare { provider, bodies, gzip }: Bare, messages: u64) -> Figures {
    world.reset().await;
    let url = &world.environment["PUSHCAST__EXPO__URL"];
    let credentials = &world.environment["PUSHCAST__FCM__CREDENTIALS_FILE"];
    let url = if provider == "expo" { url } else { &world.environment["PUSHCAST__FCM__URL"] };
    let mut child =
        Child::own(SENDER, &[ROLE, provider, bodies, gzip, url, credentials, &messages.to_string()]);
    let numbers: Vec<f64> = child.lines(1)[0].split(' ').map(|number| number.parse().unwrap()).collect();
    let rate = world.rate(provider, messages).await;
    Figures { rate, seconds: numbers[0], cpu: numbers[1] * 1e5 / messages as f64, peak: child.peak() }
}

/// Posts all messages, prints how many seconds and CPU seconds that took, and waits to be killed.
pub fn main(arguments: &[String]) {
    let [provider, bodies, gzip, url, credentials, messages] = arguments else { panic!("{arguments:?}") };
    let messages = messages.parse().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (seconds, cpu) = runtime.block_on(async {
        match provider.as_str() {
            "expo" => expo(url, messages, bodies == "grouped", gzip == "true").await,
            _ => fcm(url, credentials.as_ref(), messages).await,
        }
    });
    println!("{seconds} {cpu}");
    loop {
        std::thread::park();
    }
}

async fn expo(url: &str, messages: u64, grouped: bool, gzip: bool) -> (f64, f64) {
    let http = Client::builder().no_proxy().http1_only().build().unwrap();
    let rest = concat!(
        r#","ttl":86399,"title":"New Reflection from nobody","body":"A benchmark","#,
        r#""data":{"author_id":"nobody","post_id":"bench-0","screen":"post_detail"},"#,
        r#""sound":"default","priority":"high","channelId":"default","tag":"w2Kk0m8wqJ2oXl0bJ3C0bA"}"#,
    );
    let tokens: Vec<String> = (0..messages).map(|n| token("expo", n)).collect();
    let started = Instant::now();
    let cpu = cpu_seconds("self");
    let requests = tokens.chunks(BATCH).map(|tokens| {
        let body = if grouped {
            format!(r#"[{{"to":["{}"]{rest}]"#, tokens.join("\",\""))
        } else {
            let mut body = String::with_capacity(BATCH * 400);
            for token in tokens {
                body.push_str(if body.is_empty() { r#"[{"to":""# } else { r#",{"to":""# });
                body.push_str(token);
                body.push('"');
                body.push_str(rest);
            }
            body.push(']');
            body
        };
        let post = http.post(url).header(CONTENT_TYPE, "application/json");
        let post = if gzip {
            post.header(CONTENT_ENCODING, "gzip").body(compressed(body.as_bytes()))
        } else {
            post.body(body)
        };
        async move {
            let answer = post.send().await.unwrap().error_for_status().unwrap().bytes().await.unwrap();
            let tickets: Tickets<'_> = serde_json::from_slice(&answer).unwrap();
            assert!(
                tickets.data.len() == BATCH
                    && tickets.data.iter().all(|ticket| ticket.status == "ok" && !ticket.id.is_empty())
            );
        }
    });
    stream::iter(requests).buffer_unordered(EXPO_IN_FLIGHT).for_each(async |()| {}).await;
    (started.elapsed().as_secs_f64(), cpu_seconds("self") - cpu)
}

async fn fcm(url: &str, credentials: &Path, messages: u64) -> (f64, f64) {
    let key = read_service_account_key(credentials).await.unwrap();
    let url = format!("{url}/v1/projects/{}/messages:send", key.project_id.clone().unwrap());
    let authenticator = ServiceAccountAuthenticator::builder(key).build().await.unwrap();
    let bearer: Arc<str> =
        format!("Bearer {}", authenticator.token(&[SCOPE]).await.unwrap().token().unwrap()).into();
    let http = Client::builder().no_proxy().http2_prior_knowledge().build().unwrap();
    let rest = concat!(
        r#"","android":{"ttl":"86399s","priority":"HIGH","#,
        r#""notification":{"channel_id":"default","tag":"w2Kk0m8wqJ2oXl0bJ3C0bA","sound":"default"}},"#,
        r#""apns":{"headers":{"apns-expiration":"1795000000","apns-priority":"10","#,
        r#""apns-collapse-id":"w2Kk0m8wqJ2oXl0bJ3C0bA"},"payload":{"aps":{"sound":"default"}}},"#,
        r#""notification":{"title":"New Reflection from nobody","body":"A benchmark"},"#,
        r#""data":{"author_id":"nobody","post_id":"bench-0","screen":"post_detail"}},"validate_only":false}"#,
    );
    let tokens: Vec<String> = (0..messages).map(|n| token("fcm", n)).collect();
    let started = Instant::now();
    let cpu = cpu_seconds("self");
    let requests = tokens.iter().map(|token| {
        let body = format!(r#"{{"message":{{"token":"{token}{rest}"#);
        let post = http
            .post(&url)
            .header(CONTENT_TYPE, "application/json")
            .header(AUTHORIZATION, &*bearer)
            .body(body);
        async move {
            let answer = post.send().await.unwrap().error_for_status().unwrap().bytes().await.unwrap();
            assert!(!serde_json::from_slice::<Sent<'_>>(&answer).unwrap().name.is_empty());
        }
    });
    stream::iter(requests).buffer_unordered(FCM_IN_FLIGHT).for_each(async |()| {}).await;
    (started.elapsed().as_secs_f64(), cpu_seconds("self") - cpu)
}

fn compressed(body: &[u8]) -> Vec<u8> {
    let mut gzip = GzEncoder::new(Vec::with_capacity(body.len() / 4), Compression::new(1));
    gzip.write_all(body).unwrap();
    gzip.finish().unwrap()
}
