mod outages;

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
    dispatch::{PayloadRefused, Verdict, page::Class, route::route},
    domain::{Notification, Recipient, Timestamp, Token, Version},
};

type Script = Box<dyn Fn(usize, &[String]) -> Reply + Send + Sync>;

/// A provider that answers as the script says and remembers every request.
struct Scripted {
    script: Script,
    latency: Duration,
    asked: AtomicUsize,
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

    fn body(&self, _: &Notification) -> Result<Self::Body, PayloadRefused> {
        Ok("")
    }

    async fn send(&self, messages: &[PushMessage<'_, Self::Body>]) -> Reply {
        let tokens: Vec<String> =
            messages.iter().map(|message| format!("{}{}", message.body, message.token.as_str())).collect();
        let number = self.asked.fetch_add(1, Ordering::Relaxed);
        self.requests.lock().unwrap().push((Instant::now(), tokens.clone()));
        tokio::time::sleep(self.latency).await;
        (self.script)(number, &tokens)
    }
}

/// A batcher at work on a scripted provider.
struct World {
    provider: Arc<Scripted>,
    handle: BatcherHandle<&'static str>,
    route_sync: crate::dispatch::RouteSync,
    metrics: Arc<Metrics>,
    tasks: JoinSet<()>,
    _share: watch::Sender<Share>,
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
            asked: AtomicUsize::new(0),
            requests: Mutex::default(),
        });
        let (route, route_sync) = route();
        route_sync.follow(Gate::Open);
        let share = watch::Sender::new(Share::WHOLE);
        let metrics = Arc::new(Metrics::new());
        let pace = RateLimiter::new(limit, Duration::ZERO, Instant::now());
        let (batcher, handle) =
            Batcher::new(Arc::clone(&provider), 8, pace, share.subscribe(), route, Arc::clone(&metrics));
        let mut tasks = JoinSet::new();
        tasks.spawn(batcher.run());
        Self { provider, handle, route_sync, metrics, tasks, _share: share }
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
    returned.outcomes.iter().map(|fate| fate.as_ref().map_or("-", |fate| fate.outcome().label())).collect()
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
async fn an_urgent_message_takes_the_next_slot_of_a_full_route() {
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
async fn some_slots_are_urgent_alone() {
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
async fn what_the_provider_did_not_take_is_sent_again_and_nothing_else_is() {
    let w = World::new(0, |number, tokens| {
        if number < 3 {
            Reply::Down { ambiguous: false, retry_after: None, why: "HTTP 503".into() }
        } else {
            accept_all(number, tokens)
        }
    });
    let returned = w.handle.submit(page(Class::Slice, "a", 500), pending()).await.unwrap();
    assert!(returned.is_complete());
    assert!(w.sent().values().sum::<usize>() == 800, "three requests of a hundred went twice");
}

#[tokio::test(start_paused = true)]
async fn a_withdrawn_page_keeps_the_outcome_of_what_was_on_the_wire() {
    let w = World::new(600, accept_all);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let withdraw = tokio::time::sleep(Duration::from_millis(110));
    let returned = w.handle.submit(page(Class::Slice, "a", 500), withdraw).await.unwrap();
    let sent = w.sent().len();
    assert!(sent > 0 && sent < 500);
    assert_eq!(
        returned.outcomes.iter().flatten().count(),
        sent,
        "each message that was sent has its outcome"
    );
    assert!(!returned.is_complete());
}

#[tokio::test(start_paused = true)]
async fn refused_credentials_halt_the_route_and_lose_nothing() {
    let mut w = World::new(0, |number, tokens| {
        if number < 5 {
            Reply::CredentialsRefused { why: "UNAUTHORIZED".into() }
        } else {
            accept_all(number, tokens)
        }
    });
    let page = w.handle.submit(page(Class::Slice, "a", 500), pending());
    let operator = async {
        assert_eq!(w.route_sync.halted().await.as_deref(), Some("UNAUTHORIZED"));
        let before = w.provider.requests.lock().unwrap().len();
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(w.provider.requests.lock().unwrap().len(), before, "a halted route sends nothing");
        w.route_sync.follow(Gate::Open);
    };
    let (returned, ()) = tokio::join!(page, operator);
    assert!(returned.unwrap().is_complete());
}

/// Once is a token that was stale. Everything in between, whatever it was, ends the row.
#[tokio::test(start_paused = true)]
async fn credentials_that_are_refused_twice_in_a_row_halt_the_route_and_once_do_not() {
    let stale = || Reply::Reauthorised { refused: Some("UNAUTHENTICATED".into()) };
    let none_yet = || Reply::Reauthorised { refused: None };
    let down = || Reply::Down { ambiguous: false, retry_after: None, why: "HTTP 503".into() };
    for (replies, halts) in [
        (vec![stale()], false),
        (vec![none_yet(), stale()], false),
        (vec![none_yet(), none_yet(), stale()], false),
        (vec![stale(), down(), stale()], false),
        (vec![stale(), stale()], true),
        (vec![none_yet(), stale(), stale()], true),
    ] {
        let shown = format!("{replies:?}");
        let mut w = World::new(0, move |number, tokens| {
            replies.get(number).cloned().unwrap_or_else(|| accept_all(number, tokens))
        });
        let page = w.handle.submit(page(Class::Slice, "a", 1), pending());
        let operator = async {
            let halted = tokio::time::timeout(Duration::from_secs(60), w.route_sync.halted()).await;
            assert_eq!(halted.ok().flatten().is_some(), halts, "{shown}");
            w.route_sync.follow(Gate::Open);
        };
        let (returned, ()) = tokio::join!(page, operator);
        assert!(returned.unwrap().is_complete(), "{shown}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_throttled_route_waits_as_long_as_it_is_told() {
    let w = World::new(0, |number, tokens| {
        if number == 0 {
            Reply::Throttled { retry_after: Some(Duration::from_secs(7)) }
        } else {
            accept_all(number, tokens)
        }
    });
    let begun = Instant::now();
    let returned = w.handle.submit(page(Class::Urgent, "a", 1), pending()).await.unwrap();
    assert!(returned.is_complete());
    assert!(begun.elapsed() >= Duration::from_secs(7));
}

#[tokio::test(start_paused = true)]
async fn a_message_that_spoils_its_request_is_found_and_the_others_are_sent() {
    let w = World::new(0, |number, tokens| {
        if tokens.iter().any(|token| token.contains("[a33]")) {
            Reply::Refused { why: "HTTP 400".into() }
        } else {
            accept_all(number, tokens)
        }
    });
    let returned = w.handle.submit(page(Class::Slice, "a", 100), pending()).await.unwrap();
    let refused: Vec<usize> =
        (0..100).filter(|&i| returned.outcomes[i].as_ref().unwrap().outcome().label() == "refused").collect();
    assert_eq!(refused, [33]);
}

#[tokio::test(start_paused = true)]
async fn a_notification_that_is_refused_whoever_it_is_for_is_found_out_by_a_few_messages() {
    let w = World::new(0, |_, _| Reply::Refused { why: "HTTP 400".into() });
    let returned = w.handle.submit(page(Class::Slice, "a", 500), pending()).await.unwrap();
    let whoever =
        |fate: &Option<MessageOutcome>| matches!(fate, Some(MessageOutcome::Refused { whoever: true, .. }));
    assert!(returned.outcomes.iter().any(whoever) && !returned.is_complete());
    assert!(w.requests().len() < 250, "{} requests", w.requests().len());
}

#[tokio::test(start_paused = true)]
async fn many_messages_at_fault_are_no_fault_of_the_notification_if_others_are_taken() {
    let w = World::new(0, |number, tokens| {
        if tokens.iter().any(|token| token.ends_with("3]")) {
            Reply::Refused { why: "HTTP 400".into() }
        } else {
            accept_all(number, tokens)
        }
    });
    let returned = w.handle.submit(page(Class::Slice, "a", 500), pending()).await.unwrap();
    let refused = outcomes(&returned).iter().filter(|outcome| **outcome == "refused").count();
    assert!(returned.is_complete());
    assert_eq!(refused, 50);
}

#[tokio::test(start_paused = true)]
async fn tokens_of_two_projects_go_in_requests_of_their_own() {
    let w = World::new(0, |number, tokens| {
        let foreign: Vec<usize> = (0..tokens.len()).filter(|&i| tokens[i].contains("7]")).collect();
        let own: Vec<usize> = (0..tokens.len()).filter(|&i| !tokens[i].contains("7]")).collect();
        if foreign.is_empty() || own.is_empty() {
            accept_all(number, tokens)
        } else {
            Reply::Split(vec![own, foreign])
        }
    });
    let returned = w.handle.submit(page(Class::Slice, "a", 100), pending()).await.unwrap();
    assert!(returned.outcomes.iter().all(|fate| matches!(fate, Some(MessageOutcome::Sent { .. }))));
    assert_eq!(w.requests().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn what_a_refusal_told_of_projects_is_not_asked_again_after_an_outage() {
    let w = World::new(0, |number, tokens| match number {
        0 => Reply::Split(vec![vec![0, 2], vec![1, 3]]),
        1..=3 => Reply::Down { ambiguous: false, retry_after: None, why: "HTTP 503".into() },
        _ => accept_all(number, tokens),
    });
    assert!(w.handle.submit(page(Class::Slice, "t", 4), pending()).await.unwrap().is_complete());
    let projects = w.requests().into_iter().skip(1).map(|tokens| tokens.len());
    assert!(projects.eq([2, 2, 2, 2, 2]), "{:?}", w.requests());
}

#[tokio::test(start_paused = true)]
async fn an_unknown_answer_is_asked_again_for_as_long_as_the_message_lives() {
    let known = Instant::now() + Duration::from_secs(100);
    let w = World::new(0, move |number, tokens| match tokens {
        [token] if token.contains("odd") => Reply::Unrecognised { status: 418, why: "?".into() },
        [token] if token.contains("new") && Instant::now() < known => {
            Reply::Each(vec![Verdict::Unrecognised { why: "?".into() }])
        }
        _ => accept_all(number, tokens),
    });
    let mut odd = page(Class::List, "odd", 1);
    odd.expires = Instant::now() + Duration::from_secs(600);
    let odd = w.handle.submit(odd, pending()).await.unwrap();
    assert_eq!(outcomes(&odd), ["expired"], "never dead");
    assert!((3..20).contains(&w.requests().len()), "{} requests in ten minutes", w.requests().len());
    let new = w.handle.submit(page(Class::List, "new", 1), pending()).await.unwrap();
    assert_eq!(outcomes(&new), ["sent"]);
}

#[tokio::test(start_paused = true)]
async fn a_stale_page_comes_back_unsent() {
    let w = World::new(0, accept_all);
    w.route_sync.follow(Gate::Closed { state: "paused" });
    let mut old = page(Class::Slice, "a", 3);
    old.stale_at = Instant::now() + Duration::from_secs(60);
    let reopen = async {
        tokio::time::sleep(Duration::from_secs(61)).await;
        w.route_sync.follow(Gate::Open);
    };
    let (returned, ()) = tokio::join!(w.handle.submit(old, pending()), reopen);
    assert_eq!(outcomes(&returned.unwrap()), ["-", "-", "-"]);
    assert!(w.requests().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_page_that_has_reached_somebody_does_not_go_stale() {
    let w = World::new(0, |number, tokens| match accept_all(number, tokens) {
        Reply::Each(mut verdicts) if number == 0 => {
            verdicts[1] = Verdict::DeviceBusy { retry_after: Some(Duration::from_secs(90)) };
            Reply::Each(verdicts)
        }
        reply => reply,
    });
    let mut old = page(Class::Slice, "a", 3);
    old.stale_at = Instant::now() + Duration::from_secs(60);
    assert_eq!(
        outcomes(&w.handle.submit(old, pending()).await.unwrap()),
        ["sent"; 3],
        "a page that is read again rings them again"
    );
    assert_eq!(w.requests().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn what_was_withdrawn_on_the_wire_does_not_go_again() {
    let w = World::new(0, |number, tokens| {
        if number < 2 { Reply::Refused { why: "HTTP 400".into() } } else { accept_all(number, tokens) }
    });
    tokio::time::sleep(Duration::from_secs(1)).await;
    let withdrawn = tokio::time::sleep(Duration::from_millis(10));
    let returned = w.handle.submit(page(Class::Slice, "a", 150), withdrawn).await.unwrap();
    assert!(outcomes(&returned).iter().all(|outcome| *outcome == "-"));
    assert_eq!(w.requests().len(), 2, "no half of a refused request, while the other one was on the wire");
}

#[tokio::test(start_paused = true)]
async fn a_provider_that_asks_us_to_wait_once_more_after_an_answer_is_not_waited_for_longer() {
    let w = World::new(0, |number, tokens| {
        if number.is_multiple_of(2) {
            Reply::Throttled { retry_after: None }
        } else {
            accept_all(number, tokens)
        }
    });
    tokio::time::sleep(Duration::from_secs(1)).await;
    for number in 0..5 {
        let begun = Instant::now();
        w.handle.submit(page(Class::Slice, &format!("p{number}-"), 1), pending()).await.unwrap();
        assert!((2..3).contains(&begun.elapsed().as_secs()), "{number}: {:?}", begun.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_over_expires_and_what_has_no_lease_left_goes_home() {
    let w = World::new(0, |_, _| Reply::Down { ambiguous: false, retry_after: None, why: "HTTP 503".into() });
    let mut short = page(Class::Slice, "a", 2);
    short.expires = Instant::now() + Duration::from_secs(30);
    let mut dose = page(Class::Urgent, "d", 1);
    dose.start_before = Some(Instant::now() + Duration::from_secs(30));
    let (short, dose) = tokio::join!(w.handle.submit(short, pending()), w.handle.submit(dose, pending()));
    assert_eq!(outcomes(&short.unwrap()), ["expired", "expired"]);
    assert_eq!(outcomes(&dose.unwrap()), ["-"]);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_panics_loses_no_message() {
    let w = World::new(
        0,
        |number, tokens| if number == 0 { panic!("a bug") } else { accept_all(number, tokens) },
    );
    assert!(w.handle.submit(page(Class::Slice, "a", 3), pending()).await.unwrap().is_complete());
}

#[tokio::test(start_paused = true)]
async fn it_ends_when_the_last_desk_is_gone() {
    let mut w = World::new(0, accept_all);
    w.handle.submit(page(Class::Slice, "a", 3), pending()).await.unwrap();
    drop(w.handle);
    w.tasks.join_next().await.unwrap().unwrap();
}

fn dose(name: &str) -> SubmittedPage<&'static str> {
    page(Class::Urgent, name, 1)
}

#[tokio::test(start_paused = true)]
async fn the_page_of_a_handler_that_was_broken_off_is_not_sent_on() {
    let mut w = World::new(600, accept_all);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let handle = w.handle.clone();
    let mut handlers = JoinSet::new();
    handlers.spawn(async move { handle.submit(page(Class::Slice, "a", 500), pending()).await });
    tokio::time::sleep(Duration::from_millis(110)).await;
    handlers.shutdown().await;
    let before = w.sent().len();
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert!(before > 0 && w.sent().len() == before, "{before}, then {}", w.sent().len());
    drop(w.handle);
    w.tasks.join_next().await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn nobodys_page_keeps_a_closed_route_from_ending() {
    let mut w = World::new(0, accept_all);
    w.route_sync.follow(Gate::Closed { state: "paused" });
    let aborted =
        tokio::time::timeout(Duration::from_secs(5), w.handle.submit(page(Class::Slice, "a", 3), pending()))
            .await;
    assert!(aborted.is_err());
    drop(w.handle);
    tokio::time::timeout(Duration::from_secs(1), w.tasks.join_next())
        .await
        .expect("it ends")
        .unwrap()
        .unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_closed_route_lets_lives_and_leases_end_in_time() {
    let w = World::new(0, accept_all);
    w.route_sync.follow(Gate::Closed { state: "paused" });
    let begun = Instant::now();
    let mut leased = dose("leased");
    leased.start_before = Some(begun + Duration::from_secs(33));
    let mut old = page(Class::Slice, "old", 3);
    old.expires = begun + Duration::from_secs(90);
    let leased = async { (w.handle.submit(leased, pending()).await.unwrap(), begun.elapsed()) };
    let old = async { (w.handle.submit(old, pending()).await.unwrap(), begun.elapsed()) };
    let ((leased, leased_after), (old, old_after)) = tokio::join!(leased, old);
    assert_eq!((outcomes(&leased), leased_after.as_secs()), (vec!["-"], 33));
    assert_eq!((outcomes(&old), old_after.as_secs()), (vec!["expired", "expired", "expired"], 90));
}

#[tokio::test(start_paused = true)]
async fn a_lease_ends_in_time_while_its_message_waits_for_another_try() {
    let wait = Some(Duration::from_secs(500));
    let w = World::new(0, move |_, tokens| {
        if tokens[0].contains("busy") {
            Reply::Each(vec![Verdict::DeviceBusy { retry_after: wait }])
        } else {
            Reply::Throttled { retry_after: wait }
        }
    });
    let begun = Instant::now();
    for name in ["busy", "throttled"] {
        let mut page = dose(name);
        page.start_before = Some(Instant::now() + Duration::from_secs(33));
        assert_eq!(outcomes(&w.handle.submit(page, pending()).await.unwrap()), ["-"], "{name}");
    }
    assert_eq!(begun.elapsed().as_secs(), 66);
}

#[tokio::test(start_paused = true)]
async fn what_is_on_the_wire_when_a_lease_ends_keeps_its_outcome() {
    let w = World::slow(0, Duration::from_secs(14), accept_all);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let mut page = dose("dose");
    page.start_before = Some(Instant::now() + Duration::from_secs(5));
    page.expires = Instant::now() + Duration::from_secs(6);
    assert_eq!(outcomes(&w.handle.submit(page, pending()).await.unwrap()), ["sent"]);
}

#[tokio::test(start_paused = true)]
async fn a_page_that_stood_first_in_line_goes_stale_like_any_other() {
    let w = World::new(60, accept_all);
    w._share.send_replace(Share::NONE);
    let mut old = page(Class::Slice, "a", 3);
    old.stale_at = Instant::now() + Duration::from_secs(60);
    let come_back = async {
        tokio::time::sleep(Duration::from_secs(61)).await;
        w._share.send_replace(Share::WHOLE);
    };
    let (returned, ()) = tokio::join!(w.handle.submit(old, pending()), come_back);
    assert_eq!(outcomes(&returned.unwrap()), ["-", "-", "-"]);
    assert!(w.requests().is_empty());
}

#[tokio::test(start_paused = true)]
async fn of_two_waits_the_longer_one_counts() {
    let w = World::new(0, |number, tokens| match number {
        0 => Reply::Throttled { retry_after: Some(Duration::from_secs(300)) },
        1 => Reply::Throttled { retry_after: None },
        _ => accept_all(number, tokens),
    });
    let begun = Instant::now();
    assert!(w.handle.submit(page(Class::Slice, "a", 200), pending()).await.unwrap().is_complete());
    assert!(begun.elapsed() >= Duration::from_secs(300), "{:?}", begun.elapsed());
}

/// A reply of the given kind that takes or does not take these messages.
fn reply_of(kind: u8, tokens: &[String]) -> Reply {
    match kind {
        0 => Reply::Down { ambiguous: false, retry_after: None, why: "HTTP 503".into() },
        1 => Reply::Throttled { retry_after: Some(Duration::from_secs(1)) },
        2 => Reply::Refused { why: "HTTP 400".into() },
        3 => Reply::Split((0..tokens.len()).map(|i| vec![i]).collect()),
        4 => Reply::Unrecognised { status: 418, why: "a teapot".into() },
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
    fn whatever_the_provider_answers_each_message_is_taken_once_or_refused_once(
        kinds in prop::collection::vec(0_u8..16, 1..40), sizes in prop::collection::vec(1_usize..300, 1..6), withdrawn in prop::option::of(0_u64..3_000),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let taken = Arc::new(Mutex::new(HashMap::<String, usize>::new()));
            let seen = Arc::clone(&taken);
            let w = World::new(0, move |number, tokens| {
                let reply = reply_of(kinds.get(number).copied().unwrap_or(u8::MAX), tokens);
                if matches!(&reply, Reply::Each(verdicts) if matches!(verdicts.first(), Some(Verdict::Accepted { .. }))) {
                    for token in tokens {
                        *seen.lock().unwrap().entry(token.clone()).or_default() += 1;
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
                for (k, fate) in returned.outcomes.iter().enumerate() {
                    let times = taken.lock().unwrap().get(&format!("ExponentPushToken[p{i}-{k}]")).copied().unwrap_or(0);
                    assert_eq!(times, usize::from(matches!(fate, Some(MessageOutcome::Sent { .. }))), "page {i}, message {k}: {fate:?}");
                }
            }
        });
    }
}

#[test]
fn slots_are_full_when_bulk_has_all_that_it_may_have() {
    assert_eq!(
        [0, 28, 56, 64].map(|requests| Slots { all: 64, urgent: 8 }.busy(requests) * 7.0),
        [0.0, 3.5, 7.0, 8.0]
    );
    assert_eq!(Slots { all: 2, urgent: 1 }.busy(1), 1.0, "the fewest there can be");
}
