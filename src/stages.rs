//! The stages: handlers of one topic each, over the ports.

pub mod delivery;
pub mod medication;
pub mod posts;
