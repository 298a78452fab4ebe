//! Latencies and rates. Each latency is measured by itself, from the publication of the record to the arrival
//! of the message at the sandbox; none is read from a histogram.

use std::{collections::BTreeMap, fmt, time::Duration};

use jiff::Timestamp;
use pushcast::domain::ProviderId;
use tokio::time::Instant;

use super::{
    expected::Name,
    watch::{Push, Sample},
};

/// A reminder published within this time after a fault may be late: a request that failed waits before its
/// next attempt.
const AFFECTED_AFTER: Duration = Duration::from_millis(1_500);
/// A reminder published within this time before a fault may reach the provider during it.
const AFFECTED_BEFORE: Duration = Duration::from_millis(200);

/// When the script did what.
#[derive(Clone, Debug, Default)]
pub struct Measured {
    /// When each reminder was published.
    pub reminders: BTreeMap<Name, Timestamp>,
    /// When each post was published.
    pub posts: BTreeMap<Name, Timestamp>,
    /// When the doses of the regimens are due.
    pub due: Option<Timestamp>,
    /// When the providers had faults.
    pub faults: Vec<FaultPeriod>,
    /// From when to when a provider was busy with a broadcast and had no fault.
    pub busy: BTreeMap<ProviderId, (Instant, Instant)>,
}

/// A time in which a provider has a fault.
#[derive(Clone, Copy, Debug)]
pub struct FaultPeriod {
    /// The provider with the fault.
    pub provider: ProviderId,
    /// When the fault is set.
    pub from: Timestamp,
    /// When it is cleared.
    pub until: Timestamp,
}

/// The latency of a set of messages. Shown as `p50 / p99`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Latency {
    /// The median.
    pub p50: Duration,
    /// The 99th percentile.
    pub p99: Duration,
    /// The maximum.
    pub max: Duration,
    /// The number of messages.
    pub of: usize,
}

impl Measured {
    /// From a reminder's record to its provider, of those published during a fault of that provider, or of
    /// the others.
    pub fn reminders(&self, pushes: &[Push], provider: ProviderId, during_fault: bool) -> Option<Latency> {
        let is_affected = |at: Timestamp| {
            self.faults.iter().any(|fault| {
                fault.provider == provider
                    && fault.from - AFFECTED_BEFORE <= at
                    && at <= fault.until + AFFECTED_AFTER
            })
        };
        let published = self.reminders.iter().filter(|(_, at)| is_affected(**at) == during_fault);
        latency(pushes, provider, &published.map(|(name, at)| (name.as_str(), *at)).collect())
    }

    /// From a post's record to its provider.
    pub fn posts(&self, pushes: &[Push], provider: ProviderId) -> Option<Latency> {
        latency(pushes, provider, &self.posts.iter().map(|(name, at)| (name.as_str(), *at)).collect())
    }

    /// From the minute at which a regimen's dose is due to its provider.
    pub fn doses(&self, pushes: &[Push], provider: ProviderId, regimens: &[&str]) -> Option<Latency> {
        let due = self.due?;
        latency(pushes, provider, &regimens.iter().map(|name| (*name, due)).collect())
    }

    /// Messages per second that arrived at a provider while it was busy and had no fault.
    pub fn rate(&self, samples: &[Sample], provider: ProviderId) -> Option<f64> {
        let (from, until) = self.busy.get(&provider)?;
        let index = usize::from(provider == ProviderId::Fcm);
        let within = samples.iter().filter(|sample| (*from..=*until).contains(&sample.at));
        sustained(&within.map(|sample| (sample.at, sample.arrived[index])).collect::<Vec<_>>())
    }
}

/// The most by which arrivals were ahead of the rate limit, as the time that the messages in excess take at
/// that rate. The maximum over all intervals, however short or long.
pub fn lead(samples: &[Sample], provider: ProviderId, rate: u32) -> Duration {
    let mut lead = 0.0_f64;
    let mut least = f64::INFINITY;
    let Some(first) = samples.first() else { return Duration::ZERO };
    for sample in samples {
        #[expect(clippy::cast_precision_loss, reason = "far fewer than 2^52 messages")]
        let taken = sample.arrived[usize::from(provider == ProviderId::Fcm)] as f64;
        let beyond = taken / f64::from(rate) - (sample.at - first.at).as_secs_f64();
        least = least.min(beyond);
        lead = lead.max(beyond - least);
    }
    Duration::from_secs_f64(lead)
}

fn latency(pushes: &[Push], provider: ProviderId, published: &BTreeMap<&str, Timestamp>) -> Option<Latency> {
    let of = pushes.iter().filter(|push| push.provider == provider);
    let taken = of.filter_map(|push| Some(push.at.duration_since(*published.get(push.name.as_str())?)));
    // A clock that is set back must not make a latency negative.
    Latency::of(taken.map(|taken| Duration::try_from(taken).unwrap_or_default()).collect())
}

/// The rate between the first and the last tenth of the arrivals: without the start and the last slices.
fn sustained(arrived: &[(Instant, u64)]) -> Option<f64> {
    let (_, first) = arrived.first()?;
    let (_, last) = arrived.last()?;
    let tenth = (last - first) / 10;
    let begin = arrived.iter().find(|(_, count)| *count >= first + tenth)?;
    let end = arrived.iter().find(|(_, count)| *count >= last - tenth)?;
    let seconds = (end.0 - begin.0).as_secs_f64();
    #[expect(clippy::cast_precision_loss, reason = "far fewer than 2^52 messages")]
    let messages = (end.1 - begin.1) as f64;
    (seconds > 0.0).then(|| messages / seconds)
}

impl Latency {
    fn of(mut taken: Vec<Duration>) -> Option<Self> {
        taken.sort_unstable();
        let at =
            |per_cent: usize| taken.get((taken.len() * per_cent).div_ceil(100).saturating_sub(1)).copied();
        Some(Self { p50: at(50)?, p99: at(99)?, max: at(100)?, of: taken.len() })
    }
}

impl fmt::Display for Latency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} / {}", format_duration(self.p50), format_duration(self.p99))
    }
}

/// `40 ms`, `1.5 s`.
pub fn format_duration(time: Duration) -> String {
    if time < Duration::from_secs(1) {
        format!("{} ms", time.as_millis())
    } else {
        format!("{:.1} s", time.as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: i64) -> Timestamp {
        Timestamp::from_millisecond(1_000_000 + ms).unwrap()
    }

    fn push(provider: ProviderId, name: &str, ms: i64) -> Push {
        Push { provider, token: "t".to_owned(), name: name.to_owned(), at: at(ms), text: String::new() }
    }

    #[test]
    fn percentiles_are_of_the_samples_themselves() {
        let latency = Latency::of((1..=200).rev().map(Duration::from_millis).collect()).unwrap();
        assert_eq!(latency.to_string(), "100 ms / 198 ms");
        assert_eq!((latency.max, latency.of), (Duration::from_millis(200), 200));
        assert_eq!(Latency::of(vec![Duration::from_secs(2)]).unwrap().to_string(), "2.0 s / 2.0 s");
        assert_eq!(Latency::of(Vec::new()), None);
    }

    #[test]
    fn reminders_are_divided_by_whether_their_own_provider_had_a_fault() {
        let measured = Measured {
            reminders: [("a", 0), ("b", 2_000)].map(|(name, ms)| (name.to_owned(), at(ms))).into(),
            faults: vec![FaultPeriod { provider: ProviderId::Expo, from: at(1_900), until: at(5_000) }],
            ..Measured::default()
        };
        let pushes = [
            push(ProviderId::Expo, "a", 10),
            push(ProviderId::Expo, "b", 5_000),
            push(ProviderId::Fcm, "b", 2_020),
            push(ProviderId::Fcm, "post:walk", 9_000),
        ];
        let max = |provider, during_fault| {
            measured.reminders(&pushes, provider, during_fault).map(|latency| latency.max.as_millis())
        };
        assert_eq!([max(ProviderId::Expo, false), max(ProviderId::Expo, true)], [Some(10), Some(3_000)]);
        assert_eq!([max(ProviderId::Fcm, false), max(ProviderId::Fcm, true)], [Some(20), None]);
    }

    #[test]
    fn arrivals_ahead_of_the_rate_are_found_whatever_came_before() {
        let start = Instant::now();
        let sample = |ms, expo| Sample { at: start + Duration::from_millis(ms), arrived: [expo, 0] };
        let lead = |samples: &[Sample]| lead(samples, ProviderId::Expo, 100).as_millis();
        assert_eq!(
            lead(&[sample(0, 0), sample(1_000, 100), sample(9_000, 500)]),
            0,
            "a pause allows no burst after it"
        );
        assert_eq!(
            lead(&[sample(0, 0), sample(5_000, 100), sample(6_000, 300)]),
            1_000,
            "200 in a second: one second too early"
        );
        assert_eq!(lead(&[]), 0);
    }

    #[test]
    fn the_sustained_rate_is_that_of_the_middle() {
        let start = Instant::now();
        // Nothing for a second, 100 a second for ten, and one message much later.
        let arrived = |ms: u64| if ms < 1_000 { 0 } else { (ms / 10 - 100).min(1_000) };
        let mut samples: Vec<_> =
            (0..=20_000).step_by(100).map(|ms| (start + Duration::from_millis(ms), arrived(ms))).collect();
        samples.push((start + Duration::from_secs(60), 1_001));
        let rate = sustained(&samples).unwrap();
        assert!((99.0..101.0).contains(&rate), "{rate}");
        assert_eq!(sustained(&samples[..1]), None);
    }
}
