//! What is observed: the messages that reach the sandbox, and the records that pushcast publishes.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use consumer::{Fate, Handler, HandlerError, OrderingKey, Record, Rejected};
use jiff::Timestamp;
use pushcast::{
    domain::{DeadToken, ProviderId, Report},
    events::{invalid_tokens, push_outcomes, topics},
};
use sandbox::{self, ProviderStatistics, Statistics, TakenMessage};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::{expected::Name, world::World};

/// The interval at which the sandbox is polled.
const POLL_EVERY: Duration = Duration::from_millis(40);

/// A message that a provider took.
#[derive(Clone, Debug, PartialEq)]
pub struct Push {
    /// The provider that took it.
    pub provider: ProviderId,
    /// Its recipient.
    pub token: String,
    /// `post:walk`, `dose:daily-1`; for any other message its text.
    pub name: Name,
    /// When it arrived.
    pub at: Timestamp,
    /// The title and the text, as a phone shows them.
    pub text: String,
}

/// The number of messages that had arrived, taken or not: first Expo's, then FCM's.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// When the sandbox was polled.
    pub at: Instant,
    /// Messages since the start.
    pub arrived: [u64; 2],
}

/// Everything that was observed at the providers.
#[derive(Debug, Default)]
pub struct Seen {
    /// In the order of their arrival.
    pub pushes: Vec<Push>,
    /// One per poll since the start.
    pub samples: Vec<Sample>,
}

/// Polls the sandbox.
pub struct Watch<'a> {
    world: &'a World,
    seen: Mutex<Seen>,
}

/// Collects the records that pushcast publishes, as any consumer of its topics would.
#[derive(Debug, Default)]
pub struct Collector(Mutex<Collected>);

/// The records that were consumed.
#[derive(Clone, Debug, Default)]
pub struct Collected {
    /// The records of `push-outcomes`.
    pub outcomes: Vec<Report>,
    /// The records of `invalid-tokens`.
    pub invalid: Vec<DeadToken>,
    /// The number of records in `dead-letters`.
    pub dead_letters: u64,
}

// === impl Watch ===

impl<'a> Watch<'a> {
    /// A watch that has observed nothing yet.
    pub fn new(world: &'a World) -> Self {
        Self { world, seen: Mutex::default() }
    }

    /// Polls until it is dropped.
    pub async fn poll_forever(&self) -> std::convert::Infallible {
        loop {
            self.poll();
            sleep(POLL_EVERY).await;
        }
    }

    /// Fetches what the sandbox has counted and taken since the last poll.
    pub fn poll(&self) {
        let Statistics { expo, fcm, .. } = self.world.sandbox.statistics();
        let sample = Sample { at: Instant::now(), arrived: [arrived(&expo), arrived(&fcm)] };
        let new = self.world.sandbox.drain_messages();
        let mut seen = self.seen();
        seen.samples.push(sample);
        seen.pushes.extend(new.into_iter().map(Push::from));
    }

    /// Everything that was observed so far.
    pub fn seen(&self) -> MutexGuard<'_, Seen> {
        lock(&self.seen)
    }

    /// When this notification last reached that provider.
    pub fn arrival(&self, name: &str, provider: ProviderId) -> Option<Timestamp> {
        let matches = |push: &&Push| push.provider == provider && push.name == name;
        self.seen().pushes.iter().rev().find(matches).map(|push| push.at)
    }
}

fn arrived(provider: &ProviderStatistics) -> u64 {
    provider.answers.values().sum()
}

impl From<TakenMessage> for Push {
    fn from(message: TakenMessage) -> Self {
        let TakenMessage { provider, token, title, body, data, received_at, .. } = message;
        let provider = match provider {
            sandbox::Provider::Expo => ProviderId::Expo,
            sandbox::Provider::Fcm => ProviderId::Fcm,
        };
        let text = [title, body].into_iter().flatten().collect::<Vec<_>>().join(": ");
        let name = match (data["post_id"].as_str(), data["regimen_id"].as_str()) {
            (Some(post), _) => format!("post:{post}"),
            (None, Some(regimen)) => format!("dose:{regimen}"),
            (None, None) => text.clone(),
        };
        Self { provider, token, name, at: received_at, text }
    }
}

// === impl Collector ===

impl Collector {
    /// The records that were consumed so far.
    pub fn collected(&self) -> MutexGuard<'_, Collected> {
        lock(&self.0)
    }
}

impl Handler for Collector {
    type Event = CollectedRecord;

    fn read(&self, record: &Record) -> Result<CollectedRecord, Rejected> {
        let key = record.key.as_deref();
        let value = record.value.as_deref();
        Ok(match &*record.topic {
            topics::PUSH_OUTCOMES => CollectedRecord::Outcome(push_outcomes::read(key, value)?),
            topics::INVALID_TOKENS => CollectedRecord::Invalid(invalid_tokens::read(key, value)?),
            _ => CollectedRecord::DeadLetter,
        })
    }

    fn key(&self, _: &CollectedRecord) -> Option<OrderingKey> {
        None
    }

    async fn handle(
        &self,
        noticed: CollectedRecord,
        _: &Record,
        _: &CancellationToken,
    ) -> Result<Fate, HandlerError> {
        let mut collected = self.collected();
        match noticed {
            CollectedRecord::Outcome(report) => collected.outcomes.push(report),
            CollectedRecord::Invalid(dead) => collected.invalid.push(dead),
            CollectedRecord::DeadLetter => collected.dead_letters += 1,
        }
        Ok(Fate::Done)
    }
}

/// A record that pushcast has published.
#[derive(Debug)]
pub enum CollectedRecord {
    /// A record of `push-outcomes`.
    Outcome(Report),
    /// A record of `invalid-tokens`.
    Invalid(DeadToken),
    /// A record of `dead-letters`, whatever it contains.
    DeadLetter,
}

/// Locks, poisoned or not: a panic elsewhere can't leave half a push behind.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
