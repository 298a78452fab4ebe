//! Limits log lines that an outage would repeat thousands of times.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// The least time between two lines.
const INTERVAL: Duration = Duration::from_secs(30);

/// Allows one log line every half minute: of many records that wait for the same dependency, one is logged.
#[derive(Debug, Default)]
pub struct LogThrottle(Mutex<Option<Instant>>);

impl LogThrottle {
    /// Whether to log the line now; if so, the half minute starts again.
    pub fn now(&self) -> bool {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let due = last.is_none_or(|at| at.elapsed() >= INTERVAL);
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
        tokio::time::advance(INTERVAL).await;
        assert_eq!([throttle.now(), throttle.now()], [true, false]);
    }
}
