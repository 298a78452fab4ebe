//! When to try again.

use std::time::Duration;

use super::page::Class;
use crate::domain::ProviderId;

/// The longest pause between two tries of a broadcast's message.
const CAP: Duration = Duration::from_secs(120);
/// The longest pause between two probes of a provider that is down, while nothing urgent waits.
const PROBE_CAP: Duration = Duration::from_secs(30);
/// So many probes go after the same pause while something urgent waits, before it is doubled.
const URGENT_PROBES_ALIKE: u8 = 4;
/// The longest wait of a project that is over its limit, if the provider names no time.
const THROTTLED_CAP: Duration = Duration::from_secs(60);
/// The longest time that a provider's `Retry-After` may hold a route: a mistyped date must not stop it for a
/// year. What comes in addition is jitter.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(600);

/// The first pause after a failure. Expo asks for "a few seconds"; Google for ten and more after a 5xx.
fn floor(provider: ProviderId) -> Duration {
    match provider {
        ProviderId::Expo => Duration::from_secs(1),
        ProviderId::Fcm => Duration::from_secs(10),
    }
}

/// The longest pause of an urgent message: a reminder is worth a request every few seconds. Never below the
/// floor, with room for the jitter.
fn urgent_cap(provider: ProviderId) -> Duration {
    match provider {
        ProviderId::Expo => Duration::from_secs(5),
        ProviderId::Fcm => Duration::from_secs(15),
    }
}

/// How long a message waits before its next try: doubled each time, never below what the provider asks for,
/// and spread by `jitter` (0..1) up to half as long again, so that a batch of failures does not return as
/// one. Urgent ones never wait for long, unless the provider asks for it.
pub fn pause(
    provider: ProviderId,
    class: Class,
    tries: u8,
    asked: Option<Duration>,
    jitter: f64,
) -> Duration {
    growing(provider, class, CAP, tries, asked, jitter)
}

/// How long a provider that is down is left alone before the next probe, in the same manner. `class` is the
/// most urgent that waits. Then the pauses grow slowly: most outages last for seconds, and what is left of a
/// pause at the end of one is added to it for every reminder. They do grow, because a provider may take the
/// message of a probe that it fails.
pub fn probe_pause(
    provider: ProviderId,
    class: Class,
    probes: u8,
    asked: Option<Duration>,
    jitter: f64,
) -> Duration {
    let doublings = match class {
        Class::Urgent => probes.div_ceil(URGENT_PROBES_ALIKE),
        Class::List | Class::Slice => probes,
    };
    growing(provider, class, PROBE_CAP, doublings, asked, jitter)
}

/// How long a route waits when the project is over its limit, for the `times`th time in a row. Google asks
/// for a minute; Expo counts by the second and takes more as soon as the rate is below its limit again.
pub fn throttled(provider: ProviderId, times: u8, asked: Option<Duration>) -> Duration {
    let unasked = match provider {
        ProviderId::Expo => {
            Duration::from_secs(1).saturating_mul(2_u32.saturating_pow(u32::from(times))).min(THROTTLED_CAP)
        }
        ProviderId::Fcm => THROTTLED_CAP,
    };
    asked.unwrap_or(unasked).min(RETRY_AFTER_MAX)
}

fn growing(
    provider: ProviderId,
    class: Class,
    cap: Duration,
    tries: u8,
    asked: Option<Duration>,
    jitter: f64,
) -> Duration {
    let doubled =
        floor(provider).saturating_mul(2_u32.saturating_pow(u32::from(tries.saturating_sub(1)))).min(cap);
    let least = asked.unwrap_or_default().min(RETRY_AFTER_MAX);
    let spread = 1.0 + jitter / 2.0;
    match class {
        Class::Urgent => doubled.mul_f64(spread).min(urgent_cap(provider)).max(least.mul_f64(spread)),
        Class::List | Class::Slice => doubled.max(least).mul_f64(spread),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_pause_is_never_shorter_than_asked_nor_endless(tries in 1_u8.., asked in prop::option::of(0_u64..10_000), jitter in 0.0..1.0) {
            let asked = asked.map(Duration::from_secs);
            for (provider, class) in ProviderId::ALL.into_iter().flat_map(|provider| Class::ALL.map(|class| (provider, class))) {
                let pause = pause(provider, class, tries, asked, jitter);
                prop_assert!(pause >= floor(provider));
                prop_assert!(pause >= asked.unwrap_or_default().min(RETRY_AFTER_MAX));
                prop_assert!(pause <= RETRY_AFTER_MAX.mul_f64(1.5));
                if class == Class::Urgent && asked.is_none() {
                    prop_assert!(pause <= urgent_cap(provider));
                }
            }
        }
    }

    #[test]
    fn a_throttled_route_waits_as_long_as_it_is_told_or_as_the_provider_counts() {
        let seconds = |provider, times, asked: Option<u64>| {
            throttled(provider, times, asked.map(Duration::from_secs)).as_secs()
        };
        assert_eq!(seconds(ProviderId::Expo, 1, None), 2);
        assert_eq!(seconds(ProviderId::Expo, 3, None), 8);
        assert_eq!(seconds(ProviderId::Expo, 200, None), 60);
        assert_eq!(seconds(ProviderId::Fcm, 1, None), 60);
        assert_eq!(seconds(ProviderId::Fcm, 1, Some(5)), 5);
        assert_eq!(seconds(ProviderId::Expo, 1, Some(100_000)), 600);
        assert_eq!(seconds(ProviderId::Fcm, 1, Some(u64::MAX)), 600);
    }
}
