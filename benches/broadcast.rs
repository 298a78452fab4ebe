//! A broadcast with the rate limit off: messages per second, CPU and peak memory of the process that sends.
//!
//! ```text
//! cargo bench --bench broadcast -- [TOKENS] [latency in ms, …]
//! ```
//!
//! The embedded Kafka and the sandbox run in a process of their own, pushcast in another with its store on a file, as in
//! production on one machine. Tokens are registered as a producer would; half are Expo's, half FCM's. Each latency is one
//! broadcast through each provider. The figures are the sending process's own: wall time from the sandbox's first to its
//! last message, CPU seconds from `/proc`, peak memory since the start.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a bench ends where something fails")]

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use futures::{StreamExt, TryStreamExt, stream};
use pushcast::{
    config::{Config, Environment},
    kafka::Producer,
    stream::{Message, Publish},
};
use serde_json::{Value, json};
use tokio::time::sleep;

/// A child that ends with the bench, however that ends.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _reaped = self.0.wait();
    }
}

struct World {
    sandbox_url: String,
    admin_url: String,
    producer: Producer,
    http: reqwest::Client,
    // Dropped in this order: the sender goes before its Kafka.
    pushcast: Process,
    _sandbox: Process,
}

fn main() {
    let numbers: Vec<u64> = std::env::args().skip(1).filter_map(|argument| argument.parse().ok()).collect();
    let (tokens, latencies) = match &numbers[..] {
        [] => (100_000, vec![0, 50]),
        [tokens] => (*tokens, vec![0, 50]),
        [tokens, latencies @ ..] => (*tokens, latencies.to_vec()),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(run(tokens, &latencies));
}

async fn run(tokens: u64, latencies: &[u64]) {
    let folder = tempfile::tempdir().unwrap();
    let world = start(folder.path()).await;
    let cpu = world.cpu();
    let begun = tokio::time::Instant::now();
    world.register(tokens).await;
    let seconds = begun.elapsed().as_secs_f64();
    println!("{tokens} tokens registered: {:.0}/s, {:.1} CPU s, peak {:.0} MiB", tokens as f64 / seconds, world.cpu() - cpu, world.peak());
    println!("{:>8} {:>9} {:>10} {:>12} {:>20} {:>10}", "provider", "latency", "messages", "messages/s", "CPU s per 100,000", "peak MiB");
    for (round, latency) in latencies.iter().enumerate() {
        world.broadcast(&format!("bench-{round}"), tokens, *latency).await;
    }
}

async fn start(folder: &Path) -> World {
    let credentials = folder.join("credentials.json");
    let mut sandbox = Command::new(env!("CARGO_BIN_EXE_pushcast"))
        .args(["sandbox", "--kafka", "--listen", "127.0.0.1:0", "--remember", "0", "--credentials"])
        .arg(&credentials)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let printed = BufReader::new(sandbox.stdout.take().unwrap()).lines().take(4);
    let mut environment: Environment =
        printed.map(|line| line.unwrap().split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned())).unwrap()).collect();
    let admin = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    environment.extend(
        [
            ("STORE__URL", format!("embedded:{}", folder.join("store.db").display())),
            ("HTTP__ADMIN_LISTEN", admin.to_string()),
            ("EXPO__RATE_PER_SECOND", "0".to_owned()),
            ("FCM__RATE_PER_SECOND", "0".to_owned()),
            ("FCM__RAMP_UP", "0s".to_owned()),
            ("LOG__FILTER", "warn".to_owned()),
            ("KAFKA__PROPERTIES", r#"{"fetch.wait.max.ms":"5"}"#.to_owned()),
        ]
        .map(|(key, value)| (format!("PUSHCAST__{key}"), value)),
    );
    let pushcast = Command::new(env!("CARGO_BIN_EXE_pushcast")).arg("run").envs(&environment).spawn().unwrap();
    let config = Config::load(None, &environment).unwrap();
    let world = World {
        sandbox_url: environment["PUSHCAST__FCM__URL"].clone(),
        admin_url: format!("http://{admin}"),
        producer: Producer::new(&config.kafka).unwrap(),
        http: reqwest::Client::builder().no_proxy().build().unwrap(),
        _sandbox: Process(sandbox),
        pushcast: Process(pushcast),
    };
    world
        .until("pushcast is ready", async || {
            world.http.get(format!("{}/ready", world.admin_url)).send().await.is_ok_and(|r| r.status().is_success())
        })
        .await;
    world
}

impl World {
    async fn register(&self, tokens: u64) {
        let messages = (0..tokens).map(|n| {
            let token = match n % 2 {
                0 => format!("ExponentPushToken[bench{n:016}]"),
                _ => format!("bench{n:011}:{:0>140}", n),
            };
            let event = json!({ "token": token, "userId": format!("user{n}"), "platform": if n % 4 < 2 { "android" } else { "ios" } });
            Message::new("device-tokens", token, event.to_string().into_bytes())
        });
        let published = stream::iter(messages).map(|message| self.producer.publish(message)).buffer_unordered(5_000);
        published.try_collect::<()>().await.unwrap();
        self.until("all tokens are registered", async || {
            self.metric("pushcast_token_changes_total{change=\"registered\"}").await >= tokens as f64
        })
        .await;
    }

    async fn broadcast(&self, post: &str, tokens: u64, latency: u64) {
        let latency_text = format!("{latency}ms");
        let none = json!({ "latency": latency_text, "tokens": [] });
        self.http
            .put(format!("{}/sandbox/faults", self.sandbox_url))
            .header("content-type", "application/json")
            .body(json!({ "expo": none, "fcm": none }).to_string())
            .send()
            .await
            .unwrap()
            .error_for_status()
            .unwrap();
        self.http.post(format!("{}/sandbox/reset", self.sandbox_url)).send().await.unwrap().error_for_status().unwrap();
        for (provider, other) in [("expo", "fcm"), ("fcm", "expo")] {
            // One provider at a time: the other one's route waits.
            self.route(other, "pause").await;
            let cpu = self.cpu();
            let event = json!({ "postId": format!("{post}-{provider}"), "authorId": "nobody", "title": "A benchmark" });
            self.producer.publish(Message::new("posts-created", None, event.to_string().into_bytes())).await.unwrap();
            self.until("every token is rung", async || self.taken(provider).await["taken"] == tokens / 2).await;
            let cpu = self.cpu() - cpu;
            let taken = self.taken(provider).await;
            assert_eq!(taken["doubles"], 0, "{taken:#}");
            let at = |key: &str| taken[key].as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
            let seconds = at("lastAt").duration_since(at("firstAt")).as_secs_f64();
            let n = (tokens / 2) as f64;
            println!("{provider:>8} {latency_text:>9} {n:>10} {:>12.0} {:>20.2} {:>10.0}", n / seconds, cpu * 1e5 / n, self.peak());
            self.http.post(format!("{}/sandbox/reset", self.sandbox_url)).send().await.unwrap();
            self.route(other, "resume").await;
            self.until("the other provider has caught up", async || self.taken(other).await["taken"] == tokens / 2).await;
            self.http.post(format!("{}/sandbox/reset", self.sandbox_url)).send().await.unwrap();
        }
    }

    async fn route(&self, provider: &str, wish: &str) {
        let url = format!("{}/route/{provider}/{wish}", self.admin_url);
        self.http.post(url).header("content-type", "application/json").body("{}").send().await.unwrap().error_for_status().unwrap();
        sleep(Duration::from_millis(1_500)).await; // Every instance reads the row once a second.
    }

    async fn taken(&self, provider: &str) -> Value {
        let text = self.http.get(format!("{}/sandbox/statistics", self.sandbox_url)).send().await.unwrap().text().await.unwrap();
        serde_json::from_str::<BTreeMap<String, Value>>(&text).unwrap().remove(provider).unwrap()
    }

    async fn metric(&self, name: &str) -> f64 {
        let text = self.http.get(format!("{}/metrics", self.admin_url)).send().await.unwrap().text().await.unwrap();
        text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok()).unwrap_or(0.0)
    }

    async fn until(&self, what: &str, is: impl AsyncFn() -> bool) {
        for _ in 0..6_000 {
            if is().await {
                return;
            }
            sleep(Duration::from_millis(50)).await;
        }
        panic!("waited five minutes for: {what}");
    }

    /// CPU seconds, user and system, of the sending process.
    fn cpu(&self) -> f64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pushcast.0.id())).unwrap();
        let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        let ticks: f64 = fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap();
        ticks / 100.0
    }

    /// Peak resident memory of the sending process, MiB.
    fn peak(&self) -> f64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pushcast.0.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<f64>().unwrap() / 1024.0
    }
}
