mod outages;
mod pages;
mod replies;

use std::{
    collections::HashMap,
    future::pending,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use proptest::prelude::*;

use super::*;
use crate::{
    dispatch::{PayloadRefused, Verdict, retry::tests::SHORT, route::route},
    domain::{Notification, Recipient, Timestamp, Token, Version},
};

type Script = Box<dyn Fn(usize, &[String]) -> Reply + Send + Sync>;

/// A provider that answers by a script and records every request.
struct Scripted {
    script: Script,
    latency: Duration,
    request_count: AtomicUsize,
    requests: Mutex<Vec<(Instant, Vec<String>)>>,
}

impl Provider for Scripted {
    type Body = &'static str;

    fn id(&self) -> ProviderId {
        ProviderId::Expo
    }

    fn batch_max(&self) -> usize {
        100
    }

    fn backoff(&self) -> ProviderBackoff {
        SHORT
    }

    fn body(&self, _: &Notification) -> Result<Self::Body, PayloadRefused> {
        Ok("")
    }

    async fn send(&self, messages: &[PushMessage<'_, Self::Body>]) -> Reply {
        let tokens: Vec<String> =
            messages.iter().map(|message| format!("{}{}", message.body, message.token.as_str())).collect();
        let number = self.request_count.fetch_add(1, Ordering::Relaxed);
        self.requests.lock().unwrap().push((Instant::now(), tokens.clone()));
        tokio::time::sleep(self.latency).await;
        (self.script)(number, &tokens)
    }
}

/// A batcher that sends to a scripted provider.
struct World {
    provider: Arc<Scripted>,
    handle: BatcherHandle<&'static str>,
    route_sync: crate::dispatch::RouteSync,
    metrics: Arc<Metrics>,
    tasks: JoinSet<()>,
    share: watch::Sender<Share>,
}

impl World {
    fn new(limit: u32, script: impl Fn(usize, &[String]) -> Reply + Send + Sync + 'static) -> Self {
        Self::slow(limit, Duration::from_millis(50), script)
    }

    fn slow(
        limit: u32,
        latency: Duration,
        script: impl Fn(usize, &[String]) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let provider = Arc::new(Scripted {
            script: Box::new(script),
            latency,
            request_count: AtomicUsize::new(0),
            requests: Mutex::default(),
        });
        let (route, route_sync) = route();
        route_sync.follow(Gate::Open);
        let share = watch::Sender::new(Share::WHOLE);
        let metrics = Arc::new(Metrics::new());
        let rate_limiter = RateLimiter::new(limit, Duration::ZERO, Instant::now());
        let (batcher, handle) = Batcher::new(
            Arc::clone(&provider),
            8,
            rate_limiter,
            share.subscribe(),
            route,
            Arc::clone(&metrics),
        );
        let mut tasks = JoinSet::new();
        tasks.spawn(batcher.run());
        Self { provider, handle, route_sync, metrics, tasks, share }
    }

    fn requests(&self) -> Vec<Vec<String>> {
        self.provider.requests.lock().unwrap().iter().map(|(_, tokens)| tokens.clone()).collect()
    }

    /// How often each token was in a request.
    fn sent(&self) -> HashMap<String, usize> {
        let mut sent = HashMap::new();
        for token in self.requests().concat() {
            *sent.entry(token).or_default() += 1;
        }
        sent
    }
}

fn accept_all(_: usize, tokens: &[String]) -> Reply {
    Reply::Each(tokens.iter().map(|_| Verdict::Accepted { ticket: None }).collect())
}

fn recipient(name: &str) -> Recipient {
    let token = Token::parse(&format!("ExponentPushToken[{name}]")).unwrap();
    let version = Version::of_record(Timestamp::UNIX_EPOCH, 0);
    Recipient { token, version, platform: None }
}

fn page(class: Class, prefix: &str, n: usize) -> SubmittedPage<&'static str> {
    let recipients = (0..n).map(|i| recipient(&format!("{prefix}{i}"))).collect();
    let hour = Instant::now() + Duration::from_secs(3600);
    SubmittedPage { class, body: Arc::new(""), recipients, expires: hour, start_before: None, stale_at: hour }
}

fn outcomes(returned: &Returned) -> Vec<&'static str> {
    let label = |outcome: &Option<MessageOutcome>| outcome.as_ref().map_or("-", |of| of.outcome().label());
    returned.outcomes.iter().map(label).collect()
}

#[tokio::test(start_paused = true)]
async fn every_message_of_every_page_has_its_outcome_and_requests_are_full() {
    let w = World::new(0, accept_all);
    let (a, b) = tokio::join!(
        w.handle.submit(page(Class::Slice, "a", 250), pending()),
        w.handle.submit(page(Class::Slice, "b", 250), pending())
    );
    assert!(a.unwrap().is_complete() && b.unwrap().is_complete());
    assert!(w.sent().values().all(|&times| times == 1) && w.sent().len() == 500);
    assert!(w.requests().iter().all(|request| request.len() <= 100));
}

#[tokio::test(start_paused = true)]
async fn an_urgent_message_takes_the_next_slot_of_a_busy_route() {
    let w = World::new(600, accept_all);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let bulk = w.handle.submit(page(Class::Slice, "bulk", 500), pending());
    let urgent = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let begun = Instant::now();
        w.handle.submit(page(Class::Urgent, "dose", 1), pending()).await.unwrap();
        let on_wire = w
            .provider
            .requests
            .lock()
            .unwrap()
            .iter()
            .find(|(_, tokens)| tokens[0].contains("dose"))
            .unwrap()
            .0;
        assert!(on_wire - begun <= Duration::from_millis(25), "{:?}", on_wire - begun);
    };
    let (bulk, ()) = tokio::join!(bulk, urgent);
    assert!(bulk.unwrap().is_complete());
}

#[tokio::test(start_paused = true)]
async fn some_slots_are_reserved_for_urgent_messages() {
    let w = World::slow(0, Duration::from_secs(10), accept_all);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let pages = (0..20).map(|i| w.handle.submit(page(Class::Slice, &format!("bulk{i}-"), 100), pending()));
    let urgent = async {
        tokio::time::sleep(Duration::from_millis(10)).await;
        let before = w.requests().len();
        let _dose = tokio::time::timeout(
            Duration::from_millis(5),
            w.handle.submit(page(Class::Urgent, "dose", 1), pending()),
        )
        .await;
        assert_eq!(before, 7, "one of eight slots is free");
        assert!(w.requests()[7][0].contains("dose"));
    };
    tokio::join!(futures::future::join_all(pages), urgent);
}

#[tokio::test(start_paused = true)]
async fn it_ends_when_the_last_handle_is_dropped() {
    let mut w = World::new(0, accept_all);
    w.handle.submit(page(Class::Slice, "a", 3), pending()).await.unwrap();
    drop(w.handle);
    w.tasks.join_next().await.unwrap().unwrap();
}

/// A reply of the given kind, which accepts these messages or does not.
fn reply_of(kind: u8, tokens: &[String]) -> Reply {
    match kind {
        0 => Reply::Down { ambiguous: false, retry_after: None, why: "HTTP 503".into() },
        1 => Reply::Throttled { retry_after: Some(Duration::from_secs(1)) },
        2 => Reply::Refused { why: "HTTP 400".into() },
        3 => Reply::Split((0..tokens.len()).map(|i| vec![i]).collect()),
        4 => Reply::Unrecognised { status: 418, why: "?".into() },
        5 => Reply::Each(tokens.iter().map(|_| Verdict::DeviceBusy { retry_after: None }).collect()),
        6 => Reply::Each(Vec::new()),
        7 => Reply::Reauthorised { refused: None },
        8 => Reply::Reauthorised { refused: Some("HTTP 401".into()) },
        _ => accept_all(0, tokens),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn whatever_the_provider_answers_each_message_is_accepted_once_or_refused_once(
        kinds in prop::collection::vec(0_u8..16, 1..40),
        sizes in prop::collection::vec(1_usize..300, 1..6),
        withdrawn in prop::option::of(0_u64..3_000),
    ) {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        let runtime = builder.enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let accepted = Arc::new(Mutex::new(HashMap::<String, usize>::new()));
            let counted = Arc::clone(&accepted);
            let w = World::new(0, move |number, tokens| {
                let reply = reply_of(kinds.get(number).copied().unwrap_or(u8::MAX), tokens);
                let is_accepted = |verdicts: &[Verdict]| matches!(verdicts, [Verdict::Accepted { .. }, ..]);
                if matches!(&reply, Reply::Each(verdicts) if is_accepted(verdicts)) {
                    for token in tokens {
                        *counted.lock().unwrap().entry(token.clone()).or_default() += 1;
                    }
                }
                reply
            });
            let pages = sizes.iter().enumerate().map(|(i, &n)| {
                let withdraw = async move {
                    match withdrawn.filter(|_| i % 2 == 0) {
                        Some(ms) => tokio::time::sleep(Duration::from_millis(ms)).await,
                        None => pending().await,
                    }
                };
                w.handle.submit(page(Class::Slice, &format!("p{i}-"), n), withdraw)
            });
            for (i, returned) in futures::future::join_all(pages).await.into_iter().enumerate() {
                let returned = returned.unwrap();
                assert!(returned.is_complete() || (withdrawn.is_some() && i % 2 == 0));
                for (k, outcome) in returned.outcomes.iter().enumerate() {
                    let token = format!("ExponentPushToken[p{i}-{k}]");
                    let times = accepted.lock().unwrap().get(&token).copied().unwrap_or(0);
                    let is_sent = matches!(outcome, Some(MessageOutcome::Sent { .. }));
                    assert_eq!(times, usize::from(is_sent), "page {i}, message {k}: {outcome:?}");
                }
            }
        });
    }
}

#[test]
fn slots_are_full_when_bulk_uses_all_that_it_may() {
    assert_eq!(
        [0, 28, 56, 64].map(|requests| Slots { all: 64, urgent: 8 }.busy(requests) * 7.0),
        [0.0, 3.5, 7.0, 8.0]
    );
    assert_eq!(Slots { all: 2, urgent: 1 }.busy(1), 1.0, "the fewest there can be");
}
