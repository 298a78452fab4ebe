//! A stage of one's own on pushcast's consumer runtime: reads a topic, works on each record for a while, and
//! writes to another topic what it has handled.
//!
//! [`Relay`] is all that a stage has to say, [`main`] all that it takes to run one. The runtime does the
//! rest: many records at once, those of a key in their order, and an offset is committed only when all before
//! it is done. Start it two or three times, end one, kill one, and read the output: every record is there.
//!
//! ```text
//! PUSHCAST__KAFKA__BOOTSTRAP_SERVERS=127.0.0.1:9092 cargo run --example relay -- orders handled --work 50ms --name a
//! ```
//!
//! It takes the settings of `[kafka]` as pushcast does. The topics, and `dead-letters`, have to exist. A
//! record's value says as JSON what is to be done with it, or nothing: `{"seq": 7, "work": "3s", "panic":
//! true}`; a tombstone is a record like any other.

use std::{convert::Infallible, sync::Arc, time::Duration};

use clap::Parser;
use pushcast::{
    config::Config,
    domain::Unavailable,
    kafka::{Assignment, Producer, Stage, StageSpec},
    metrics::Metrics,
    stream::{Cause, Fate, Handler, LaneKey, Message, Publish, Record, Stop},
    telemetry,
};
use serde::Deserialize;
use serde_json::json;
use tokio::{
    select,
    signal::unix::{SignalKind, signal},
    sync::watch,
    time::sleep,
};
use tokio_util::sync::CancellationToken;

/// How long the last acknowledgements may take.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);

/// Reads a topic, and writes to another one what it has handled.
#[derive(Parser)]
struct Args {
    /// The topic to read
    input: String,
    /// The topic to write to
    output: String,
    /// How long each record takes that says nothing else
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = duration)]
    work: Duration,
    /// What this process calls itself in what it writes
    #[arg(long, default_value = "relay")]
    name: String,
}

/// The stage.
struct Relay<P> {
    publish: P,
    output: String,
    work: Duration,
    name: String,
}

/// What a record asks for. Everything may be missing.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Task {
    seq: Option<u64>,
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::optional")]
    work: Option<Duration>,
    panic: bool,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let Args { input, output, work, name } = Args::parse();
    let Config { kafka, log, .. } =
        Config::load(None, &std::env::vars().collect()).map_err(anyhow::Error::msg)?;
    telemetry::init(&log)?;

    let producer = Producer::new(&kafka)?;
    let relay = Relay { publish: producer.clone(), output, work, name };
    // Its consumer group is `<kafka.group_prefix>.relay`. The stage's own publisher is for what goes to
    // `dead-letters`.
    let spec = StageSpec { name: "relay".to_owned(), topics: vec![input], in_flight: kafka.in_flight };
    let stage = Stage::new(&kafka, spec, Arc::new(relay), producer.clone(), Arc::new(Metrics::new()))?;

    let (assignment, stop) = (stage.assignment(), CancellationToken::new());
    select! {
        // Ends by itself only with an error: then the process ends, and whoever supervises it starts it
        // again.
        ended = stage.run(stop.clone()) => ended?,
        never = end_when_asked(stop) => match never? {},
        never = tell(assignment) => match never {},
    }
    // The stage has drained, so nothing is on its way any more; whoever publishes elsewhere too waits here.
    producer.flush(FLUSH_TIMEOUT).await?;
    Ok(())
}

/// Stops the stage at the first signal. `Stage::run` then drains, commits and returns.
async fn end_when_asked(stop: CancellationToken) -> anyhow::Result<Infallible> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    loop {
        select! {
            _ = terminate.recv() => stop.cancel(),
            _ = interrupt.recv() => stop.cancel(),
        }
    }
}

/// Tells how many partitions are ours, whenever that changes.
async fn tell(mut assignment: watch::Receiver<Assignment>) -> Infallible {
    let mut told = None;
    while assignment.changed().await.is_ok() {
        let owned = assignment.borrow_and_update().partitions.len();
        if told.replace(owned) != Some(owned) {
            println!("owns {owned}");
        }
    }
    std::future::pending().await // the stage has ended, and says so itself
}

// === impl Relay ===

impl<P: Publish> Handler for Relay<P> {
    /// Records with the same key run one after the other, those without a key all at once.
    fn lane(&self, record: &Record) -> Option<LaneKey> {
        record.key.as_deref().map(|key| LaneKey(key.into()))
    }

    /// The order of things is what makes this safe: the output is acknowledged, *then* the record is done. A
    /// process that dies in between does the record again.
    async fn handle(&self, record: &Record, _stop: &Stop) -> Result<Fate, Unavailable> {
        let task = match Task::of(record) {
            Ok(task) => task,
            // By its own fault. It goes to `dead-letters` with its bytes, and the stream goes on.
            Err(cause) => return Ok(Fate::DeadLetter(cause)),
        };
        assert!(!task.panic, "it was asked to panic"); // as good as a bug: the runtime survives it, and buries the record

        // Short work is finished, also when the partition is being taken away. Work that may outlast
        // `kafka.drain_timeout` would look at `stop` between its steps, and end as `Fate::Unfinished`.
        sleep(task.work.unwrap_or(self.work)).await;

        // Kafka is away? `?` hands the record back, and the runtime calls again until it works.
        self.publish.publish(self.about(record, &task)).await?;
        Ok(Fate::Done)
    }
}

impl<P> Relay<P> {
    fn about(&self, record: &Record, task: &Task) -> Message {
        let key = record.key.as_deref().map(String::from_utf8_lossy);
        let (topic, partition, offset) = (&*record.topic, record.partition, record.offset);
        let told = json!({"key": key, "seq": task.seq, "topic": topic, "partition": partition, "offset": offset, "by": self.name});
        // With the record's key: what belongs together stays in order in the output too.
        Message {
            key: record.key.clone(),
            ..Message::new(&*self.output, None, told.to_string().into_bytes())
        }
    }
}

impl Task {
    fn of(record: &Record) -> Result<Self, Cause> {
        record
            .value
            .as_deref()
            .map_or(Ok(Self::default()), |json| serde_json::from_slice(json).map_err(Cause::unreadable))
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    let signed: jiff::SignedDuration = text.parse().map_err(|error| format!("{error}"))?;
    signed.try_into().map_err(|error| format!("{error}"))
}
