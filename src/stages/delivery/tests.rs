mod cluster;
mod doses;
mod fake;
mod schedules;

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::{sync::watch, task::JoinSet};

use self::fake::{Fake, Service, registration};
use super::*;
use crate::{
    dispatch::{Batcher, ClosedBy, Gate, RateLimiter, RouteSync, Share, Verdict, route},
    domain::{
        BroadcastId, BroadcastState, Data, DoseJob, DoseOutcome, ListJob, Listeners, Notification,
        NotificationId, Plan, PostId, ProfileId, RegimenId, Registration, Slice, SliceJob, StopReason,
        UserId,
    },
    events::topics,
    stages::fakes::{Topics, handle},
    store::{RouteRow, RouteState, StoreError},
};

const LIMITS: DeliveryLimits = DeliveryLimits {
    page_size: 300,
    page_stale_after: Duration::from_secs(60),
    request_timeout: Duration::from_secs(15),
    brake: BrakeThresholds { dead_min: 50, dead_percent: 30, window: Duration::from_secs(300) },
    finish_within: Duration::from_secs(4),
};

/// Delivery with its batcher, between a store, a push service and Kafka in memory.
struct World {
    store: Fake,
    service: Service,
    topics: Topics,
    stage: Arc<Delivery<Fake, Topics, Service>>,
    route_sync: RouteSync,
    _tasks: JoinSet<()>,
    _share: watch::Sender<Share>,
}

impl World {
    fn new() -> Self {
        let store = Fake::default();
        let service = Service::default();
        let topics = Topics::default();
        let metrics = Arc::new(Metrics::new());
        let (route, route_sync) = route();
        route_sync.follow(Gate::Open);
        let share = watch::Sender::new(Share::WHOLE);
        let provider = Arc::new(service.clone());
        let pace = RateLimiter::new(0, Duration::ZERO, Instant::now());
        let (batcher, submit_to) =
            Batcher::new(Arc::clone(&provider), 8, pace, share.subscribe(), route, Arc::clone(&metrics));
        let mut tasks = JoinSet::new();
        tasks.spawn(batcher.run());
        let stage =
            Arc::new(Delivery::new(provider, submit_to, store.clone(), topics.clone(), LIMITS, metrics));
        Self { store, service, topics, stage, route_sync, _tasks: tasks, _share: share }
    }

    /// Handles the job as Kafka's consumer does: again while a dependency is away, until the stop.
    async fn handle(&self, work: Work, stop: &CancellationToken) -> Fate {
        let expires_at = Timestamp::now() + Duration::from_secs(3600);
        self.handle_job(&job(work, expires_at), stop).await
    }

    fn record(&self, work: Work) -> Record {
        record(&job(work, Timestamp::now() + Duration::from_secs(3600)))
    }

    async fn handle_job(&self, job: &Job, stop: &CancellationToken) -> Fate {
        self.handle_record(&record(job), stop).await
    }

    async fn handle_record(&self, record: &Record, stop: &CancellationToken) -> Fate {
        loop {
            match handle(&*self.stage, record, stop).await {
                Ok(fate) => return fate,
                Err(_) if stop.is_cancelled() => return Fate::Unfinished,
                Err(_) => sleep(Duration::from_millis(100)).await,
            }
        }
    }

    /// A broadcast of one part to a ring of that many tokens.
    fn broadcast_to(&self, tokens: usize) -> Work {
        let mut state = self.store.state();
        state.ring = (0..tokens).map(|i| registration(&format!("t{i}"))).collect();
        state.plan = Some(Plan { spec: String::new(), parts: 1 });
        state.broadcast = Some(BroadcastState::Planned);
        Work::Slice(SliceJob { broadcast: broadcast(), slice: Slice { index: 0, of: 1 }, to: Listeners::ALL })
    }

    fn devices(&self, names: &[&str]) -> Work {
        let tokens = names.iter().map(|name| registration(name)).collect();
        self.store.state().users.insert(UserId::new("u1"), tokens);
        Work::Dose(DoseJob {
            profile: ProfileId::new("pr1"),
            regimen: RegimenId::new("r1"),
            user: UserId::new("u1"),
            schedule_time: Timestamp::UNIX_EPOCH,
        })
    }

    fn mark(&self) -> Option<DoseOutcome> {
        Some(self.store.state().claim.as_ref()?.1.as_ref()?.outcome)
    }

    /// How often the tokens t0, t1, … rang.
    fn times_sent(&self, tokens: usize) -> Vec<usize> {
        (0..tokens).map(|i| self.service.times_sent(&format!("t{i}"))).collect()
    }

    /// The values that were written to a topic since the last look at any.
    fn published(&self, topic: &str) -> Vec<String> {
        let messages = self.topics.take().into_iter().filter(|message| message.topic == topic);
        messages.map(|message| String::from_utf8(message.value.unwrap()).unwrap()).collect()
    }
}

fn record(job: &Job) -> Record {
    Record {
        topic: events::jobs::topic(job.provider, job.work.lane()).into(),
        partition: 0,
        offset: 7,
        timestamp: Timestamp::now(),
        key: Some(events::jobs::key(job).into_bytes()),
        value: Some(events::jobs::write(job)),
        headers: Vec::new(),
    }
}

fn broadcast() -> BroadcastId {
    BroadcastId::of_post(&PostId::new("p1"))
}

fn job(work: Work, expires_at: Timestamp) -> Job {
    let notification = Notification {
        id: NotificationId::new("n1"),
        title: "Ping".to_owned(),
        body: String::new(),
        data: Data::new(),
        sound: None,
        channel: "default".to_owned(),
        expires_at,
    };
    Job { provider: ProviderId::Expo, notification, work }
}

fn busy(seconds: u64) -> Verdict {
    Verdict::DeviceBusy { retry_after: Some(Duration::from_secs(seconds)) }
}

/// A stop that comes after that time.
async fn stop_after(time: Duration, stop: &CancellationToken) {
    sleep(time).await;
    stop.cancel();
}

#[tokio::test(start_paused = true)]
async fn an_outage_is_told_every_half_minute_however_many_wait_for_its_end() {
    // A writer is made for each line.
    let lines = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&lines);
    let log = tracing_subscriber::fmt().with_max_level(tracing::Level::WARN).with_writer(move || {
        counted.fetch_add(1, Ordering::Relaxed);
        std::io::sink()
    });
    let _log = tracing::subscriber::set_default(log.finish());
    let w = World::new();
    let back = Instant::now() + Duration::from_secs(75);
    let answer = || async {
        if Instant::now() < back { Err(StoreError::unavailable("answer", "it is away")) } else { Ok(()) }
    };
    futures::future::join_all((0..1_000).map(|_| w.stage.retry_until_settled(answer))).await;
    assert_eq!(lines.load(Ordering::Relaxed), 3);
}

// === Parts ===

#[tokio::test(start_paused = true)]
async fn a_broadcast_rings_everybody_once_and_its_total_is_published() {
    let w = World::new();
    let slice = w.broadcast_to(1_000);
    assert_eq!(w.handle(slice, &CancellationToken::default()).await, Fate::Done);
    assert!(w.times_sent(1_000).iter().all(|&times| times == 1));
    let outcomes = w.published(topics::PUSH_OUTCOMES);
    assert!(outcomes.len() == 1 && outcomes[0].contains(r#""sent":1000"#), "{outcomes:?}");
    assert_eq!(w.store.state().broadcast, Some(BroadcastState::Done));
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_away_at_every_step_rings_nobody_twice() {
    for operation in
        ["broadcast", "take_over", "page_of_slice", "checkpoint", "finish_part", "total", "close"]
    {
        let w = World::new();
        let slice = w.broadcast_to(700);
        w.store.state().away.insert(operation, 2);
        assert_eq!(w.handle(slice, &CancellationToken::default()).await, Fate::Done);
        assert!(w.times_sent(700).iter().all(|&times| times == 1), "{operation}");
        assert_eq!(w.store.state().parts[&0].counts.sent, 700, "{operation}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_stop_in_the_middle_of_a_page_rings_nobody_twice() {
    let w = World::new();
    let slice = w.broadcast_to(700);
    w.service.answers("t10", [busy(30)]);
    w.service.answers("t150", [busy(30)]);
    let stop = CancellationToken::new();
    let (fate, ()) = tokio::join!(w.handle(slice.clone(), &stop), stop_after(Duration::from_secs(1), &stop));
    assert_eq!(fate, Fate::Unfinished);
    let open = w.store.state().parts[&0].open.clone();
    assert_eq!(
        open,
        ["t10", "t150"].map(|name| registration(name).token),
        "nobody is sent to while his pause lasts"
    );
    assert_eq!(w.handle(slice, &CancellationToken::default()).await, Fate::Done);
    let doubled: Vec<_> =
        w.times_sent(700).into_iter().enumerate().filter(|&(_, times)| times != 1).collect();
    assert_eq!(doubled, []);
    assert_eq!(w.store.state().parts[&0].counts.sent, 700);
}

#[tokio::test(start_paused = true)]
async fn a_phone_that_a_stop_left_open_rings_for_a_list_unless_it_has_changed_hands() {
    // Who stands behind the cursor is come to anyway.
    for (owner, sends) in [("u1", 1), ("u2", 1), ("u9", 0)] {
        let w = World::new();
        w.broadcast_to(0);
        let phone = |user: &str, name| Registration { user: Some(UserId::new(user)), ..registration(name) };
        w.store
            .state()
            .users
            .insert(UserId::new("u1"), ["a", "b", "c"].map(|name| phone("u1", name)).to_vec());
        w.store.state().users.insert(UserId::new("u2"), vec![phone("u2", "d")]);
        for name in ["a", "d"] {
            w.service.answers(name, [busy(30)]);
        }
        let users = ["u0", "u1", "u2"].map(UserId::new).to_vec();
        let list = Work::List(ListJob { broadcast: broadcast(), part: 0, users });
        let stop = CancellationToken::new();
        tokio::join!(w.handle(list.clone(), &stop), stop_after(Duration::from_secs(1), &stop));
        assert_eq!(
            (w.service.times_sent("a"), w.service.times_sent("b"), w.service.times_sent("c")),
            (0, 1, 1)
        );

        w.store.state().users.get_mut(&UserId::new("u1")).unwrap().remove(0);
        w.store.state().users.entry(UserId::new(owner)).or_default().insert(0, phone(owner, "a"));
        assert_eq!(w.handle(list, &CancellationToken::default()).await, Fate::Done);
        assert_eq!(["a", "b", "c", "d"].map(|name| w.service.times_sent(name)), [sends, 1, 1, 1], "{owner}");
        let counts = w.store.state().parts[&0].counts;
        assert_eq!(counts.sent, 3 + sends as u64);
    }
}

#[tokio::test(start_paused = true)]
async fn a_list_steps_over_users_without_tokens() {
    let w = World::new();
    w.broadcast_to(0);
    w.store.state().users.insert(UserId::new("u3"), vec![registration("a"), registration("b")]);
    let users = (0..8).map(|i| UserId::new(format!("u{i}"))).collect();
    let list = Work::List(ListJob { broadcast: broadcast(), part: 0, users });
    assert_eq!(w.handle(list, &CancellationToken::default()).await, Fate::Done);
    assert_eq!((w.service.times_sent("a"), w.service.times_sent("b")), (1, 1));
    assert_eq!(w.store.state().parts[&0].counts.sent, 2);
}

#[tokio::test(start_paused = true)]
async fn a_list_is_walked_in_pages_and_a_user_is_never_cut() {
    let w = World::new();
    w.broadcast_to(0);
    let mut tokens = (0..).map(|i| registration(&format!("t{i}")));
    for user in 0..300 {
        w.store
            .state()
            .users
            .insert(UserId::new(format!("u{user}")), tokens.by_ref().take(user % 7).collect());
    }
    let all: usize = (0..300).map(|user| user % 7).sum();
    let users = (0..300).map(|i| UserId::new(format!("u{i}"))).collect();
    w.store.state().away.insert("tokens_of", 1);
    let list = Work::List(ListJob { broadcast: broadcast(), part: 0, users });
    assert_eq!(w.handle(list, &CancellationToken::default()).await, Fate::Done);
    assert!(w.times_sent(all).iter().all(|&times| times == 1));
    assert_eq!(w.store.state().parts[&0].counts.sent, all as u64);
    assert!(
        (3..=4).contains(&w.store.state().asked["checkpoint"]),
        "{}",
        w.store.state().asked["checkpoint"]
    );
}

#[tokio::test(start_paused = true)]
async fn a_stop_that_comes_long_after_a_page_was_read_rings_nobody_twice() {
    let w = World::new();
    let slice = w.broadcast_to(300);
    w.service.answers("t10", [busy(300)]);
    let stop = CancellationToken::new();
    let (_, ()) = tokio::join!(w.handle(slice.clone(), &stop), stop_after(Duration::from_secs(100), &stop));
    assert_eq!(w.handle(slice, &CancellationToken::default()).await, Fate::Done);
    assert!(w.times_sent(300).iter().all(|&times| times == 1));
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_broadcast_ends_with_the_count_of_what_was_sent() {
    let w = World::new();
    let slice = w.broadcast_to(600);
    w.service.answers("t10", [busy(500)]);
    let cancel = async {
        sleep(Duration::from_secs(5)).await;
        w.store.state().broadcast = Some(BroadcastState::Stopped { reason: StopReason::Cancelled });
    };
    let stop = CancellationToken::new();
    let (fate, ()) = tokio::join!(w.handle(slice, &stop), cancel);
    assert_eq!(fate, Fate::Done);
    let outcomes = w.published(topics::PUSH_OUTCOMES);
    assert!(outcomes[0].contains(r#""sent":299"#), "{outcomes:?}");
}

#[tokio::test(start_paused = true)]
async fn a_total_is_told_by_whoever_asks_first() {
    let w = World::new();
    let slice = w.broadcast_to(100);
    w.store.state().total_at = Some(Timestamp::UNIX_EPOCH);
    let other = async {
        while w.store.state().finished.is_empty() {
            sleep(Duration::from_millis(100)).await;
        }
        sleep(Duration::from_secs(1)).await;
        w.store.state().broadcast = Some(BroadcastState::Done);
    };
    let stop = CancellationToken::new();
    let (fate, ()) = tokio::join!(w.handle(slice, &stop), other);
    assert_eq!((fate, w.published(topics::PUSH_OUTCOMES).len()), (Fate::Done, 0));
}

#[tokio::test(start_paused = true)]
async fn a_total_is_told_though_whoever_asked_first_has_died() {
    let w = World::new();
    let slice = w.broadcast_to(100);
    w.store.state().total_at = Some(Timestamp::UNIX_EPOCH);
    assert_eq!(w.handle(slice, &CancellationToken::default()).await, Fate::Done);
    let outcomes = w.published(topics::PUSH_OUTCOMES);
    assert!(outcomes.len() == 1 && outcomes[0].contains(r#""at":"1970-01-01T00:00:00Z""#), "{outcomes:?}");
}

// === The brake ===

fn dead() -> Verdict {
    Verdict::Dead { reason: "DeviceNotRegistered".to_owned() }
}

fn is_braked(w: &World) -> bool {
    w.store.state().route.as_ref().is_some_and(|route| route.state == RouteState::Braked)
}

fn released() -> RouteRow {
    RouteRow {
        state: RouteState::Released,
        since: Timestamp::now(),
        set_by: "operator".to_owned(),
        detail: String::new(),
    }
}

impl World {
    /// The gate follows the row, and the route is released after a minute, if it was braked.
    async fn released_after_a_minute(&self) {
        let begun = Instant::now();
        loop {
            sleep(Duration::from_millis(100)).await;
            self.route_sync.follow(if is_braked(self) { Gate::Closed(ClosedBy::Braked) } else { Gate::Open });
            if begun.elapsed() >= Duration::from_secs(60) && is_braked(self) {
                assert_eq!(self.published(topics::INVALID_TOKENS), Vec::<String>::new());
                self.store.state().route = Some(released());
            }
        }
    }

    async fn handle_until_released(&self, work: Work) -> Fate {
        let stop = CancellationToken::new();
        tokio::select! {
            fate = self.handle(work, &stop) => fate,
            () = self.released_after_a_minute() => unreachable!("it has no end"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_dead_tokens_brakes_the_route_and_is_asked_again_when_somebody_has_looked() {
    let w = World::new();
    let slice = w.broadcast_to(300);
    // Half of them were misjudged.
    (0..100).for_each(|i| {
        w.service.answers(&format!("t{i}"), std::iter::repeat_n(dead(), if i < 50 { 2 } else { 1 }))
    });
    assert_eq!((w.handle_until_released(slice).await, is_braked(&w)), (Fate::Done, false));
    assert_eq!(w.published(topics::INVALID_TOKENS).len(), 50);
    let part = w.store.state().parts[&0].clone();
    assert_eq!((part.counts.sent, part.counts.dead, part.done), (250, 50, true));
    assert!(w.times_sent(300)[50..].iter().all(|&times| times == 1));
}

#[tokio::test(start_paused = true)]
async fn the_dead_of_a_page_are_looked_up_side_by_side_when_the_route_is_open_again() {
    let w = World::new();
    let slice = w.broadcast_to(300);
    (0..100).for_each(|i| w.service.answers(&format!("t{i}"), [dead()]));
    w.store.state().inspect_takes = Duration::from_millis(100);
    let begun = Instant::now();
    assert_eq!(w.handle_until_released(slice).await, Fate::Done);
    // One after the other they would take ten seconds.
    assert!(begun.elapsed() < Duration::from_secs(65), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_phone_that_changed_hands_while_the_route_was_braked_is_not_asked_again() {
    let w = World::new();
    let slice = w.broadcast_to(300);
    (0..100).for_each(|i| w.service.answers(&format!("t{i}"), [dead()]));
    let moves = async {
        sleep(Duration::from_secs(30)).await;
        w.store.state().ring[7].version = crate::domain::Version::from_i64(4);
        std::future::pending::<()>().await;
    };
    tokio::select! { fate = w.handle_until_released(slice) => assert_eq!(fate, Fate::Done), () = moves => {} }
    let sent = w.times_sent(300);
    assert_eq!((sent[7], sent.iter().sum::<usize>()), (0, 299));
    let reported = w.published(topics::INVALID_TOKENS);
    assert!(
        matches!(&reported[..], [one] if one.contains("t7")),
        "cleanup spares its new registration: {reported:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_restart_while_the_route_is_braked_asks_everybody_again_if_nobody_was_reached() {
    let w = World::new();
    let slice = w.broadcast_to(300);
    (0..300).for_each(|i| w.service.answers(&format!("t{i}"), [dead()]));
    let record = w.record(slice);
    let stop = CancellationToken::new();
    let (fate, ()) =
        tokio::join!(w.handle_record(&record, &stop), stop_after(Duration::from_secs(60), &stop));
    assert_eq!((fate, w.published(topics::INVALID_TOKENS).len()), (Fate::Unfinished, 0));

    w.store.state().route = Some(released());
    assert_eq!(w.handle_record(&record, &CancellationToken::default()).await, Fate::Done);
    assert_eq!((w.times_sent(300), w.store.state().parts[&0].counts.sent), (vec![1; 300], 300));
    assert_eq!(w.published(topics::INVALID_TOKENS).len(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_resume_after_another_closing_does_not_report_what_is_held() {
    let w = World::new();
    let slice = w.broadcast_to(300);
    (0..100).for_each(|i| w.service.answers(&format!("t{i}"), [dead()]));
    let stop = CancellationToken::new();
    let set = |state| w.store.state().route = Some(RouteRow { state, ..released() });
    let operator = async {
        sleep(Duration::from_secs(60)).await;
        assert!(is_braked(&w));
        set(RouteState::Halted);
        // The flood lies far behind by then.
        sleep(Duration::from_secs(3_000)).await;
        assert_eq!(w.published(topics::INVALID_TOKENS).len(), 0);
        set(RouteState::Running);
    };
    let (fate, ()) = tokio::join!(w.handle(slice, &stop), operator);
    assert_eq!((fate, w.published(topics::INVALID_TOKENS).len()), (Fate::Done, 0));
    assert_eq!(w.times_sent(300), vec![1; 300]);
}

#[tokio::test(start_paused = true)]
async fn a_stop_leaves_what_a_braked_route_holds_to_the_next_owner_and_rings_nobody_twice() {
    let w = World::new();
    let slice = w.broadcast_to(300);
    (0..100).for_each(|i| w.service.answers(&format!("t{i}"), [dead()]));
    let stop = CancellationToken::new();
    let begun = Instant::now();
    tokio::join!(w.handle(slice.clone(), &stop), stop_after(Duration::from_secs(60), &stop));
    assert!(begun.elapsed() < Duration::from_secs(66), "{:?}", begun.elapsed());
    let topics: Vec<_> = w.topics.take().into_iter().map(|message| message.topic).collect();
    assert!(topics.iter().any(|topic| topic == topics::EXPO_RECEIPTS), "tickets are not held");
    assert!(topics.iter().all(|topic| topic != topics::INVALID_TOKENS), "{topics:?}");
    let part = w.store.state().parts[&0].clone();
    assert_eq!((part.counts.sent, part.counts.dead, part.open.len(), part.done), (200, 0, 100, false));

    w.store.state().route = Some(released());
    assert_eq!(w.handle(slice, &CancellationToken::default()).await, Fate::Done);
    assert_eq!((w.times_sent(300), w.store.state().parts[&0].counts.sent), (vec![1; 300], 300));
}

#[tokio::test(start_paused = true)]
async fn what_was_written_before_a_release_passes_and_a_resume_is_no_release() {
    for (state, passes) in [(RouteState::Released, true), (RouteState::Running, false)] {
        let w = World::new();
        let slice = w.broadcast_to(300);
        (0..100).for_each(|i| w.service.answers(&format!("t{i}"), [dead()]));
        let stop = CancellationToken::new();
        let handle = async {
            // Written before the route was set, handled after.
            let record = w.record(slice);
            let set =
                RouteRow { state, since: Timestamp::now(), set_by: "ann".to_owned(), detail: String::new() };
            w.store.state().route = Some(set);
            w.handle_record(&record, &stop).await
        };
        tokio::join!(handle, stop_after(Duration::from_secs(60), &stop));
        let published = w.published(topics::INVALID_TOKENS).len();
        assert_eq!((is_braked(&w), published), (!passes, if passes { 100 } else { 0 }), "{state:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn some_dead_tokens_are_no_flood() {
    let w = World::new();
    let slice = w.broadcast_to(300);
    (0..49).for_each(|i| w.service.answers(&format!("t{i}"), [dead()]));
    assert_eq!(w.handle(slice, &CancellationToken::default()).await, Fate::Done);
    assert!(!is_braked(&w));
    assert_eq!(w.published(topics::INVALID_TOKENS).len(), 49);
}

// === Refusals ===

#[tokio::test(start_paused = true)]
async fn a_payload_that_is_refused_stops_the_broadcast_once() {
    let w = World::new();
    let slice = w.broadcast_to(600);
    w.service.answers("t0", [Verdict::PayloadRefused { why: "MessageTooBig".to_owned() }]);
    assert_eq!(w.handle(slice, &CancellationToken::default()).await, Fate::Done);
    assert_eq!(w.store.state().asked["stop"], 1);
    assert!(w.times_sent(600)[300..].iter().all(|&times| times == 0), "no page is begun after the refusal");
}

#[tokio::test(start_paused = true)]
async fn a_broadcast_that_every_request_is_refused_for_stops_after_a_few() {
    let w = World::new();
    let slice = w.broadcast_to(3_000);
    w.service.refuses_all();
    assert_eq!(w.handle(slice, &CancellationToken::default()).await, Fate::Done);
    assert_eq!(w.store.state().asked["stop"], 1);
    let refused = w.store.state().parts[&0].counts.refused;
    assert!((20..100).contains(&refused), "{refused}");
}

#[tokio::test(start_paused = true)]
async fn a_payload_that_is_too_large_is_refused_once_a_broadcast() {
    let w = World::new();
    let slice = w.broadcast_to(600);
    let mut job = job(slice, Timestamp::now() + Duration::from_secs(3600));
    job.notification.title = "too large".to_owned();
    w.store.state().plan = Some(Plan { spec: String::new(), parts: 2 });
    for _ in 0..2 {
        assert_eq!(w.handle_job(&job, &CancellationToken::default()).await, Fate::Done);
        // The next slice finds the same.
        w.store.state().parts.clear();
    }
    assert_eq!(w.store.state().asked["stop"], 1);
}

#[tokio::test(start_paused = true)]
async fn a_part_that_panics_leaves_no_broadcast_open() {
    let w = World::new();
    let slice = w.broadcast_to(600);
    let mut job = job(slice, Timestamp::now() + Duration::from_secs(3600));
    job.notification.title = "a bug".to_owned();
    let stop = CancellationToken::new();
    let handled = AssertUnwindSafe(w.handle_job(&job, &stop)).catch_unwind().await;
    assert!(handled.is_err(), "the runtime buries the record");
    assert_eq!(w.store.state().broadcast, Some(BroadcastState::Done));
    assert_eq!(w.published(topics::PUSH_OUTCOMES).len(), 1);

    // Once the bug is mended, a replay sends the rest.
    job.notification.title = "Ping".to_owned();
    assert_eq!(w.handle_job(&job, &stop).await, Fate::Done);
    assert!(w.times_sent(600).iter().all(|&times| times == 1));
}
