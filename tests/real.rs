//! A real Apache Kafka: pushcast as people run it, with the providers' fakes, and the consumer runtime as
//! stages use it.
//!
//! The servers are those that `make services` starts. Without them these tests fail: a suite that skips
//! proves nothing.
//!
//! pushcast's topics have fixed names, so its story takes them for itself and begins by deleting them. There
//! is one story, because what it takes is time: a member's death is noticed after seconds, and a reminder's
//! minute comes when it comes.
//!
//! The runtime is tried with a small stage, crates/consumer/examples/relay.rs, that writes what it has handled to a topic.
//! Each scene has topics and a group of its own and is played beside the others, but one test's after the
//! other's: a machine whose processors are short makes sessions end, which is another test. `REAL_SEED`
//! repeats the moments of a run; what is ignored here is for `make soak`.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

#[path = "real/broker.rs"]
mod broker;
#[path = "real/churn.rs"]
mod churn;
#[path = "real/cluster.rs"]
mod cluster;
#[path = "real/crash.rs"]
mod crash;
#[path = "real/odds.rs"]
mod odds;
#[path = "real/outage.rs"]
mod outage;
#[path = "real/passage.rs"]
mod passage;
#[path = "real/store_outage.rs"]
mod store_outage;
#[path = "real/story.rs"]
mod story;
#[path = "real/together.rs"]
mod together;
#[path = "real/verdict.rs"]
mod verdict;
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

/// Held by who plays with relays.
static STAGE: Mutex<()> = Mutex::new(());

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pushcast_on_a_real_kafka() {
    let quick = [
        ("EXPO__RECEIPT_DELAY", "1s"),
        ("FCM__RATE_PER_SECOND", "0"),
        ("FCM__RAMP_UP", "0s"),
        ("MEDICATION__TICK_EVERY", "2s"),
    ];
    let world = World::empty(&[&quick[..], &crash::SETTINGS].concat()).await;

    let phones = story::begins(&world);
    let running = world.start();
    story::goes_on(&world, &phones, || crash::more_register(&world, &phones));
    let running = crash::repeats_little(&world, &phones, running);
    assert!(running.stop().success(), "a stop in good order");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_processes_behave_as_one() {
    together::behave_as_one().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_of_the_store_is_waited_for() {
    store_outage::outages_are_waited_for().await;
}

#[test]
fn relays_on_a_real_kafka() {
    let _stage = stage();
    let broker = Broker::of_services();
    side_by_side([
        ("relays come and go, classic", &|| churn::without_a_crash(&broker, Classic)),
        ("relays come and go, KIP-848", &|| churn::without_a_crash(&broker, Consumer)),
        ("a name that stays, classic", &|| churn::under_a_name_that_stays(&broker, Classic)),
        ("a name that stays, KIP-848", &|| churn::under_a_name_that_stays(&broker, Consumer)),
        ("relays are killed, classic", &|| churn::with_crashes(&broker, Classic, 3)),
        ("relays are killed, KIP-848", &|| churn::with_crashes(&broker, Consumer, 3)),
    ]);
}

#[test]
#[ignore = "takes as long as one likes: make soak ROUNDS=30"]
fn relays_are_killed_for_a_long_time() {
    let (broker, rounds) =
        (Broker::of_services(), env::var("ROUNDS").map_or(30, |rounds| rounds.parse().unwrap()));
    side_by_side([
        ("relays are killed, classic", &|| churn::with_crashes(&broker, Classic, rounds)),
        ("relays are killed, KIP-848", &|| churn::with_crashes(&broker, Consumer, rounds)),
    ]);
}

#[test]
fn odd_things_happen_to_relays_on_a_real_kafka() {
    let _stage = stage();
    let broker = Broker::of_services();
    side_by_side([
        ("poison", &odds::poison),
        ("a slow handler, classic", &|| odds::a_slow_handler(&broker, Classic)),
        ("a slow handler, KIP-848", &|| odds::a_slow_handler(&broker, Consumer)),
        ("more partitions, classic", &|| odds::more_partitions(&broker, Classic)),
        ("more partitions, KIP-848", &|| odds::more_partitions(&broker, Consumer)),
        ("offsets out of range", &|| odds::offsets_out_of_range(&broker, Consumer)),
        ("compaction", &|| odds::compaction(&broker, Classic)),
        ("transactions", &|| odds::transactions(&broker, Classic)),
        ("console producer", &|| odds::console_producer(&broker, Consumer)),
        ("a backlog", &|| odds::a_backlog(&broker, Classic)),
    ]);
}

#[test]
fn kafka_is_stopped_and_comes_back() {
    let _stage = stage();
    outage::of_the_only_broker(
        |cluster| cluster.stop(0),
        Duration::from_secs(10),
        |cluster| cluster.start_again(0),
    );
}

/// It comes back later than one that was stopped: it reads its log, and waits until it has been missed.
#[test]
#[ignore = "like a stop, mostly: make soak"]
fn kafka_is_killed_and_comes_back() {
    outage::of_the_only_broker(
        |cluster| cluster.kill(0),
        Duration::from_secs(3),
        |cluster| cluster.start_again(0),
    );
}

#[test]
#[ignore = "like a stop, mostly: make soak"]
fn kafka_freezes_and_goes_on() {
    outage::of_the_only_broker(
        |cluster| cluster.freeze(0),
        Duration::from_secs(12),
        |cluster| cluster.thaw(0),
    );
}

#[test]
#[ignore = "three brokers are much for a small machine: make soak"]
fn leaders_move() {
    outage::of_one_of_three(6);
}

#[test]
#[ignore = "needs kcat"]
fn what_kcat_writes_is_relayed() {
    odds::kcat(&Broker::of_services(), Classic);
}

/// Waits until nobody else is on the stage.
fn stage() -> MutexGuard<'static, ()> {
    STAGE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Plays scenes at the same time: most of what they do is waiting.
fn side_by_side<const N: usize>(scenes: [(&'static str, &(dyn Fn() + Sync)); N]) {
    let failed: Vec<_> = thread::scope(|scope| {
        let play = |(name, scene): (&'static str, _)| {
            (name, thread::Builder::new().name(name.into()).spawn_scoped(scope, scene).unwrap())
        };
        let playing = scenes.map(play);
        playing.into_iter().filter_map(|(name, scene)| scene.join().is_err().then_some(name)).collect()
    });
    assert!(failed.is_empty(), "{failed:?}");
}
