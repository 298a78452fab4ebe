//! Several processes at one broadcast, or at one dose, under random schedules: a process dies, or freezes and
//! comes back; a record goes to two of them; a part is taken away in the middle; a conditional write is not
//! answered; clocks differ; providers are slow or refuse; the route is braked, and its row can't be read;
//! Kafka is away.
//!
//! It is the real stage, with its batcher and the steps of `store::cql`, on tokio's paused clock. Promised of
//! a part: that everybody is sent, that a take-over repeats at most one page, and one total, which is the sum
//! of the checkpoints. Of a dose: that it sends and is marked, and twice only where somebody died or froze in
//! the middle. The same schedules must go wrong when a step is left out or swapped, or else they prove
//! nothing.
//!
//! A failure prints its seed. It repeats the schedule but for the jitter of pauses and the dice of `select!`.

use std::{collections::HashMap, future::poll_fn, pin::pin, sync::MutexGuard, task::Poll};

use futures::future::{join, join_all};
use rand::prelude::*;
use tokio::{runtime, sync::oneshot, time::timeout};
use tokio_util::sync::CancellationToken;

use super::{
    cluster::{Broken, Cluster, Seat},
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

/// What can go wrong in a schedule.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Weather {
    /// Answers get lost, records go to two processes, clocks differ.
    Calm,
    /// Processes die and freeze as well.
    Rough,
}

struct Schedule {
    dice: StdRng,
    cluster: Arc<Mutex<Cluster>>,
    limits: DeliveryLimits,
    service: Service,
    processes: Mutex<Vec<Process>>,
}

/// One process: the stage with its batcher, and what it is handling.
struct Process {
    seat: Seat,
    stage: Arc<Delivery<Seat, Seat, Service>>,
    /// It stands still until then.
    frozen: Arc<Mutex<Instant>>,
    tasks: JoinSet<()>,
    _share: watch::Sender<Share>,
}

/// A push service that takes its time.
#[derive(Clone)]
struct Service {
    dice: Arc<Mutex<StdRng>>,
    /// How often it asks to come back later.
    busy: f64,
    /// How often it calls a token dead.
    dead: f64,
    /// How often each token was answered for.
    answered: Arc<Mutex<HashMap<String, usize>>>,
    /// How often each token rang.
    sent: Arc<Mutex<HashMap<String, usize>>>,
}

// === What must hold ===

#[test]
fn every_device_is_sent_to_and_the_total_is_right_whatever_crashes_and_whatever_is_not_answered() {
    for seed in 0..1_000 {
        assert_eq!(broadcast_under(seed, Broken::Nothing), Vec::<String>::new(), "seed {seed}");
    }
}

#[test]
fn a_dose_is_sent_once_where_no_process_crashes_or_freezes() {
    for seed in 0..1_000 {
        assert_eq!(dose_under(seed, Weather::Calm, Broken::Nothing), Vec::<String>::new(), "seed {seed}");
    }
}

#[test]
fn a_dose_rings_and_is_marked_whatever_dies_and_freezes() {
    for seed in 0..1_000 {
        assert_eq!(dose_under(seed, Weather::Rough, Broken::Nothing), Vec::<String>::new(), "seed {seed}");
    }
}

macro_rules! goes_wrong {
    ($under:expr; $($name:ident: $broken:ident;)+) => {$(
        #[test]
        fn $name() {
            let wrong = (0..20_000).map(|seed| (seed, $under(seed, Broken::$broken))).find(|(_, wrong)| !wrong.is_empty());
            println!("{wrong:?}");
            assert!(wrong.is_some(), "the schedules do not notice it");
        }
    )+};
}

goes_wrong! {
    broadcast_under;
    with_the_epoch_ignored_it_goes_wrong: EpochIgnored;
    with_the_checkpoint_before_the_page_it_goes_wrong: CheckpointFirst;
    with_pages_cut_inside_a_position_it_goes_wrong: PositionsCut;
    with_an_unknown_checkpoint_taken_as_kept_it_goes_wrong: UnknownIsKept;
    with_what_is_open_forgotten_it_goes_wrong: OpenForgotten;
    with_a_record_settled_by_whoever_lost_it_goes_wrong: LostIsSettled;
    with_the_finished_parts_read_before_the_own_one_is_added_it_goes_wrong: FinishedReadFirst;
    with_the_broadcast_closed_before_its_total_it_goes_wrong: ClosedFirst;
    with_counts_beside_the_checkpoint_it_goes_wrong: CountedBeside;
}

goes_wrong! {
    |seed, broken| dose_under(seed, Weather::Calm, broken);
    with_a_claim_of_the_process_it_goes_wrong: OwnerIsTheProcess;
    with_requests_after_the_lease_it_goes_wrong: NoDeadline;
    with_a_lease_without_margin_it_goes_wrong: NoMargin;
    with_an_unknown_claim_taken_as_won_it_goes_wrong: UnknownIsWon;
    with_a_lease_that_is_not_awaited_it_goes_wrong: LeaseNotAwaited;
    with_a_mark_tried_once_it_goes_wrong: MarkedOnce;
}

// === Schedules ===

/// Lets a broadcast of a few parts run to its end, and says what is wrong then.
fn broadcast_under(seed: u64, broken: Broken) -> Vec<String> {
    on_paused_time(async {
        let mut schedule = Schedule::of(seed, broken, LIMITS.brake.dead_min);
        schedule.audience();
        let parts = schedule.cluster().audiences.len();
        let jobs: Vec<Job> = (0..u32::try_from(parts).unwrap()).map(part_job).collect();
        let settled = join_all(jobs.iter().map(|job| schedule.settle(job, 0.0)));
        let twice: Vec<&Job> =
            jobs.iter().flat_map(|job| std::iter::repeat_n(job, schedule.roll(0..3))).collect();
        let faults = schedule.roll(0..5);
        let is_calm = faults == 0 && twice.is_empty();
        let doubled = join_all(twice.into_iter().map(|job| schedule.handle_too(job, 30.0)));
        let faults = join_all((0..faults).map(|_| schedule.fault(30.0)));
        let all = join(faults, join(doubled, settled));
        if timeout(ENDS_WITHIN, all).await.is_err() {
            return vec!["it does not end".to_owned()];
        }
        schedule.wrong_with_the_broadcast(is_calm)
    })
}

/// Lets a dose, which Kafka may hold several times, run to its end, and says what is wrong then.
fn dose_under(seed: u64, weather: Weather, broken: Broken) -> Vec<String> {
    on_paused_time(async {
        let dead_min = if seed.is_multiple_of(2) { 1 } else { LIMITS.brake.dead_min };
        let schedule = Schedule::of(seed, broken, dead_min);
        schedule.cluster().devices =
            (0..schedule.roll(1..3)).map(|n| registration(&format!("d{n}"))).collect();
        let job = job(
            Work::Dose(DoseJob {
                profile: ProfileId::new("pr1"),
                regimen: RegimenId::new("r1"),
                user: UserId::new("u1"),
                schedule_time: Timestamp::UNIX_EPOCH,
            }),
            Timestamp::now() + Duration::from_secs(24 * 60 * 60),
        );
        let within = *[0.0, 5.0, 120.0].choose(&mut schedule.cluster().dice).unwrap();
        let settled = join_all((0..schedule.roll(1..4)).map(|_| schedule.settle(&job, within)));
        let doubled = join_all((0..schedule.roll(0..2)).map(|_| schedule.handle_too(&job, 60.0)));
        let faults = if weather == Weather::Rough { schedule.roll(0..3) } else { 0 };
        let all = join(join_all((0..faults).map(|_| schedule.fault(40.0))), join(doubled, settled));
        tokio::select! {
            ended = timeout(ENDS_WITHIN, all) => if ended.is_err() {
                return vec!["it does not end".to_owned()];
            },
            () = schedule.releases() => {}
        }
        schedule.wrong_with_the_dose(faults)
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
    /// So many dead tokens are a flood, if nearly nobody else is reached.
    fn of(seed: u64, broken: Broken, dead_min: u64) -> Self {
        let mut dice = StdRng::seed_from_u64(seed);
        let brake = BrakeThresholds { dead_min, ..LIMITS.brake };
        let limits = DeliveryLimits { page_size: dice.random_range(1..4), brake, ..LIMITS };
        let cluster = Arc::new(Mutex::new(Cluster::new(StdRng::seed_from_u64(seed ^ 0x5eed))));
        let service = Service {
            busy: *[0.0, 0.2, 0.7].choose(&mut dice).unwrap(),
            dead: *[0.0, 0.3].choose(&mut dice).unwrap(),
            dice: Arc::new(Mutex::new(StdRng::seed_from_u64(seed ^ 0xca11))),
            answered: Arc::default(),
            sent: Arc::default(),
        };
        let processes = (0..dice.random_range(2..4)).map(|process| {
            let ahead = SKEW.mul_f64(dice.random_range(0.0..1.0));
            let seat = Seat { cluster: Arc::clone(&cluster), broken, process, ahead, lost: Arc::default() };
            Process::start(seat, &service, limits)
        });
        let processes = Mutex::new(processes.collect());
        Self { dice, cluster, limits, service, processes }
    }

    fn cluster(&self) -> MutexGuard<'_, Cluster> {
        self.cluster.lock().unwrap()
    }

    fn roll(&self, range: std::ops::Range<usize>) -> usize {
        self.cluster().dice.random_range(range)
    }

    async fn pause(&self, seconds: f64) {
        let pause = Duration::from_secs_f64(seconds * self.cluster().dice.random_range(0.0..=1.0));
        sleep(pause).await;
    }

    /// A few tokens a part; some share a position.
    fn audience(&mut self) {
        let parts = *[1, 2, 2, 3].choose(&mut self.dice).unwrap();
        for part in 0..parts {
            let mut audience: Vec<_> = (0..self.dice.random_range(0..7))
                .map(|n| (Cursor(self.dice.random_range(1..7)), registration(&format!("s{part}t{n}"))))
                .collect();
            audience.sort_by_key(|(position, _)| *position);
            self.cluster().audiences.push(audience);
        }
    }

    /// Kafka: the record goes to some process, and to another one if that one dies or has to stop.
    async fn settle(&self, job: &Job, within: f64) {
        self.pause(within).await;
        while self.handle(job).await.is_none_or(|fate| fate == Fate::Unfinished) {
            let silence = *[1.0, 10.0, 45.0, 90.0].choose(&mut self.cluster().dice).unwrap();
            sleep(Duration::from_secs_f64(silence)).await;
        }
    }

    /// Kafka takes the record for somebody else's in the meantime.
    async fn handle_too(&self, job: &Job, within: f64) {
        self.pause(within).await;
        self.handle(job).await;
    }

    /// Lets some process handle the record. `None` = it died.
    async fn handle(&self, job: &Job) -> Option<Fate> {
        let handled = {
            let mut processes = self.processes.lock().unwrap();
            let process = self.roll(0..processes.len());
            // A dose that is left in the middle may send again.
            let is_stopped = job.work.lane() == Lane::Bulk && self.roll(0..4) == 0;
            let stop =
                is_stopped.then(|| Duration::from_secs_f64(self.cluster().dice.random_range(0.0..20.0)));
            processes[process].handle(job, stop)
        };
        handled.await.ok()
    }

    /// Some process dies and comes back as another one, or freezes for a while.
    async fn fault(&self, within: f64) {
        self.pause(within).await;
        let mut processes = self.processes.lock().unwrap();
        let process = self.roll(0..processes.len());
        if self.roll(0..2) == 0 {
            let seat = processes[process].seat.clone();
            processes[process] =
                Process::start(Seat { lost: Arc::default(), ..seat }, &self.service, self.limits);
        } else {
            let freeze = Duration::from_secs([2, 20, 70, 200][self.roll(0..4)]);
            *processes[process].frozen.lock().unwrap() = Instant::now() + freeze;
        }
    }

    /// Somebody looks now and then, and releases what is braked.
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
        self.service.answered.lock().unwrap().get(to.token.as_str()).copied().unwrap_or(0)
    }

    fn times_sent(&self, to: &Registration) -> usize {
        self.service.sent.lock().unwrap().get(to.token.as_str()).copied().unwrap_or(0)
    }

    /// In a calm schedule nothing but stops comes in between.
    fn wrong_with_the_broadcast(&self, is_calm: bool) -> Vec<String> {
        let mut wrong = Vec::new();
        let mut sum = Counts::default();
        let audiences = self.cluster().audiences.clone();
        for (part, audience) in (0..).zip(&audiences) {
            let Some(progress) = self.cluster().progress(part).filter(|progress| progress.done) else {
                wrong.push(format!("part {part} is not done"));
                continue;
            };
            sum += progress.counts;
            if progress.counts.total() != audience.len() as u64 {
                wrong.push(format!("part {part} says {:?} of {} tokens", progress.counts, audience.len()));
            }
            let answered: Vec<usize> = audience.iter().map(|(_, to)| self.answered(to)).collect();
            if answered.contains(&0) {
                wrong.push(format!("part {part} rang {answered:?}"));
            }
            // Of each owner but the last one at most the page that he had not checkpointed.
            let repeats = answered.iter().sum::<usize>().saturating_sub(audience.len());
            let pages = if is_calm { 0 } else { usize::try_from(progress.epoch).unwrap() - 1 };
            let of_a_position = |at: &Cursor| audience.iter().filter(|(position, _)| position == at).count();
            let page_max = self.limits.page_size - 1
                + audience.iter().map(|(position, _)| of_a_position(position)).max().unwrap_or(1);
            if repeats > pages * page_max {
                wrong.push(format!("part {part} repeated {repeats}, {pages} pages of {page_max} at most"));
            }
        }
        let cluster = self.cluster();
        let numbers = format!(r#""sent":{},"dead":{}"#, sum.sent, sum.dead);
        let mut outcomes = cluster.outcomes().to_vec();
        outcomes.dedup();
        if outcomes.len() != 1 || !outcomes[0].contains(&numbers) {
            wrong.push(format!("told {outcomes:?}, not {numbers}"));
        }
        if cluster.state != BroadcastState::Done {
            wrong.push("it is not closed".to_owned());
        }
        wrong
    }

    fn wrong_with_the_dose(&self, faults: usize) -> Vec<String> {
        let mut wrong = Vec::new();
        let devices = self.cluster().devices.clone();
        let mut cluster = self.cluster();
        let repeats = faults + cluster.slow_marks;
        for device in &devices {
            let answered = self.answered(device);
            let sent = self.times_sent(device);
            if answered == 0 || sent > 1 + repeats {
                wrong.push(format!(
                    "sent {sent} times of {answered}, with {repeats} deaths, freezes and slow marks"
                ));
            }
        }
        match cluster.mark() {
            Some(mark) if mark.counts.total() == devices.len() as u64 => {}
            mark => wrong.push(format!("marked {mark:?}, {} devices", devices.len())),
        }
        if cluster.outcomes().is_empty() {
            wrong.push("nobody told of it".to_owned());
        }
        wrong
    }
}

// === impl Process ===

impl Process {
    fn start(seat: Seat, service: &Service, limits: DeliveryLimits) -> Self {
        let (route, route_sync) = route();
        route_sync.follow(Gate::Open);
        let share = watch::Sender::new(Share::WHOLE);
        let provider = Arc::new(service.clone());
        let metrics = Arc::new(Metrics::new());
        let pace = RateLimiter::new(0, Duration::ZERO, Instant::now());
        let (batcher, submit_to) =
            Batcher::new(Arc::clone(&provider), 8, pace, share.subscribe(), route, Arc::clone(&metrics));
        let frozen = Arc::new(Mutex::new(Instant::now()));
        let mut tasks = JoinSet::new();
        tasks.spawn(while_not_frozen(Arc::clone(&frozen), batcher.run()));
        let keeps = sync_route(
            seat.clone(),
            ProviderId::Expo,
            true,
            String::new(),
            route_sync,
            CancellationToken::new(),
            |_| {},
        );
        tasks.spawn(while_not_frozen(Arc::clone(&frozen), keeps));
        let stage = Arc::new(Delivery::new(provider, submit_to, seat.clone(), seat.clone(), limits, metrics));
        Self { seat, stage, frozen, tasks, _share: share }
    }

    /// As Kafka's consumer does: again while a dependency is away, until a stop comes.
    fn handle(&mut self, job: &Job, stop_after: Option<Duration>) -> oneshot::Receiver<Fate> {
        let (settled, hears) = oneshot::channel();
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
        self.tasks.spawn(while_not_frozen(Arc::clone(&self.frozen), handling));
        hears
    }
}

/// Does the work, but for the time that its process is frozen.
async fn while_not_frozen<T>(frozen: Arc<Mutex<Instant>>, work: impl Future<Output = T>) -> T {
    let mut work = pin!(work);
    loop {
        let until = || *frozen.lock().unwrap();
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

// === impl Service ===

impl Provider for Service {
    type Body = ();

    fn id(&self) -> ProviderId {
        ProviderId::Expo
    }

    fn batch_max(&self) -> usize {
        100
    }

    fn backoff(&self) -> ProviderBackoff {
        super::fake::BACKOFF
    }

    fn body(&self, _: &Notification) -> Result<(), PayloadRefused> {
        Ok(())
    }

    async fn send(&self, messages: &[PushMessage<'_, ()>]) -> Reply {
        let takes = {
            let mut dice = self.dice.lock().unwrap();
            let takes = match dice.random_range(0..10) {
                0..6 => dice.random_range(0.1..1.0),
                6..8 => dice.random_range(1.0..LIMITS.request_timeout.as_secs_f64()),
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

impl Service {
    fn verdict(&self, message: &PushMessage<'_, ()>) -> Verdict {
        let mut dice = self.dice.lock().unwrap();
        if dice.random_bool(self.busy) {
            let later = *[0.5, 2.0, 8.0, 30.0].choose(&mut dice).unwrap() * dice.random_range(0.5..1.5);
            return Verdict::DeviceBusy { retry_after: Some(Duration::from_secs_f64(later)) };
        }
        let count = |times: &Mutex<HashMap<String, usize>>| {
            *times.lock().unwrap().entry(message.token.as_str().to_owned()).or_default() += 1
        };
        count(&self.answered);
        if dice.random_bool(self.dead) {
            return dead();
        }
        count(&self.sent);
        Verdict::Accepted { ticket: None }
    }
}
