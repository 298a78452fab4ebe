//! Log lines that an outage would repeat thousands of times.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// How far apart they are.
const APART: Duration = Duration::from_secs(30);

/// Says yes once, and then no until half a minute has passed: of many records that wait for the same dependency,
/// one is logged.
#[derive(Debug, Default)]
pub struct LogThrottle(Mutex<Option<Instant>>);

impl LogThrottle {
    /// Whether to log the line now.
    pub fn now(&self) -> bool {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let due = last.is_none_or(|at| at.elapsed() >= APART);
        if due {
            *last = Some(Instant::now());
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_throttled_line_is_logged_at_once_and_then_every_half_minute() {
        let throttle = LogThrottle::default();
        assert_eq!([throttle.now(), throttle.now()], [true, false]);
        tokio::time::advance(APART).await;
        assert_eq!([throttle.now(), throttle.now()], [true, false]);
    }
}
