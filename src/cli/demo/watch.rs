//! What is seen: the messages that reach the sandbox, and what pushcast publishes for others.

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

/// How often the sandbox is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(40);

/// A message that a provider took.
#[derive(Clone, Debug, PartialEq)]
pub struct Push {
    /// Who.
    pub provider: ProviderId,
    /// To whom.
    pub token: String,
    /// What: `post:walk`, `dose:daily-1`; whatever else it is has its text here.
    pub name: Name,
    /// When it arrived.
    pub at: Timestamp,
    /// The first line and the text, as a phone would show them.
    pub text: String,
}

/// How many messages had arrived at a moment, taken or not: first Expo's, then FCM's.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// When.
    pub at: Instant,
    /// How many.
    pub arrived: [u64; 2],
}

/// Everything that was seen at the providers.
#[derive(Debug, Default)]
pub struct Seen {
    /// In the order of their arrival.
    pub pushes: Vec<Push>,
    /// Ever since the start.
    pub samples: Vec<Sample>,
}

/// Watches the world.
pub struct Watch<'a> {
    world: &'a World,
    seen: Mutex<Seen>,
}

/// What pushcast has published for others: a reader like any of theirs.
#[derive(Debug, Default)]
pub struct Collector(Mutex<Noted>);

/// The records that were read.
#[derive(Clone, Debug, Default)]
pub struct Noted {
    /// Of `push-outcomes`.
    pub outcomes: Vec<Report>,
    /// Of `invalid-tokens`.
    pub invalid: Vec<DeadToken>,
    /// Of `dead-letters`.
    pub dead_letters: u64,
}

// === impl Watch ===

impl<'a> Watch<'a> {
    /// Has seen nothing yet.
    pub fn new(world: &'a World) -> Self {
        Self { world, seen: Mutex::default() }
    }

    /// Looks again and again; never ends.
    pub async fn keep_looking(&self) -> std::convert::Infallible {
        loop {
            self.look();
            sleep(LOOK_EVERY).await;
        }
    }

    /// Takes up what the sandbox has seen since the last look.
    pub fn look(&self) {
        let Statistics { expo, fcm, .. } = self.world.sandbox.statistics();
        let sample = Sample { at: Instant::now(), arrived: [arrived(&expo), arrived(&fcm)] };
        let new = self.world.sandbox.drain_messages();
        let mut seen = self.seen();
        seen.samples.push(sample);
        seen.pushes.extend(new.into_iter().map(Push::from));
    }

    /// What was seen so far.
    pub fn seen(&self) -> MutexGuard<'_, Seen> {
        held(&self.seen)
    }

    /// When this notification reached a phone through that provider.
    pub fn arrival(&self, name: &str, provider: ProviderId) -> Option<Timestamp> {
        let is_it = |push: &&Push| push.provider == provider && push.name == name;
        self.seen().pushes.iter().rev().find(is_it).map(|push| push.at)
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
    /// What was read so far.
    pub fn noted(&self) -> MutexGuard<'_, Noted> {
        held(&self.0)
    }
}

impl Handler for Collector {
    type Event = Noticed;

    fn read(&self, record: &Record) -> Result<Noticed, Rejected> {
        let key = record.key.as_deref();
        let value = record.value.as_deref();
        Ok(match &*record.topic {
            topics::PUSH_OUTCOMES => Noticed::Outcome(push_outcomes::read(key, value)?),
            topics::INVALID_TOKENS => Noticed::Invalid(invalid_tokens::read(key, value)?),
            _ => Noticed::DeadLetter,
        })
    }

    fn key(&self, _: &Noticed) -> Option<OrderingKey> {
        None
    }

    async fn handle(
        &self,
        noticed: Noticed,
        _: &Record,
        _: &CancellationToken,
    ) -> Result<Fate, HandlerError> {
        let mut noted = self.noted();
        match noticed {
            Noticed::Outcome(report) => noted.outcomes.push(report),
            Noticed::Invalid(dead) => noted.invalid.push(dead),
            Noticed::DeadLetter => noted.dead_letters += 1,
        }
        Ok(Fate::Done)
    }
}

/// What the topics for others say.
#[derive(Debug)]
pub enum Noticed {
    /// A record of `push-outcomes`.
    Outcome(Report),
    /// A record of `invalid-tokens`.
    Invalid(DeadToken),
    /// A dead letter, whatever it holds.
    DeadLetter,
}

/// Locks; a panic elsewhere can't leave half a push behind.
fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
