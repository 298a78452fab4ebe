//! End-to-end tests of what README.md promises: each boots the whole process in a [`world::World`] of its
//! own, with Kafka and the push services faked at the wire, and tries to break one promise.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

#[path = "behaviour/bad_input.rs"]
mod bad_input;
#[path = "behaviour/crash.rs"]
mod crash;
#[path = "behaviour/doses.rs"]
mod doses;
#[path = "behaviour/faults.rs"]
mod faults;
#[path = "behaviour/kafka.rs"]
mod kafka;
#[path = "behaviour/outages.rs"]
mod outages;
#[path = "behaviour/posts.rs"]
mod posts;
#[path = "behaviour/process.rs"]
mod process;
#[path = "behaviour/redaction.rs"]
mod redaction;
#[path = "behaviour/startup.rs"]
mod startup;
#[path = "behaviour/tokens.rs"]
mod tokens;
#[path = "behaviour/world.rs"]
mod world;
