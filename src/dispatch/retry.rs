//! How long to wait before a message, a probe or a whole route is tried again. Pure: no clock, no random
//! numbers of its own.

use std::time::Duration;

use backoff::Backoff;

use super::{ProviderBackoff, page::Class};

/// The longest pause between two tries of a broadcast's message.
const MESSAGE_CAP: Duration = Duration::from_secs(120);
/// The longest pause between two probes of a provider that is down, while no urgent message waits.
const PROBE_CAP: Duration = Duration::from_secs(30);
/// How many probes are made after the same pause, while an urgent message waits, before it is doubled.
const URGENT_PROBES_PER_PAUSE: u8 = 4;
/// The longest time that a provider's `Retry-After` may hold a route: a mistyped date must not stop it for a
/// year. Jitter is added to it.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(600);

/// How long a message waits before its next try: doubled each time, never below what the provider asks for,
/// and spread by `jitter` (0 to 1) up to half as long again, so that the messages of a failed request don't
/// return as one. Urgent ones never wait for long, unless the provider asks for it.
pub fn pause(
    backoff: ProviderBackoff,
    class: Class,
    tries: u8,
    retry_after: Option<Duration>,
    jitter: f64,
) -> Duration {
    spread(backoff, class, MESSAGE_CAP, tries, retry_after, jitter)
}

/// How long a provider that is down is left alone before the next probe, by the same rules. `class` is the
/// most urgent that waits. If that is urgent, the pauses grow slowly: most outages last for seconds, and what
/// is left of a pause at the end of an outage delays every reminder. They do grow, because a provider may
/// accept the message of a probe that it fails.
pub fn probe_pause(
    backoff: ProviderBackoff,
    class: Class,
    probes: u8,
    retry_after: Option<Duration>,
    jitter: f64,
) -> Duration {
    let doublings = match class {
        Class::Urgent => probes.div_ceil(URGENT_PROBES_PER_PAUSE),
        Class::List | Class::Slice => probes,
    };
    spread(backoff, class, PROBE_CAP, doublings, retry_after, jitter)
}

/// How long a route waits when the project is over its limit, for the `times`th time in a row.
pub fn throttled(backoff: ProviderBackoff, times: u8, retry_after: Option<Duration>) -> Duration {
    retry_after.unwrap_or_else(|| backoff.throttled.pause(times.into(), 0.0)).min(RETRY_AFTER_MAX)
}

fn spread(
    backoff: ProviderBackoff,
    class: Class,
    cap: Duration,
    tries: u8,
    retry_after: Option<Duration>,
    jitter: f64,
) -> Duration {
    let doubled = Backoff::new(backoff.first, cap).pause(tries.into(), jitter);
    let least = retry_after.unwrap_or_default().min(RETRY_AFTER_MAX);
    let spread = 1.0 + jitter / 2.0;
    match class {
        Class::Urgent => doubled.mul_f64(spread).min(backoff.urgent_cap).max(least.mul_f64(spread)),
        Class::List | Class::Slice => doubled.max(least).mul_f64(spread),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Like Expo's.
    pub(in crate::dispatch) const SHORT: ProviderBackoff = ProviderBackoff {
        first: Duration::from_secs(1),
        urgent_cap: Duration::from_secs(5),
        throttled: Backoff::new(Duration::from_secs(2), Duration::from_secs(60)),
    };
    /// Like FCM's.
    pub(in crate::dispatch) const LONG: ProviderBackoff = ProviderBackoff {
        first: Duration::from_secs(10),
        urgent_cap: Duration::from_secs(15),
        throttled: Backoff::new(Duration::from_secs(60), Duration::from_secs(60)),
    };

    proptest! {
        #[test]
        fn a_pause_is_never_shorter_than_retry_after_nor_endless(
            tries in 1_u8..,
            retry_after in prop::option::of(0_u64..10_000),
            jitter in 0.0..1.0,
        ) {
            let retry_after = retry_after.map(Duration::from_secs);
            for (backoff, class) in
                [SHORT, LONG].into_iter().flat_map(|backoff| Class::ALL.map(|class| (backoff, class)))
            {
                let pause = pause(backoff, class, tries, retry_after, jitter);
                prop_assert!(pause >= backoff.first);
                prop_assert!(pause >= retry_after.unwrap_or_default().min(RETRY_AFTER_MAX));
                prop_assert!(pause <= RETRY_AFTER_MAX.mul_f64(1.5));
                if class == Class::Urgent && retry_after.is_none() {
                    prop_assert!(pause <= backoff.urgent_cap);
                }
            }
        }
    }

    #[test]
    fn a_throttled_route_waits_for_retry_after_or_for_the_providers_own_pause() {
        let seconds = |backoff, times, retry_after: Option<u64>| {
            throttled(backoff, times, retry_after.map(Duration::from_secs)).as_secs()
        };
        assert_eq!(seconds(SHORT, 1, None), 2);
        assert_eq!(seconds(SHORT, 3, None), 8);
        assert_eq!(seconds(SHORT, 200, None), 60);
        assert_eq!(seconds(LONG, 1, None), 60);
        assert_eq!(seconds(LONG, 1, Some(5)), 5);
        assert_eq!(seconds(SHORT, 1, Some(100_000)), 600);
        assert_eq!(seconds(LONG, 1, Some(u64::MAX)), 600);
    }
}
