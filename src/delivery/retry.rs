//! When to try again.

use std::time::Duration;

use crate::domain::ProviderId;

/// The longest pause between two tries of one message.
const CAP: Duration = Duration::from_secs(120);
/// A project that is over its quota waits at least that long when the provider names no time (Google: one minute).
pub const THROTTLED: Duration = Duration::from_secs(60);
/// The longest time that a provider's `Retry-After` may hold a route.
pub const RETRY_AFTER_MAX: Duration = Duration::from_secs(600);

/// The first pause after a failure. Expo asks for "a few seconds"; Google for ten and more after a 5xx.
fn floor(provider: ProviderId) -> Duration {
    match provider {
        ProviderId::Expo => Duration::from_secs(1),
        ProviderId::Fcm => Duration::from_secs(10),
    }
}

/// How long a message waits before its next try: doubled each time, never below what the provider asks for, and spread
/// by `jitter` (0..1) up to half as long again, so that a batch of failures does not return as one.
pub fn pause(provider: ProviderId, tries: u8, asked: Option<Duration>, jitter: f64) -> Duration {
    let doubled = floor(provider).saturating_mul(2_u32.saturating_pow(u32::from(tries.saturating_sub(1)))).min(CAP);
    let least = asked.unwrap_or_default().min(RETRY_AFTER_MAX);
    doubled.max(least).mul_f64(1.0 + jitter / 2.0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_pause_is_never_shorter_than_asked_nor_endless(tries in 1_u8.., asked in prop::option::of(0_u64..10_000), jitter in 0.0..1.0) {
            let asked = asked.map(Duration::from_secs);
            for provider in ProviderId::ALL {
                let pause = pause(provider, tries, asked, jitter);
                prop_assert!(pause >= floor(provider));
                prop_assert!(pause >= asked.unwrap_or_default().min(RETRY_AFTER_MAX));
                prop_assert!(pause <= RETRY_AFTER_MAX.mul_f64(1.5));
            }
        }
    }
}
