//! **pushcast**: Kafka in, push notifications out.
//!
//! `README.md` says what it is for, `ARCHITECTURE.md` how it fits together and which rules hold it so. To
//! read the code, start with
//!
//! 1. [`stream`]: what a stage is, and the [`Fate`](stream::Fate) that each record meets;
//! 2. [`domain`]: what the words mean; [`events`]: how they travel, the public contract;
//! 3. [`store`]: what is remembered, as ports; [`store::embedded`] is the store that there is;
//! 4. [`stages`]: what is done with each topic;
//! 5. [`delivery`]: how a message meets its outcome, over the port [`delivery::Provider`] that [`expo`] and
//!    [`fcm`] serve;
//! 6. [`kafka`]: the one runtime of all stages;
//! 7. [`app`]: which tasks a process has, and the order in which they stop.
//!
//! Beside them: [`config`] (settings), [`http`] (health and what people ask), [`metrics`], [`telemetry`]
//! (logs), and [`sandbox`] (push services to test against).

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
