//! A second member joins and leaves under load: how long the first one is silent meanwhile, and what is
//! handled twice.
//!
//! Silent: from the revocation, which a handler sees as its stop, to the record on a kept partition with
//! which the flow goes on. What is begun right after the revocation had been read before it and is no sign of
//! life, so it is the longest pause that begins within [`STRAGGLING`] that is looked for.

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
    Bar, PARTITIONS, bar,
    broker::{self, Broker},
    child::Child,
    process::median,
    worker::{self, Task, input_ended},
};

const PAUSE_MS: u32 = 50;
/// As long as the last handler of a revoked partition may take, and a little more.
const STRAGGLING: Duration = Duration::from_millis(150);
/// Between the steps of a round.
const UNDISTURBED: Duration = Duration::from_secs(5);

/// What a round came to.
#[derive(Debug)]
struct Round {
    /// Seconds.
    silent: f64,
    /// The part of it until the partitions were drained and committed; the rest is librdkafka's.
    drained: f64,
    doubles: u64,
    missing: u64,
}

pub fn measure(broker: &Broker, protocol: &str, rounds: usize) {
    let rounds: Vec<Round> = (0..rounds).map(|_| round(broker, protocol)).collect();
    let name = format!("rebalance, {protocol}");
    let [silent, drained] =
        [|round: &Round| round.silent, |round: &Round| round.drained].map(|of| median(rounds.iter().map(of)));
    let [doubles, missing] = [|round: &Round| round.doubles, |round: &Round| round.missing]
        .map(|of| rounds.iter().map(of).sum::<u64>());
    bar(&name, "seconds silent", silent, Bar::AtMost(0.5));
    bar(&name, "of them until all was drained and committed", drained, Bar::None);
    bar(&name, "doubles", doubles as f64, Bar::AtMost(0.0));
    bar(&name, "missing", missing as f64, Bar::AtMost(0.0));
}

fn round(broker: &Broker, protocol: &str) -> Round {
    let group = broker::some_group();
    let mut first = Child::start(protocol, broker, PAUSE_MS, &group);
    first.hear("flows");
    sleep(UNDISTURBED);
    let mut second = Child::start(protocol, broker, PAUSE_MS, &group);
    second.hear("flows");
    sleep(UNDISTURBED);
    let second = second.stop();
    sleep(UNDISTURBED);
    let first = first.stop();

    let silences: Vec<_> =
        first.iter().filter_map(|line| line.strip_prefix("silent ")).map(seconds).collect();
    let [(silent, drained)] = silences[..] else {
        panic!("the first member was to see one revocation, and saw {silences:?}")
    };
    let mut handled: BTreeMap<i32, Vec<u64>> = BTreeMap::new();
    for line in first.iter().chain(&second).filter_map(|line| line.strip_prefix("handled ")) {
        let line: Vec<i64> = line.split(' ').map(|number| number.parse().unwrap()).collect();
        let [partition, from, to, times] = line[..] else { panic!("{line:?}") };
        let offsets = handled.entry(i32::try_from(partition).unwrap()).or_default();
        let (from, to) = (usize::try_from(from).unwrap(), usize::try_from(to).unwrap());
        offsets.resize(offsets.len().max(to), 0);
        offsets[from..to].iter_mut().for_each(|count| *count += u64::try_from(times).unwrap());
    }
    assert_eq!(handled.len(), PARTITIONS as usize);
    let doubles = handled.values().flatten().map(|times| times.saturating_sub(1)).sum();
    let missing = handled.values().flatten().filter(|times| **times == 0).count() as u64;
    let records = handled.values().map(Vec::len).sum::<usize>();
    eprintln!(
        "rebalance {protocol}: silent for {silent:.3} s (drained after {drained:.3} s), {records} records, {doubles} doubles, {missing} missing"
    );
    Round { silent, drained, doubles, missing }
}

fn seconds(two: &str) -> (f64, f64) {
    let (one, other) = two.split_once(' ').unwrap();
    (one.parse().unwrap(), other.parse().unwrap())
}

// === A member ===

/// What a member has seen.
#[derive(Debug)]
struct Diary {
    born_at: Instant,
    /// When which partition's records were begun.
    begun: Vec<(Duration, i32)>,
    /// How often each offset of each partition was handled.
    handled: BTreeMap<i32, Vec<u8>>,
    /// When a partition's stop was seen first, once for each time it was ours.
    stopped: Vec<(Duration, i32)>,
    /// When partitions were given back.
    given_back: Vec<Duration>,
}

struct Witness {
    diary: Arc<Mutex<Diary>>,
    pause: Duration,
}

impl Handler for Witness {
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
        self.diary.lock().unwrap().begin(record);
        tokio::time::sleep(self.pause).await;
        // Thousands are at work and some end in every millisecond, so this is the time of the revocation.
        self.diary.lock().unwrap().end(record, stop.is_cancelled());
        Ok(Fate::Done)
    }
}

impl Diary {
    fn begin(&mut self, record: &Record) {
        self.begun.push((self.born_at.elapsed(), record.partition));
    }

    fn end(&mut self, record: &Record, stopped: bool) {
        let offset = usize::try_from(record.offset).unwrap();
        let offsets = self.handled.entry(record.partition).or_default();
        offsets.resize(offsets.len().max(offset + 1), 0);
        offsets[offset] += 1;
        let now = self.born_at.elapsed();
        let is_new = || self.stopped.iter().all(|(at, of)| *of != record.partition || now - *at > STRAGGLING);
        if stopped && is_new() {
            self.stopped.push((now, record.partition));
        }
    }

    /// How long we were silent after each revocation before `until`, and how long the drain took.
    fn silences(&self, until: Duration) -> Vec<[Duration; 2]> {
        let mut silences = Vec::new();
        let mut stopped: Vec<_> = self.stopped.iter().filter(|(at, _)| *at < until).collect();
        stopped.sort();
        for revoked in stopped.chunk_by(|(one, _), (other, _)| *other - *one < STRAGGLING) {
            let at = revoked[0].0;
            let kept = |of: i32| revoked.iter().all(|(_, revoked)| *revoked != of);
            let signs: Vec<_> = self
                .begun
                .iter()
                .filter(|(begun, of)| (at..until).contains(begun) && kept(*of))
                .map(|(begun, _)| *begun)
                .collect();
            let mut last = at;
            let pauses = signs.iter().map(|sign| (std::mem::replace(&mut last, *sign), *sign));
            let longest =
                pauses.filter(|(from, _)| *from - at < STRAGGLING).max_by_key(|(from, to)| *to - *from);
            let given_back = self.given_back.iter().find(|given_back| **given_back >= at);
            silences.push([longest.map_or(until, |(_, to)| to) - at, *given_back.unwrap_or(&until) - at]);
        }
        silences
    }

    /// The offsets in a row that were handled the same number of times, but not those that never were.
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

/// Handles until its input ends, and then says what happened.
pub async fn member(task: &Task, protocol: &str) {
    let diary = Diary {
        born_at: Instant::now(),
        begun: Vec::new(),
        handled: BTreeMap::new(),
        stopped: Vec::new(),
        given_back: Vec::new(),
    };
    let diary = Arc::new(Mutex::new(diary));
    let stage = worker::stage(task, protocol, Witness { diary: Arc::clone(&diary), pause: task.pause });
    let (stop, mut running, mut watching) = (CancellationToken::new(), JoinSet::new(), JoinSet::new());
    watching.spawn(watch(stage.assignment(), Arc::clone(&diary)));
    running.spawn(stage.run(stop.clone()));
    while diary.lock().unwrap().begun.is_empty() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    println!("flows");
    input_ended().await;
    let stopped_at = diary.lock().unwrap().born_at.elapsed();
    stop.cancel();
    running.join_next().await.unwrap().unwrap().unwrap();

    let diary = diary.lock().unwrap();
    for [silent, drained] in diary.silences(stopped_at) {
        println!("silent {} {}", silent.as_secs_f64(), drained.as_secs_f64());
    }
    diary.print_handled();
}

/// Notes when partitions are given back: they leave the assignment just before.
async fn watch(mut assignment: watch::Receiver<Assignment>, diary: Arc<Mutex<Diary>>) {
    let mut before = 0;
    while assignment.changed().await.is_ok() {
        let now = assignment.borrow_and_update().partitions.len();
        let mut diary = diary.lock().unwrap();
        if now < before {
            let at = diary.born_at.elapsed();
            diary.given_back.push(at);
        }
        before = now;
    }
}
