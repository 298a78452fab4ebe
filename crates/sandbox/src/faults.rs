//! Which fault applies to a request: an outage, the rate limit, or a rule about its token.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::time::Instant;

use super::{Faults, Outage, ProviderFaults, Shared, TokenFault, counts::RateWindow, lock};

/// Reads and sets the faults of a running [`Sandbox`](crate::Sandbox).
#[derive(Clone, Debug)]
pub struct FaultsHandle(pub(super) Arc<Shared>);

impl FaultsHandle {
    /// The faults as they are now; an outage shows the requests or the time that it has left.
    pub fn get(&self) -> Faults {
        let now = Instant::now();
        let mut faults = Faults::clone(&self.0.faults());
        faults.expo.down = self.0.expo.outage.remaining(now);
        faults.expo.receipts_down = self.0.receipts_outage.remaining(now);
        faults.fcm.down = self.0.fcm.outage.remaining(now);
        faults.oauth.down = self.0.oauth_outage.remaining(now);
        faults
    }

    /// Replaces all faults. Every outage starts again; the rate limit keeps its count of the last second.
    pub fn set(&self, faults: Faults) {
        let now = Instant::now();
        self.0.expo.outage.set(faults.expo.down.clone(), now);
        self.0.receipts_outage.set(faults.expo.receipts_down.clone(), now);
        self.0.fcm.outage.set(faults.fcm.down.clone(), now);
        self.0.oauth_outage.set(faults.oauth.down.clone(), now);
        *self.0.faults.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(faults);
    }

    /// Changes some faults. Every outage starts again, with the requests or the time that it has left.
    pub fn change(&self, change: impl FnOnce(&mut Faults)) {
        let mut faults = self.get();
        change(&mut faults);
        self.set(faults);
    }
}

impl ProviderFaults {
    /// The fault of the first rule that matches the token.
    pub(super) fn fault_of(&self, token: &str) -> Option<TokenFault> {
        self.tokens.iter().find(|rule| rule.which.matches(token)).map(|rule| rule.fault)
    }
}

/// The outage of one endpoint, if there is one.
#[derive(Debug, Default)]
pub(super) struct OutageState(Mutex<Option<RunningOutage>>);

#[derive(Debug)]
struct RunningOutage {
    outage: Outage,
    since: Instant,
}

impl OutageState {
    /// The outage that this request falls into; it counts towards [`Outage::requests`].
    pub fn on_request(&self, now: Instant) -> Option<Outage> {
        let mut running = lock(&self.0);
        let outage = remaining(running.as_ref(), now);
        if let Some(RunningOutage { outage: Outage { requests: Some(left), .. }, .. }) =
            running.as_mut().filter(|_| outage.is_some())
        {
            *left -= 1;
        }
        outage
    }

    fn set(&self, outage: Option<Outage>, now: Instant) {
        *lock(&self.0) = outage.map(|outage| RunningOutage { outage, since: now });
    }

    fn remaining(&self, now: Instant) -> Option<Outage> {
        remaining(lock(&self.0).as_ref(), now)
    }
}

/// The outage with the time that it has left; none if it is over.
fn remaining(running: Option<&RunningOutage>, now: Instant) -> Option<Outage> {
    let RunningOutage { outage, since } = running?;
    let mut outage = outage.clone();
    if let Some(lasting) = &mut outage.lasting {
        *lasting = (*since + *lasting).checked_duration_since(now).filter(|left| !left.is_zero())?;
    }
    (outage.requests != Some(0)).then_some(outage)
}

/// The rate limit of a provider: counts the messages of the last second that were within it.
#[derive(Debug, Default)]
pub(super) struct AdmittedMessages(Mutex<RateWindow>);

impl AdmittedMessages {
    /// Whether that many more messages are within the limit. Only then they count.
    pub fn admit(&self, messages: u64, limit: Option<u32>) -> bool {
        let Some(limit) = limit else { return true };
        let mut window = lock(&self.0);
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
    fn an_outage_over_two_requests_applies_to_two() {
        let state = OutageState::default();
        let now = Instant::now();
        state.set(Some(Outage { status: 502, requests: Some(2), ..Outage::default() }), now);
        let statuses: Vec<_> = (0..3).map(|_| state.on_request(now).map(|outage| outage.status)).collect();
        assert_eq!(statuses, [Some(502), Some(502), None]);
    }

    #[test]
    fn an_outage_over_a_time_ends_with_it() {
        let state = OutageState::default();
        let now = Instant::now();
        state.set(Some(Outage { lasting: Some(Duration::from_secs(3)), ..Outage::default() }), now);
        let at = |ms| state.on_request(now + Duration::from_millis(ms)).is_some();
        assert!(at(0) && at(2_999) && !at(3_000));
        let left = state.remaining(now + Duration::from_secs(1)).and_then(|outage| outage.lasting);
        assert_eq!(left, Some(Duration::from_secs(2)));
    }

    #[tokio::test(start_paused = true)]
    async fn the_rate_limit_holds_in_every_second_and_what_is_refused_does_not_count() {
        let admitted = AdmittedMessages::default();
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
        let is_dead = |n: &i32| faults.fault_of(&format!("token-{n}")).is_some();
        let dead = || (0..10_000).filter(is_dead).collect::<Vec<_>>();
        assert!((850..1_150).contains(&dead().len()), "{}", dead().len());
        assert_eq!(dead(), dead());
    }

    #[test]
    fn the_first_rule_that_matches_decides() {
        let mut faults = ProviderFaults::default();
        faults.tokens.insert(0, TokenRule::of(TokenFault::Busy, ["dead-1"]));
        let found = ["dead-1", "dead-2", "alive"].map(|token| faults.fault_of(token));
        assert_eq!(found, [Some(TokenFault::Busy), Some(TokenFault::Dead), None]);
    }
}
