//! Ties everything together: the only place that knows all types.
//!
//! A process is a set of named tasks in one [`JoinSet`]: a consumer per stage, a batcher per provider, and
//! the small loops beside them. The first to end before it was asked to stops the process with its name. A
//! stop has an order that nobody keeps by hand: only consumers, timers and listeners hear of it; a batcher
//! ends when the last handler that could hand it a page is gone, and then the producer is flushed.

mod selection;
mod share;
mod timed;

use std::{collections::BTreeMap, future::Future, sync::Arc, time::Duration};

use anyhow::anyhow;
use consumer::{Assignment, Handler, Producer, Publish, Stage};
use tokio::{
    net::TcpListener,
    sync::watch,
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

pub use self::selection::{Stages, UnknownStage};
use self::timed::{Timed, copy_driver_counts};
use crate::{
    config::Config,
    dispatch::{self, Batcher, Provider, RateLimiter, Share},
    domain::{Lane, ProviderId, Timestamp},
    events::{self, topics},
    expo::Expo,
    fcm::Fcm,
    http::{self, Health, admin},
    metrics::Metrics,
    stages::{
        cleanup::Cleanup,
        delivery::{Delivery, DeliveryLimits, sync_route},
        medication::{self, Medication},
        posts::{self, Posts},
        quarantine::BrakeThresholds,
        receipts::Receipts,
        tokens::Tokens,
    },
    store::{RouteRow, Store},
    topology::{self, StageEntry},
};

/// What a stop may take beyond the drain: last commits, leaving the groups, closing the consumers.
const LEAVING: Duration = Duration::from_secs(20);
/// What follows from the last answer of a drain may take that long.
const CHECKPOINT_WITHIN: Duration = Duration::from_secs(1);
/// How often missing due rows are looked for.
const SWEEP_EVERY: Duration = Duration::from_secs(24 * 60 * 60);
/// How often the producer is asked whether it has given up; only a new process has a new one.
const FATAL_EVERY: Duration = Duration::from_secs(5);
/// Doses that one consumer has in hand at once.
const URGENT_IN_FLIGHT: usize = 1_024;
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
    tasks: JoinSet<(String, anyhow::Result<()>)>,
}

impl<S: Store> App<S> {
    /// A process with these settings over this store, running the selected stages.
    pub fn new(config: Config, store: S, stages: Stages) -> Self {
        let metrics = Arc::new(Metrics::new());
        Self {
            config,
            store: Timed::new(store, Arc::clone(&metrics)),
            stages,
            metrics,
            health: Health::new(Vec::<String>::new()),
        }
    }

    /// Its metrics.
    pub fn metrics(&self) -> Arc<Metrics> {
        Arc::clone(&self.metrics)
    }

    /// Its health.
    pub fn health(&self) -> Health {
        self.health.clone()
    }

    /// Runs until `stop`, and then to the end of the drain.
    ///
    /// # Errors
    /// It can't start (a port is taken, a topic is missing, Kafka is away), or a part of it ended before it
    /// was asked to.
    pub async fn run(self, stop: CancellationToken) -> anyhow::Result<()> {
        let expo = if self.config.expo.enabled {
            Some(Arc::new(Expo::new(&self.config.expo, Arc::clone(&self.metrics))?))
        } else {
            None
        };
        let fcm = Fcm::new(&self.config.fcm, Arc::clone(&self.metrics)).await?.map(Arc::new);
        let providers = configured(expo.is_some(), fcm.is_some(), &self.health);
        let producer = Producer::new(&self.config.kafka)?;
        let listener = match self.config.http.admin_listen.as_str() {
            "" => None,
            address => Some(http::listen(address, "http.admin_listen").await?),
        };
        if !self.config.http.listen.is_empty() {
            warn!("http.listen is set, but this release has no registration API yet: nothing listens there");
        }
        let partitions = topology::check(&self.config.kafka).await?;

        let instance = if self.config.kafka.instance_id.is_empty() {
            format!("pid {}", std::process::id())
        } else {
            self.config.kafka.instance_id.clone()
        };
        let mut running = RunningProcess {
            app: self,
            instance,
            producer,
            providers,
            partitions,
            stop: stop.child_token(),
            tasks: JoinSet::new(),
        };
        running.edges(listener);
        running.planning()?;
        if let Some(expo) = expo {
            running.receipts(Arc::clone(&expo))?;
            let settings = &running.app.config.expo;
            let pace = RateLimiter::new(settings.rate_per_second, Duration::ZERO, Instant::now());
            let (slots, timeout) = (settings.requests_in_flight, settings.request_timeout);
            running
                .app
                .metrics
                .rate_limit
                .with_label_values(&["expo", "deployment"])
                .set(f64::from(settings.rate_per_second));
            running.delivery(expo, pace, slots, timeout)?;
        }
        if let Some(fcm) = fcm {
            let settings = &running.app.config.fcm;
            let pace = RateLimiter::new(settings.rate_per_second, settings.ramp_up, Instant::now());
            let (slots, timeout) = (settings.requests_in_flight, settings.request_timeout);
            running
                .app
                .metrics
                .rate_limit
                .with_label_values(&["fcm", "deployment"])
                .set(f64::from(settings.rate_per_second));
            running.delivery(fcm, pace, slots, timeout)?;
        }
        running.until_stopped().await
    }
}

impl<S: Store> RunningProcess<S> {
    fn spawn(
        &mut self,
        name: impl Into<String>,
        task: impl Future<Output = anyhow::Result<()>> + Send + 'static,
    ) {
        let name = name.into();
        self.tasks.spawn(async move {
            let ended = task.await;
            (name, ended)
        });
    }

    /// Starts a stage's consumer, unless it is not selected. Says which partitions it owns, as they come and
    /// go.
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
        let spec = entry.spec(in_flight);
        let stage = Stage::new(
            &self.app.config.kafka,
            spec,
            handler,
            self.producer.clone(),
            Arc::new(self.app.metrics.consumer()),
        )?;
        let assignment = stage.assignment();
        self.app.health.assigned(name, false);
        let (health, label, watched, stop) =
            (self.app.health.clone(), name.to_owned(), stage.assignment(), self.stop.clone());
        self.spawn(format!("assignment of {name}"), show_readiness(label, watched, health, stop));
        let stop = self.stop.clone();
        self.spawn(name, async move { Ok(stage.run(stop).await?) });
        Ok(Some(assignment))
    }

    /// Everything that plans: tokens, posts, medication, cleanup.
    fn planning(&mut self) -> anyhow::Result<()> {
        let (store, producer, metrics) =
            (self.app.store.clone(), self.producer.clone(), Arc::clone(&self.app.metrics));
        let in_flight = self.app.config.kafka.in_flight;
        let config = self.app.config.clone();

        self.stage(topology::TOKENS, in_flight, Arc::new(Tokens::new(store.clone(), Arc::clone(&metrics))))?;
        self.stage(
            topology::CLEANUP,
            in_flight,
            Arc::new(Cleanup::new(store.clone(), Arc::clone(&metrics))),
        )?;
        let rules = posts::PlanRules {
            settings: config.posts,
            providers: self.providers.clone(),
            bulk_life: config.push.bulk_life,
            partitions: self.bulk_partitions(),
        };
        let posts = Posts::new(store.clone(), producer.clone(), rules);
        self.stage(topology::POSTS, in_flight, Arc::new(posts))?;

        let (every, life) = (config.medication.tick_every, config.push.urgent_life);
        let clock: medication::Clock = Arc::new(Timestamp::now);
        let medication = Arc::new(Medication::new(
            store,
            producer,
            config.medication,
            self.providers.clone(),
            life,
            metrics,
            clock,
        ));
        if self.stage(topology::MEDICATION, in_flight, Arc::clone(&medication))?.is_some() {
            self.tick(every);
            self.sweep(medication);
        }
        Ok(())
    }

    /// Ticks, so that doses ring without anybody else's clock.
    fn tick(&mut self, every: Duration) {
        if every.is_zero() {
            return;
        }
        let (producer, stop) = (self.producer.clone(), self.stop.clone());
        self.spawn("ticker", async move {
            let mut clock = interval(every);
            clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
            while let Some(_now) = stop.run_until_cancelled(clock.tick()).await {
                // A tick that Kafka did not take is made up for by the next one.
                if let Err(err) = producer.publish(medication::clock_tick(Timestamp::now())).await {
                    warn!(error = %err, "A clock tick was not published");
                }
            }
            Ok(())
        });
    }

    /// Restores due rows that are missing, now and daily.
    fn sweep(&mut self, medication: Arc<Medication<Timed<S>, Producer>>) {
        let stop = self.stop.clone();
        self.spawn("sweep", async move {
            let mut daily = interval(SWEEP_EVERY);
            while let Some(_now) = stop.run_until_cancelled(daily.tick()).await {
                if let Some(Err(err)) = stop.run_until_cancelled(medication.sweep()).await {
                    warn!(error = %err, "The sweep over regimens did not finish; the next one is in a day");
                }
            }
            Ok(())
        });
    }

    fn receipts(&mut self, expo: Arc<Expo>) -> anyhow::Result<()> {
        let (store, producer, metrics) =
            (self.app.store.clone(), self.producer.clone(), Arc::clone(&self.app.metrics));
        let receipts = Receipts::new(
            expo,
            store,
            producer,
            self.app.config.expo.receipt_delay,
            thresholds(&self.app.config.push),
            metrics,
        );
        self.stage(topology::RECEIPTS, 64, Arc::new(receipts)).map(drop)
    }

    /// One provider: its batcher, its route, and a consumer for each lane.
    fn delivery<P: Provider>(
        &mut self,
        provider: Arc<P>,
        pace: RateLimiter,
        slots: usize,
        request_timeout: Duration,
    ) -> anyhow::Result<()> {
        let id = provider.id();
        if Lane::ALL.into_iter().all(|lane| !self.app.stages.contains(topology::delivery(id, lane).name)) {
            return Ok(()); // This process plans for it at most.
        }
        let push = self.app.config.push.clone();
        if !push.enabled {
            self.app.health.detail(
                "push",
                Some("push.enabled is false: nothing is sent, jobs wait in Kafka".to_owned()),
            );
        }
        let (route, route_sync) = dispatch::route();
        let share = watch::Sender::new(Share::NONE);
        let (batcher, handle) = Batcher::new(
            Arc::clone(&provider),
            slots,
            pace,
            share.subscribe(),
            route,
            Arc::clone(&self.app.metrics),
        );
        let limits = DeliveryLimits {
            page_size: push.page_size,
            page_stale_after: push.page_stale_after,
            request_timeout,
            brake: thresholds(&push),
            finish_within: finish_within(self.app.config.kafka.drain_timeout, request_timeout),
        };
        let handler = Arc::new(Delivery::new(
            provider,
            handle,
            self.app.store.clone(),
            self.producer.clone(),
            limits,
            Arc::clone(&self.app.metrics),
        ));

        let urgent = self.lane(id, Lane::Urgent, URGENT_IN_FLIGHT, Arc::clone(&handler))?;
        let bulk = self.lane(id, Lane::Bulk, push.open_pages, handler)?;
        let stop = self.stop.clone();
        self.spawn(format!("sender of {id}"), async move {
            batcher.run().await;
            stop.cancelled().await; // As in `show_readiness`: without consumers it has nothing to do.
            Ok(())
        });
        let (local_status, health, stop) =
            (route_sync.local_status(), self.app.health.clone(), self.stop.clone());
        self.spawn(format!("local_status of {id}"), async move {
            show_local_status(id, local_status, &health).await;
            stop.cancelled().await; // As in `show_readiness`.
            Ok(())
        });
        let (store, instance, stop, health) =
            (self.app.store.clone(), self.instance.clone(), self.stop.clone(), self.app.health.clone());
        self.spawn(format!("route of {id}"), async move {
            let show = move |route: &RouteRow| {
                let closed = (!route.state.sends())
                    .then(|| format!("{} by {}: {}", route.state.label(), route.set_by, route.detail));
                health.detail(&format!("route.{id}"), closed);
            };
            sync_route(store, id, push.enabled, instance, route_sync, stop, show).await;
            Ok(())
        });
        let lane = |assignment, lane| {
            let topic = events::jobs::topic(id, lane);
            u32::try_from(self.partitions.get(topic).copied().unwrap_or(1)).map(|of| share::LaneShare {
                assignment,
                topic,
                of,
            })
        };
        let (urgent, bulk) = (lane(urgent, Lane::Urgent)?, lane(bulk, Lane::Bulk)?);
        let lanes =
            share::LaneAssignment { urgent, bulk, trusted_for: self.app.config.kafka.session_timeout / 2 };
        let stop = self.stop.clone();
        self.spawn(format!("share of {id}"), async move {
            share::follow(lanes, share).await;
            stop.cancelled().await; // As in `show_readiness`.
            Ok(())
        });
        Ok(())
    }

    fn lane<H: Handler>(
        &mut self,
        id: ProviderId,
        lane: Lane,
        in_flight: usize,
        handler: Arc<H>,
    ) -> anyhow::Result<Option<watch::Receiver<Assignment>>> {
        self.stage(topology::delivery(id, lane), in_flight, handler)
    }

    /// How many partitions the bulk topics have in common: slices are spread over them.
    fn bulk_partitions(&self) -> u32 {
        let of = |id| self.partitions.get(events::jobs::topic(id, Lane::Bulk)).copied().unwrap_or(1);
        u32::try_from(ProviderId::ALL.into_iter().map(of).min().unwrap_or(1)).unwrap_or(u32::MAX)
    }

    /// The admin listener, and the pulses of the store, of Kafka and of the producer.
    fn edges(&mut self, listener: Option<TcpListener>) {
        let health = self.app.health.clone();
        let stop = self.stop.clone();
        if let Some(listener) = listener {
            let admin = admin::Admin {
                metrics: Arc::clone(&self.app.metrics),
                health: health.clone(),
                store: self.app.store.clone(),
            };
            let stop = stop.clone();
            self.spawn("admin listener", async move { Ok(admin::serve(listener, admin, stop).await?) });
        }
        let (producer, stopped) = (self.producer.clone(), self.stop.clone());
        self.spawn("the producer", async move {
            let mut look = interval(FATAL_EVERY);
            while let Some(_now) = stopped.run_until_cancelled(look.tick()).await {
                if let Some(why) = producer.fatal_error() {
                    anyhow::bail!("it will never publish again: {why}");
                }
            }
            Ok(())
        });
        let (producer, asking, asked_until) = (self.producer.clone(), health.clone(), stop.clone());
        self.spawn("Kafka's pulse", async move {
            asking.ask_kafka(|| producer.ping(topics::PUSH_OUTCOMES, http::ASK_EVERY), &asked_until).await;
            Ok(())
        });
        let (store, metrics, stopped) =
            (self.app.store.clone(), Arc::clone(&self.app.metrics), self.stop.clone());
        self.spawn("the store's driver", async move {
            copy_driver_counts(store, metrics, stopped).await;
            Ok(())
        });
        let store = self.app.store.clone();
        self.spawn("the store's pulse", async move {
            health.ask_the_store(|| store.ping(), &stop).await;
            Ok(())
        });
    }

    /// Waits for the stop, or for a task that ends before it; then drains.
    async fn until_stopped(mut self) -> anyhow::Result<()> {
        info!(providers = ?self.providers.iter().map(|id| id.label()).collect::<Vec<_>>(), "pushcast is running");
        let early = first_to_end(&mut self.tasks, &self.stop).await;
        if let Some(cause) = &early {
            // At once: the drain may take a minute, or not end.
            error!(error = format!("{cause:#}"), "A task ended early, the process stops: {cause:#}");
        }
        info!("Stopping: requests on the wire are waited for");
        self.stop.cancel();
        let grace = grace(self.app.config.kafka.drain_timeout);
        let drained = timeout(grace, async {
            while let Some(ended) = self.tasks.join_next().await {
                match ended {
                    Ok((_, Ok(()))) => {}
                    Ok((name, Err(err))) => warn!(error = format!("{err:#}"), "{name} failed while stopping"),
                    Err(panicked) => warn!(error = %panicked, "A task panicked while stopping"),
                }
            }
        });
        if drained.await.is_err() {
            warn!(
                grace_seconds = grace.as_secs(),
                "The drain outlasted its grace period; what is unsettled will be delivered again"
            );
        }
        let flushed = self.producer.flush(FLUSH_WITHIN).await.map_err(anyhow::Error::from);
        ended(early, flushed)
    }
}

/// How the process ended. The cause of an early end is kept, whatever fails after it.
fn ended(early: Option<anyhow::Error>, flushed: anyhow::Result<()>) -> anyhow::Result<()> {
    match (early, flushed) {
        (Some(cause), flushed) => {
            if let Err(err) = flushed {
                warn!(error = format!("{err:#}"), "Flushing the producer failed while stopping");
            }
            Err(cause)
        }
        (None, Ok(())) => {
            info!("Stopped");
            Ok(())
        }
        (None, Err(err)) => Err(err),
    }
}

/// Waits for the stop, or for a task that ends before it: that is an error, and this says whose.
async fn first_to_end(
    tasks: &mut JoinSet<(String, anyhow::Result<()>)>,
    stop: &CancellationToken,
) -> Option<anyhow::Error> {
    let first = tokio::select! {
        () = stop.cancelled() => None,
        ended = tasks.join_next() => ended,
    };
    match first? {
        // It heard of the stop sooner than we did.
        Ok((_, Ok(()))) if stop.is_cancelled() => None,
        Ok((name, Ok(()))) => Some(anyhow!("{name} ended without a stop")),
        Ok((name, Err(err))) => Some(err.context(format!("{name} failed"))),
        Err(panicked) => Some(anyhow!(panicked).context("a task panicked")),
    }
}

fn thresholds(push: &dispatch::Settings) -> BrakeThresholds {
    BrakeThresholds { dead_min: push.brake_dead, dead_percent: push.brake_percent, window: push.brake_window }
}

/// The providers that this process is set up for. Of the others it says that it is not: who has switched one
/// off while a broadcast was on its way looks there for the rest of it.
fn configured(expo: bool, fcm: bool, health: &Health) -> Vec<ProviderId> {
    for (is, id) in [(expo, ProviderId::Expo), (fcm, ProviderId::Fcm)] {
        if !is {
            info!(provider = %id, "{id} is not configured: nothing is planned for it, and what was planned before waits in Kafka");
            let told = "this process is not set up for it: what was planned for it before waits in Kafka";
            health.detail(&http::local_status_of(id), Some(told.to_owned()));
        }
    }
    ProviderId::ALL.into_iter().filter(|id| if *id == ProviderId::Expo { expo } else { fcm }).collect()
}

/// Keeps a stage's readiness up to date.
async fn show_readiness(
    stage: String,
    mut watched: watch::Receiver<Assignment>,
    health: Health,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    loop {
        health.assigned(&stage, watched.borrow_and_update().arrived);
        if watched.changed().await.is_err() {
            stop.cancelled().await; // The stage has ended. Why, it says itself, if nobody ends before it does.
            return Ok(());
        }
    }
}

/// Shows what holds an open route in this instance, until its sender has ended.
async fn show_local_status(
    id: ProviderId,
    mut local_status: watch::Receiver<Option<String>>,
    health: &Health,
) {
    loop {
        let told = local_status.borrow_and_update().clone();
        health.detail(&http::local_status_of(id), told);
        if local_status.changed().await.is_err() {
            return;
        }
    }
}

/// How long a stop may take: longer than a drain, which is longer than a request.
fn grace(drain_timeout: Duration) -> Duration {
    drain_timeout + LEAVING
}

/// How long requests may still start after a stop: the last of them has to be answered, and its page
/// checkpointed, before the drain ends.
fn finish_within(drain_timeout: Duration, request_timeout: Duration) -> Duration {
    drain_timeout.saturating_sub(request_timeout + CHECKPOINT_WITHIN)
}

#[cfg(test)]
mod tests;
