//! Log lines that an outage would repeat thousands of times.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// How far apart they are.
const APART: Duration = Duration::from_secs(30);

/// Says yes once, and then no until half a minute has passed: of a stage's many handlings, one tells what all wait for.
#[derive(Debug, Default)]
pub(super) struct Rarely(Mutex<Option<Instant>>);

impl Rarely {
    /// Whether it is time to say it (again).
    pub(super) fn now(&self) -> bool {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let say = last.is_none_or(|at| at.elapsed() >= APART);
        if say {
            *last = Some(Instant::now());
        }
        say
    }
}
