//! Keeps regimens and their due rows; dispatches each dose at its time.
//!
//! A clock tick, from our ticker or from upstream, becomes one record per shard. A shard's tick reads which
//! regimens are due, checks each against the regimen's current definition, dispatches the dose to delivery,
//! and inserts the regimen's next due row. These due rows form a chain per regimen that never breaks,
//! wherever a process crashes between two steps: `due_queue` has the argument. `dose` makes what is
//! dispatched, and the text that the user reads.
//!
//! Everything here may happen twice: ticks overlap, records are delivered again. A dose dispatched twice has
//! the same id both times, and delivery sends it once.

mod dose;
mod due_queue;
#[cfg(test)]
mod tests;

use std::{sync::Arc, time::Duration};

use consumer::{Cause, Fate, Handler, HandlerError, Message, OrderingKey, Publish, Record, Rejected};
use serde::Deserialize;
use tokio_util::sync::CancellationToken;

use super::RecordOrigin;
pub use crate::store::Clock;
use crate::{
    domain::{ProviderId, RegimenEvent, Tick, Timestamp},
    events::{self, topics},
    metrics::Metrics,
    store::{Doses, Registry, SHARDS, Shard},
};

/// `[medication]` of config/default.toml.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "config/default.toml is the manual")]
pub struct Settings {
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required")]
    pub tick_every: Duration,
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required")]
    pub max_lateness: Duration,
    pub title: String,
    pub body: String,
    pub screen: String,
    pub sound: String,
    pub channel: String,
}

/// The stage: handles `medication-regimens` and `medication-ticks`.
pub struct Medication<S, P> {
    store: S,
    publish: P,
    settings: Settings,
    /// The configured providers: nothing is planned for others.
    providers: Vec<ProviderId>,
    /// How long a dose is worth sending, from its schedule time.
    life: Duration,
    metrics: Arc<Metrics>,
    clock: Clock,
}

/// What the stage reads.
#[derive(Debug)]
pub enum MedicationEvent {
    /// A record of `medication-regimens`.
    Regimen(RegimenEvent),
    /// A record of `medication-ticks`.
    Tick(Tick),
}

/// The tick of a clock that shows `now`, for `medication-ticks`: publish one every [`Settings::tick_every`].
pub fn clock_tick(now: Timestamp) -> Message {
    Message::new(
        topics::MEDICATION_TICKS,
        None,
        events::medication_ticks::write(&Tick::Clock { at: Some(now) }),
    )
}

// === impl Medication ===

impl<S: Doses + Registry, P: Publish> Medication<S, P> {
    /// A stage for these providers. `urgent_life` is how long delivery may try a dose, from its schedule
    /// time; it is taken to be at least [`Settings::max_lateness`], so that no dose is dispatched only to
    /// expire.
    pub fn new(
        store: S,
        publish: P,
        settings: Settings,
        providers: Vec<ProviderId>,
        urgent_life: Duration,
        metrics: Arc<Metrics>,
        clock: Clock,
    ) -> Self {
        let life = urgent_life.max(settings.max_lateness);
        Self { store, publish, settings, providers, life, metrics, clock }
    }

    fn now(&self) -> Timestamp {
        (self.clock)()
    }

    async fn regimen_event(&self, event: &RegimenEvent, record: &Record) -> Result<Fate, HandlerError> {
        let origin = RecordOrigin::of(record, self.now())?;
        match event {
            RegimenEvent::Set(id, regimen) => self.define(id, regimen, origin).await?,
            // Its due rows stay: they find no regimen.
            RegimenEvent::Removed(id) => self.store.put_regimen(id, None, origin.version()).await?,
        }
        Ok(Fate::Done)
    }

    async fn tick(
        &self,
        tick: Tick,
        record: &Record,
        stop: &CancellationToken,
    ) -> Result<Fate, HandlerError> {
        match tick {
            Tick::Clock { at } => {
                self.split(at.unwrap_or(record.timestamp).min(self.now())).await?;
                Ok(Fate::Done)
            }
            Tick::Shard { shard, .. } if shard >= SHARDS => Ok(Fate::DeadLetter(Cause::invalid(
                format_args!("there is no shard {shard}, only 0 to {}", SHARDS - 1),
            ))),
            Tick::Shard { shard, at } => self.shard_tick(Shard(shard), at, stop).await,
            Tick::Dose(dose) => {
                self.upstream_dose(dose).await?;
                Ok(Fate::Done)
            }
        }
    }

    /// Turns a clock tick into one record per shard.
    async fn split(&self, at: Timestamp) -> Result<(), HandlerError> {
        let tick = |Shard(shard): Shard| {
            let value = events::medication_ticks::write(&Tick::Shard { shard, at });
            Message::new(topics::MEDICATION_TICKS, shard.to_string(), value)
        };
        self.publish.publish_all(Shard::all().map(tick).collect()).await?;
        self.metrics.last_tick_timestamp_seconds.set(self.now().as_second());
        Ok(())
    }
}

impl<S: Doses + Registry, P: Publish> Handler for Medication<S, P> {
    type Event = MedicationEvent;

    fn read(&self, record: &Record) -> Result<MedicationEvent, Rejected> {
        let key = record.key.as_deref();
        let value = record.value.as_deref();
        Ok(if &*record.topic == topics::MEDICATION_REGIMENS {
            MedicationEvent::Regimen(events::medication_regimens::read(key, value)?)
        } else {
            MedicationEvent::Tick(events::medication_ticks::read(key, value)?)
        })
    }

    fn key(&self, event: &MedicationEvent) -> Option<OrderingKey> {
        let key = match event {
            MedicationEvent::Regimen(RegimenEvent::Set(id, _) | RegimenEvent::Removed(id)) => {
                format!("regimen:{id}")
            }
            MedicationEvent::Tick(Tick::Clock { .. }) => return None,
            MedicationEvent::Tick(Tick::Shard { shard, .. }) => format!("shard:{shard}"),
            MedicationEvent::Tick(Tick::Dose(dose)) => format!("dose:{}", dose.regimen),
        };
        Some(OrderingKey::of(&key))
    }

    async fn handle(
        &self,
        event: MedicationEvent,
        record: &Record,
        stop: &CancellationToken,
    ) -> Result<Fate, HandlerError> {
        match event {
            MedicationEvent::Regimen(event) => self.regimen_event(&event, record).await,
            MedicationEvent::Tick(tick) => self.tick(tick, record, stop).await,
        }
    }
}
