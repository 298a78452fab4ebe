//! The engine with its real clients against the sandbox, in virtual time: hours pass in seconds, and the
//! sandbox counts on the same clock, so that what it counts in a second is exact.
//!
//! Everything lives in one thread. What one side writes to its socket the other side can read at once, and
//! the clock moves only when nobody has anything to do.

#![expect(clippy::unwrap_used, reason = "clippy takes helpers of an integration test for production code")]

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
use sandbox::{
    Answer, FailureMode, Faults, Outage, ProviderFaults, ProviderStatistics, Sandbox, TokenFault, TokenRule,
    Which,
};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
    time::Instant,
};

/// What a provider takes to answer.
const LATENCY: Duration = Duration::from_millis(50);
const PAGE: usize = 500;
const OPEN_PAGES: usize = 16;
const OUTAGE: Duration = Duration::from_secs(600);

/// An instance's sender to one provider.
struct Engine<P: Provider> {
    provider: Arc<P>,
    handle: BatcherHandle<P::Body>,
    share: watch::Sender<Share>,
    metrics: Arc<Metrics>,
    route_sync: RouteSync,
    _task: JoinSet<()>,
}

impl<P: Provider> Engine<P> {
    fn new(provider: P, limit: u32, requests_in_flight: usize, metrics: Arc<Metrics>) -> Self {
        let (provider, share, (route, route_sync)) =
            (Arc::new(provider), watch::Sender::new(Share::WHOLE), route());
        route_sync.follow(Gate::Open);
        let pace = RateLimiter::new(limit, Duration::ZERO, Instant::now());
        let (batcher, handle) = Batcher::new(
            Arc::clone(&provider),
            requests_in_flight,
            pace,
            share.subscribe(),
            route,
            Arc::clone(&metrics),
        );
        let mut task = JoinSet::new();
        task.spawn(batcher.run());
        Self { provider, handle, share, metrics, route_sync, _task: task }
    }

    async fn send(&self, class: Class, recipients: Vec<Recipient>) -> Returned {
        let body = Arc::new(self.provider.body(&notification(class)).unwrap());
        let (expires, stale_at) = (
            Instant::now() + Duration::from_secs(24 * 3600),
            Instant::now() + Duration::from_secs(24 * 3600),
        );
        self.handle
            .submit(
                SubmittedPage {
                    class,
                    body,
                    recipients: recipients.into(),
                    expires,
                    start_before: None,
                    stale_at,
                },
                pending(),
            )
            .await
            .unwrap()
    }

    /// Sends to all of them, page by page, as the handlers of a broadcast's parts do.
    async fn broadcast(&self, everybody: Vec<Recipient>) -> Vec<MessageOutcome> {
        let pages: Vec<_> = everybody.chunks(PAGE).map(<[_]>::to_vec).collect();
        let returned: Vec<Returned> = stream::iter(pages)
            .map(|page| self.send(Class::Slice, page))
            .buffer_unordered(OPEN_PAGES)
            .collect()
            .await;
        returned.into_iter().flat_map(|page| page.outcomes).map(Option::unwrap).collect()
    }

    fn ambiguous(&self) -> u64 {
        self.metrics.ambiguous_sends_total.with_label_values(&[self.provider.id().label()]).get()
    }
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

fn people(provider: ProviderId, names: impl IntoIterator<Item = String>) -> Vec<Recipient> {
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

fn everybody(provider: ProviderId, count: usize) -> Vec<Recipient> {
    people(provider, (0..count).map(|number| format!("phone-{number}")))
}

/// A sandbox where each provider takes a moment to answer.
async fn sandbox(change: impl FnOnce(&mut Faults)) -> Sandbox {
    let sandbox = Sandbox::start(sandbox::Options::default()).await.unwrap();
    let mut faults = Faults::default();
    (faults.expo.latency, faults.fcm.latency) = (LATENCY, LATENCY);
    change(&mut faults);
    sandbox.faults().set(faults);
    sandbox
}

fn expo_of(sandbox: &Sandbox, limit: u32) -> Engine<Expo> {
    expo_with(expo::Settings {
        url: sandbox.expo_url(),
        rate_per_second: limit,
        requests_in_flight: 8,
        ..defaults().expo
    })
}

fn defaults() -> Config {
    Config::load(None, &Environment::default()).unwrap()
}

fn expo_with(settings: expo::Settings) -> Engine<Expo> {
    let limit = settings.rate_per_second;
    let metrics = Arc::new(Metrics::new());
    Engine::new(
        Expo::new(&settings, Arc::clone(&metrics)).unwrap(),
        limit,
        settings.requests_in_flight,
        metrics,
    )
}

async fn fcm_of(sandbox: &Sandbox, limit: u32) -> Engine<Fcm> {
    fcm_at(sandbox, sandbox.fcm_url(), limit).await
}

async fn fcm_at(sandbox: &Sandbox, url: String, limit: u32) -> Engine<Fcm> {
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
    Engine::new(
        Fcm::new(&settings, Arc::clone(&metrics)).await.unwrap().unwrap(),
        limit,
        settings.requests_in_flight,
        metrics,
    )
}

fn all_sent(outcomes: &[MessageOutcome]) -> bool {
    outcomes.iter().all(|fate| matches!(fate, MessageOutcome::Sent { .. }))
}

// === Outages ===

const MANNERS: [FailureMode; 6] = [
    FailureMode::Error,
    FailureMode::Html,
    FailureMode::Hang,
    FailureMode::Reset,
    FailureMode::Drip,
    FailureMode::Short,
];

/// A provider that is away for ten minutes, in this manner.
fn away(manner: FailureMode, take_anyway: bool) -> ProviderFaults {
    let down = Outage { manner, status: 503, lasting: Some(OUTAGE), take_anyway, ..Outage::default() };
    ProviderFaults { latency: LATENCY, down: Some(down), ..ProviderFaults::default() }
}

/// Everybody was reached soon after the provider's return, and it was left in peace until then.
async fn survives<P: Provider>(engine: &Engine<P>, seen: impl Fn() -> ProviderStatistics, what: &str) {
    const PEOPLE: usize = 5_000;
    let begun = Instant::now();
    let (outcomes, asked_in_vain) =
        tokio::join!(engine.broadcast(everybody(engine.provider.id(), PEOPLE)), async {
            tokio::time::sleep(OUTAGE).await;
            seen().requests
        });
    assert_eq!((outcomes.len(), all_sent(&outcomes)), (PEOPLE, true), "{what}");
    let (seen, took) = (seen(), begun.elapsed());
    assert_eq!(seen.distinct_tokens, PEOPLE as u64, "{what}: {seen:?}");
    // The longest pause of a probe, half as long again by its jitter, and a request that still hangs.
    assert!((OUTAGE..OUTAGE + Duration::from_secs(45 + 16)).contains(&took), "{what}: {took:?}");
    assert!(asked_in_vain < 500, "{what}: {asked_in_vain} requests while it was away");
}

#[tokio::test(start_paused = true)]
async fn expo_away_for_ten_minutes_in_any_manner_costs_nobody_the_message() {
    for manner in MANNERS {
        let sandbox = sandbox(|faults| faults.expo = away(manner, false)).await;
        let engine = expo_of(&sandbox, 0);
        survives(&engine, || sandbox.statistics().expo, &format!("{manner:?}")).await;
        let seen = sandbox.statistics().expo;
        assert_eq!(seen.doubles, 0, "{manner:?}: {seen:?}");
        assert!(seen.outages[&manner] >= 10, "{manner:?}: {seen:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn fcm_away_for_ten_minutes_in_any_manner_costs_nobody_the_message() {
    for manner in MANNERS {
        let sandbox = sandbox(|faults| faults.fcm = away(manner, false)).await;
        let engine = fcm_of(&sandbox, 0).await;
        survives(&engine, || sandbox.statistics().fcm, &format!("{manner:?}")).await;
        assert_eq!(sandbox.statistics().fcm.doubles, 0, "{manner:?}");
    }
}

/// The worst that an outage can be: it takes messages and says that it does not. What rings twice then is
/// what was on the wire before anybody could know, and a probe now and then.
#[tokio::test(start_paused = true)]
async fn an_outage_that_takes_what_it_refuses_rings_few_phones_twice() {
    for manner in MANNERS {
        let sandbox = sandbox(|faults| faults.expo = away(manner, true)).await;
        let engine = expo_of(&sandbox, 0);
        survives(&engine, || sandbox.statistics().expo, &format!("{manner:?}")).await;
        let seen = sandbox.statistics().expo;
        // Ten failures open the breaker, eight requests are on the wire by then; a probe is one message.
        let bound = (10 + 8) * 100 + 100;
        assert!((1..=bound).contains(&seen.doubles), "{manner:?}: {} doubles", seen.doubles);
        assert!(seen.doubles <= engine.ambiguous(), "{manner:?}: each of them was counted as ambiguous");
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_is_reset_takes_down_only_what_it_carried() {
    let sandbox = sandbox(|faults| faults.fcm.latency = Duration::from_secs(1)).await;
    let engine = fcm_of(&sandbox, 0).await;
    // The connections are warm, and full.
    engine.broadcast(everybody(ProviderId::Fcm, 1_000)).await;
    let reset = async {
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        sandbox.faults().change(|faults| {
            faults.fcm.down =
                Some(Outage { manner: FailureMode::Reset, requests: Some(1), ..Outage::default() });
        });
    };
    let people = people(ProviderId::Fcm, (0..4_000).map(|number| format!("other-{number}")));
    let (outcomes, ()) = tokio::join!(engine.broadcast(people), reset);
    assert!(all_sent(&outcomes));
    let seen = sandbox.statistics().fcm;
    assert_eq!((seen.distinct_tokens, seen.outages.get(&FailureMode::Reset)), (5_000, Some(&1)));
    // A connection carries a hundred.
    assert!((1..=100).contains(&engine.ambiguous()), "{} were on the connection", engine.ambiguous());
    assert!(seen.doubles <= engine.ambiguous(), "{} doubles", seen.doubles);
}

#[tokio::test(start_paused = true)]
async fn a_token_endpoint_that_fails_in_any_manner_halts_nothing_and_loses_nobody() {
    for manner in MANNERS {
        let sandbox = sandbox(|faults| {
            faults.oauth.down =
                Some(Outage { manner, lasting: Some(Duration::from_secs(60)), ..Outage::default() });
        })
        .await;
        let engine = fcm_of(&sandbox, 0).await;
        let begun = Instant::now();
        assert!(all_sent(&engine.broadcast(everybody(ProviderId::Fcm, 300)).await), "{manner:?}");
        assert_eq!(
            (sandbox.statistics().fcm.requests, engine.ambiguous()),
            (300, 0),
            "{manner:?}: nothing goes without a token"
        );
        assert!(begun.elapsed() < Duration::from_secs(60 + 70 + 45), "{manner:?}: {:?}", begun.elapsed());

        // And later one that was good is not known any more, while the next ones don't come.
        sandbox.faults().change(|faults| {
            faults.oauth.down =
                Some(Outage { manner, lasting: Some(Duration::from_secs(30)), ..Outage::default() });
        });
        sandbox.revoke_credentials();
        let people = people(ProviderId::Fcm, (0..300).map(|number| format!("other-{number}")));
        assert!(all_sent(&engine.broadcast(people).await), "{manner:?}");
        let seen = sandbox.statistics();
        assert_eq!(
            (seen.fcm.distinct_tokens, seen.fcm.doubles, seen.credentials_issued),
            (600, 0, 2),
            "{manner:?}"
        );
        assert_eq!(*engine.route_sync.local_status().borrow(), None, "{manner:?}");
    }
}

/// Passes on what comes to `origin`, but opens each connection only after a while, as a handshake over a long
/// way does.
async fn far_away(origin: &str, handshake: Duration) -> (String, JoinSet<()>) {
    let origin = origin.strip_prefix("http://").unwrap().to_owned();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let mut task = JoinSet::new();
    task.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((mut near, _)) = listener.accept().await {
            let origin = origin.clone();
            connections.spawn(async move {
                tokio::time::sleep(handshake).await;
                let mut far = TcpStream::connect(origin).await.unwrap();
                // What the kernel holds back for a while takes an age here.
                near.set_nodelay(true).unwrap();
                far.set_nodelay(true).unwrap();
                let _ended = copy_bidirectional(&mut near, &mut far).await;
            });
        }
    });
    (url, task)
}

#[tokio::test(start_paused = true)]
async fn what_has_waited_for_connections_to_open_goes_at_the_rate() {
    const LIMIT: u32 = 1_000;
    for handshake in [100, 400] {
        let sandbox = sandbox(|_| {}).await;
        let (url, _task) = far_away(&sandbox.fcm_url(), Duration::from_millis(handshake)).await;
        let engine = fcm_at(&sandbox, url, LIMIT).await;
        assert!(all_sent(&engine.broadcast(everybody(ProviderId::Fcm, 3_000)).await));
        let seen = sandbox.statistics().fcm;
        assert_eq!((seen.doubles, engine.ambiguous()), (0, 0));
        assert!(
            seen.peak_per_second <= u64::from(LIMIT),
            "{handshake} ms: {} in one second",
            seen.peak_per_second
        );
    }
}

/// The first token comes late; later FCM no longer knows it. What has filled the slots meanwhile must not
/// leave at once.
#[tokio::test(start_paused = true)]
async fn what_has_waited_for_an_oauth_token_goes_at_the_rate() {
    const LIMIT: u32 = 1_000;
    for (revoked, latency, handshake) in [(false, 50, 0), (false, 50, 400), (true, 50, 0), (true, 350, 0)] {
        let sandbox = sandbox(|faults| {
            faults.fcm.latency = Duration::from_millis(latency);
            faults.oauth.latency = Duration::from_secs(2);
        })
        .await;
        let (url, _task) = far_away(&sandbox.fcm_url(), Duration::from_millis(handshake)).await;
        let engine = fcm_at(&sandbox, url, LIMIT).await;
        let google = async {
            tokio::time::sleep(Duration::from_secs(3)).await;
            if revoked {
                sandbox.revoke_credentials();
            }
        };
        let (outcomes, ()) = tokio::join!(engine.broadcast(everybody(ProviderId::Fcm, 5_000)), google);
        let seen = sandbox.statistics();
        let refused = seen.fcm.answered(Answer::CredentialsRefused);
        assert!(all_sent(&outcomes) && (refused > 0) == revoked, "{refused} were refused");
        assert_eq!((seen.fcm.distinct_tokens, seen.fcm.doubles, engine.ambiguous()), (5_000, 0, 0));
        assert!(
            seen.fcm.peak_per_second <= u64::from(LIMIT),
            "{} in one second, {refused} refused",
            seen.fcm.peak_per_second
        );
    }
}

/// It knows none of our tokens, however new they are.
#[tokio::test(start_paused = true)]
async fn an_fcm_that_will_not_have_us_halts_the_route_until_somebody_has_mended_that() {
    let sandbox = sandbox(|_| {}).await;
    let mut engine = fcm_of(&sandbox, 400).await;
    let mut route_sync = std::mem::replace(&mut engine.route_sync, route().1);
    let forgetful = async {
        loop {
            sandbox.revoke_credentials();
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let operator = async {
        let why =
            tokio::select! { why = route_sync.halted() => why.unwrap(), () = forgetful => unreachable!() };
        assert!(why.contains("UNAUTHENTICATED"), "{why}");
        tokio::time::sleep(Duration::from_secs(600)).await;
        // The token that we have is still one of the bad ones.
        sandbox.revoke_credentials();
        route_sync.follow(Gate::Open);
        let again = tokio::time::timeout(Duration::from_secs(60), route_sync.halted()).await;
        assert!(again.is_err(), "once is enough: {again:?}");
    };
    let (outcomes, ()) = tokio::join!(engine.broadcast(everybody(ProviderId::Fcm, 2_000)), operator);
    assert!(all_sent(&outcomes));
    let seen = sandbox.statistics().fcm;
    assert_eq!((seen.distinct_tokens, seen.doubles), (2_000, 0));
}

/// With a broadcast, of which the first failures open the breaker, and without one.
#[tokio::test(start_paused = true)]
async fn reminders_go_within_two_seconds_of_the_end_of_a_short_outage() {
    const AWAY: Duration = Duration::from_secs(4);
    for bulk in [0, 5_000].repeat(15) {
        let sandbox = sandbox(|_| {}).await;
        let engine = expo_of(&sandbox, 600);
        let reminders = async {
            tokio::time::sleep(Duration::from_secs(2)).await;
            let back = Instant::now() + AWAY;
            sandbox.faults().change(|faults| {
                faults.expo.down = Some(Outage {
                    manner: FailureMode::Error,
                    status: 503,
                    lasting: Some(AWAY),
                    ..Outage::default()
                });
            });
            // One each tenth of a second, and each waits for its own answer.
            let reminder = async |number: u32| {
                tokio::time::sleep(Duration::from_millis(100) * number).await;
                engine.send(Class::Urgent, people(ProviderId::Expo, [format!("patient-{number}")])).await;
                Instant::now().saturating_duration_since(back)
            };
            futures::future::join_all((0..40).map(reminder)).await
        };
        let (outcomes, late) = tokio::join!(engine.broadcast(everybody(ProviderId::Expo, bulk)), reminders);
        assert_eq!((outcomes.len(), all_sent(&outcomes), sandbox.statistics().expo.doubles), (bulk, true, 0));
        let (first, last) = (late.iter().min().unwrap(), late.iter().max().unwrap());
        assert!(
            *last < Duration::from_secs(2),
            "with {bulk} others: the first after {first:?}, the last after {last:?}"
        );
    }
}

// === Limits ===

#[tokio::test(start_paused = true)]
async fn three_instances_that_come_and_go_keep_expos_limit_in_every_second() {
    const LIMIT: u32 = 600;
    let sandbox = sandbox(|_| {}).await;
    let instances = [expo_of(&sandbox, LIMIT), expo_of(&sandbox, LIMIT), expo_of(&sandbox, LIMIT)];
    let share = |bulk| Share { bulk, bulk_of: 16, urgent: 5, urgent_of: 16 };
    let owns = |who: usize, bulk| {
        instances[who].share.send_replace(share(bulk));
    };
    let length = Duration::from_secs(90);
    // More than anybody can send in that time.
    let work = instances.iter().enumerate().map(|(who, instance)| {
        instance.broadcast(people(ProviderId::Expo, (0..90 * 600).map(|number| format!("{who}-{number}"))))
    });
    let moves = async {
        // (at second, who, owns so many): given up first, and taken over within a second.
        let mut now = 0;
        for (at, who, bulk) in [
            (0, 0, 16),
            (0, 1, 0),
            (0, 2, 0),
            (15, 0, 8),
            (16, 1, 8),
            (30, 0, 6),
            (30, 1, 5),
            (31, 2, 5),
            (50, 1, 0),
            (51, 0, 11),
            (70, 0, 0),
            (71, 2, 16),
        ] {
            tokio::time::sleep(Duration::from_secs(at - now)).await;
            now = at;
            owns(who, bulk);
        }
        tokio::time::sleep(length - Duration::from_secs(now)).await;
    };
    tokio::select! { _ = futures::future::join_all(work) => {}, () = moves => {} }
    let seen = sandbox.statistics().expo;
    assert!(seen.peak_per_second <= u64::from(LIMIT), "{} in one second", seen.peak_per_second);
    // What moves stands still for up to two seconds, and the first second is empty.
    let lost = 1.0 + 2.0 * (8.0 + 5.0 + 5.0 + 16.0) / 16.0;
    let allowed = f64::from(LIMIT) * (length.as_secs_f64() - lost);
    assert!(seen.taken as f64 >= 0.95 * allowed, "{} of {allowed}", seen.taken);
}

/// A request holds its slot for all that time: what it carries decides whether the slots suffice for the
/// rate.
#[tokio::test(start_paused = true)]
async fn an_expo_that_takes_long_to_answer_is_sent_all_that_it_allows() {
    let sandbox = sandbox(|faults| faults.expo.latency = Duration::from_millis(800)).await;
    let engine = expo_with(expo::Settings { url: sandbox.expo_url(), ..defaults().expo });
    let begun = Instant::now();
    assert!(all_sent(&engine.broadcast(everybody(ProviderId::Expo, 30_000)).await));
    let seen = sandbox.statistics().expo;
    assert!(seen.peak_per_second <= 600, "{} in one second", seen.peak_per_second);
    // The first second is empty, and the last request takes its time.
    let sending = begun.elapsed() - Duration::from_millis(1_800);
    assert!(seen.taken as f64 >= 0.95 * 600.0 * sending.as_secs_f64(), "{} in {sending:?}", seen.taken);
}

#[tokio::test(start_paused = true)]
async fn fcms_limit_holds_in_every_second() {
    let sandbox = sandbox(|_| {}).await;
    let engine = fcm_of(&sandbox, 400).await;
    let begun = Instant::now();
    assert!(all_sent(&engine.broadcast(everybody(ProviderId::Fcm, 4_000)).await));
    let seen = sandbox.statistics().fcm;
    assert!(seen.peak_per_second <= 400, "{} in one second", seen.peak_per_second);
    assert!(begun.elapsed() < Duration::from_millis(12_100), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_storm_of_429s_is_weathered_and_nobody_rings_twice() {
    // Half of what we think is ours.
    let sandbox = sandbox(|faults| {
        faults.expo.rate_limit = Some(300);
        faults.fcm.rate_limit = Some(200);
    })
    .await;
    let (expo, fcm) = (expo_of(&sandbox, 600), fcm_of(&sandbox, 400).await);
    let outcomes = tokio::join!(
        expo.broadcast(everybody(ProviderId::Expo, 10_000)),
        fcm.broadcast(everybody(ProviderId::Fcm, 3_000))
    );
    assert!(all_sent(&outcomes.0) && all_sent(&outcomes.1));
    let seen = sandbox.statistics();
    for (seen, people, what) in [(seen.expo, 10_000, "Expo"), (seen.fcm, 3_000, "FCM")] {
        assert_eq!((seen.distinct_tokens, seen.doubles), (people, 0), "{what}");
        let throttled = seen.answered(Answer::Throttled);
        assert!((1..people / 5).contains(&throttled), "{what}: {throttled} of {} were too many", seen.taken);
    }
}

#[tokio::test(start_paused = true)]
async fn a_busy_device_holds_up_nobody_else() {
    let sandbox = sandbox(|faults| {
        faults.fcm.tokens =
            vec![TokenRule { which: Which::Containing("-7".into()), fault: TokenFault::Busy }];
    })
    .await;
    let engine = fcm_of(&sandbox, 0).await;
    let free = async {
        tokio::time::sleep(Duration::from_secs(120)).await;
        let seen = sandbox.statistics().fcm;
        // phone-7, phone-70 … phone-799.
        assert_eq!(seen.distinct_tokens, 1_000 - 111, "the others have theirs");
        assert!(
            seen.answered(Answer::Busy) < 111 * 10,
            "{} requests to busy devices",
            seen.answered(Answer::Busy)
        );
        sandbox.faults().change(|faults| faults.fcm.tokens.clear());
    };
    let (outcomes, ()) = tokio::join!(engine.broadcast(everybody(ProviderId::Fcm, 1_000)), free);
    assert!(all_sent(&outcomes));
}

// === Urgent ===

#[tokio::test(start_paused = true)]
async fn reminders_overtake_a_broadcast_to_two_hundred_thousand() {
    const PEOPLE: usize = 200_000;
    let sandbox = sandbox(|_| {}).await;
    let engine = expo_of(&sandbox, 6_000);
    let reminders = async {
        let mut waits = Vec::new();
        for number in 0..30 {
            tokio::time::sleep(Duration::from_millis(971)).await;
            let begun = Instant::now();
            let patient = people(ProviderId::Expo, [format!("patient-{number}")]);
            assert!(all_sent(
                &engine.send(Class::Urgent, patient).await.outcomes.into_iter().flatten().collect::<Vec<_>>()
            ));
            waits.push(begun.elapsed().saturating_sub(LATENCY));
        }
        waits
    };
    let (outcomes, waits) = tokio::join!(engine.broadcast(everybody(ProviderId::Expo, PEOPLE)), reminders);
    assert_eq!((outcomes.len(), all_sent(&outcomes)), (PEOPLE, true));
    let longest = waits.iter().max().unwrap();
    assert!(*longest <= Duration::from_millis(50), "a reminder waited {longest:?}");
    let seen = sandbox.statistics().expo;
    assert_eq!((seen.distinct_tokens, seen.doubles), (PEOPLE as u64 + 30, 0));
    assert!(seen.peak_per_second <= 6_000, "{} in one second", seen.peak_per_second);
}

// === Strangers ===

#[tokio::test(start_paused = true)]
async fn tokens_of_another_project_cost_one_refusal_each_request_and_nobody_the_message() {
    let sandbox = sandbox(|faults| {
        faults.expo.tokens =
            vec![TokenRule { which: Which::Containing("-13".into()), fault: TokenFault::Foreign }];
    })
    .await;
    let engine = expo_of(&sandbox, 0);
    assert!(all_sent(&engine.broadcast(everybody(ProviderId::Expo, 2_000)).await));
    let seen = sandbox.statistics().expo;
    assert_eq!((seen.distinct_tokens, seen.doubles), (2_000, 0));
    // Twenty requests, and what a refusal told is not asked again.
    assert!(seen.statuses[&400] <= 20, "{seen:?}");
}
