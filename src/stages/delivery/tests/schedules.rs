//! Several processes with one broadcast, or with one dose, under random schedules: a process crashes, or
//! freezes and continues; a record goes to two processes; a part is revoked in the middle; a conditional
//! write is not answered; clocks differ; providers are slow or refuse; the route is braked, and its row can't
//! be read; Kafka is unavailable.
//!
//! It is the real stage, with its batcher and the steps of `store::cql`, on tokio's paused clock. Promised of
//! a part: every token is sent to, a take-over repeats at most one page, and there is one total, which is the
//! sum of the checkpoints. Of a dose: it is sent and marked, and sent twice only where a process crashed or
//! froze in the middle. The same schedules must violate that when a step is left out or swapped, or else they
//! prove nothing.
//!
//! A failure prints its seed, which repeats the schedule except for the jitter of pauses and the random
//! branches of `select!`.

use std::{collections::HashMap, future::poll_fn, pin::pin, sync::MutexGuard, task::Poll};

use futures::future::{join, join_all};
use rand::prelude::*;
use tokio::{runtime, sync::oneshot, time::timeout};
use tokio_util::sync::CancellationToken;

use super::{
    cluster::{Cluster, ClusterClient, Defect},
    *,
};
use crate::{
    dispatch::{PayloadRefused, ProviderBackoff, PushMessage, Reply},
    domain::{Counts, Cursor, Lane, Registration},
    stages::fakes::handle,
};

/// No schedule takes longer.
const ENDS_WITHIN: Duration = Duration::from_secs(6 * 60 * 60);
/// Two clocks differ by no more.
const SKEW: Duration = Duration::from_secs(3);

/// What happens to processes; answers get lost, records go to two processes and clocks differ in any case.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ProcessFaults {
    None,
    CrashesAndFreezes,
}

struct Schedule {
    rng: StdRng,
    cluster: Arc<Mutex<Cluster>>,
    limits: DeliveryLimits,
    provider: RandomProvider,
    processes: Mutex<Vec<Process>>,
}

/// One process: the stage with its batcher, and what it is handling.
struct Process {
    cluster: ClusterClient,
    stage: Arc<Delivery<ClusterClient, ClusterClient, RandomProvider>>,
    /// Until when it is frozen.
    frozen_until: Arc<Mutex<Instant>>,
    tasks: JoinSet<()>,
    _share: watch::Sender<Share>,
}

/// A push service with random verdicts and latency.
#[derive(Clone)]
struct RandomProvider {
    rng: Arc<Mutex<StdRng>>,
    /// The probability that it calls a device busy.
    busy: f64,
    /// The probability that it calls a token dead.
    dead: f64,
    /// How often each token was accepted or called dead.
    answered: Arc<Mutex<HashMap<String, usize>>>,
    /// How often a message to each token was accepted.
    sent: Arc<Mutex<HashMap<String, usize>>>,
}

// === What must hold ===

#[test]
fn every_token_is_sent_to_and_the_total_is_right_whatever_crashes_and_whatever_is_not_answered() {
    for seed in 0..1_000 {
        assert_eq!(broadcast_under(seed, Defect::None), Vec::<String>::new(), "seed {seed}");
    }
}

#[test]
fn a_dose_is_sent_once_where_no_process_crashes_or_freezes() {
    for seed in 0..1_000 {
        assert_eq!(dose_under(seed, ProcessFaults::None, Defect::None), Vec::<String>::new(), "seed {seed}");
    }
}

#[test]
fn a_dose_is_sent_and_marked_whichever_processes_crash_or_freeze() {
    for seed in 0..1_000 {
        assert_eq!(
            dose_under(seed, ProcessFaults::CrashesAndFreezes, Defect::None),
            Vec::<String>::new(),
            "seed {seed}"
        );
    }
}

/// Some schedule violates a promise where the protocol has this defect: the schedules prove something.
macro_rules! is_found {
    ($under:expr; $($name:ident: $defect:ident;)+) => {$(
        #[test]
        fn $name() {
            let mut violations = (0..20_000).map(|seed| (seed, $under(seed, Defect::$defect)));
            let found = violations.find(|(_, violations)| !violations.is_empty());
            println!("{found:?}");
            assert!(found.is_some(), "no schedule finds the defect");
        }
    )+};
}

is_found! {
    broadcast_under;
    the_schedules_find_a_checkpoint_that_ignores_the_epoch: EpochIgnored;
    the_schedules_find_a_checkpoint_before_its_page: CheckpointBeforePage;
    the_schedules_find_a_page_that_ends_inside_a_position: PositionSplit;
    the_schedules_find_an_unknown_checkpoint_taken_as_kept: UnknownCheckpointIsKept;
    the_schedules_find_a_checkpoint_without_the_open_tokens: OpenTokensDropped;
    the_schedules_find_a_record_settled_by_the_process_that_lost_the_part: LostPartIsSettled;
    the_schedules_find_finished_parts_that_are_read_before_the_own_one_is_added: FinishedReadFirst;
    the_schedules_find_a_broadcast_closed_before_its_total: ClosedBeforeTotal;
    the_schedules_find_counts_beside_the_checkpoint: CountsBesideCheckpoint;
}

is_found! {
    |seed, defect| dose_under(seed, ProcessFaults::None, defect);
    the_schedules_find_a_claim_owned_by_the_process: OwnerIsTheProcess;
    the_schedules_find_requests_after_the_lease: NoDeadline;
    the_schedules_find_a_lease_without_margin: NoMargin;
    the_schedules_find_an_unknown_claim_taken_as_won: UnknownClaimIsWon;
    the_schedules_find_a_lease_that_is_not_awaited: LeaseNotAwaited;
    the_schedules_find_a_mark_tried_once: MarkTriedOnce;
}

// === Schedules ===

/// Runs a broadcast of a few parts to its end, and returns which promises it violated.
fn broadcast_under(seed: u64, defect: Defect) -> Vec<String> {
    on_paused_time(async {
        let mut schedule = Schedule::of(seed, defect, LIMITS.brake.dead_min);
        schedule.audience();
        let parts = schedule.cluster().audiences.len();
        let jobs: Vec<Job> = (0..u32::try_from(parts).unwrap()).map(part_job).collect();
        let settled = join_all(jobs.iter().map(|job| schedule.settle(job, 0.0)));
        let duplicates: Vec<&Job> =
            jobs.iter().flat_map(|job| std::iter::repeat_n(job, schedule.random(0..3))).collect();
        let faults = schedule.random(0..5);
        let has_one_owner = faults == 0 && duplicates.is_empty();
        let duplicated = join_all(duplicates.into_iter().map(|job| schedule.handle_duplicate(job, 30.0)));
        let faults = join_all((0..faults).map(|_| schedule.fault(30.0)));
        let all = join(faults, join(duplicated, settled));
        if timeout(ENDS_WITHIN, all).await.is_err() {
            return vec!["it does not end".to_owned()];
        }
        schedule.broadcast_violations(has_one_owner)
    })
}

/// Runs a dose, whose record Kafka may have several times, to its end, and returns which promises it
/// violated.
fn dose_under(seed: u64, process_faults: ProcessFaults, defect: Defect) -> Vec<String> {
    on_paused_time(async {
        let dead_min = if seed.is_multiple_of(2) { 1 } else { LIMITS.brake.dead_min };
        let schedule = Schedule::of(seed, defect, dead_min);
        schedule.cluster().devices =
            (0..schedule.random(1..3)).map(|n| registration(&format!("d{n}"))).collect();
        let job = job(
            Work::Dose(DoseJob {
                profile: ProfileId::new("pr1"),
                regimen: RegimenId::new("r1"),
                user: UserId::new("u1"),
                schedule_time: Timestamp::UNIX_EPOCH,
            }),
            Timestamp::now() + Duration::from_secs(24 * 60 * 60),
        );
        let within = *[0.0, 5.0, 120.0].choose(&mut schedule.cluster().rng).unwrap();
        let settled = join_all((0..schedule.random(1..4)).map(|_| schedule.settle(&job, within)));
        let duplicated = join_all((0..schedule.random(0..2)).map(|_| schedule.handle_duplicate(&job, 60.0)));
        let faults = match process_faults {
            ProcessFaults::None => 0,
            ProcessFaults::CrashesAndFreezes => schedule.random(0..3),
        };
        let all = join(join_all((0..faults).map(|_| schedule.fault(40.0))), join(duplicated, settled));
        tokio::select! {
            ended = timeout(ENDS_WITHIN, all) => if ended.is_err() {
                return vec!["it does not end".to_owned()];
            },
            () = schedule.releases() => {}
        }
        schedule.dose_violations(faults)
    })
}

fn on_paused_time<T>(schedule: impl Future<Output = T>) -> T {
    runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap()
        .block_on(schedule)
}

fn part_job(part: u32) -> Job {
    let slice = SliceJob { broadcast: broadcast(), slice: Slice { index: part, of: 64 }, to: Listeners::ALL };
    job(Work::Slice(slice), Timestamp::now() + Duration::from_secs(24 * 60 * 60))
}

// === impl Schedule ===

impl Schedule {
    /// `dead_min` is that of the brake.
    fn of(seed: u64, defect: Defect, dead_min: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let brake = BrakeThresholds { dead_min, ..LIMITS.brake };
        let limits = DeliveryLimits { page_size: rng.random_range(1..4), brake, ..LIMITS };
        let cluster = Arc::new(Mutex::new(Cluster::new(StdRng::seed_from_u64(seed ^ 0x5eed))));
        let provider = RandomProvider {
            busy: *[0.0, 0.2, 0.7].choose(&mut rng).unwrap(),
            dead: *[0.0, 0.3].choose(&mut rng).unwrap(),
            rng: Arc::new(Mutex::new(StdRng::seed_from_u64(seed ^ 0xca11))),
            answered: Arc::default(),
            sent: Arc::default(),
        };
        let processes = (0..rng.random_range(2..4)).map(|process| {
            let clock_ahead = SKEW.mul_f64(rng.random_range(0.0..1.0));
            let cluster = Arc::clone(&cluster);
            let lost = Arc::default();
            let client = ClusterClient { cluster, defect, process, clock_ahead, lost };
            Process::start(client, &provider, limits)
        });
        let processes = Mutex::new(processes.collect());
        Self { rng, cluster, limits, provider, processes }
    }

    fn cluster(&self) -> MutexGuard<'_, Cluster> {
        self.cluster.lock().unwrap()
    }

    fn random(&self, range: std::ops::Range<usize>) -> usize {
        self.cluster().rng.random_range(range)
    }

    async fn pause(&self, seconds: f64) {
        let pause = Duration::from_secs_f64(seconds * self.cluster().rng.random_range(0.0..=1.0));
        sleep(pause).await;
    }

    /// A few tokens a part; some share a position.
    fn audience(&mut self) {
        let parts = *[1, 2, 2, 3].choose(&mut self.rng).unwrap();
        for part in 0..parts {
            let mut audience: Vec<_> = (0..self.rng.random_range(0..7))
                .map(|n| (Cursor(self.rng.random_range(1..7)), registration(&format!("s{part}t{n}"))))
                .collect();
            audience.sort_by_key(|(position, _)| *position);
            self.cluster().audiences.push(audience);
        }
    }

    /// As Kafka does: the record goes to some process, and to another one if that one crashes or has to stop.
    async fn settle(&self, job: &Job, within: f64) {
        self.pause(within).await;
        while self.handle(job).await.is_none_or(|fate| fate == Fate::Unfinished) {
            let silence = *[1.0, 10.0, 45.0, 90.0].choose(&mut self.cluster().rng).unwrap();
            sleep(Duration::from_secs_f64(silence)).await;
        }
    }

    /// The record goes to some process although another one may have it.
    async fn handle_duplicate(&self, job: &Job, within: f64) {
        self.pause(within).await;
        self.handle(job).await;
    }

    /// Some process handles the record. `None` = the process crashed.
    async fn handle(&self, job: &Job) -> Option<Fate> {
        let handled = {
            let mut processes = self.processes.lock().unwrap();
            let process = self.random(0..processes.len());
            // A dose that is left in the middle may be sent again.
            let is_stopped = job.work.lane() == Lane::Bulk && self.random(0..4) == 0;
            let stop =
                is_stopped.then(|| Duration::from_secs_f64(self.cluster().rng.random_range(0.0..20.0)));
            processes[process].handle(job, stop)
        };
        handled.await.ok()
    }

    /// Some process crashes and is started again, or freezes for a while.
    async fn fault(&self, within: f64) {
        self.pause(within).await;
        let mut processes = self.processes.lock().unwrap();
        let process = self.random(0..processes.len());
        if self.random(0..2) == 0 {
            let client = processes[process].cluster.clone();
            let client = ClusterClient { lost: Arc::default(), ..client };
            processes[process] = Process::start(client, &self.provider, self.limits);
        } else {
            let freeze = Duration::from_secs([2, 20, 70, 200][self.random(0..4)]);
            *processes[process].frozen_until.lock().unwrap() = Instant::now() + freeze;
        }
    }

    /// The operator, who releases a braked route now and then.
    async fn releases(&self) {
        loop {
            self.pause(60.0).await;
            let mut cluster = self.cluster();
            if cluster.route.state == RouteState::Braked {
                cluster.route = released();
            }
        }
    }

    fn answered(&self, to: &Registration) -> usize {
        self.provider.answered.lock().unwrap().get(to.token.as_str()).copied().unwrap_or(0)
    }

    fn times_sent(&self, to: &Registration) -> usize {
        self.provider.sent.lock().unwrap().get(to.token.as_str()).copied().unwrap_or(0)
    }

    /// With one owner at a time, which stops in good order, nothing may be repeated.
    fn broadcast_violations(&self, has_one_owner: bool) -> Vec<String> {
        let mut violations = Vec::new();
        let mut sum = Counts::default();
        let audiences = self.cluster().audiences.clone();
        for (part, audience) in (0..).zip(&audiences) {
            let Some(progress) = self.cluster().progress(part).filter(|progress| progress.done) else {
                violations.push(format!("part {part} is not done"));
                continue;
            };
            sum += progress.counts;
            if progress.counts.total() != audience.len() as u64 {
                violations.push(format!(
                    "part {part} has {:?} of {} tokens",
                    progress.counts,
                    audience.len()
                ));
            }
            let answered: Vec<usize> = audience.iter().map(|(_, to)| self.answered(to)).collect();
            if answered.contains(&0) {
                violations.push(format!("part {part} sent {answered:?}"));
            }
            // Of each owner but the last one at most the page that it had not checkpointed.
            let repeats = answered.iter().sum::<usize>().saturating_sub(audience.len());
            let pages = if has_one_owner { 0 } else { usize::try_from(progress.epoch).unwrap() - 1 };
            let of_a_position = |at: &Cursor| audience.iter().filter(|(position, _)| position == at).count();
            let page_max = self.limits.page_size - 1
                + audience.iter().map(|(position, _)| of_a_position(position)).max().unwrap_or(1);
            if repeats > pages * page_max {
                violations
                    .push(format!("part {part} repeated {repeats}, {pages} pages of {page_max} at most"));
            }
        }
        let cluster = self.cluster();
        let numbers = format!(r#""sent":{},"dead":{}"#, sum.sent, sum.dead);
        let mut outcomes = cluster.outcomes().to_vec();
        outcomes.dedup();
        if outcomes.len() != 1 || !outcomes[0].contains(&numbers) {
            violations.push(format!("published {outcomes:?}, not {numbers}"));
        }
        if cluster.state != BroadcastState::Done {
            violations.push("it is not closed".to_owned());
        }
        violations
    }

    fn dose_violations(&self, faults: usize) -> Vec<String> {
        let mut violations = Vec::new();
        let devices = self.cluster().devices.clone();
        let mut cluster = self.cluster();
        let repeats = faults + cluster.slow_marks;
        for device in &devices {
            let answered = self.answered(device);
            let sent = self.times_sent(device);
            if answered == 0 || sent > 1 + repeats {
                violations.push(format!(
                    "sent {sent} times of {answered}, with {repeats} crashes, freezes and slow marks"
                ));
            }
        }
        match cluster.mark() {
            Some(mark) if mark.counts.total() == devices.len() as u64 => {}
            mark => violations.push(format!("marked {mark:?}, {} devices", devices.len())),
        }
        if cluster.outcomes().is_empty() {
            violations.push("no outcome was published".to_owned());
        }
        violations
    }
}

// === impl Process ===

impl Process {
    fn start(cluster: ClusterClient, provider: &RandomProvider, limits: DeliveryLimits) -> Self {
        let (route, route_sync) = route();
        route_sync.follow(Gate::Open);
        let share = watch::Sender::new(Share::WHOLE);
        let provider = Arc::new(provider.clone());
        let metrics = Arc::new(Metrics::new());
        let limiter = RateLimiter::new(0, Duration::ZERO, Instant::now());
        let (batcher, batcher_handle) =
            Batcher::new(Arc::clone(&provider), 8, limiter, share.subscribe(), route, Arc::clone(&metrics));
        let frozen_until = Arc::new(Mutex::new(Instant::now()));
        let mut tasks = JoinSet::new();
        tasks.spawn(while_not_frozen(Arc::clone(&frozen_until), batcher.run()));
        let route_synced = sync_route(
            cluster.clone(),
            ProviderId::Expo,
            true,
            String::new(),
            route_sync,
            CancellationToken::new(),
            |_| {},
        );
        tasks.spawn(while_not_frozen(Arc::clone(&frozen_until), route_synced));
        let delivery =
            Delivery::new(provider, batcher_handle, cluster.clone(), cluster.clone(), limits, metrics);
        Self { cluster, stage: Arc::new(delivery), frozen_until, tasks, _share: share }
    }

    /// As the consumer does: again while a dependency is unavailable, until a stop comes.
    fn handle(&mut self, job: &Job, stop_after: Option<Duration>) -> oneshot::Receiver<Fate> {
        let (settled, fate) = oneshot::channel();
        let stage = Arc::clone(&self.stage);
        let record = record(job);
        let stop = CancellationToken::new();
        if let Some(stop_after) = stop_after {
            let token = stop.clone();
            self.tasks.spawn(sleep(stop_after).map(move |()| token.cancel()));
        }
        let handling = async move {
            let fate = loop {
                match handle(&*stage, &record, &stop).await {
                    Ok(fate) => break fate,
                    Err(_) if stop.is_cancelled() => break Fate::Unfinished,
                    Err(_) => sleep(Duration::from_millis(100)).await,
                }
            };
            drop(settled.send(fate));
        };
        self.tasks.spawn(while_not_frozen(Arc::clone(&self.frozen_until), handling));
        fate
    }
}

/// Polls the work, except while its process is frozen.
async fn while_not_frozen<T>(frozen_until: Arc<Mutex<Instant>>, work: impl Future<Output = T>) -> T {
    let mut work = pin!(work);
    loop {
        let until = || *frozen_until.lock().unwrap();
        let step = poll_fn(|task| match Instant::now() < until() {
            true => Poll::Ready(None),
            false => work.as_mut().poll(task).map(Some),
        });
        match step.await {
            Some(done) => return done,
            None => sleep_until(until()).await,
        }
    }
}

// === impl RandomProvider ===

impl Provider for RandomProvider {
    type Body = ();

    fn id(&self) -> ProviderId {
        ProviderId::Expo
    }

    fn batch_max(&self) -> usize {
        100
    }

    fn backoff(&self) -> ProviderBackoff {
        super::fakes::BACKOFF
    }

    fn body(&self, _: &Notification) -> Result<(), PayloadRefused> {
        Ok(())
    }

    async fn send(&self, messages: &[PushMessage<'_, ()>]) -> Reply {
        let takes = {
            let mut rng = self.rng.lock().unwrap();
            let takes = match rng.random_range(0..10) {
                0..6 => rng.random_range(0.1..1.0),
                6..8 => rng.random_range(1.0..LIMITS.request_timeout.as_secs_f64()),
                _ => LIMITS.request_timeout.as_secs_f64(),
            };
            Duration::from_secs_f64(takes)
        };
        sleep(takes.mul_f64(0.6)).await;
        let reply = Reply::Each(messages.iter().map(|message| self.verdict(message)).collect());
        sleep(takes.mul_f64(0.4)).await;
        reply
    }
}

impl RandomProvider {
    fn verdict(&self, message: &PushMessage<'_, ()>) -> Verdict {
        let mut rng = self.rng.lock().unwrap();
        if rng.random_bool(self.busy) {
            let later = *[0.5, 2.0, 8.0, 30.0].choose(&mut rng).unwrap() * rng.random_range(0.5..1.5);
            return Verdict::DeviceBusy { retry_after: Some(Duration::from_secs_f64(later)) };
        }
        let count = |times: &Mutex<HashMap<String, usize>>| {
            *times.lock().unwrap().entry(message.token.as_str().to_owned()).or_default() += 1
        };
        count(&self.answered);
        if rng.random_bool(self.dead) {
            return dead();
        }
        count(&self.sent);
        Verdict::Accepted { ticket: None }
    }
}
