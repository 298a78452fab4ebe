//! The stages: handlers of one topic each, over the ports.

pub mod medication;
pub mod posts;
