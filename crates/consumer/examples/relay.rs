//! A stage on the runtime: reads a topic, works on each record for a while, and writes to another topic what
//! it has handled.
//!
//! [`Relay`] is all that a stage has to define, [`main`] all that it takes to run one. The runtime does the
//! rest: many records at once, those of a key in their order, and an offset is committed only when all
//! records before it are done. Start it two or three times, stop one, kill one, and read the output: every
//! record is there.
//!
//! ```text
//! cargo run -p pushcast-consumer --example relay -- --bootstrap-servers 127.0.0.1:9092 \
//!     orders handled --work 50ms --name a
//! ```
//!
//! The topics, and `dead-letters`, have to exist. A record's value may say as JSON what is to be done with
//! it: `{"seq": 7, "work": "3s", "panic": true}`; without a value (a tombstone) the defaults hold.

use std::{convert::Infallible, sync::Arc, time::Duration};

use clap::Parser;
use consumer::{
    Assignment, Cause, ConsumerMetrics, DeadLetters, Fate, GroupProtocol, Handler, HandlerError, Message,
    OrderingKey, Producer, Publish, Record, Rejected, Settings, Stage, StageSpec,
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

/// How long the last acknowledgements may take, at the end.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);

/// Reads a topic, and writes to another one what it has handled.
#[derive(Parser)]
struct Args {
    /// The topic to read
    input: String,
    /// The topic to write to
    output: String,
    /// How long each record takes whose value sets no other time
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = duration)]
    work: Duration,
    /// The name of this process in what it writes
    #[arg(long, default_value = "relay")]
    name: String,
    /// Where Kafka is: host:port, or several of them separated by commas
    #[arg(long, default_value = "127.0.0.1:9092")]
    bootstrap_servers: String,
    /// The consumer group is `<group-prefix>.relay`
    #[arg(long, default_value = "example")]
    group_prefix: String,
    /// `classic` or `consumer` (KIP-848)
    #[arg(long, default_value = "classic", value_parser = group_protocol)]
    group_protocol: GroupProtocol,
    /// The instance id of a static member; empty = a dynamic one
    #[arg(long, default_value = "")]
    instance_id: String,
    /// Records in flight at once
    #[arg(long, default_value_t = 4_096)]
    in_flight: usize,
    /// Records that a partition may read from its oldest unsettled one on
    #[arg(long, default_value_t = 10_000)]
    span: usize,
    /// How often offsets are committed
    #[arg(long, default_value = "1s", value_parser = duration)]
    commit_every: Duration,
    /// After that long without a heartbeat the group removes the member (classic protocol)
    #[arg(long, default_value = "10s", value_parser = duration)]
    session_timeout: Duration,
    /// How long a stop waits for what is in flight
    #[arg(long, default_value = "20s", value_parser = duration)]
    drain_timeout: Duration,
    /// A property of librdkafka, as name=value; may be repeated
    #[arg(long = "property", value_name = "NAME=VALUE", value_parser = property)]
    properties: Vec<(String, String)>,
}

/// The stage.
struct Relay<P> {
    publish: P,
    output: String,
    work: Duration,
    name: String,
}

/// A record's value. Every field is optional.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Task {
    /// The record's key, which is not part of the value.
    #[serde(skip)]
    key: Option<Vec<u8>>,
    seq: Option<u64>,
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::optional")]
    work: Option<Duration>,
    panic: bool,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let args = Args::parse();
    let settings = args.settings();

    let producer = Producer::new(&settings)?;
    let relay = Relay { publish: producer.clone(), output: args.output, work: args.work, name: args.name };
    let spec = StageSpec {
        name: "relay".to_owned(),
        topics: vec![args.input],
        in_flight: settings.in_flight,
        dead_letters: DeadLetters {
            topic: "dead-letters".to_owned(),
            header_prefix: "relay.".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        },
    };
    // The stage's producer is for dead letters.
    let metrics = Arc::new(ConsumerMetrics::default());
    let stage = Stage::new(&settings, spec, Arc::new(relay), producer.clone(), metrics)?;

    let assignment = stage.assignment();
    let stop = CancellationToken::new();
    select! {
        // Ends by itself only with an error: then the process ends, and its supervisor starts it again.
        ended = stage.run(stop.clone()) => ended?,
        never = stop_at_signal(stop) => match never? {},
        never = print_owned(assignment) => match never {},
    }
    // The stage has drained, so all that it published is acknowledged; this waits for anything else.
    producer.flush(FLUSH_TIMEOUT).await?;
    Ok(())
}

/// Stops the stage at the first signal. `Stage::run` then drains, commits and returns.
async fn stop_at_signal(stop: CancellationToken) -> anyhow::Result<Infallible> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    loop {
        select! {
            _ = terminate.recv() => stop.cancel(),
            _ = interrupt.recv() => stop.cancel(),
        }
    }
}

/// Prints how many partitions are assigned, whenever that changes.
async fn print_owned(mut assignment: watch::Receiver<Assignment>) -> Infallible {
    let mut printed = None;
    while assignment.changed().await.is_ok() {
        let owned = assignment.borrow_and_update().partitions.len();
        if printed.replace(owned) != Some(owned) {
            println!("owns {owned}");
        }
    }
    std::future::pending().await // the stage has ended, and `Stage::run` returns why
}

// === impl Relay ===

impl<P: Publish> Handler for Relay<P> {
    type Event = Task;

    /// A record that can't be read becomes a dead letter with its bytes, and the next one is read.
    fn read(&self, record: &Record) -> Result<Task, Rejected> {
        let task = match record.value.as_deref() {
            Some(value) => serde_json::from_slice(value).map_err(Cause::unreadable)?,
            None => Task::default(),
        };
        Ok(Task { key: record.key.clone(), ..task })
    }

    /// Records with the same key run one after the other, those without a key concurrently.
    fn key(&self, task: &Task) -> Option<OrderingKey> {
        task.key.as_deref().map(|key| OrderingKey(key.into()))
    }

    /// The order makes this safe: the output is acknowledged, *then* the record is done. If the process
    /// is killed in between, the record is handled again.
    async fn handle(&self, task: Task, record: &Record, _: &CancellationToken) -> Result<Fate, HandlerError> {
        // Stands for a bug: the runtime catches the panic, and writes the record to the dead letters.
        assert!(!task.panic, "the record asks for a panic");

        // Short work is finished, also while the partition is being revoked. Work that may outlast
        // `Settings::drain_timeout` would check `stop` between its steps, and return `Fate::Unfinished`.
        sleep(task.work.unwrap_or(self.work)).await;

        // While Kafka is unavailable this returns an error, and the runtime calls again until it succeeds.
        self.publish.publish(self.output_of(record, &task)).await?;
        Ok(Fate::Done)
    }
}

impl<P> Relay<P> {
    fn output_of(&self, record: &Record, task: &Task) -> Message {
        let key = record.key.as_deref().map(String::from_utf8_lossy);
        let handled = json!({
            "key": key,
            "seq": task.seq,
            "topic": &*record.topic,
            "partition": record.partition,
            "offset": record.offset,
            "by": self.name,
        });
        // With the record's key: what is in order in the input is in order in the output too.
        Message {
            key: record.key.clone(),
            ..Message::new(&*self.output, None, handled.to_string().into_bytes())
        }
    }
}

impl Args {
    fn settings(&self) -> Settings {
        Settings {
            instance_id: self.instance_id.clone(),
            group_protocol: self.group_protocol,
            in_flight: self.in_flight,
            span: self.span,
            commit_every: self.commit_every,
            session_timeout: self.session_timeout,
            drain_timeout: self.drain_timeout,
            properties: self.properties.iter().cloned().collect(),
            ..Settings::new(&*self.bootstrap_servers, &*self.group_prefix)
        }
    }
}

fn group_protocol(text: &str) -> Result<GroupProtocol, String> {
    match text {
        "classic" => Ok(GroupProtocol::Classic),
        "consumer" => Ok(GroupProtocol::Consumer),
        _ => Err("expected classic or consumer".to_owned()),
    }
}

fn property(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("expected name=value")?;
    Ok((name.to_owned(), value.to_owned()))
}

fn duration(text: &str) -> Result<Duration, String> {
    let signed: jiff::SignedDuration = text.parse().map_err(|error| format!("{error}"))?;
    signed.try_into().map_err(|error| format!("{error}"))
}
