//! What every test of the runtime on a real broker begins with: an input topic, an output topic, and relays,
//! processes of `crates/consumer/examples/relay.rs`, that handle the records of the one and write to the
//! other. Each test has topics and a group of its own, so that many can run on one broker at the same time.

use std::{
    collections::BTreeMap,
    env,
    fs::{self, File},
    iter,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use consumer::GroupProtocol;
use futures::executor::block_on;
use rdkafka::{
    admin::AdminOptions,
    error::{KafkaError, RDKafkaErrorCode},
    producer::{BaseRecord, DefaultProducerContext, Producer as _, ThreadedProducer},
};
use serde_json::json;
use tempfile::TempDir;

use crate::{
    broker::{Broker, Tail},
    history::{Handled, History, Kill},
    world::until,
};

/// How long the group or a relay may take. A test that waits that long fails.
pub const WAIT_MAX: Duration = Duration::from_secs(180);
/// Records that a relay may have in flight.
pub const IN_FLIGHT: usize = 64;
/// How far a partition may run ahead of its oldest unfinished record.
pub const SPAN: usize = 500;
/// Memory that a relay may use for records, per partition.
const KIB_PER_PARTITION: u64 = 2_560;
/// Memory that a relay may use without records. (It uses 12 MiB.)
const IDLE_KIB: u64 = 16 << 10;
/// Distinct keys of a partition whose keys repeat.
const KEYS: u64 = 10;

/// An input topic, an output topic, and a group of relays between them.
pub struct Pipeline {
    pub broker: Broker,
    pub partitions: i32,
    /// The prefix of the names of the topics and of the group.
    name: String,
    settings: BTreeMap<String, String>,
    properties: BTreeMap<String, String>,
    /// Reads the output as it grows.
    tail: Tail,
    folder: TempDir,
}

/// A running relay; killed when this is dropped.
pub struct Relay {
    pub name: String,
    child: Child,
    /// Where its standard output goes.
    stdout: PathBuf,
    memory_max_kib: u64,
}

/// Writes records until [`Load::end`].
pub struct Load {
    stop: Arc<AtomicBool>,
    writer: JoinHandle<u64>,
}

// === impl Pipeline ===

impl Pipeline {
    /// Two new topics on the broker.
    pub fn new(broker: &Broker, what: &str, partitions: i32, protocol: GroupProtocol) -> Self {
        Self::on_topic(broker, what, partitions, protocol, &[])
    }

    /// The same with settings of the input topic.
    pub fn on_topic(
        broker: &Broker,
        what: &str,
        partitions: i32,
        protocol: GroupProtocol,
        topic: &[(&str, &str)],
    ) -> Self {
        let name = format!("{what}-{protocol:?}-{:06x}", rand::random::<u32>() >> 8).to_lowercase();
        let folder = TempDir::new().unwrap();
        let input = format!("{name}.in");
        let output = format!("{name}.out");
        block_on(broker.create_topic(&input, partitions, topic));
        block_on(broker.create_topic(&output, 4, &[]));
        let mut pipeline = Self {
            broker: broker.clone(),
            partitions,
            name: name.clone(),
            settings: BTreeMap::new(),
            properties: BTreeMap::new(),
            tail: broker.tail(&output),
            folder,
        };
        for (key, value) in [
            ("bootstrap_servers", broker.address.clone()),
            ("group_prefix", name),
            ("group_protocol", format!("{protocol:?}").to_lowercase()),
            ("in_flight", IN_FLIGHT.to_string()),
            ("span", SPAN.to_string()),
            ("commit_every", "200ms".to_owned()),
        ] {
            pipeline = pipeline.with(key, &value);
        }
        if protocol == GroupProtocol::Classic {
            // A member learns of a rebalance with its next heartbeat.
            pipeline = pipeline.with_property("heartbeat.interval.ms", "500");
        }
        pipeline
    }

    /// Sets a flag of the relays: `session_timeout` is `--session-timeout`.
    pub fn with(mut self, key: &str, value: &str) -> Self {
        self.settings.insert(format!("--{}", key.replace('_', "-")), value.to_owned());
        self
    }

    /// Sets a property of the relays' librdkafka.
    pub fn with_property(mut self, name: &str, value: &str) -> Self {
        self.properties.insert(name.to_owned(), value.to_owned());
        self
    }

    pub fn input(&self) -> String {
        format!("{}.in", self.name)
    }

    pub fn output(&self) -> String {
        format!("{}.out", self.name)
    }

    pub fn group(&self) -> String {
        format!("{}.relay", self.name)
    }

    /// Starts a relay that takes `work`, as `20ms`, for each record that asks for nothing else.
    pub fn start(&self, name: &str, work: &str) -> Relay {
        self.start_with_instance_id("", name, work)
    }

    /// The same as a static member; an empty `instance` is a dynamic one.
    pub fn start_with_instance_id(&self, instance: &str, name: &str, work: &str) -> Relay {
        let file = |kind: &str| File::create(self.folder.path().join(format!("{name}.{kind}"))).unwrap();
        let mut command = Command::new(relay());
        command.args([&self.input(), &self.output()]).args(["--name", name, "--work", work]);
        command
            .env_clear()
            .args(self.settings.iter().flat_map(|(flag, value)| [flag, value]))
            .args(self.properties.iter().map(|(name, value)| format!("--property={name}={value}")))
            .arg(format!("--instance-id={instance}"));
        let child = command.stdin(Stdio::null()).stdout(file("stdout")).stderr(file("log")).spawn().unwrap();
        let memory_max_kib = IDLE_KIB + KIB_PER_PARTITION * u64::try_from(self.partitions).unwrap();
        Relay {
            name: name.to_owned(),
            child,
            stdout: self.folder.path().join(format!("{name}.stdout")),
            memory_max_kib,
        }
    }

    /// Waits until these relays have all partitions among them, evenly.
    pub fn wait_until_shared_by(&self, relays: &mut [&mut Relay]) {
        let share = usize::try_from(self.partitions).unwrap() / relays.len();
        until(&format!("{} is shared by {}", self.name, relays.len()), WAIT_MAX, || {
            let counts: Vec<_> = relays.iter_mut().map(|relay| relay.partition_count()).collect();
            let all = i32::try_from(counts.iter().sum::<usize>()) == Ok(self.partitions);
            (all && counts.iter().all(|count| *count >= share)).then_some(())
        });
    }

    /// Waits until that relay has handled a record.
    pub fn wait_until_handled_by(&self, relay: &Relay) {
        until(&format!("{} has handled a record", relay.name), WAIT_MAX, || {
            let mut written = iter::from_fn(|| self.tail.next()).take(1_000);
            written.any(|stored| Handled::of(&stored).by == relay.name).then_some(())
        });
    }

    /// Writes records from now on: to half of the partitions with unique keys, to the other half with keys
    /// that repeat.
    pub fn load(&self, per_second: u64) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let producer = self.producer();
        let topic = self.input();
        let partitions = self.partitions;
        let writer = thread::spawn(move || {
            let mut written = 0;
            while !stopped.load(Ordering::Relaxed) {
                let partition = i32::try_from(written % u64::try_from(partitions).unwrap()).unwrap();
                let turn = written / u64::try_from(partitions).unwrap() % KEYS;
                let key = if has_unique_keys(partition) {
                    format!("unique-{written}")
                } else {
                    format!("repeated-{partition}-{turn}")
                };
                send(
                    &producer,
                    &topic,
                    Some(partition),
                    Some(&key),
                    Some(&json!({"seq": written}).to_string()),
                );
                written += 1;
                thread::sleep(Duration::from_secs(1) / u32::try_from(per_second).unwrap());
            }
            producer.flush(WAIT_MAX).unwrap();
            written
        });
        Load { stop, writer }
    }

    /// Writes records, each a key and a value, and returns when the broker has acknowledged them.
    pub fn write<'a>(
        &self,
        partition: Option<i32>,
        records: impl IntoIterator<Item = (Option<&'a str>, Option<&'a str>)>,
    ) {
        let producer = self.producer();
        for (key, value) in records {
            send(&producer, &self.input(), partition, key, value);
        }
        producer.flush(WAIT_MAX).unwrap();
        assert_eq!(producer.in_flight_count(), 0);
    }

    /// Waits until the group has committed all records of the input; returns how they were handled.
    pub fn wait_until_settled(&self) -> History {
        self.broker.wait_until_settled(&self.group(), &self.input(), WAIT_MAX);
        self.history()
    }

    /// How the records of the input were handled so far.
    pub fn history(&self) -> History {
        History::of(&self.broker.records(&self.input()), &self.broker.records(&self.output()))
    }

    fn producer(&self) -> ThreadedProducer<DefaultProducerContext> {
        // Longer than any outage of a test, so that each record is written, and once.
        let mut config = self.broker.client();
        config.set("enable.idempotence", "true").set("message.timeout.ms", "180000");
        config.create().unwrap()
    }
}

impl Drop for Pipeline {
    fn drop(&mut self) {
        if thread::panicking() {
            for log in fs::read_dir(self.folder.path()).unwrap().map(|entry| entry.unwrap().path()) {
                let text = fs::read_to_string(&log).unwrap_or_default();
                let lines: Vec<_> = text.lines().collect();
                eprintln!(
                    "--- {} {}\n{}",
                    self.name,
                    log.display(),
                    lines[lines.len().saturating_sub(40)..].join("\n")
                );
            }
            return;
        }
        let input = self.input();
        let output = self.output();
        drop(block_on(self.broker.admin().delete_topics(&[&*input, &*output], &AdminOptions::new())));
    }
}

/// Whether the keys of the partition are unique, as [`Pipeline::load`] writes them.
pub fn has_unique_keys(partition: i32) -> bool {
    partition % 2 == 0
}

fn send(
    producer: &ThreadedProducer<DefaultProducerContext>,
    topic: &str,
    partition: Option<i32>,
    key: Option<&str>,
    value: Option<&str>,
) {
    until("the producer's queue has room", WAIT_MAX, || {
        let mut record: BaseRecord<'_, str, str> = BaseRecord::to(topic);
        (record.partition, record.key, record.payload) = (partition, key, value);
        match producer.send(record) {
            Ok(()) => Some(()),
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), _)) => None,
            Err((error, _)) => panic!("{error}"),
        }
    });
}

/// The program. `cargo test --workspace` has built it; `cargo test --test real` has not, and must not test an
/// old one. With the whole workspace its dependencies have the features that they were built with already.
fn relay() -> &'static Path {
    static RELAY: OnceLock<PathBuf> = OnceLock::new();
    RELAY.get_or_init(|| {
        let mut build = Command::new(env!("CARGO"));
        build
            .args(["build", "--quiet", "--workspace", "--example", "relay"])
            .args((!cfg!(debug_assertions)).then_some("--release"));
        assert!(build.current_dir(env!("CARGO_MANIFEST_DIR")).status().unwrap().success(), "{build:?}");
        env::current_exe().unwrap().ancestors().nth(2).unwrap().join("examples/relay")
    })
}

// === impl Relay ===

impl Relay {
    /// How many partitions are assigned to it, as it prints itself.
    pub fn partition_count(&mut self) -> usize {
        self.partition_counts().last().copied().unwrap_or_default()
    }

    /// The number of its partitions after each change, from the first assignment on.
    pub fn partition_counts(&mut self) -> Vec<usize> {
        assert!(self.child.try_wait().unwrap().is_none(), "{} has ended unasked", self.name);
        let stdout = fs::read_to_string(&self.stdout).unwrap();
        let counts = stdout.lines().map(|line| line.strip_prefix("owns ").unwrap().parse().unwrap());
        counts.skip_while(|count| *count == 0).collect()
    }

    /// SIGTERM, and waits for its graceful end.
    pub fn stop(mut self) {
        assert!(self.child.try_wait().unwrap().is_none(), "{} has ended unasked", self.name);
        self.assert_memory_is_bounded();
        signal("TERM", self.child.id());
        let ended: ExitStatus = until("the relay has ended", WAIT_MAX, || self.child.try_wait().unwrap());
        assert!(ended.success(), "{} ended with {ended}", self.name);
    }

    /// SIGKILL.
    pub fn kill(mut self, pipeline: &Pipeline) -> Kill {
        assert!(self.child.try_wait().unwrap().is_none(), "{} has ended unasked", self.name);
        self.assert_memory_is_bounded();
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        Kill {
            relay: self.name.clone(),
            committed: pipeline.broker.committed(&pipeline.group(), &pipeline.input()),
        }
    }

    /// Its peak memory must not depend on the number of records. (Known on Linux only.)
    fn assert_memory_is_bounded(&self) {
        let Ok(status) = fs::read_to_string(format!("/proc/{}/status", self.child.id())) else { return };
        let peak =
            status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")).unwrap();
        let peak: u64 = peak.parse().unwrap();
        let max = self.memory_max_kib;
        assert!(peak <= max, "{} has used {peak} KiB of memory, {max} are the limit", self.name);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Sends a signal to a child process.
pub fn signal(which: &str, process: u32) {
    assert!(
        Command::new("kill").args([format!("-{which}"), process.to_string()]).status().unwrap().success()
    );
}

// === impl Load ===

impl Load {
    /// Ends it; returns how many records it has written.
    pub fn end(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.writer.join().unwrap()
    }
}
