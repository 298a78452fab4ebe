//! The chain of due rows under random schedules: definitions, ticks of several tickers and a clock, one
//! operation at a time, in any order, with a crash between any two operations and redelivery after it.
//!
//! Promised: every occurrence that no later edit removes is dispatched, none before its time, and the chain
//! continues. A failure prints its seed.

use std::{
    collections::BTreeMap,
    pin::Pin,
    task::{Context, Poll, Waker},
};

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng, seq::SliceRandom as _};

use super::{fakes::Defect, *};
use crate::{domain::Regimen, stages::fakes::handle};

const MINUTE: i64 = 60_000;

/// A record that a worker handles, not before the clock shows that minute.
struct Task {
    not_before: i64,
    record: Record,
    /// The index of its definition, if it is one.
    defines: Option<usize>,
}

/// Tasks that run one after the other, in a process that may crash.
struct Worker {
    tasks: Vec<Task>,
    next: usize,
    running: Option<Pin<Box<dyn Future<Output = Fate>>>>,
    crashes: u32,
    /// Whether a task that crashed is done again; a ticker's own tick is not.
    redelivered: bool,
    speed: f64,
}

struct Definition {
    regimen: RegimenId,
    /// The minute of its record.
    since: i64,
    parsed: Regimen,
    /// After which time its occurrences are promised: its own time, or what was not too late when it was
    /// first applied.
    promised_after: Option<Timestamp>,
}

struct Schedule {
    rng: StdRng,
    stage: Arc<Medication<FakeBackend, FakeBackend>>,
    backend: FakeBackend,
    now_ms: Arc<AtomicI64>,
    start: Timestamp,
    end: i64,
    /// One step in so many lets the clock tick.
    steps_per_minute: u32,
    definitions: Vec<Definition>,
    workers: Vec<Worker>,
}

impl Schedule {
    fn of(seed: u64, defect: Option<Defect>) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let start = at("2026-11-20T00:00:00Z");
        let now_ms = Arc::new(AtomicI64::new(start.as_millisecond()));
        let backend = FakeBackend::with_latency(rng.random(), defect);
        futures::executor::block_on(backend.init_marks(start)).unwrap();
        let settings = Settings { max_lateness: Duration::from_secs(6 * 60), ..settings() };
        let metrics = Arc::new(Metrics::new());
        // A tick that goes by a clock that is ahead goes beyond the real one.
        let ahead = if defect == Some(Defect::TicksBeyondTheClock) { 3 * MINUTE } else { 0 };
        let clock: Clock = {
            let now_ms = Arc::clone(&now_ms);
            Arc::new(move || Timestamp::from_millisecond(now_ms.load(Ordering::SeqCst) + ahead).unwrap())
        };
        let stage = Medication::new(
            backend.clone(),
            backend.clone(),
            settings,
            Vec::new(),
            Duration::ZERO,
            metrics,
            clock,
        );
        let end = rng.random_range(8..28);
        let steps_per_minute = [1, 4, 12, 40][rng.random_range(0..4)];
        let mut schedule = Self {
            rng,
            stage: Arc::new(stage),
            backend,
            now_ms,
            start,
            end,
            steps_per_minute,
            definitions: Vec::new(),
            workers: Vec::new(),
        };
        // Of one shard, so that they share its pages and watermarks.
        let ids = (1..)
            .map(|n| format!("r{n}"))
            .filter(|id| Shard::of(&RegimenId::new(id.as_str())) == Shard::of(&RegimenId::new("r1")));
        for regimen in ids.take(schedule.rng.random_range(1..=3)) {
            schedule.add_regimen(&regimen);
        }
        schedule
    }

    fn minute(&self, minute: i64) -> Timestamp {
        Timestamp::from_millisecond(self.start.as_millisecond() + minute * MINUTE).unwrap()
    }

    fn now(&self) -> i64 {
        (self.now_ms.load(Ordering::SeqCst) - self.start.as_millisecond()) / MINUTE
    }

    fn add_worker(&mut self, tasks: Vec<Task>, crashes: u32, redelivered: bool) {
        let speed = [1.0, 1.0, 0.3, 0.05][self.rng.random_range(0..4)];
        self.workers.push(Worker { tasks, next: 0, running: None, crashes, redelivered, speed });
    }

    /// A regimen with its edits, and tickers for its shard.
    fn add_regimen(&mut self, id: &str) {
        let mut minutes: Vec<i64> = (0..self.end).collect();
        minutes.shuffle(&mut self.rng);
        minutes.truncate(self.rng.random_range(1..=4));
        minutes.sort_unstable();
        let edits = minutes.into_iter().map(|minute| self.definition(id, minute)).collect();
        let crashes = self.rng.random_range(0..3);
        self.add_worker(edits, crashes, true);

        let Shard(shard) = Shard::of(&RegimenId::new(id));
        for _ in 0..self.rng.random_range(0..4) {
            let ahead = if self.rng.random_bool(0.2) { 3 } else { 0 };
            let mut ticks: Vec<i64> = (1..=self.end).collect();
            ticks.shuffle(&mut self.rng);
            ticks.truncate(self.rng.random_range(1..8));
            ticks.sort_unstable();
            let ticks = ticks.into_iter().map(|minute| self.tick(shard, minute, minute - ahead)).collect();
            let crashes = self.rng.random_range(0..3);
            let redelivered = self.rng.random();
            self.add_worker(ticks, crashes, redelivered);
        }
        let last = self.tick(shard, self.end, self.end);
        self.add_worker(vec![last], 1, true);
    }

    fn definition(&mut self, id: &str, minute: i64) -> Task {
        let times: Vec<String> =
            (0..40).filter(|_| self.rng.random_bool(0.3)).map(|minute| format!("00:{minute:02}")).collect();
        let json = regimen_json(
            id,
            "UTC",
            &times.iter().map(String::as_str).chain(["12:00"]).collect::<Vec<_>>(),
            self.rng.random_bool(0.85),
        );
        let record = record(topics::MEDICATION_REGIMENS, self.minute(minute), json.clone());
        let Ok(RegimenEvent::Set(regimen, parsed)) =
            events::medication_regimens::read(None, Some(json.as_bytes()))
        else {
            panic!("{json}")
        };
        self.definitions.push(Definition { regimen, since: minute, parsed: *parsed, promised_after: None });
        Task { not_before: minute, record, defines: Some(self.definitions.len() - 1) }
    }

    fn tick(&self, shard: u16, minute: i64, not_before: i64) -> Task {
        let at = self.minute(minute);
        let record =
            record(topics::MEDICATION_TICKS, at, events::medication_ticks::write(&Tick::Shard { shard, at }));
        Task { not_before, record, defines: None }
    }

    /// Runs everything to its end, and returns which promises it violated.
    fn run(mut self) -> Vec<String> {
        let mut violations = Vec::new();
        for _ in 0..200_000 {
            let now = self.now();
            let ready: Vec<usize> =
                (0..self.workers.len()).filter(|worker| self.workers[*worker].is_ready(now)).collect();
            let clock_ticks = now < self.end && self.rng.random_ratio(1, self.steps_per_minute);
            if clock_ticks || (ready.is_empty() && now < self.end) {
                self.now_ms.fetch_add(MINUTE, Ordering::SeqCst);
            } else if let Some(worker) = ready.get(self.rng.random_range(0..ready.len().max(1))) {
                self.step(*worker);
                violations.extend(self.too_early());
            } else {
                violations.extend(self.missing());
                return violations;
            }
        }
        violations.push("it does not end".to_owned());
        violations
    }

    /// Lets a worker do one operation, or crash.
    fn step(&mut self, worker: usize) {
        let worker = &mut self.workers[worker];
        if self.rng.random_bool(1.0 - worker.speed) {
            return;
        }
        if worker.running.is_some() && worker.crashes > 0 && self.rng.random_bool(0.06) {
            worker.crashes -= 1;
            worker.running = None;
            // What was settled but not committed is delivered again too.
            worker.next =
                if worker.redelivered { self.rng.random_range(0..=worker.next) } else { worker.next + 1 };
            return;
        }
        let task = &worker.tasks[worker.next];
        let running = worker.running.get_or_insert_with(|| {
            let stage = Arc::clone(&self.stage);
            let record = task.record.clone();
            Box::pin(async move { handle(&*stage, &record, &CancellationToken::default()).await.unwrap() })
        });
        if let Poll::Ready(fate) = running.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            assert_eq!(fate, Fate::Done);
            if let Some(defined) = task.defines {
                let definition = &mut self.definitions[defined];
                let not_too_late = self.now_ms.load(Ordering::SeqCst) - 6 * MINUTE;
                let after = (self.start.as_millisecond() + definition.since * MINUTE).max(not_too_late);
                let after = Timestamp::from_millisecond(after).unwrap();
                definition.promised_after =
                    Some(definition.promised_after.map_or(after, |before| before.min(after)));
            }
            worker.running = None;
            worker.next += 1;
        }
    }

    fn too_early(&self) -> Vec<String> {
        let now = self.minute(self.now());
        let keys =
            self.backend.published().into_iter().filter_map(|message| String::from_utf8(message.key?).ok());
        keys.filter(|id| at(&id[id.len() - "2026-11-20T00:00:00Z".len()..]) > now)
            .map(|id| format!("{id} before its time"))
            .collect()
    }

    /// Occurrences that were not dispatched, and chains that ended.
    fn missing(&self) -> Vec<String> {
        let mut by_regimen: BTreeMap<&RegimenId, Vec<&Definition>> = BTreeMap::new();
        for definition in &self.definitions {
            by_regimen.entry(&definition.regimen).or_default().push(definition);
        }
        let dispatched = self.backend.keys();
        let mut violations = Vec::new();
        for (id, definitions) in by_regimen {
            for minute in 1..=self.end {
                let time = self.minute(minute);
                let Some(current) = definitions.iter().rposition(|definition| definition.since < minute)
                else {
                    continue;
                };
                let due =
                    definitions[current..].iter().all(|definition| definition.parsed.is_occurrence(time));
                let promised = definitions[current].promised_after.is_some_and(|after| after < time);
                let dose = dose_id(id.as_str(), &time.to_string());
                if due && promised && !dispatched.contains(dose.as_str().as_bytes()) {
                    violations.push(format!("{dose} was never dispatched"));
                }
            }
            let next = definitions.last().and_then(|last| last.parsed.next_after(self.minute(self.end)));
            if next.is_some_and(|next| self.backend.due(id).iter().all(|row| row.due_at != next)) {
                violations.push(format!("the chain of {id} ended"));
            }
        }
        violations
    }
}

impl Worker {
    fn is_ready(&self, now: i64) -> bool {
        self.running.is_some() || self.tasks.get(self.next).is_some_and(|task| task.not_before <= now)
    }
}

#[test]
fn every_occurrence_is_dispatched_and_the_chain_never_ends_whatever_crashes_and_in_whatever_order() {
    for seed in 0..1_500 {
        assert_eq!(Schedule::of(seed, None).run(), Vec::<String>::new(), "seed {seed}");
    }
}

/// Some schedule violates a promise where the store has this defect: the schedules prove something.
macro_rules! is_found {
    ($($name:ident: $defect:ident;)+) => {$(
        #[test]
        fn $name() {
            let found = (0..5_000).find(|seed| !Schedule::of(*seed, Some(Defect::$defect)).run().is_empty());
            println!("{found:?}");
            assert!(found.is_some(), "no schedule finds the defect");
        }
    )+};
}

is_found! {
    the_schedules_find_a_tick_that_raises_the_read_watermark_after_reading_rows: ReadRaisedAfterTheRows;
    the_schedules_find_an_inserter_that_reads_the_read_watermark_before_its_row_is_visible: RowsVisibleLate;
    the_schedules_find_a_tick_that_raises_the_dispatched_watermark_too_early: DispatchedRaisedBeforeTheWork;
    the_schedules_find_a_slack_instead_of_the_read_watermark: SlackInsteadOfRead;
    the_schedules_find_an_inserter_that_leaves_its_row_to_the_ticks: InsertedRowIsLeft;
    the_schedules_find_a_due_row_that_comes_before_its_definition: DefinitionsVisibleLate;
    the_schedules_find_a_tick_that_goes_beyond_the_clock: TicksBeyondTheClock;
}
