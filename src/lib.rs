//! **pushcast**: Kafka in, push notifications out.
//!
//! Start with `ARCHITECTURE.md`, then [`stream`] (what a stage is), [`store`] (what it remembers) and [`delivery`]
//! (how a message meets its outcome).

pub mod app;
pub mod config;
pub mod delivery;
pub mod domain;
pub mod events;
pub mod expo;
pub mod fcm;
pub mod http;
pub mod kafka;
pub mod metrics;
pub mod sandbox;
pub mod stages;
pub mod store;
pub mod stream;
pub mod telemetry;
