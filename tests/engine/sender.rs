//! What the tests of the engine share: one instance's batcher with a provider's client, its recipients, and a
//! sandbox that takes a while to answer.

use std::{future::pending, sync::Arc, time::Duration};

use futures::{StreamExt as _, stream};
use pushcast::{
    config::{Config, Environment},
    dispatch::{
        Batcher, BatcherHandle, Class, Gate, MessageOutcome, Provider, RateLimiter, Returned, RouteSync,
        Share, SubmittedPage, route,
    },
    domain::{Data, Notification, NotificationId, ProviderId, Recipient, Timestamp, Token, Version},
    expo::{self, Expo},
    fcm::{self, Fcm},
    metrics::Metrics,
};
use sandbox::{Faults, Sandbox};
use tokio::{sync::watch, task::JoinSet, time::Instant};

/// How long a provider takes to answer.
pub const LATENCY: Duration = Duration::from_millis(50);
const PAGE: usize = 500;
const OPEN_PAGES: usize = 16;
/// Nothing expires or becomes stale in these tests.
const DAY: Duration = Duration::from_secs(24 * 3600);

/// An instance's sender to one provider.
pub struct Sender<P: Provider> {
    pub provider: Arc<P>,
    pub share: watch::Sender<Share>,
    pub route_sync: RouteSync,
    handle: BatcherHandle<P::Body>,
    metrics: Arc<Metrics>,
    _task: JoinSet<()>,
}

// === impl Sender ===

impl<P: Provider> Sender<P> {
    fn new(provider: P, limit: u32, requests_in_flight: usize, metrics: Arc<Metrics>) -> Self {
        let provider = Arc::new(provider);
        let share = watch::Sender::new(Share::WHOLE);
        let (route, route_sync) = route();
        route_sync.follow(Gate::Open);
        let rate_limiter = RateLimiter::new(limit, Duration::ZERO, Instant::now());
        let (batcher, handle) = Batcher::new(
            Arc::clone(&provider),
            requests_in_flight,
            rate_limiter,
            share.subscribe(),
            route,
            Arc::clone(&metrics),
        );
        let mut task = JoinSet::new();
        task.spawn(batcher.run());
        Self { provider, share, route_sync, handle, metrics, _task: task }
    }

    /// Sends one page.
    pub async fn send(&self, class: Class, recipients: Vec<Recipient>) -> Returned {
        let page = SubmittedPage {
            class,
            body: Arc::new(self.provider.body(&notification(class)).unwrap()),
            recipients: recipients.into(),
            expires: Instant::now() + DAY,
            start_before: None,
            stale_at: Instant::now() + DAY,
        };
        self.handle.submit(page, pending()).await.unwrap()
    }

    /// Sends to all recipients, page by page, as the handlers of a broadcast's parts do.
    pub async fn broadcast(&self, recipients: Vec<Recipient>) -> Vec<MessageOutcome> {
        let pages: Vec<_> = recipients.chunks(PAGE).map(<[_]>::to_vec).collect();
        let returned: Vec<Returned> = stream::iter(pages)
            .map(|page| self.send(Class::Slice, page))
            .buffer_unordered(OPEN_PAGES)
            .collect()
            .await;
        returned.into_iter().flat_map(|page| page.outcomes).map(Option::unwrap).collect()
    }

    /// Messages of which it is unknown whether the provider has taken them.
    pub fn ambiguous(&self) -> u64 {
        self.metrics.ambiguous_sends_total.with_label_values(&[self.provider.id().label()]).get()
    }
}

/// A sender to Expo; `limit` is its messages per second, 0 = none.
pub fn expo_sender(sandbox: &Sandbox, limit: u32) -> Sender<Expo> {
    expo_sender_with(expo::Settings {
        url: sandbox.expo_url(),
        rate_per_second: limit,
        requests_in_flight: 8,
        ..defaults().expo
    })
}

pub fn expo_sender_with(settings: expo::Settings) -> Sender<Expo> {
    let metrics = Arc::new(Metrics::new());
    let expo = Expo::new(&settings, Arc::clone(&metrics)).unwrap();
    Sender::new(expo, settings.rate_per_second, settings.requests_in_flight, metrics)
}

/// A sender to FCM; `limit` is its messages per second, 0 = none.
pub async fn fcm_sender(sandbox: &Sandbox, limit: u32) -> Sender<Fcm> {
    fcm_sender_at(sandbox, sandbox.fcm_url(), limit).await
}

/// The same, to a URL in front of the sandbox.
pub async fn fcm_sender_at(sandbox: &Sandbox, url: String, limit: u32) -> Sender<Fcm> {
    let account: serde_json::Value = serde_json::from_str(&sandbox.service_account()).unwrap();
    let text = |field: &str| account[field].as_str().unwrap().to_owned();
    let settings = fcm::Settings {
        url,
        project_id: text("project_id"),
        client_email: text("client_email"),
        private_key: text("private_key").into(),
        token_url: text("token_uri"),
        rate_per_second: limit,
        ramp_up: Duration::ZERO,
        requests_in_flight: 400,
        connections: 4,
        ..defaults().fcm
    };
    let metrics = Arc::new(Metrics::new());
    let fcm = Fcm::new(&settings, Arc::clone(&metrics)).await.unwrap().unwrap();
    Sender::new(fcm, limit, settings.requests_in_flight, metrics)
}

pub fn defaults() -> Config {
    Config::load(None, &Environment::default()).unwrap()
}

/// A sandbox where each provider takes [`LATENCY`] to answer.
pub async fn sandbox(change: impl FnOnce(&mut Faults)) -> Sandbox {
    let sandbox = Sandbox::start(sandbox::Options::default()).await.unwrap();
    let mut faults = Faults::default();
    faults.expo.latency = LATENCY;
    faults.fcm.latency = LATENCY;
    change(&mut faults);
    sandbox.faults().set(faults);
    sandbox
}

fn notification(class: Class) -> Notification {
    let id = if class == Class::Urgent { "dose:pr1:r1" } else { "post:p1" };
    Notification {
        id: NotificationId::new(id),
        title: "On walking".into(),
        body: "A new reflection".into(),
        data: Data::new(),
        sound: None,
        channel: "default".into(),
        expires_at: Timestamp::UNIX_EPOCH,
    }
}

/// One recipient for each name.
pub fn recipients(provider: ProviderId, names: impl IntoIterator<Item = String>) -> Vec<Recipient> {
    let token = |name: String| match provider {
        ProviderId::Expo => format!("ExponentPushToken[{name}]"),
        ProviderId::Fcm => format!("{name}:{}", "x".repeat(80)),
    };
    let recipient = |name| Recipient {
        token: Token::parse(&token(name)).unwrap(),
        version: Version::from_i64(2),
        platform: None,
    };
    names.into_iter().map(recipient).collect()
}

/// `phone-0`, `phone-1` …
pub fn phones(provider: ProviderId, count: usize) -> Vec<Recipient> {
    recipients(provider, (0..count).map(|number| format!("phone-{number}")))
}

pub fn all_sent(outcomes: &[MessageOutcome]) -> bool {
    outcomes.iter().all(|outcome| matches!(outcome, MessageOutcome::Sent { .. }))
}
