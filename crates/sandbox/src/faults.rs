//! Which fault meets a request: an outage, the rate, a rule about its token.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::time::Instant;

use super::{Faults, Outage, ProviderFaults, Shared, TokenFault, counts::RateWindow, held};

/// Sets faults while the sandbox runs.
#[derive(Clone, Debug)]
pub struct FaultsHandle(pub(super) Arc<Shared>);

impl FaultsHandle {
    /// The faults as they are now. Of an outage over a number of requests: how many are left.
    pub fn get(&self) -> Faults {
        let now = Instant::now();
        let mut faults = Faults::clone(&self.0.faults());
        faults.expo.down = self.0.expo.down.now(now);
        faults.expo.receipts_down = self.0.receipts_down.now(now);
        faults.fcm.down = self.0.fcm.down.now(now);
        faults.oauth.down = self.0.oauth_down.now(now);
        faults
    }

    /// Replaces all faults. An outage begins anew; what the rate limit has counted stays.
    pub fn set(&self, faults: Faults) {
        let now = Instant::now();
        self.0.expo.down.set(faults.expo.down.clone(), now);
        self.0.receipts_down.set(faults.expo.receipts_down.clone(), now);
        self.0.fcm.down.set(faults.fcm.down.clone(), now);
        self.0.oauth_down.set(faults.oauth.down.clone(), now);
        *self.0.faults.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(faults);
    }

    /// Changes some faults and leaves the others.
    pub fn change(&self, change: impl FnOnce(&mut Faults)) {
        let mut faults = self.get();
        change(&mut faults);
        self.set(faults);
    }
}

impl ProviderFaults {
    /// What is wrong with this token.
    pub(super) fn of(&self, token: &str) -> Option<TokenFault> {
        self.tokens.iter().find(|rule| rule.which.holds(token)).map(|rule| rule.fault)
    }
}

/// An outage that may be going on.
#[derive(Debug, Default)]
pub(super) struct Down(Mutex<Option<RunningOutage>>);

#[derive(Debug)]
struct RunningOutage {
    outage: Outage,
    since: Instant,
}

impl Down {
    /// Whether this request meets it; it is then counted.
    pub fn meets(&self, now: Instant) -> Option<Outage> {
        let mut running = held(&self.0);
        let met = current(running.as_ref(), now);
        if let Some(RunningOutage { outage: Outage { requests: Some(left), .. }, .. }) =
            running.as_mut().filter(|_| met.is_some())
        {
            *left -= 1;
        }
        met
    }

    fn set(&self, outage: Option<Outage>, now: Instant) {
        *held(&self.0) = outage.map(|outage| RunningOutage { outage, since: now });
    }

    fn now(&self, now: Instant) -> Option<Outage> {
        current(held(&self.0).as_ref(), now)
    }
}

/// The outage, if it is not over, with the time that is left of it.
fn current(running: Option<&RunningOutage>, now: Instant) -> Option<Outage> {
    let RunningOutage { outage, since } = running?;
    let mut outage = outage.clone();
    if let Some(lasting) = &mut outage.lasting {
        *lasting = (*since + *lasting).checked_duration_since(now).filter(|left| !left.is_zero())?;
    }
    (outage.requests != Some(0)).then_some(outage)
}

/// The messages that a rate limit has let pass.
#[derive(Debug, Default)]
pub(super) struct Admitted(Mutex<RateWindow>);

impl Admitted {
    /// Whether so many more messages stay within the limit; they are then counted. What is refused does not
    /// count.
    pub fn admit(&self, messages: u64, limit: Option<u32>) -> bool {
        let Some(limit) = limit else { return true };
        let mut window = held(&self.0);
        let now = Instant::now();
        let within = window.sum(now) + messages <= u64::from(limit);
        if within {
            window.add(now, messages);
        }
        within
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{TokenRule, Which};

    #[test]
    fn an_outage_over_two_requests_meets_two() {
        let (down, now) = (Down::default(), Instant::now());
        down.set(Some(Outage { status: 502, requests: Some(2), ..Outage::default() }), now);
        let met: Vec<_> = (0..3).map(|_| down.meets(now).map(|outage| outage.status)).collect();
        assert_eq!(met, [Some(502), Some(502), None]);
    }

    #[test]
    fn an_outage_over_a_time_ends_with_it() {
        let (down, now) = (Down::default(), Instant::now());
        down.set(Some(Outage { lasting: Some(Duration::from_secs(3)), ..Outage::default() }), now);
        let at = |ms| down.meets(now + Duration::from_millis(ms)).is_some();
        assert!(at(0) && at(2_999) && !at(3_000));
        let left = down.now(now + Duration::from_secs(1)).and_then(|outage| outage.lasting);
        assert_eq!(left, Some(Duration::from_secs(2)));
    }

    #[tokio::test(start_paused = true)]
    async fn the_rate_limit_holds_in_every_second_and_what_is_refused_does_not_count() {
        let admitted = Admitted::default();
        assert!(admitted.admit(2, Some(3)));
        tokio::time::advance(Duration::from_millis(500)).await;
        assert!(!admitted.admit(2, Some(3)) && admitted.admit(1, Some(3)));
        tokio::time::advance(Duration::from_millis(499)).await;
        assert!(!admitted.admit(1, Some(3)));
        tokio::time::advance(Duration::from_millis(1)).await;
        assert!(
            admitted.admit(2, Some(3)) && !admitted.admit(1, Some(3)),
            "the first two are a second old, the third is not"
        );
        assert!(admitted.admit(1_000, None));
    }

    #[test]
    fn a_fraction_of_tokens_is_about_that_many_and_always_the_same() {
        let faults = ProviderFaults {
            tokens: vec![TokenRule { which: Which::Fraction(0.1), fault: TokenFault::Dead }],
            ..Default::default()
        };
        let dead = || (0..10_000).filter(|n| faults.of(&format!("token-{n}")).is_some()).collect::<Vec<_>>();
        assert!((850..1_150).contains(&dead().len()), "{}", dead().len());
        assert_eq!(dead(), dead());
    }

    #[test]
    fn the_first_rule_that_holds_decides() {
        let mut faults = ProviderFaults::default();
        faults.tokens.insert(0, TokenRule::of(TokenFault::Busy, ["dead-1"]));
        let found = ["dead-1", "dead-2", "alive"].map(|token| faults.of(token));
        assert_eq!(found, [Some(TokenFault::Busy), Some(TokenFault::Dead), None]);
    }
}
