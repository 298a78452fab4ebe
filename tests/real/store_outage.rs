//! The CQL server becomes unavailable under a running pushcast: ended and started again, or frozen so that
//! requests time out. Work waits; no message is lost, none is sent twice, and the log has a few lines about
//! it.

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

/// The tokens registered before the first outage, and those registered around each: a half just before it, a
/// half during it.
const AT_FIRST: u64 = 1_000;
const MORE: u64 = 1_000;
/// Messages per second: a broadcast lasts some seconds.
const RATE: &str = "400";
/// How long the server is frozen: longer than any request but a scan waits.
const FROZEN: Duration = Duration::from_secs(12);
/// The most log lines of an outage, however much work waits for its end: some for each stage that meets it
/// and each page that is open, again every half minute.
const LINES_MAX: usize = 60;
/// The longest pause between two attempts is half a minute; and a server may be slow to start beside other
/// tests.
const WAIT_MAX: Duration = Duration::from_secs(120);

/// A Cassandra for this test alone, so that no other one meets its outages. It ends when this is dropped.
struct Cassandra {
    state: PathBuf,
}

pub async fn outages_are_waited_for() {
    let cassandra = Cassandra::start();
    let store = format!("scylla://{}/push", cassandra.address());
    let settings = [
        ("STORE__URL", store.as_str()),
        ("EXPO__RATE_PER_SECOND", RATE),
        ("EXPO__RECEIPT_DELAY", "1s"),
        ("KAFKA__COMMIT_EVERY", "100ms"),
        // Sessions must not end while two servers and this test share a machine.
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
    world.broker.wait_until_settled(&world.group("tokens"), "device-tokens", WAIT_MAX);
    outage_is_waited_for(&world, "ended", AT_FIRST, |meanwhile| cassandra.restart(meanwhile));
    outage_is_waited_for(&world, "frozen", AT_FIRST + MORE, |meanwhile| cassandra.freeze(meanwhile));
    each_token_is_sent_to_once(&world, AT_FIRST + 2 * MORE);
    // A stage logs this once in a while, not at each outage.
    for stage in ["tokens", "delivery.expo.bulk"] {
        assert!(
            world.log().iter().any(|line| line.contains(&format!("Stage {stage} retries"))),
            "stage {stage} has not logged that it retries"
        );
    }
    assert!(running.stop().success(), "a graceful stop");
}

fn register(world: &World, numbers: Range<u64>) {
    let line = |n| json!({"token": token(n), "userId": format!("u{n}")}).to_string();
    world.produce("device-tokens", &numbers.map(line).collect::<Vec<_>>());
}

/// An outage during a broadcast to the registered tokens, while more are registered.
fn outage_is_waited_for(world: &World, id: &str, registered: u64, outage: impl FnOnce(&dyn Fn())) {
    world.sandbox.reset();
    publish_post(world, id);
    until("the broadcast is under way", WAIT_MAX, || {
        (world.sandbox.statistics().expo.taken > registered / 10).then_some(())
    });
    register(world, registered..registered + MORE / 2);
    let lines_before = world.log().len();
    outage(&|| register(world, registered + MORE / 2..registered + MORE));
    let taken = world.sandbox.statistics().expo.taken;
    let mut lines = world.log().split_off(lines_before);
    lines.retain(|line| line.contains("the store is unavailable"));
    println!("{} lines of the outage:\n{}", lines.len(), lines.join("\n"));
    assert!(taken < registered, "the outage came too late for the broadcast");
    assert!(lines.len() <= LINES_MAX, "{} lines", lines.len());
    assert!(!lines.is_empty(), "the outage is not logged");

    let total = total_of(world, id);
    world.broker.wait_until_settled(&world.group("tokens"), "device-tokens", WAIT_MAX);
    let seen = world.sandbox.statistics().expo;
    println!("{id}: {taken} of {registered} were sent when the server was back");
    // A token that is registered during a broadcast may be sent to or not.
    assert_eq!((seen.taken, seen.duplicates), (total, 0), "no message twice");
    let sent_to: BTreeSet<String> =
        world.sandbox.messages().into_iter().map(|message| message.token).collect();
    assert!((0..registered).all(|n| sent_to.contains(&token(n))), "no token missed");
}

/// No registration during an outage is lost.
fn each_token_is_sent_to_once(world: &World, registered: u64) {
    world.sandbox.reset();
    publish_post(world, "after");
    assert_eq!(total_of(world, "after"), registered);
    let seen = world.sandbox.statistics().expo;
    assert_eq!((seen.distinct_tokens, seen.duplicates), (registered, 0));
}

fn publish_post(world: &World, id: &str) {
    world.produce("posts-created", &[json!({"postId": id, "authorName": "Ann", "title": id}).to_string()]);
}

/// How many messages the broadcast has sent, once its outcome is published.
fn total_of(world: &World, id: &str) -> u64 {
    let outcome = until(&format!("the total of {id}"), WAIT_MAX, || {
        world
            .broker
            .values("push-outcomes")
            .into_iter()
            .find(|outcome| outcome["notificationId"] == format!("post:{id}"))
    });
    assert!(outcome["dead"] == 0 && outcome["failed"] == 0 && outcome["expired"] == 0, "{outcome}");
    outcome["sent"].as_u64().unwrap()
}

fn token(n: u64) -> String {
    format!("ExponentPushToken[alive-{n}]")
}

// === impl Cassandra ===

impl Cassandra {
    /// Starts it empty, also after a test run that was aborted.
    fn start() -> Self {
        let cassandra = Self { state: Path::new(env!("CARGO_MANIFEST_DIR")).join(".services/store-outage") };
        cassandra.services("down", "cassandra");
        cassandra.services("up", "cassandra");
        cassandra
    }

    fn address(&self) -> String {
        self.read("cassandra.address")
    }

    fn restart(&self, meanwhile: &dyn Fn()) {
        self.services("halt", "cassandra");
        meanwhile();
        self.services("resume", "cassandra");
    }

    fn freeze(&self, meanwhile: &dyn Fn()) {
        self.signal("STOP");
        meanwhile();
        thread::sleep(FROZEN);
        self.signal("CONT");
    }

    fn signal(&self, signal: &str) {
        let sent =
            Command::new("kill").args([&format!("-{signal}"), &self.read("cassandra.pid")]).status().unwrap();
        assert!(sent.success());
    }

    fn read(&self, file: &str) -> String {
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
