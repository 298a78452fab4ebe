//! The contestants that are written in Rust: the bench starts itself, so that each run is a process.

use std::{
    io::Read,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use consumer::{
    ConsumerMetrics, DeadLetters, Fate, GroupProtocol, Handler, HandlerError, OrderingKey, Producer, Record,
    Rejected, Settings, Stage, StageSpec,
};
use rdkafka::{
    ClientConfig, Message as _,
    consumer::{Consumer as _, StreamConsumer},
};
use tokio::{
    task::JoinSet,
    time::{Instant, interval, sleep},
};
use tokio_util::sync::CancellationToken;

use crate::rebalance;

/// The argument that makes the bench a worker.
pub const FLAG: &str = "--worker";

const WARM_UP: Duration = Duration::from_secs(5);
const MEASURED: Duration = Duration::from_secs(10);

/// The arguments of a worker.
#[derive(Clone, Debug)]
pub struct Task {
    pub broker: String,
    pub topic: String,
    pub group: String,
    /// How long its handler waits for each record.
    pub pause: Duration,
    pub in_flight: usize,
    /// How many records there are.
    pub records: u64,
}

pub fn main(arguments: &[String]) {
    let [contestant, broker, topic, group, pause_ms, in_flight, records] = arguments else {
        panic!("{arguments:?}")
    };
    let task = Task {
        broker: broker.clone(),
        topic: topic.clone(),
        group: group.clone(),
        pause: Duration::from_millis(pause_ms.parse().unwrap()),
        in_flight: in_flight.parse().unwrap(),
        records: records.parse().unwrap(),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        match contestant.as_str() {
            "stage" => run_stage(&task).await,
            "loop" => run_loop(&task).await,
            protocol => rebalance::member(&task, protocol).await,
        }
    });
    runtime.shutdown_background();
}

// === stage ===

/// Counts records, each after a pause.
struct Counting {
    handled: Arc<AtomicU64>,
    pause: Duration,
}

impl Handler for Counting {
    type Event = Option<OrderingKey>;

    fn read(&self, record: &Record) -> Result<Self::Event, Rejected> {
        Ok(key(record))
    }

    fn key(&self, key: &Self::Event) -> Option<OrderingKey> {
        key.clone()
    }

    async fn handle(&self, _: Self::Event, _: &Record, _: &CancellationToken) -> Result<Fate, HandlerError> {
        if !self.pause.is_zero() {
            sleep(self.pause).await;
        }
        self.handled.fetch_add(1, Ordering::Relaxed);
        Ok(Fate::Done)
    }
}

/// The record's key as its ordering key.
pub fn key(record: &Record) -> Option<OrderingKey> {
    record.key.as_deref().map(|key| OrderingKey(key.into()))
}

async fn run_stage(task: &Task) {
    let handled = Arc::new(AtomicU64::new(0));
    let stage = stage(task, "classic", Counting { handled: Arc::clone(&handled), pause: task.pause });
    println!("idle");
    let stop = CancellationToken::new();
    let mut running = JoinSet::new();
    running.spawn(stage.run(stop.clone()));
    report(&handled, task.records).await;
    input_ended().await;
    stop.cancel();
    running.join_next().await.unwrap().unwrap().unwrap();
}

/// A stage with the default settings.
pub fn stage<H: Handler>(task: &Task, protocol: &str, handler: H) -> Stage<H, Producer> {
    let settings = Settings {
        group_protocol: if protocol == "consumer" { GroupProtocol::Consumer } else { GroupProtocol::Classic },
        ..Settings::new(&*task.broker, &*task.group)
    };
    let spec = StageSpec {
        name: "bench".to_owned(),
        topics: vec![task.topic.clone()],
        in_flight: task.in_flight,
        dead_letters: DeadLetters {
            topic: "dead-letters".to_owned(),
            header_prefix: "bench.".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        },
    };
    let producer = Producer::new(&settings).unwrap();
    Stage::new(&settings, spec, Arc::new(handler), producer, Arc::new(ConsumerMetrics::default())).unwrap()
}

// === loop ===

/// rdkafka with its defaults, which commit automatically, and one record after the other.
async fn run_loop(task: &Task) {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", &task.broker)
        .set("group.id", &task.group)
        .set("auto.offset.reset", "earliest");
    let consumer: StreamConsumer = config.create().unwrap();
    println!("idle");
    consumer.subscribe(&[&task.topic]).unwrap();
    let handled = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&handled);
    let pause = task.pause;
    let mut running = JoinSet::new();
    running.spawn(async move {
        loop {
            let message = consumer.recv().await.unwrap();
            assert!(message.payload().is_some());
            if !pause.is_zero() {
                sleep(pause).await;
            }
            counter.fetch_add(1, Ordering::Relaxed);
        }
    });
    report(&handled, task.records).await;
    input_ended().await;
}

// === The output of all ===

/// Prints `warm` and `done`, each when its time has passed or its records are handled.
async fn report(handled: &AtomicU64, records: u64) {
    let mut tick = interval(Duration::from_millis(10));
    while handled.load(Ordering::Relaxed) == 0 {
        tick.tick().await;
    }
    let started_at = Instant::now();
    let mut until = Duration::ZERO;
    for (word, duration, records_max) in [("warm", WARM_UP, records / 4), ("done", MEASURED, records)] {
        until += duration;
        loop {
            let passed = started_at.elapsed();
            let count = handled.load(Ordering::Relaxed);
            if passed >= until || count >= records_max {
                println!("{word} {count} {}", passed.as_secs_f64());
                until = passed;
                break;
            }
            tick.tick().await;
        }
    }
}

/// Returns when the bench stops this process, by closing its standard input.
pub async fn input_ended() {
    let wait = || std::io::stdin().read_to_end(&mut Vec::new());
    tokio::task::spawn_blocking(wait).await.unwrap().unwrap();
}
