//! Notices that a provider fails as a whole, and then asks it by one message at a time. Pure: no clock, no
//! channel; the batcher tells and asks.
//!
//! While a provider is down every request fails, and each may have been taken all the same. If every message
//! came back for itself, an outage would ring some phones again and again, and a reminder would sit out the
//! long pause that it has earned when the provider is back. So a row of failures *opens* the breaker: nothing
//! goes any more but a probe of one message, after pauses that grow. One answer, whatever it says, closes it;
//! then everything goes on at once, urgent first.
//!
//! A message that makes the provider fail by itself looks the same to whoever asks with that one only.
//! Therefore the probes take turns: most urgent first, then least urgent first, and what has failed goes to
//! the end of its line.

use std::time::Duration;

use tokio::time::Instant;

use super::{page::Class, retry};
use crate::domain::ProviderId;

/// So many requests have to fail in a row. Of a provider that fails half of them no ten in a row do for long.
const FAILURES_IN_A_ROW: u32 = 10;

/// The breaker of one provider, in one instance.
#[derive(Debug)]
pub(super) struct CircuitBreaker {
    provider: ProviderId,
    in_a_row: u32,
    open: Option<OpenCircuit>,
}

#[derive(Debug)]
struct OpenCircuit {
    /// How many probes have failed.
    probes: u8,
    /// A probe is on the wire.
    probing: bool,
    /// The pause runs from here.
    from: Instant,
    /// What the provider asked for.
    asked: Option<Duration>,
    jitter: f64,
}

/// What a probe may be made of now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Probe {
    /// One message of the first of these classes that has any.
    Take([Class; 3]),
    /// Not before then.
    At(Instant),
    /// The answer to one is awaited.
    OnWire,
}

// === impl CircuitBreaker ===

impl CircuitBreaker {
    pub(super) fn new(provider: ProviderId) -> Self {
        Self { provider, in_a_row: 0, open: None }
    }

    /// How many probes have failed since it opened; `None` = it is closed.
    pub(super) fn failed_probes(&self) -> Option<u8> {
        self.open.as_ref().map(|open| open.probes)
    }

    /// Whether a probe may go; `None` = it is closed, and everything may. While something urgent waits the
    /// pauses are short.
    pub(super) fn probe(&self, urgent_waits: impl FnOnce() -> bool, now: Instant) -> Option<Probe> {
        let open = self.open.as_ref()?;
        if open.probing {
            return Some(Probe::OnWire);
        }
        let class = if urgent_waits() { Class::Urgent } else { Class::Slice };
        let at = open.from
            + retry::probe_pause(
                self.provider,
                class,
                open.probes.saturating_add(1),
                open.asked,
                open.jitter,
            );
        if now < at {
            return Some(Probe::At(at));
        }
        let mut classes = Class::ALL;
        if open.probes % 2 == 1 {
            classes.reverse();
        }
        Some(Probe::Take(classes))
    }

    /// A probe has started.
    pub(super) fn probing(&mut self) {
        if let Some(open) = &mut self.open {
            open.probing = true;
        }
    }

    /// A request has failed as a whole. Says whether this opens the breaker.
    pub(super) fn failed(
        &mut self,
        was_probe: bool,
        asked: Option<Duration>,
        now: Instant,
        jitter: f64,
    ) -> bool {
        self.in_a_row = self.in_a_row.saturating_add(1);
        match &mut self.open {
            Some(open) if was_probe => {
                *open = OpenCircuit {
                    probes: open.probes.saturating_add(1),
                    probing: false,
                    from: now,
                    asked,
                    jitter,
                }
            }
            // It left before the breaker opened, and says nothing new.
            Some(open) => open.asked = open.asked.max(asked),
            None if self.in_a_row >= FAILURES_IN_A_ROW => {
                self.open = Some(OpenCircuit { probes: 0, probing: false, from: now, asked, jitter });
                return true;
            }
            None => {}
        }
        false
    }

    /// The provider has answered, whatever it said. Says whether this closes the breaker.
    pub(super) fn answered(&mut self) -> bool {
        self.in_a_row = 0;
        self.open.take().is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opened(provider: ProviderId, now: Instant) -> CircuitBreaker {
        let mut breaker = CircuitBreaker::new(provider);
        let opened: Vec<bool> =
            (0..FAILURES_IN_A_ROW).map(|_| breaker.failed(false, None, now, 0.0)).collect();
        assert!(opened[..opened.len() - 1].iter().all(|opened| !opened) && opened[opened.len() - 1]);
        breaker
    }

    /// The pauses before each of the first probes, in seconds.
    fn pauses(provider: ProviderId, urgent_waits: bool, probes: usize) -> Vec<u64> {
        let mut now = Instant::now();
        let mut breaker = opened(provider, now);
        let mut pauses = Vec::new();
        for _ in 0..probes {
            let Some(Probe::At(at)) = breaker.probe(|| urgent_waits, now) else { panic!("{breaker:?}") };
            pauses.push((at - now).as_secs());
            now = at;
            assert!(matches!(breaker.probe(|| urgent_waits, now), Some(Probe::Take(_))));
            breaker.probing();
            assert_eq!(breaker.probe(|| urgent_waits, now), Some(Probe::OnWire));
            assert!(!breaker.failed(true, None, now, 0.0));
        }
        pauses
    }

    #[test]
    fn pauses_grow_and_stay_short_while_something_urgent_waits() {
        assert_eq!(pauses(ProviderId::Expo, false, 7), [1, 2, 4, 8, 16, 30, 30]);
        assert_eq!(pauses(ProviderId::Expo, true, 14), [1, 1, 1, 1, 2, 2, 2, 2, 4, 4, 4, 4, 5, 5]);
        assert_eq!(pauses(ProviderId::Fcm, false, 4), [10, 20, 30, 30]);
        assert_eq!(pauses(ProviderId::Fcm, true, 6), [10, 10, 10, 10, 15, 15]);
    }

    #[test]
    fn one_answer_closes_it_and_a_failure_here_and_there_does_not_open_it() {
        let now = Instant::now();
        let mut breaker = opened(ProviderId::Expo, now);
        assert!(breaker.answered() && breaker.probe(|| true, now).is_none());
        for _ in 0..5 {
            assert!((1..FAILURES_IN_A_ROW).all(|_| !breaker.failed(false, None, now, 0.0)));
            assert!(!breaker.answered());
        }
    }

    #[test]
    fn a_provider_that_asks_for_a_pause_gets_it() {
        let now = Instant::now();
        let mut breaker = opened(ProviderId::Expo, now);
        breaker.failed(false, Some(Duration::from_secs(40)), now, 0.0);
        assert_eq!(breaker.probe(|| true, now), Some(Probe::At(now + Duration::from_secs(40))));
    }

    #[test]
    fn probes_take_turns_between_urgent_and_bulk() {
        let now = Instant::now();
        let mut breaker = opened(ProviderId::Expo, now);
        let mut firsts = Vec::new();
        for _ in 0..4 {
            let Some(Probe::Take([first, ..])) = breaker.probe(|| true, now + Duration::from_secs(60)) else {
                panic!("{breaker:?}")
            };
            firsts.push(first);
            breaker.probing();
            breaker.failed(true, None, now, 0.0);
        }
        assert_eq!(firsts, [Class::Urgent, Class::Slice, Class::Urgent, Class::Slice]);
    }
}
