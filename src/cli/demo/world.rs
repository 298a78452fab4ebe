//! The surroundings of the demo: the embedded Kafka, the store in memory, the sandbox, and all of pushcast
//! between them.

use std::{sync::Arc, time::Duration};

use anyhow::Context;
use consumer::{ConsumerMetrics, Producer, Stage, StageSpec, mock::Broker};
use jiff::Timestamp;
use pushcast::{
    app::{App, Stages},
    config::{Config, Environment},
    domain::ProviderId,
    events::topics,
    http::Health,
    metrics::Metrics,
    store::{Doses, embedded::EmbeddedStore},
    topology,
};
use sandbox::{Options, Sandbox};
use tokio::{net::TcpListener, task::JoinSet, time::timeout};
use tokio_util::sync::CancellationToken;

use super::watch::Collector;

/// How long a stop may take; tasks that are left then are dropped.
const STOP_WITHIN: Duration = Duration::from_secs(5);
/// More messages than arrive between two polls of [`super::watch`].
const REMEMBERED: usize = 60_000;

/// The parts that the demo uses. The broker and the providers are fakes; the stages are those of `run`.
pub struct World {
    /// The embedded Kafka broker.
    pub broker: Broker,
    /// Expo and FCM.
    pub sandbox: Sandbox,
    /// pushcast's store.
    pub store: EmbeddedStore,
    /// The producer of the upstream services.
    pub producer: Producer,
    /// pushcast's metrics.
    pub metrics: Arc<Metrics>,
    /// pushcast's health.
    pub health: Health,
    /// The records that pushcast has published.
    pub collector: Arc<Collector>,
    /// pushcast's settings.
    pub config: Config,
}

/// Its tasks.
pub struct RunningWorld {
    tasks: JoinSet<(&'static str, anyhow::Result<()>)>,
    stop: CancellationToken,
}

impl World {
    /// Starts everything. `admin` opens the admin listener on a free port.
    pub async fn start(admin: bool) -> anyhow::Result<(Self, RunningWorld)> {
        let partitions = Config::load(None, &Environment::new())?.kafka.partitions;
        let broker = topology::embedded_broker(partitions)?;
        let sandbox = Sandbox::start(Options { remember: REMEMBERED, ..Options::default() })
            .await
            .context("starting the sandbox")?;
        sandbox.faults().change(|faults| {
            faults.expo.latency = Duration::from_millis(40);
            faults.fcm.latency = Duration::from_millis(40);
        });
        let config = Config::load(None, &settings(&broker, &sandbox, admin).await?)?;
        let store = EmbeddedStore::memory()?;
        store.init_marks(Timestamp::now()).await?;
        let producer = Producer::new(&config.kafka)?;

        let app = App::new(config.clone(), store.clone(), Stages::all());
        let metrics = app.metrics();
        let health = app.health();
        let collector = Arc::new(Collector::default());
        let published = [topics::PUSH_OUTCOMES, topics::INVALID_TOKENS, topics::DEAD_LETTERS];
        let spec = StageSpec {
            name: "demo".to_owned(),
            topics: published.map(str::to_owned).to_vec(),
            in_flight: 1_024,
            dead_letters: topology::dead_letters(),
        };
        let stage = Stage::new(
            &config.kafka,
            spec,
            Arc::clone(&collector),
            producer.clone(),
            Arc::new(ConsumerMetrics::default()),
        )?;

        let mut running = RunningWorld { tasks: JoinSet::new(), stop: CancellationToken::new() };
        let stop = running.stop.clone();
        running.tasks.spawn(async move { ("pushcast", app.run(stop).await) });
        let stop = running.stop.clone();
        running.tasks.spawn(async move {
            ("the consumer of outcomes", stage.run(stop).await.map_err(anyhow::Error::new))
        });
        Ok((Self { broker, sandbox, store, producer, metrics, health, collector, config }, running))
    }

    /// The configured rate limit in messages per second.
    pub fn rate(&self, provider: ProviderId) -> u32 {
        match provider {
            ProviderId::Expo => self.config.expo.rate_per_second,
            ProviderId::Fcm => self.config.fcm.rate_per_second,
        }
    }

    /// Messages of broadcasts that have an outcome.
    pub fn bulk_messages(&self, provider: ProviderId) -> u64 {
        self.counted(provider, "bulk", None)
    }

    /// Messages with this outcome, by pushcast's metrics.
    pub fn messages(&self, provider: ProviderId, outcome: &str) -> u64 {
        ["bulk", "urgent"].into_iter().map(|lane| self.counted(provider, lane, Some(outcome))).sum()
    }

    fn counted(&self, provider: ProviderId, lane: &str, outcome: Option<&str>) -> u64 {
        let all = pushcast::domain::Outcome::ALL.map(pushcast::domain::Outcome::label);
        let of = all.into_iter().filter(|label| outcome.is_none_or(|outcome| outcome == *label));
        of.map(|outcome| {
            self.metrics.notifications_total.with_label_values(&[provider.label(), lane, outcome]).get()
        })
        .sum()
    }

    /// Token events with this effect that were applied, by pushcast's metrics.
    pub fn token_changes(&self, change: &str) -> u64 {
        self.metrics.token_changes_total.with_label_values(&[change]).get()
    }

    /// Stops the sandbox and the broker.
    pub async fn stop(self) {
        self.sandbox.stop().await;
    }
}

impl RunningWorld {
    /// Returns when a task ends before [`Self::stop`].
    pub async fn ended_early(&mut self) -> anyhow::Error {
        match self.tasks.join_next().await {
            Some(Ok((name, Ok(())))) => anyhow::anyhow!("{name} ended without having been stopped"),
            Some(Ok((name, Err(err)))) => err.context(format!("{name} failed")),
            Some(Err(panicked)) => anyhow::anyhow!(panicked).context("a task panicked"),
            None => anyhow::anyhow!("no task is running"),
        }
    }

    /// Drains all tasks, for at most [`STOP_WITHIN`].
    pub async fn stop(mut self) {
        self.stop.cancel();
        let ended = timeout(STOP_WITHIN, async { while self.tasks.join_next().await.is_some() {} });
        if ended.await.is_err() {
            tracing::warn!("The demo did not drain within {STOP_WITHIN:?}; its tasks are dropped");
        }
    }
}

/// The settings, as the environment variables that a deployment sets.
async fn settings(broker: &Broker, sandbox: &Sandbox, admin: bool) -> anyhow::Result<Environment> {
    let account: serde_json::Value = serde_json::from_str(&sandbox.service_account())?;
    let of_account = |name: &str| account[name].as_str().unwrap_or_default().to_owned();
    let admin_listen = if admin { free_address().await? } else { String::new() };
    let settings = [
        ("KAFKA__BOOTSTRAP_SERVERS", broker.bootstrap_servers()),
        ("KAFKA__PROPERTIES", serde_json::to_string(&Broker::properties())?),
        ("STORE__URL", "embedded:memory".to_owned()),
        ("EXPO__URL", sandbox.expo_url()),
        // Not Expo's quarter of an hour: tokens dead on receipt are to be found before the second broadcast.
        ("EXPO__RECEIPT_DELAY", "3s".to_owned()),
        ("FCM__URL", sandbox.fcm_url()),
        ("FCM__PROJECT_ID", of_account("project_id")),
        ("FCM__CLIENT_EMAIL", of_account("client_email")),
        ("FCM__PRIVATE_KEY", of_account("private_key")),
        ("FCM__TOKEN_URL", of_account("token_uri")),
        // Less than the default: one small machine runs everything, and a broadcast should take some seconds.
        ("FCM__RATE_PER_SECOND", "2000".to_owned()),
        // Over before the first broadcast, so that the sustained rate can be measured.
        ("FCM__RAMP_UP", "1s".to_owned()),
        ("MEDICATION__TICK_EVERY", "1s".to_owned()),
        ("HTTP__ADMIN_LISTEN", admin_listen),
    ];
    Ok(settings.into_iter().map(|(name, value)| (format!("PUSHCAST__{name}"), value)).collect())
}

/// An address with a port that is free now.
async fn free_address() -> anyhow::Result<String> {
    Ok(TcpListener::bind("127.0.0.1:0").await?.local_addr()?.to_string())
}
