mod brake;
mod broadcasts;
mod cluster;
mod doses;
mod fakes;
mod schedules;

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::{sync::watch, task::JoinSet};

use self::fakes::{FakeProvider, FakeStore, registration};
use super::*;
use crate::{
    dispatch::{Batcher, ClosedBy, Gate, RateLimiter, RouteSync, Share, Verdict, route},
    domain::{
        BroadcastId, BroadcastState, Data, DoseJob, DoseOutcome, ListJob, Listeners, Notification,
        NotificationId, Plan, PostId, ProfileId, RegimenId, Registration, Slice, SliceJob, StopReason,
        UserId,
    },
    events::topics,
    stages::fakes::{FakeProducer, handle},
    store::{RouteRow, RouteState, StoreError},
};

const LIMITS: DeliveryLimits = DeliveryLimits {
    page_size: 300,
    page_stale_after: Duration::from_secs(60),
    request_timeout: Duration::from_secs(15),
    brake: BrakeThresholds { dead_min: 50, dead_percent: 30, window: Duration::from_secs(300) },
    finish_within: Duration::from_secs(4),
};

/// Delivery with its batcher, over a store, a push service and a producer in memory.
struct World {
    store: FakeStore,
    provider: FakeProvider,
    producer: FakeProducer,
    stage: Arc<Delivery<FakeStore, FakeProducer, FakeProvider>>,
    route_sync: RouteSync,
    _tasks: JoinSet<()>,
    _share: watch::Sender<Share>,
}

impl World {
    fn new() -> Self {
        let store = FakeStore::default();
        let provider = FakeProvider::default();
        let producer = FakeProducer::default();
        let metrics = Arc::new(Metrics::new());
        let (route, route_sync) = route();
        route_sync.follow(Gate::Open);
        let share = watch::Sender::new(Share::WHOLE);
        let shared = Arc::new(provider.clone());
        let limiter = RateLimiter::new(0, Duration::ZERO, Instant::now());
        let (batcher, batcher_handle) =
            Batcher::new(Arc::clone(&shared), 8, limiter, share.subscribe(), route, Arc::clone(&metrics));
        let mut tasks = JoinSet::new();
        tasks.spawn(batcher.run());
        let stage =
            Arc::new(Delivery::new(shared, batcher_handle, store.clone(), producer.clone(), LIMITS, metrics));
        Self { store, provider, producer, stage, route_sync, _tasks: tasks, _share: share }
    }

    /// Handles the job as the consumer does: again while a dependency is unavailable, until the stop.
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

    /// A broadcast of one part to the tokens t0, t1, …, that many of them.
    fn broadcast_to(&self, tokens: usize) -> Work {
        let mut state = self.store.state();
        state.audience = (0..tokens).map(|i| registration(&format!("t{i}"))).collect();
        state.plan = Some(Plan { spec: String::new(), parts: 1 });
        state.broadcast = Some(BroadcastState::Planned);
        Work::Slice(SliceJob { broadcast: broadcast(), slice: Slice { index: 0, of: 1 }, to: Listeners::ALL })
    }

    /// A dose of a user with tokens of these names.
    fn dose_for(&self, names: &[&str]) -> Work {
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

    /// Keeps the gate equal to the row, and releases the route a minute after the start, if it is braked.
    async fn release_after_a_minute(&self) {
        let started_at = Instant::now();
        loop {
            sleep(Duration::from_millis(100)).await;
            self.route_sync.follow(if is_braked(self) { Gate::Closed(ClosedBy::Braked) } else { Gate::Open });
            if started_at.elapsed() >= Duration::from_secs(60) && is_braked(self) {
                assert_eq!(self.published(topics::INVALID_TOKENS), Vec::<String>::new());
                self.store.state().route = Some(released());
            }
        }
    }

    async fn handle_until_released(&self, work: Work) -> Fate {
        let stop = CancellationToken::new();
        tokio::select! {
            fate = self.handle(work, &stop) => fate,
            () = self.release_after_a_minute() => unreachable!("it does not end"),
        }
    }

    /// How often messages to the tokens t0, t1, … were accepted.
    fn times_sent(&self, tokens: usize) -> Vec<usize> {
        (0..tokens).map(|i| self.provider.times_sent(&format!("t{i}"))).collect()
    }

    /// The values that were published to a topic; forgets what was published to all topics.
    fn published(&self, topic: &str) -> Vec<String> {
        let messages = self.producer.take().into_iter().filter(|message| message.topic == topic);
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

/// Cancels `stop` after that time.
async fn stop_after(time: Duration, stop: &CancellationToken) {
    sleep(time).await;
    stop.cancel();
}

#[tokio::test(start_paused = true)]
async fn an_outage_is_logged_every_half_minute_however_many_tasks_wait_for_its_end() {
    // The subscriber asks for a writer for each line.
    let lines = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&lines);
    let log = tracing_subscriber::fmt().with_max_level(tracing::Level::WARN).with_writer(move || {
        counted.fetch_add(1, Ordering::Relaxed);
        std::io::sink()
    });
    let _log = tracing::subscriber::set_default(log.finish());
    let w = World::new();
    let outage_ends = Instant::now() + Duration::from_secs(75);
    let write = || async {
        match Instant::now() < outage_ends {
            true => Err(StoreError::unavailable("write", "an outage")),
            false => Ok(()),
        }
    };
    futures::future::join_all((0..1_000).map(|_| w.stage.retry_until_settled(write))).await;
    assert_eq!(lines.load(Ordering::Relaxed), 3);
}
