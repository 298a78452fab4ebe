//! One topic, another one, and the relays (crates/consumer/examples/relay.rs) that carry the records over: what every test of
//! the runtime on a real broker begins with. Topics and group are its own, so that many can stand on one
//! broker side by side.

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
    verdict::{Account, Death, Handled},
    world::until,
};

/// How long the group or a relay may take to do what it has to do. A test that waits that long fails.
pub const PATIENCE: Duration = Duration::from_secs(180);
/// Records a relay may have in hand at once.
pub const IN_FLIGHT: usize = 64;
/// How far a partition may run ahead of its oldest unfinished record.
pub const SPAN: usize = 500;
/// What a relay may hold of Kafka's data, per partition, beside what it is when it has none.
const KIB_PER_PARTITION: u64 = 2_560;
/// What a relay may have that reads nothing. (It has 12 MiB.)
const IDLE_KIB: u64 = 16 << 10;
/// Keys that come again and again, per partition that has such.
const KEYS: u64 = 10;

/// An input topic, an output topic, and a group of relays between them.
pub struct Passage {
    pub broker: Broker,
    pub partitions: i32,
    /// Begins the names of the topics and of the group.
    name: String,
    settings: BTreeMap<String, String>,
    properties: BTreeMap<String, String>,
    /// Sees the output grow.
    tail: Tail,
    folder: TempDir,
}

/// A relay at work; killed when this is dropped.
pub struct Relay {
    pub name: String,
    child: Child,
    /// Where its standard output goes.
    said: PathBuf,
    memory_max_kib: u64,
}

/// Writes records until it is told to end.
pub struct Load {
    over: Arc<AtomicBool>,
    writer: JoinHandle<u64>,
}

// === impl Passage ===

impl Passage {
    /// Two new topics on the broker.
    pub fn new(broker: &Broker, what: &str, partitions: i32, protocol: GroupProtocol) -> Self {
        Self::on_topic(broker, what, partitions, protocol, &[])
    }

    /// The same with an input topic that has settings of its own.
    pub fn on_topic(
        broker: &Broker,
        what: &str,
        partitions: i32,
        protocol: GroupProtocol,
        topic: &[(&str, &str)],
    ) -> Self {
        let name = format!("{what}-{protocol:?}-{:06x}", rand::random::<u32>() >> 8).to_lowercase();
        let folder = TempDir::new().unwrap();
        let (input, output) = (format!("{name}.in"), format!("{name}.out"));
        block_on(broker.create_topic(&input, partitions, topic));
        block_on(broker.create_topic(&output, 4, &[]));
        let (tail, settings, properties) = (broker.tail(&output), BTreeMap::new(), BTreeMap::new());
        let mut passage = Self {
            broker: broker.clone(),
            partitions,
            name: name.clone(),
            settings,
            properties,
            tail,
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
            passage = passage.with(key, &value);
        }
        if protocol == GroupProtocol::Classic {
            // A member hears of a rebalance with its next heartbeat.
            passage = passage.with_property("heartbeat.interval.ms", "500");
        }
        passage
    }

    /// The same with a setting of `[kafka]`.
    pub fn with(mut self, key: &str, value: &str) -> Self {
        self.settings.insert(format!("--{}", key.replace('_', "-")), value.to_owned());
        self
    }

    /// The same with a property of librdkafka's.
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

    /// Starts a relay that works on each record for a while.
    pub fn start(&self, name: &str, work: &str) -> Relay {
        self.start_in_the_place_of("", name, work)
    }

    /// Starts a relay with a `kafka.instance_id`.
    pub fn start_in_the_place_of(&self, instance: &str, name: &str, work: &str) -> Relay {
        let file = |kind: &str| File::create(self.folder.path().join(format!("{name}.{kind}"))).unwrap();
        let mut command = Command::new(relay());
        command.args([&self.input(), &self.output()]).args(["--name", name, "--work", work]);
        command
            .env_clear()
            .args(self.settings.iter().flat_map(|(flag, value)| [flag, value]))
            .args(self.properties.iter().map(|(name, value)| format!("--property={name}={value}")))
            .arg(format!("--instance-id={instance}"));
        let child = command.stdin(Stdio::null()).stdout(file("said")).stderr(file("log")).spawn().unwrap();
        let memory_max_kib = IDLE_KIB + KIB_PER_PARTITION * u64::try_from(self.partitions).unwrap();
        Relay {
            name: name.to_owned(),
            child,
            said: self.folder.path().join(format!("{name}.said")),
            memory_max_kib,
        }
    }

    /// Waits until these relays share the partitions among them, nobody else, and evenly.
    pub fn is_shared_by(&self, relays: &mut [&mut Relay]) {
        let part = usize::try_from(self.partitions).unwrap() / relays.len();
        until(&format!("{} is shared by {}", self.name, relays.len()), PATIENCE, || {
            let owned: Vec<_> = relays.iter_mut().map(|relay| relay.owns()).collect();
            let all = i32::try_from(owned.iter().sum::<usize>()) == Ok(self.partitions);
            (all && owned.iter().all(|owned| *owned >= part)).then_some(())
        });
    }

    /// Waits until that relay has handled a record.
    pub fn is_worked_at_by(&self, relay: &Relay) {
        until(&format!("{} works", relay.name), PATIENCE, || {
            let mut news = iter::from_fn(|| self.tail.next()).take(1_000);
            news.any(|stored| Handled::of(&stored).by == relay.name).then_some(())
        });
    }

    /// Writes records from now on: half of the partitions get keys that never come again, the other half such
    /// that do.
    pub fn load(&self, per_second: u64) -> Load {
        let (over, producer, topic) = (Arc::new(AtomicBool::new(false)), self.producer(), self.input());
        let (until_over, partitions) = (Arc::clone(&over), self.partitions);
        let writer = thread::spawn(move || {
            let mut written = 0;
            while !until_over.load(Ordering::Relaxed) {
                let partition = i32::try_from(written % u64::try_from(partitions).unwrap()).unwrap();
                let turn = written / u64::try_from(partitions).unwrap() % KEYS;
                let key = if comes_once(partition) {
                    format!("once-{written}")
                } else {
                    format!("again-{partition}-{turn}")
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
            producer.flush(PATIENCE).unwrap();
            written
        });
        Load { over, writer }
    }

    /// Writes these records, each with its key and value, and returns when the broker has them.
    pub fn write<'a>(
        &self,
        partition: Option<i32>,
        records: impl IntoIterator<Item = (Option<&'a str>, Option<&'a str>)>,
    ) {
        let producer = self.producer();
        for (key, value) in records {
            send(&producer, &self.input(), partition, key, value);
        }
        producer.flush(PATIENCE).unwrap();
        assert_eq!(producer.in_flight_count(), 0);
    }

    /// Waits until the group has committed all that stands in the input, and tells what became of it.
    pub fn settled(&self) -> Account {
        self.broker.settled(&self.group(), &self.input(), PATIENCE);
        self.account()
    }

    /// What has become of the input so far.
    pub fn account(&self) -> Account {
        Account::of(&self.broker.records(&self.input()), &self.broker.records(&self.output()))
    }

    fn producer(&self) -> ThreadedProducer<DefaultProducerContext> {
        // Longer than any outage that a test makes, so that what was written once is written, and once.
        let mut config = self.broker.client();
        config.set("enable.idempotence", "true").set("message.timeout.ms", "180000");
        config.create().unwrap()
    }
}

impl Drop for Passage {
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
        let (input, output) = (self.input(), self.output());
        drop(block_on(self.broker.admin().delete_topics(&[&*input, &*output], &AdminOptions::new())));
    }
}

/// Whether the keys of the partition, as [`Passage::load`] writes them, never come again.
pub fn comes_once(partition: i32) -> bool {
    partition % 2 == 0
}

fn send(
    producer: &ThreadedProducer<DefaultProducerContext>,
    topic: &str,
    partition: Option<i32>,
    key: Option<&str>,
    value: Option<&str>,
) {
    until("the producer has a place", PATIENCE, || {
        let mut record: BaseRecord<'_, str, str> = BaseRecord::to(topic);
        (record.partition, record.key, record.payload) = (partition, key, value);
        match producer.send(record) {
            Ok(()) => Some(()),
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), _)) => None,
            Err((error, _)) => panic!("{error}"),
        }
    });
}

/// The program. `cargo test` has built it; `cargo test --test real` has not, and an old one would be tested
/// for a new one.
fn relay() -> &'static Path {
    static RELAY: OnceLock<PathBuf> = OnceLock::new();
    RELAY.get_or_init(|| {
        let mut build = Command::new(env!("CARGO"));
        build
            .args(["build", "--quiet", "--example", "relay"])
            .args((!cfg!(debug_assertions)).then_some("--release"));
        assert!(build.current_dir(env!("CARGO_MANIFEST_DIR")).status().unwrap().success(), "{build:?}");
        env::current_exe().unwrap().ancestors().nth(2).unwrap().join("examples/relay")
    })
}

// === impl Relay ===

impl Relay {
    /// How many partitions it has, as it says itself.
    pub fn owns(&mut self) -> usize {
        self.has_owned().last().copied().unwrap_or_default()
    }

    /// How many partitions it has had, whenever that changed, from the first on.
    pub fn has_owned(&mut self) -> Vec<usize> {
        assert!(self.child.try_wait().unwrap().is_none(), "{} has ended by itself", self.name);
        let said = fs::read_to_string(&self.said).unwrap();
        let owned = said.lines().map(|line| line.strip_prefix("owns ").unwrap().parse().unwrap());
        owned.skip_while(|owned| *owned == 0).collect()
    }

    /// Asks it to end, as a supervisor does, and waits for that.
    pub fn stop(mut self) {
        assert!(self.child.try_wait().unwrap().is_none(), "{} has ended by itself", self.name);
        self.was_small();
        signal("TERM", self.child.id());
        let ended: ExitStatus = until("the relay has ended", PATIENCE, || self.child.try_wait().unwrap());
        assert!(ended.success(), "{} ended with {ended}", self.name);
    }

    /// `kill -9`.
    pub fn kill(mut self, passage: &Passage) -> Death {
        assert!(self.child.try_wait().unwrap().is_none(), "{} has ended by itself", self.name);
        self.was_small();
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        Death {
            relay: self.name.clone(),
            committed: passage.broker.committed(&passage.group(), &passage.input()),
        }
    }

    /// The most that it ever had in memory must not depend on what there was to do. (Only Linux tells.)
    fn was_small(&self) {
        let Ok(status) = fs::read_to_string(format!("/proc/{}/status", self.child.id())) else { return };
        let peak =
            status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")).unwrap();
        let (peak, most): (u64, _) = (peak.parse().unwrap(), self.memory_max_kib);
        assert!(peak <= most, "{} has had {peak} KiB in memory, {most} are the most", self.name);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Sends a signal to a process of ours.
pub fn signal(which: &str, process: u32) {
    assert!(
        Command::new("kill").args([format!("-{which}"), process.to_string()]).status().unwrap().success()
    );
}

// === impl Load ===

impl Load {
    /// Ends it, and tells how many records it has written.
    pub fn end(self) -> u64 {
        self.over.store(true, Ordering::Relaxed);
        self.writer.join().unwrap()
    }
}
