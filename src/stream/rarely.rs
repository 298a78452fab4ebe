//! Log lines that an outage would repeat thousands of times.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// How far apart they are.
const APART: Duration = Duration::from_secs(30);

/// Says yes once, and then no until half a minute has passed: of the many who wait for the same thing, one
/// tells it.
#[derive(Debug, Default)]
pub(crate) struct Rarely(Mutex<Option<Instant>>);

impl Rarely {
    /// Whether it is time to say it (again).
    pub(crate) fn now(&self) -> bool {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let say = last.is_none_or(|at| at.elapsed() >= APART);
        if say {
            *last = Some(Instant::now());
        }
        say
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_said_rarely_is_said_at_once_and_then_every_half_minute() {
        let rarely = Rarely::default();
        assert_eq!([rarely.now(), rarely.now()], [true, false]);
        tokio::time::advance(APART).await;
        assert_eq!([rarely.now(), rarely.now()], [true, false]);
    }
}
