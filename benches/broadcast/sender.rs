//! pushcast as a process, with a store that has the tokens already.

use std::{
    net::TcpListener,
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    time::Duration,
};

use consumer::{Message, Publish as _};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use pushcast::{config::Environment, events::topics};
use serde_json::json;
use tokio::time::{Instant, sleep};

use crate::{
    Figures,
    child::{Child, SENDER},
    world::World,
};

pub struct Sender {
    process: Child,
    admin_url: String,
    provider: &'static str,
    tokens: u64,
}

/// Numbers the posts.
static POSTS: AtomicU32 = AtomicU32::new(0);

/// A token as the provider writes it.
pub fn token(provider: &str, n: u64) -> String {
    match provider {
        "expo" => format!("ExponentPushToken[bench{n:017}]"),
        _ => format!("bench{n:011}:{n:0>140}"),
    }
}

impl Sender {
    /// Starts it, without rate limits, on a store with so many tokens of one provider, the only one that is
    /// configured.
    pub async fn start(
        world: &World,
        provider: &'static str,
        tokens: u64,
        settings: &[(&str, &str)],
    ) -> Self {
        let store = world.path(&format!("{provider}-{tokens}.db"));
        let is_new = !store.exists();
        let store = format!("embedded:{}", store.display());
        let others: &[(&str, &str)] =
            if provider == "expo" { &[("fcm.credentials_file", "")] } else { &[("expo.enabled", "false")] };
        let unlimited = [
            ("expo.rate_per_second", "0"),
            ("fcm.rate_per_second", "0"),
            ("fcm.ramp_up", "0s"),
            ("store.url", &store),
        ];
        let mut sender = Self::run(world, &[&unlimited, others, settings].concat()).await;
        sender.provider = provider;
        sender.tokens = tokens;
        if is_new {
            sender.register(world, &[provider], tokens).await;
            // A new process, so that its peak memory is that of broadcasts.
            sender.end().await;
            return Box::pin(Self::start(world, provider, tokens, settings)).await;
        }
        sender
    }

    /// Starts it with these settings, and waits until it is ready.
    pub async fn run(world: &World, settings: &[(&str, &str)]) -> Self {
        let admin = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let common = [
            ("http.admin_listen", &*admin),
            ("log.filter", "warn"),
            ("kafka.properties", r#"{"session.timeout.ms":"6000"}"#),
        ];
        let mut environment: Environment = world.environment.clone();
        for (key, value) in common.iter().chain(settings) {
            environment
                .insert(format!("PUSHCAST__{}", key.replace('.', "__").to_uppercase()), (*value).to_owned());
        }
        let process = Child::pushcast(SENDER, &["run"], &environment);
        let sender = Self { process, admin_url: format!("http://{admin}"), provider: "expo", tokens: 0 };
        let ready = || world.http.get(format!("{}/ready", sender.admin_url)).send();
        world
            .until("pushcast is ready", async || {
                ready().await.is_ok_and(|answer| answer.status().is_success())
            })
            .await;
        sender
    }

    /// Registers so many tokens of each provider; a user has one of each.
    pub async fn register(&self, world: &World, providers: &[&str], tokens: u64) {
        for provider in providers {
            let messages = (0..tokens).map(|n| {
                let token = token(provider, n);
                let platform = if n % 2 == 0 { "android" } else { "ios" };
                let event = json!({ "token": token, "userId": format!("user{n}"), "platform": platform });
                Message::new(topics::DEVICE_TOKENS, token, event.to_string().into_bytes())
            });
            let published =
                stream::iter(messages).map(|message| world.producer.publish(message)).buffer_unordered(5_000);
            published.try_collect::<()>().await.unwrap();
        }
        let all = providers.len() as u64 * tokens;
        world.until("all tokens are registered", async || self.registered(world).await >= all as f64).await;
    }

    async fn registered(&self, world: &World) -> f64 {
        const NAME: &str = "pushcast_token_changes_total{change=\"registered\"}";
        let text =
            world.http.get(format!("{}/metrics", self.admin_url)).send().await.unwrap().text().await.unwrap();
        text.lines().find_map(|line| line.strip_prefix(NAME)?.trim().parse().ok()).unwrap_or(0.0)
    }

    /// One broadcast to all tokens.
    pub async fn broadcast(&self, world: &World) -> Figures {
        world.reset().await;
        // Commits and other work after the previous broadcast must not count for this one.
        sleep(Duration::from_secs(1)).await;
        let post = format!("bench-{}", POSTS.fetch_add(1, Relaxed));
        let cpu = self.process.cpu();
        let started = Instant::now();
        world
            .publish(
                topics::POSTS_CREATED,
                None,
                &json!({ "postId": post, "authorId": "nobody", "title": "A benchmark" }),
            )
            .await;
        let outcome = world.outcome(&format!("post:{post}")).await;
        let cpu = self.process.cpu() - cpu;
        let seconds = started.elapsed().as_secs_f64();
        assert_eq!(outcome["sent"], self.tokens, "{outcome:#}");
        let rate = world.rate(self.provider, self.tokens).await;
        Figures { rate, seconds, cpu: cpu * 1e5 / self.tokens as f64, peak: self.process.peak() }
    }

    /// Stops it gracefully.
    pub async fn end(mut self) {
        self.process.terminate();
        while !self.process.has_ended() {
            sleep(Duration::from_millis(50)).await;
        }
    }
}
