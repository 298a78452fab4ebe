//! Tests on a real Apache Kafka: of pushcast as operators run it, with fake providers, and of the consumer
//! runtime as stages use it.
//!
//! The servers are those that `make services` starts. Without them these tests fail: a suite that skips
//! proves nothing.
//!
//! pushcast's topics have fixed names, so a test of pushcast locks them and begins by deleting them. Much is
//! tested in one run of it, because each run takes long: a dead member is noticed after seconds, and a
//! reminder's minute has to be waited for.
//!
//! The runtime is tested with a small stage, `examples/relay.rs` of `crates/consumer`, that writes what it
//! has handled to a topic. Each scenario has topics and a group of its own. The scenarios of a test run at
//! the same time, but the tests one after the other: on an overloaded machine sessions time out, which is
//! another test. `REAL_SEED` repeats the timing of a run; the ignored tests are for `make soak`.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

#[path = "real/broker.rs"]
mod broker;
#[path = "real/broker_outage.rs"]
mod broker_outage;
#[path = "real/cluster.rs"]
mod cluster;
#[path = "real/crash.rs"]
mod crash;
#[path = "real/first_start.rs"]
mod first_start;
#[path = "real/history.rs"]
mod history;
#[path = "real/kafka_edge_cases.rs"]
mod kafka_edge_cases;
#[path = "real/rebalances.rs"]
mod rebalances;
#[path = "real/relay.rs"]
mod relay;
#[path = "real/store_outage.rs"]
mod store_outage;
#[path = "real/three_processes.rs"]
mod three_processes;
#[path = "real/world.rs"]
mod world;

use std::{
    env,
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use broker::Broker;
use consumer::GroupProtocol::{Classic, Consumer};
use world::World;

/// Held by a test while its relays run.
static RELAYS: Mutex<()> = Mutex::new(());

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pushcast_on_a_real_kafka() {
    let quick = [
        ("EXPO__RECEIPT_DELAY", "1s"),
        ("FCM__RATE_PER_SECOND", "0"),
        ("FCM__RAMP_UP", "0s"),
        ("MEDICATION__TICK_EVERY", "2s"),
    ];
    let world = World::empty(&[&quick[..], &crash::SETTINGS].concat()).await;

    let phones = first_start::before(&world);
    let running = world.start();
    first_start::after(&world, &phones, || crash::register_more(&world, &phones));
    let running = crash::kills_repeat_little(&world, &phones, running);
    assert!(running.stop().success(), "a graceful stop");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_processes_share_the_work() {
    three_processes::share_the_work().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_of_the_store_is_waited_for() {
    store_outage::outages_are_waited_for().await;
}

#[test]
fn relays_on_a_real_kafka() {
    let _relays = lock_relays();
    let broker = Broker::of_services();
    at_the_same_time([
        ("relays join and stop, classic", &|| rebalances::joins_and_stops(&broker, Classic)),
        ("relays join and stop, KIP-848", &|| rebalances::joins_and_stops(&broker, Consumer)),
        ("static members, classic", &|| rebalances::static_members(&broker, Classic)),
        ("static members, KIP-848", &|| rebalances::static_members(&broker, Consumer)),
        ("relays are killed, classic", &|| rebalances::kills(&broker, Classic, 3)),
        ("relays are killed, KIP-848", &|| rebalances::kills(&broker, Consumer, 3)),
    ]);
}

#[test]
#[ignore = "takes minutes: make soak ROUNDS=30"]
fn relays_are_killed_for_a_long_time() {
    let broker = Broker::of_services();
    let rounds = env::var("ROUNDS").map_or(30, |rounds| rounds.parse().unwrap());
    at_the_same_time([
        ("relays are killed, classic", &|| rebalances::kills(&broker, Classic, rounds)),
        ("relays are killed, KIP-848", &|| rebalances::kills(&broker, Consumer, rounds)),
    ]);
}

#[test]
fn edge_cases_of_kafka_are_handled() {
    let _relays = lock_relays();
    let broker = Broker::of_services();
    at_the_same_time([
        ("poison pills", &kafka_edge_cases::poison_pills),
        ("a slow handler, classic", &|| kafka_edge_cases::a_slow_handler(&broker, Classic)),
        ("a slow handler, KIP-848", &|| kafka_edge_cases::a_slow_handler(&broker, Consumer)),
        ("more partitions, classic", &|| kafka_edge_cases::more_partitions(&broker, Classic)),
        ("more partitions, KIP-848", &|| kafka_edge_cases::more_partitions(&broker, Consumer)),
        ("offsets out of range", &|| kafka_edge_cases::offsets_out_of_range(&broker, Consumer)),
        ("compaction", &|| kafka_edge_cases::compaction(&broker, Classic)),
        ("transactions", &|| kafka_edge_cases::transactions(&broker, Classic)),
        ("console producer", &|| kafka_edge_cases::console_producer(&broker, Consumer)),
        ("a backlog", &|| kafka_edge_cases::a_backlog(&broker, Classic)),
    ]);
}

#[test]
fn a_stopped_kafka_is_waited_for() {
    let _relays = lock_relays();
    broker_outage::of_the_only_broker(
        |cluster| cluster.stop(0),
        Duration::from_secs(10),
        |cluster| cluster.start_again(0),
    );
}

/// It is back later than one that was stopped: it recovers its log, and waits until its old session has
/// ended.
#[test]
#[ignore = "like a stop, mostly: make soak"]
fn a_killed_kafka_is_waited_for() {
    broker_outage::of_the_only_broker(
        |cluster| cluster.kill(0),
        Duration::from_secs(3),
        |cluster| cluster.start_again(0),
    );
}

#[test]
#[ignore = "like a stop, mostly: make soak"]
fn a_frozen_kafka_is_waited_for() {
    broker_outage::of_the_only_broker(
        |cluster| cluster.freeze(0),
        Duration::from_secs(12),
        |cluster| cluster.thaw(0),
    );
}

#[test]
#[ignore = "three brokers need a larger machine: make soak"]
fn leaders_of_partitions_move() {
    broker_outage::of_one_of_three(6);
}

#[test]
#[ignore = "needs kcat"]
fn what_kcat_writes_is_relayed() {
    kafka_edge_cases::kcat(&Broker::of_services(), Classic);
}

/// Waits until no other test's relays run.
fn lock_relays() -> MutexGuard<'static, ()> {
    RELAYS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs scenarios at the same time: most of what they do is waiting.
fn at_the_same_time<const N: usize>(scenarios: [(&'static str, &(dyn Fn() + Sync)); N]) {
    let failed: Vec<_> = thread::scope(|scope| {
        let start = |(name, scenario): (&'static str, _)| {
            (name, thread::Builder::new().name(name.into()).spawn_scoped(scope, scenario).unwrap())
        };
        let running = scenarios.map(start);
        running.into_iter().filter_map(|(name, thread)| thread.join().is_err().then_some(name)).collect()
    });
    assert!(failed.is_empty(), "{failed:?}");
}
