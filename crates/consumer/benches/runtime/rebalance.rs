//! A second member joins and leaves under load: how long the first one reads nothing meanwhile, and what is
//! handled twice.
//!
//! The pause lasts from the revocation, which a handler sees as its stop, until records of the kept
//! partitions start again. What starts right after the revocation was read before it and proves nothing, so
//! the pause is the longest time without a start that begins within [`HANDLERS_END`] of the revocation.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    thread::sleep,
    time::Duration,
};

use consumer::{Assignment, Fate, Handler, HandlerError, OrderingKey, Record, Rejected};
use tokio::{sync::watch, task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    PARTITIONS, Target,
    broker::{self, Broker},
    child::Child,
    print_target,
    process::median,
    worker::{self, Task, input_ended},
};

const HANDLER_MS: u32 = 50;
/// How long the last handler of a revoked partition may take, and a little more.
const HANDLERS_END: Duration = Duration::from_millis(150);
/// The time between the steps of a round.
const STEP: Duration = Duration::from_secs(5);

/// The figures of a round.
#[derive(Debug)]
struct Round {
    /// Seconds.
    pause: f64,
    /// The part of it until the partitions were drained and committed; the rest is librdkafka's.
    drained: f64,
    duplicates: u64,
    missing: u64,
}

pub fn measure(broker: &Broker, protocol: &str, rounds: usize) {
    let rounds: Vec<Round> = (0..rounds).map(|_| round(broker, protocol)).collect();
    let name = format!("rebalance, {protocol}");
    let pause = median(rounds.iter().map(|round| round.pause));
    let drained = median(rounds.iter().map(|round| round.drained));
    let duplicates: u64 = rounds.iter().map(|round| round.duplicates).sum();
    let missing: u64 = rounds.iter().map(|round| round.missing).sum();
    print_target(&name, "seconds without reading", pause, Target::AtMost(0.5));
    print_target(&name, "of them until all was drained and committed", drained, Target::None);
    print_target(&name, "duplicates", duplicates as f64, Target::AtMost(0.0));
    print_target(&name, "missing", missing as f64, Target::AtMost(0.0));
}

fn round(broker: &Broker, protocol: &str) -> Round {
    let group = broker::new_group();
    let mut first = Child::start(protocol, broker, HANDLER_MS, &group);
    first.wait_for("reading");
    sleep(STEP);
    let mut second = Child::start(protocol, broker, HANDLER_MS, &group);
    second.wait_for("reading");
    sleep(STEP);
    let second = second.stop();
    sleep(STEP);
    let first = first.stop();

    let pauses: Vec<_> = first.iter().filter_map(|line| line.strip_prefix("pause ")).map(seconds).collect();
    let [(pause, drained)] = pauses[..] else {
        panic!("the first member should see one revocation, and saw {pauses:?}")
    };
    let mut handled: BTreeMap<i32, Vec<u64>> = BTreeMap::new();
    for line in first.iter().chain(&second).filter_map(|line| line.strip_prefix("handled ")) {
        let numbers: Vec<i64> = line.split(' ').map(|number| number.parse().unwrap()).collect();
        let [partition, from, to, times] = numbers[..] else { panic!("{line:?}") };
        let offsets = handled.entry(i32::try_from(partition).unwrap()).or_default();
        let from = usize::try_from(from).unwrap();
        let to = usize::try_from(to).unwrap();
        offsets.resize(offsets.len().max(to), 0);
        offsets[from..to].iter_mut().for_each(|count| *count += u64::try_from(times).unwrap());
    }
    assert_eq!(handled.len(), PARTITIONS as usize);
    let duplicates = handled.values().flatten().map(|times| times.saturating_sub(1)).sum();
    let missing = handled.values().flatten().filter(|times| **times == 0).count() as u64;
    let records = handled.values().map(Vec::len).sum::<usize>();
    eprintln!(
        "rebalance {protocol}: no reading for {pause:.3} s (drained after {drained:.3} s), \
         {records} records, {duplicates} duplicates, {missing} missing"
    );
    Round { pause, drained, duplicates, missing }
}

fn seconds(two: &str) -> (f64, f64) {
    let (one, other) = two.split_once(' ').unwrap();
    (one.parse().unwrap(), other.parse().unwrap())
}

// === A member ===

/// What a member has seen, by the time since its start.
#[derive(Debug)]
struct History {
    started_at: Instant,
    /// When records of which partition started.
    starts: Vec<(Duration, i32)>,
    /// How often each offset of each partition was handled.
    handled: BTreeMap<i32, Vec<u8>>,
    /// When a handler first saw its partition's stop, once for each assignment of the partition.
    stops: Vec<(Duration, i32)>,
    /// When partitions left the assignment.
    unassigned: Vec<Duration>,
}

struct Recording {
    history: Arc<Mutex<History>>,
    pause: Duration,
}

impl Handler for Recording {
    type Event = Option<OrderingKey>;

    fn read(&self, record: &Record) -> Result<Self::Event, Rejected> {
        Ok(worker::key(record))
    }

    fn key(&self, key: &Self::Event) -> Option<OrderingKey> {
        key.clone()
    }

    async fn handle(
        &self,
        _: Self::Event,
        record: &Record,
        stop: &CancellationToken,
    ) -> Result<Fate, HandlerError> {
        self.history.lock().unwrap().start(record);
        tokio::time::sleep(self.pause).await;
        // Thousands run and some end in every millisecond, so this is the time of the revocation.
        self.history.lock().unwrap().end(record, stop.is_cancelled());
        Ok(Fate::Done)
    }
}

impl History {
    fn start(&mut self, record: &Record) {
        self.starts.push((self.started_at.elapsed(), record.partition));
    }

    fn end(&mut self, record: &Record, stopped: bool) {
        let offset = usize::try_from(record.offset).unwrap();
        let offsets = self.handled.entry(record.partition).or_default();
        offsets.resize(offsets.len().max(offset + 1), 0);
        offsets[offset] += 1;
        let now = self.started_at.elapsed();
        let is_new = || {
            self.stops.iter().all(|(at, stopped)| *stopped != record.partition || now - *at > HANDLERS_END)
        };
        if stopped && is_new() {
            self.stops.push((now, record.partition));
        }
    }

    /// The pause after each revocation before `until`, and how long its drain took.
    fn pauses(&self, until: Duration) -> Vec<[Duration; 2]> {
        let mut pauses = Vec::new();
        let mut stops: Vec<_> = self.stops.iter().filter(|(at, _)| *at < until).collect();
        stops.sort();
        for revoked in stops.chunk_by(|(one, _), (other, _)| *other - *one < HANDLERS_END) {
            let at = revoked[0].0;
            let kept = |partition: i32| revoked.iter().all(|(_, revoked)| *revoked != partition);
            let starts: Vec<_> = self
                .starts
                .iter()
                .filter(|(start, partition)| (at..until).contains(start) && kept(*partition))
                .map(|(start, _)| *start)
                .collect();
            let mut last = at;
            let between = starts.iter().map(|start| (std::mem::replace(&mut last, *start), *start));
            let longest =
                between.filter(|(from, _)| *from - at < HANDLERS_END).max_by_key(|(from, to)| *to - *from);
            let unassigned = self.unassigned.iter().find(|unassigned| **unassigned >= at);
            pauses.push([longest.map_or(until, |(_, to)| to) - at, *unassigned.unwrap_or(&until) - at]);
        }
        pauses
    }

    /// Prints the ranges of offsets that were handled the same number of times, but not those never handled.
    fn print_handled(&self) {
        for (partition, offsets) in &self.handled {
            let mut from = 0;
            for run in offsets.chunk_by(|one, other| one == other) {
                let to = from + run.len();
                if run[0] > 0 {
                    println!("handled {partition} {from} {to} {}", run[0]);
                }
                from = to;
            }
        }
    }
}

/// Handles records until its standard input ends, and then prints what happened.
pub async fn member(task: &Task, protocol: &str) {
    let history = Arc::new(Mutex::new(History {
        started_at: Instant::now(),
        starts: Vec::new(),
        handled: BTreeMap::new(),
        stops: Vec::new(),
        unassigned: Vec::new(),
    }));
    let stage = worker::stage(task, protocol, Recording { history: Arc::clone(&history), pause: task.pause });
    let stop = CancellationToken::new();
    let mut running = JoinSet::new();
    let mut watching = JoinSet::new();
    watching.spawn(watch(stage.assignment(), Arc::clone(&history)));
    running.spawn(stage.run(stop.clone()));
    while history.lock().unwrap().starts.is_empty() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    println!("reading");
    input_ended().await;
    let stopped_at = history.lock().unwrap().started_at.elapsed();
    stop.cancel();
    running.join_next().await.unwrap().unwrap().unwrap();

    let history = history.lock().unwrap();
    for [pause, drained] in history.pauses(stopped_at) {
        println!("pause {} {}", pause.as_secs_f64(), drained.as_secs_f64());
    }
    history.print_handled();
}

/// Records when partitions leave the assignment, which is just before they are unassigned.
async fn watch(mut assignment: watch::Receiver<Assignment>, history: Arc<Mutex<History>>) {
    let mut before = 0;
    while assignment.changed().await.is_ok() {
        let now = assignment.borrow_and_update().partitions.len();
        let mut history = history.lock().unwrap();
        if now < before {
            let at = history.started_at.elapsed();
            history.unassigned.push(at);
        }
        before = now;
    }
}
