//! Ties everything together: the only place that knows all types.
//!
//! A process is a set of named tasks in one `JoinSet` (`app/tasks.rs`): a consumer per stage, a batcher per
//! provider, and the small loops beside them. The first to end before the stop ends the process, with its
//! name. The order of a stop follows from what reacts to it: consumers, timers and listeners do; a batcher
//! ends when the last handler that could submit a page has ended, and then the producer is flushed.

mod delivery;
mod edges;
mod planning;
mod selection;
mod share;
mod tasks;
mod timed;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use consumer::{Assignment, Handler, Producer, Stage};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

pub use self::selection::{Stages, UnknownStage};
use self::{tasks::ProcessTasks, timed::Timed};
use crate::{
    config::Config,
    dispatch::{self, RateLimiter},
    domain::{Lane, ProviderId},
    events,
    expo::Expo,
    fcm::Fcm,
    http::{self, Health},
    metrics::Metrics,
    stages::quarantine::BrakeThresholds,
    store::Store,
    topology::{self, StageEntry},
};

/// What a stop may take beyond the drain: last commits, leaving the groups, closing the consumers.
const LEAVING: Duration = Duration::from_secs(20);
/// How long the producer may take to flush, after the drain.
const FLUSH_WITHIN: Duration = Duration::from_secs(5);

/// A process of pushcast, not yet running.
pub struct App<S> {
    config: Config,
    store: Timed<S>,
    stages: Stages,
    metrics: Arc<Metrics>,
    health: Health,
}

/// The tasks of a running process, and what they share.
struct RunningProcess<S> {
    app: App<S>,
    instance: String,
    producer: Producer,
    providers: Vec<ProviderId>,
    partitions: BTreeMap<String, usize>,
    stop: CancellationToken,
    tasks: ProcessTasks,
}

impl<S: Store> App<S> {
    /// A process with these settings over this store, running the selected stages.
    pub fn new(config: Config, store: S, stages: Stages) -> Self {
        let metrics = Arc::new(Metrics::new());
        let store = Timed::new(store, Arc::clone(&metrics));
        Self { config, store, stages, metrics, health: Health::new(Vec::<String>::new()) }
    }

    /// The metrics that its admin listener serves.
    pub fn metrics(&self) -> Arc<Metrics> {
        Arc::clone(&self.metrics)
    }

    /// Its readiness and the details beside it, as the admin listener reports them.
    pub fn health(&self) -> Health {
        self.health.clone()
    }

    /// Runs until `stop`, and then to the end of the drain.
    ///
    /// # Errors
    /// It can't start (a port is taken, a topic is missing, Kafka is unreachable), or one of its tasks ended
    /// before the stop.
    pub async fn run(self, stop: CancellationToken) -> anyhow::Result<()> {
        let config = &self.config;
        let expo = match config.expo.enabled {
            true => Some(Arc::new(Expo::new(&config.expo, Arc::clone(&self.metrics))?)),
            false => None,
        };
        let fcm = Fcm::new(&config.fcm, Arc::clone(&self.metrics)).await?.map(Arc::new);
        let providers = configured(expo.is_some(), fcm.is_some(), &self.health);
        let producer = Producer::new(&config.kafka)?;
        let listener = match config.http.admin_listen.as_str() {
            "" => None,
            address => Some(http::listen(address, "http.admin_listen").await?),
        };
        if !config.http.listen.is_empty() {
            warn!("http.listen is set, but this release has no registration API yet: nothing listens there");
        }
        let partitions = topology::check(&config.kafka).await?;
        let instance = match config.kafka.instance_id.as_str() {
            "" => format!("pid {}", std::process::id()),
            id => id.to_owned(),
        };
        let mut process = RunningProcess {
            app: self,
            instance,
            producer,
            providers,
            partitions,
            stop: stop.child_token(),
            tasks: ProcessTasks::default(),
        };
        process.check_slices();
        process.edges(listener);
        process.planning()?;
        if let Some(expo) = expo {
            process.receipts(Arc::clone(&expo))?;
            let settings = process.app.config.expo.clone();
            let limiter = RateLimiter::new(settings.rate_per_second, Duration::ZERO, Instant::now());
            process.show_rate(ProviderId::Expo, settings.rate_per_second);
            process.delivery(expo, limiter, settings.requests_in_flight, settings.request_timeout)?;
        }
        if let Some(fcm) = fcm {
            let settings = process.app.config.fcm.clone();
            let limiter = RateLimiter::new(settings.rate_per_second, settings.ramp_up, Instant::now());
            process.show_rate(ProviderId::Fcm, settings.rate_per_second);
            process.delivery(fcm, limiter, settings.requests_in_flight, settings.request_timeout)?;
        }
        process.until_stopped().await
    }
}

impl<S: Store> RunningProcess<S> {
    /// Starts a stage's consumer, unless it is not selected. Returns which partitions are assigned to it, now
    /// and later.
    fn stage<H: Handler>(
        &mut self,
        entry: StageEntry,
        in_flight: usize,
        handler: Arc<H>,
    ) -> anyhow::Result<Option<watch::Receiver<Assignment>>> {
        let name = entry.name;
        if !self.app.stages.contains(name) {
            return Ok(None);
        }
        let stage = Stage::new(
            &self.app.config.kafka,
            entry.spec(in_flight),
            handler,
            self.producer.clone(),
            Arc::new(self.app.metrics.consumer()),
        )?;
        let assignment = stage.assignment();
        let health = self.app.health.clone();
        health.assigned(name, false);
        let readiness = show_readiness(name.to_owned(), stage.assignment(), health, self.stop.clone());
        self.tasks.spawn(format!("assignment of {name}"), readiness);
        let stop = self.stop.clone();
        self.tasks.spawn(name, async move { Ok(stage.run(stop).await?) });
        Ok(Some(assignment))
    }

    fn show_rate(&self, provider: ProviderId, rate_per_second: u32) {
        let limit = self.app.metrics.rate_limit.with_label_values(&[provider.label(), "deployment"]);
        limit.set(f64::from(rate_per_second));
    }

    /// How many partitions the bulk topics have in common: slices are spread over them.
    fn bulk_partitions(&self) -> u32 {
        let of = |id| self.partitions.get(events::jobs::topic(id, Lane::Bulk)).copied().unwrap_or(1);
        u32::try_from(ProviderId::ALL.into_iter().map(of).min().unwrap_or(1)).unwrap_or(u32::MAX)
    }

    /// The cluster's topics may have another number of partitions than the setting says.
    fn check_slices(&self) {
        let slices = self.app.config.posts.slices;
        let partitions = self.bulk_partitions();
        if !slices.is_multiple_of(partitions) {
            warn!(
                slices,
                partitions,
                "posts.slices = {slices} is no multiple of the {partitions} partitions of the bulk topics: \
                 some get more work of a broadcast than others"
            );
        }
    }

    /// Waits for the stop, or for a task that ends before it; then drains.
    async fn until_stopped(mut self) -> anyhow::Result<()> {
        let providers: Vec<_> = self.providers.iter().map(|id| id.label()).collect();
        info!(?providers, "pushcast is running");
        let early = self.tasks.first_to_end(&self.stop).await;
        info!("Stopping: waiting for requests in flight");
        self.stop.cancel();
        self.tasks.drain(grace(self.app.config.kafka.drain_timeout)).await;
        let flushed = self.producer.flush(FLUSH_WITHIN).await.map_err(anyhow::Error::from);
        tasks::ended(early, flushed)
    }
}

fn thresholds(push: &dispatch::Settings) -> BrakeThresholds {
    BrakeThresholds { dead_min: push.brake_dead, dead_percent: push.brake_percent, window: push.brake_window }
}

/// The providers that this process is set up for. The health details name the others: an operator who has
/// switched one off while a broadcast was being sent looks there for the rest of it.
fn configured(expo: bool, fcm: bool, health: &Health) -> Vec<ProviderId> {
    let is_configured = |id: &ProviderId| match id {
        ProviderId::Expo => expo,
        ProviderId::Fcm => fcm,
    };
    for id in ProviderId::ALL.into_iter().filter(|id| !is_configured(id)) {
        info!(
            provider = %id,
            "{id} is not configured: nothing is planned for it, and what was planned before waits in Kafka"
        );
        let detail = "this process is not set up for it: what was planned for it before waits in Kafka";
        health.detail(&http::local_status_of(id), Some(detail.to_owned()));
    }
    ProviderId::ALL.into_iter().filter(is_configured).collect()
}

/// Keeps a stage's readiness up to date.
async fn show_readiness(
    stage: String,
    mut assignment: watch::Receiver<Assignment>,
    health: Health,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    loop {
        health.assigned(&stage, assignment.borrow_and_update().joined);
        if assignment.changed().await.is_err() {
            // The stage has ended. Its own task reports why, and must be the first to end.
            stop.cancelled().await;
            return Ok(());
        }
    }
}

/// How long a stop may take: longer than a drain, which is longer than a request.
fn grace(drain_timeout: Duration) -> Duration {
    drain_timeout + LEAVING
}

#[cfg(test)]
mod tests;
