//! The CQL server goes away under a running pushcast: ended and started again, or frozen so that requests
//! time out. What was begun waits; nothing is lost, nothing rings twice, and the log says so in a few lines.

use std::{
    collections::BTreeSet,
    fs,
    ops::Range,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

use serde_json::json;

use crate::world::{World, until};

/// What is registered before the first outage, and what registers around each: a half just before it, a half
/// in it.
const AT_FIRST: u64 = 1_000;
const MORE: u64 = 1_000;
/// Messages per second: a broadcast lasts some seconds.
const RATE: &str = "400";
/// A frozen server stays so for longer than any request but a scan waits.
const FROZEN: Duration = Duration::from_secs(12);
/// An outage makes so many lines at most, however much waits for its end: some for each stage that meets it
/// and each page that is open, again every half minute.
const LINES_MAX: usize = 60;
/// The longest pause between two tries is half a minute; and a server may be slow to start beside other
/// tests.
const SOON: Duration = Duration::from_secs(120);

/// A Cassandra of its own, so that no other test meets its outages. It ends when this is dropped.
struct Cassandra {
    state: PathBuf,
}

/// The story, from one outage to the next.
pub async fn outages_are_waited_for() {
    let cassandra = Cassandra::start();
    let store = format!("scylla://{}/push", cassandra.address());
    let settings = [
        ("STORE__URL", store.as_str()),
        ("EXPO__RATE_PER_SECOND", RATE),
        ("EXPO__RECEIPT_DELAY", "1s"),
        ("KAFKA__COMMIT_EVERY", "100ms"),
        // Kafka is not to lose patience while two servers and this share a machine.
        ("KAFKA__SESSION_TIMEOUT", "30s"),
        ("MEDICATION__TICK_EVERY", "2s"),
        ("PUSH__OPEN_PAGES", "4"),
        ("PUSH__PAGE_SIZE", "20"),
    ];
    let world = World::empty(&settings).await;
    let ended = world.pushcast(&["init"]);
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    let running = world.start();

    register(&world, 0..AT_FIRST);
    world.broker.settled(&world.group("tokens"), "device-tokens", SOON);
    everything_waits(&world, "ended", AT_FIRST, |meanwhile| cassandra.ends_and_comes_back(meanwhile));
    everything_waits(&world, "frozen", AT_FIRST + MORE, |meanwhile| cassandra.freezes(meanwhile));
    everybody_is_rung_once(&world, AT_FIRST + 2 * MORE);
    // Which a stage tells once in a while, not at each outage.
    for stage in ["tokens", "delivery.expo.bulk"] {
        assert!(
            world.said().iter().any(|line| line.contains(&format!("Stage {stage} waits"))),
            "{stage} has not waited"
        );
    }
    assert!(running.stop().success(), "a stop in good order");
}

fn register(world: &World, numbers: Range<u64>) {
    let line = |n| json!({"token": token(n), "userId": format!("u{n}")}).to_string();
    world.produce("device-tokens", &numbers.map(line).collect::<Vec<_>>());
}

/// A broadcast to those who are registered, and more who register, when the server goes away.
fn everything_waits(world: &World, id: &str, registered: u64, outage: impl FnOnce(&dyn Fn())) {
    world.sandbox.reset();
    announce(world, id);
    until("the broadcast is under way", SOON, || {
        (world.sandbox.statistics().expo.taken > registered / 10).then_some(())
    });
    register(world, registered..registered + MORE / 2);
    let said_before = world.said().len();
    outage(&|| register(world, registered + MORE / 2..registered + MORE));
    let taken = world.sandbox.statistics().expo.taken;
    let mut said = world.said().split_off(said_before);
    said.retain(|line| line.contains("the store is unavailable"));
    println!("{} lines of the outage:\n{}", said.len(), said.join("\n"));
    assert!(taken < registered, "the outage came too late for the broadcast");
    assert!(said.len() <= LINES_MAX, "{} lines", said.len());
    assert!(!said.is_empty(), "nobody speaks of it");

    let total = total_of(world, id);
    world.broker.settled(&world.group("tokens"), "device-tokens", SOON);
    let seen = world.sandbox.statistics().expo;
    println!("{id}: {taken} of {registered} were rung when the server was back");
    // Who registers during a broadcast may hear of it or not.
    assert_eq!((seen.taken, seen.doubles), (total, 0), "nobody twice");
    let rung: BTreeSet<String> = world.sandbox.messages().into_iter().map(|message| message.token).collect();
    assert!((0..registered).all(|n| rung.contains(&token(n))), "nobody missed");
}

/// Nobody who registered during an outage is lost.
fn everybody_is_rung_once(world: &World, registered: u64) {
    world.sandbox.reset();
    announce(world, "after");
    assert_eq!(total_of(world, "after"), registered);
    let seen = world.sandbox.statistics().expo;
    assert_eq!((seen.distinct_tokens, seen.doubles), (registered, 0));
}

fn announce(world: &World, id: &str) {
    world.produce("posts-created", &[json!({"postId": id, "authorName": "Ann", "title": id}).to_string()]);
}

/// How many messages the broadcast was, once it is told.
fn total_of(world: &World, id: &str) -> u64 {
    let told = until(&format!("the total of {id}"), SOON, || {
        world
            .broker
            .values("push-outcomes")
            .into_iter()
            .find(|outcome| outcome["notificationId"] == format!("post:{id}"))
    });
    assert!(told["dead"] == 0 && told["failed"] == 0 && told["expired"] == 0, "{told}");
    told["sent"].as_u64().unwrap()
}

fn token(n: u64) -> String {
    format!("ExponentPushToken[alive-{n}]")
}

// === impl Cassandra ===

impl Cassandra {
    /// Starts it empty, whatever a run that was broken off has left.
    fn start() -> Self {
        let cassandra = Self { state: Path::new(env!("CARGO_MANIFEST_DIR")).join(".services/store-outage") };
        cassandra.services("down", "cassandra");
        cassandra.services("up", "cassandra");
        cassandra
    }

    fn address(&self) -> String {
        self.told("cassandra.address")
    }

    fn ends_and_comes_back(&self, meanwhile: &dyn Fn()) {
        self.services("halt", "cassandra");
        meanwhile();
        self.services("resume", "cassandra");
    }

    fn freezes(&self, meanwhile: &dyn Fn()) {
        self.signal("STOP");
        meanwhile();
        thread::sleep(FROZEN);
        self.signal("CONT");
    }

    fn signal(&self, signal: &str) {
        let sent =
            Command::new("kill").args([&format!("-{signal}"), &self.told("cassandra.pid")]).status().unwrap();
        assert!(sent.success());
    }

    fn told(&self, file: &str) -> String {
        fs::read_to_string(self.state.join(file)).unwrap().trim().to_owned()
    }

    fn services(&self, what: &str, name: &str) {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/services");
        let done =
            Command::new(script).args([what, name]).env("SERVICES_STATE", &self.state).status().unwrap();
        assert!(done.success() || thread::panicking(), "scripts/services {what} {name}");
    }
}

impl Drop for Cassandra {
    fn drop(&mut self) {
        self.services("down", "cassandra");
    }
}
