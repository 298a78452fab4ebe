//! The engine with its real clients against the sandbox, in virtual time: hours pass in seconds, and the
//! sandbox counts on the same clock, so its counts per second are exact.
//!
//! Everything runs in one thread. What one side writes to its socket the other side can read at once, and the
//! clock advances only when every task waits.

#![expect(clippy::unwrap_used, reason = "clippy takes helpers of an integration test for production code")]

#[path = "engine/limits.rs"]
mod limits;
#[path = "engine/oauth.rs"]
mod oauth;
#[path = "engine/outages.rs"]
mod outages;
#[path = "engine/refusals.rs"]
mod refusals;
#[path = "engine/sender.rs"]
mod sender;
#[path = "engine/urgent.rs"]
mod urgent;
