//! pushcast as people run it, the binary, on a real Apache Kafka; the providers are the sandbox's fakes.
//!
//! The servers are those that `make services` starts. Without them these tests fail: a suite that skips proves nothing.
//! Topics have fixed names, so a test takes the broker for itself and begins by deleting them. There are few tests, because
//! what they take is time: a member's death is noticed after seconds, and a reminder's minute comes when it comes.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

#[path = "real/broker.rs"]
mod broker;
#[path = "real/crash.rs"]
mod crash;
#[path = "real/outage.rs"]
mod outage;
#[path = "real/story.rs"]
mod story;
#[path = "real/together.rs"]
mod together;
#[path = "real/world.rs"]
mod world;

use world::World;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pushcast_on_a_real_kafka() {
    let quick = [("EXPO__RECEIPT_DELAY", "1s"), ("FCM__RATE_PER_SECOND", "0"), ("FCM__RAMP_UP", "0s"), ("MEDICATION__TICK_EVERY", "2s")];
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
    outage::outages_are_waited_for().await;
}
