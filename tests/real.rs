//! pushcast as people run it, the binary, on a real Apache Kafka; the providers are the sandbox's fakes.
//!
//! The broker is the one that `make services` starts. Without it these tests fail: a suite that skips proves nothing.
//! Topics have fixed names, so a test takes the broker for itself and begins by deleting them. There is one test, because
//! what it takes is time: a member's death is noticed after seconds, and a reminder's minute comes when it comes.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

#[path = "real/broker.rs"]
mod broker;
#[path = "real/crash.rs"]
mod crash;
#[path = "real/story.rs"]
mod story;
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
