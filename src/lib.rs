//! **pushcast**: Kafka in, push notifications out.
//!
//! `README.md` says what it is for, `ARCHITECTURE.md` how it fits together and which rules hold it so. To
//! read the code, start with
//!
//! 1. [`topology`]: every stage and every topic, once;
//! 2. [`consumer`]: what a stage is ([`Handler`](consumer::Handler)), the [`Fate`](consumer::Fate) of each
//!    record, and the Kafka runtime of all stages, a crate of its own;
//! 3. [`domain`]: the values and rules; [`events`]: the public contract, one file a topic;
//! 4. [`stages`]: what is done with each topic; [`stages::quarantine`]: what evidence closes a route;
//! 5. [`dispatch`]: how a message gets its outcome, over the port [`dispatch::Provider`] that [`expo`] and
//!    [`fcm`] implement;
//! 6. [`store`]: what is stored, as ports; [`store::embedded`] (SQLite) and [`store::cql`] (ScyllaDB,
//!    Cassandra) implement them;
//! 7. [`app`]: which tasks a process has, and the order in which they stop.
//!
//! Beside them: [`config`] (settings), [`http`] (health and what operators ask), [`metrics`], [`telemetry`]
//! (logs). [`sandbox`], a crate of its own, fakes the push services for the demo and the tests.

pub mod app;
pub mod config;
pub mod dispatch;
pub mod domain;
pub mod events;
pub mod expo;
pub mod fcm;
pub mod http;
pub mod metrics;
pub mod stages;
pub mod store;
pub mod telemetry;
pub mod topology;
