//! Notices that a provider fails as a whole, and then probes it with one message at a time. Pure: no clock,
//! no channel; the batcher reports to it and asks it.
//!
//! While a provider is down every request fails, and each message may have been accepted all the same. If
//! every message were retried for itself, an outage would send to some devices again and again, and a
//! reminder would still wait out the long pause of its own failures when the provider is back. So a row of
//! failures *opens* the breaker: nothing is sent any more but a probe of one message, after pauses that grow.
//! One answer of any kind closes it; then everything is sent at once, urgent first.
//!
//! A message that makes the provider fail by itself can't be told from an outage by probes of that message
//! only. Therefore the probes take turns: most urgent first, then least urgent first, and a message that has
//! failed goes to the end of its queue.

use std::time::Duration;

use tokio::time::Instant;

use super::{ProviderBackoff, page::Class, retry};

/// How many requests have to fail in a row. A provider that fails half of them rarely fails ten in a row.
const FAILURES_IN_A_ROW: u32 = 10;

/// The circuit breaker of one provider, in one instance.
#[derive(Debug)]
pub(super) struct CircuitBreaker {
    backoff: ProviderBackoff,
    in_a_row: u32,
    open: Option<OpenCircuit>,
}

#[derive(Debug)]
struct OpenCircuit {
    failed_probes: u8,
    is_probe_on_wire: bool,
    /// When the last request failed that counts: the pause starts here.
    failed_at: Instant,
    retry_after: Option<Duration>,
    jitter: f64,
}

/// Whether a probe may be sent now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Probe {
    /// Yes: one message of the first of these classes that has any.
    Take([Class; 3]),
    /// Not before this.
    At(Instant),
    /// Not before the probe on the wire has its answer.
    OnWire,
}

// === impl CircuitBreaker ===

impl CircuitBreaker {
    pub(super) fn new(backoff: ProviderBackoff) -> Self {
        Self { backoff, in_a_row: 0, open: None }
    }

    /// How many probes have failed since it opened; `None` = it is closed.
    pub(super) fn failed_probes(&self) -> Option<u8> {
        self.open.as_ref().map(|open| open.failed_probes)
    }

    /// Whether a probe may be sent; `None` = it is closed, and everything may. While an urgent message waits
    /// the pauses are short.
    pub(super) fn probe(&self, urgent_waits: impl FnOnce() -> bool, now: Instant) -> Option<Probe> {
        let open = self.open.as_ref()?;
        if open.is_probe_on_wire {
            return Some(Probe::OnWire);
        }
        let class = if urgent_waits() { Class::Urgent } else { Class::Slice };
        let probes = open.failed_probes.saturating_add(1);
        let at =
            open.failed_at + retry::probe_pause(self.backoff, class, probes, open.retry_after, open.jitter);
        if now < at {
            return Some(Probe::At(at));
        }
        let mut classes = Class::ALL;
        if open.failed_probes % 2 == 1 {
            classes.reverse();
        }
        Some(Probe::Take(classes))
    }

    /// A probe has been sent.
    pub(super) fn probe_started(&mut self) {
        if let Some(open) = &mut self.open {
            open.is_probe_on_wire = true;
        }
    }

    /// A request has failed as a whole. Returns whether this opens the breaker.
    pub(super) fn failed(
        &mut self,
        was_probe: bool,
        retry_after: Option<Duration>,
        now: Instant,
        jitter: f64,
    ) -> bool {
        self.in_a_row = self.in_a_row.saturating_add(1);
        match &mut self.open {
            Some(open) if was_probe => {
                *open = OpenCircuit {
                    failed_probes: open.failed_probes.saturating_add(1),
                    is_probe_on_wire: false,
                    failed_at: now,
                    retry_after,
                    jitter,
                }
            }
            // It was sent before the breaker opened, so that its failure is no news.
            Some(open) => open.retry_after = open.retry_after.max(retry_after),
            None if self.in_a_row >= FAILURES_IN_A_ROW => {
                self.open = Some(OpenCircuit {
                    failed_probes: 0,
                    is_probe_on_wire: false,
                    failed_at: now,
                    retry_after,
                    jitter,
                });
                return true;
            }
            None => {}
        }
        false
    }

    /// The provider has answered, in whatever way. Returns whether this closes the breaker.
    pub(super) fn answered(&mut self) -> bool {
        self.in_a_row = 0;
        self.open.take().is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::retry::tests::{LONG, SHORT},
        *,
    };

    fn opened(backoff: ProviderBackoff, now: Instant) -> CircuitBreaker {
        let mut breaker = CircuitBreaker::new(backoff);
        let opened: Vec<bool> =
            (0..FAILURES_IN_A_ROW).map(|_| breaker.failed(false, None, now, 0.0)).collect();
        assert!(opened[..opened.len() - 1].iter().all(|opened| !opened) && opened[opened.len() - 1]);
        breaker
    }

    /// The pauses before each of the first probes, in seconds.
    fn pauses(backoff: ProviderBackoff, urgent_waits: bool, probes: usize) -> Vec<u64> {
        let mut now = Instant::now();
        let mut breaker = opened(backoff, now);
        let mut pauses = Vec::new();
        for _ in 0..probes {
            let Some(Probe::At(at)) = breaker.probe(|| urgent_waits, now) else { panic!("{breaker:?}") };
            pauses.push((at - now).as_secs());
            now = at;
            assert!(matches!(breaker.probe(|| urgent_waits, now), Some(Probe::Take(_))));
            breaker.probe_started();
            assert_eq!(breaker.probe(|| urgent_waits, now), Some(Probe::OnWire));
            assert!(!breaker.failed(true, None, now, 0.0));
        }
        pauses
    }

    #[test]
    fn pauses_grow_and_stay_short_while_an_urgent_message_waits() {
        assert_eq!(pauses(SHORT, false, 7), [1, 2, 4, 8, 16, 30, 30]);
        assert_eq!(pauses(SHORT, true, 14), [1, 1, 1, 1, 2, 2, 2, 2, 4, 4, 4, 4, 5, 5]);
        assert_eq!(pauses(LONG, false, 4), [10, 20, 30, 30]);
        assert_eq!(pauses(LONG, true, 6), [10, 10, 10, 10, 15, 15]);
    }

    #[test]
    fn one_answer_closes_it_and_single_failures_do_not_open_it() {
        let now = Instant::now();
        let mut breaker = opened(SHORT, now);
        assert!(breaker.answered() && breaker.probe(|| true, now).is_none());
        for _ in 0..5 {
            assert!((1..FAILURES_IN_A_ROW).all(|_| !breaker.failed(false, None, now, 0.0)));
            assert!(!breaker.answered());
        }
    }

    #[test]
    fn a_retry_after_that_is_longer_than_the_pause_counts() {
        let now = Instant::now();
        let mut breaker = opened(SHORT, now);
        breaker.failed(false, Some(Duration::from_secs(40)), now, 0.0);
        assert_eq!(breaker.probe(|| true, now), Some(Probe::At(now + Duration::from_secs(40))));
    }

    #[test]
    fn probes_take_turns_between_urgent_and_bulk() {
        let now = Instant::now();
        let mut breaker = opened(SHORT, now);
        let mut firsts = Vec::new();
        for _ in 0..4 {
            let Some(Probe::Take([first, ..])) = breaker.probe(|| true, now + Duration::from_secs(60)) else {
                panic!("{breaker:?}")
            };
            firsts.push(first);
            breaker.probe_started();
            breaker.failed(true, None, now, 0.0);
        }
        assert_eq!(firsts, [Class::Urgent, Class::Slice, Class::Urgent, Class::Slice]);
    }
}
