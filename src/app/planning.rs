//! The stages that plan (tokens, posts, medication, cleanup), the receipts, and the timers of medication.

use std::{sync::Arc, time::Duration};

use consumer::{Producer, Publish};
use tokio::time::{MissedTickBehavior, interval};
use tracing::warn;

use super::{RunningProcess, thresholds, timed::Timed};
use crate::{
    domain::Timestamp,
    expo::Expo,
    stages::{
        cleanup::Cleanup,
        medication::{self, Medication},
        posts::{self, Posts},
        receipts::Receipts,
        tokens::Tokens,
    },
    store::{Clock, Store},
    topology,
};

/// How often missing due rows are looked for.
const SWEEP_EVERY: Duration = Duration::from_secs(24 * 60 * 60);
/// Batches of tickets that one consumer has in flight at once; each waits for its time.
const RECEIPTS_IN_FLIGHT: usize = 64;

impl<S: Store> RunningProcess<S> {
    /// Everything that plans: tokens, posts, medication, cleanup.
    pub(super) fn planning(&mut self) -> anyhow::Result<()> {
        let store = self.app.store.clone();
        let producer = self.producer.clone();
        let metrics = Arc::clone(&self.app.metrics);
        let config = self.app.config.clone();
        let in_flight = config.kafka.in_flight;

        let tokens = Tokens::new(store.clone(), Arc::clone(&metrics));
        self.stage(topology::TOKENS, in_flight, Arc::new(tokens))?;
        let cleanup = Cleanup::new(store.clone(), Arc::clone(&metrics));
        self.stage(topology::CLEANUP, in_flight, Arc::new(cleanup))?;
        let rules = posts::PlanRules {
            settings: config.posts,
            providers: self.providers.clone(),
            bulk_life: config.push.bulk_life,
            partitions: self.bulk_partitions(),
        };
        let posts = Posts::new(store.clone(), producer.clone(), rules);
        self.stage(topology::POSTS, in_flight, Arc::new(posts))?;

        let tick_every = config.medication.tick_every;
        let clock: Clock = Arc::new(Timestamp::now);
        let medication = Arc::new(Medication::new(
            store,
            producer,
            config.medication,
            self.providers.clone(),
            config.push.urgent_life,
            metrics,
            clock,
        ));
        if self.stage(topology::MEDICATION, in_flight, Arc::clone(&medication))?.is_some() {
            self.ticker(tick_every);
            self.sweep(medication);
        }
        Ok(())
    }

    /// The stage that asks Expo for the receipts of messages that it has accepted.
    pub(super) fn receipts(&mut self, expo: Arc<Expo>) -> anyhow::Result<()> {
        let receipts = Receipts::new(
            expo,
            self.app.store.clone(),
            self.producer.clone(),
            self.app.config.expo.receipt_delay,
            thresholds(&self.app.config.push),
            Arc::clone(&self.app.metrics),
        );
        self.stage(topology::RECEIPTS, RECEIPTS_IN_FLIGHT, Arc::new(receipts)).map(drop)
    }

    /// Clock ticks, so that doses are dispatched without an upstream's clock.
    fn ticker(&mut self, every: Duration) {
        if every.is_zero() {
            return;
        }
        let producer = self.producer.clone();
        let stop = self.stop.clone();
        self.tasks.spawn("ticker", async move {
            let mut clock = interval(every);
            clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
            while let Some(_now) = stop.run_until_cancelled(clock.tick()).await {
                // The next tick covers the time of one that Kafka did not take.
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
        self.tasks.spawn("sweep", async move {
            let mut daily = interval(SWEEP_EVERY);
            while let Some(_now) = stop.run_until_cancelled(daily.tick()).await {
                if let Some(Err(err)) = stop.run_until_cancelled(medication.sweep()).await {
                    warn!(error = %err, "The sweep over regimens did not finish; the next one is in a day");
                }
            }
            Ok(())
        });
    }
}
