//! pushcast as people run it, the binary, on a real Apache Kafka; the providers are the sandbox's fakes.
//!
//! The broker is the one that `make services` starts. Without it these tests fail: a suite that skips proves nothing.
//! Topics have fixed names, so each test takes the broker for itself and begins by deleting them.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

#[path = "real/broker.rs"]
mod broker;
#[path = "real/crash.rs"]
mod crash;
#[path = "real/story.rs"]
mod story;
#[path = "real/world.rs"]
mod world;
