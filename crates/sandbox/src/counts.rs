//! The counters of a fake provider: exact, and small enough for many millions of messages.
//!
//! Of a token, and of a notification to a token, only a 64-bit hash is kept (9 to 18 bytes each). A collision
//! would hide a token or count a duplicate that is none; among ten million its probability is 1 in 400,000.

use std::{
    collections::{BTreeMap, HashSet, VecDeque},
    hash::{BuildHasherDefault, DefaultHasher, Hash, Hasher},
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use axum::http::Version;
use jiff::Timestamp;
use tokio::time::Instant;

use super::{Answer, FailureMode, ProviderStatistics, lock, reply::HttpReply};

/// A hash that is the same in every run.
pub(super) fn hash(value: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

/// The counters of one provider.
#[derive(Debug, Default)]
pub(super) struct MessageCounts {
    taken: AtomicU64,
    duplicates: AtomicU64,
    answers: [AtomicU64; Answer::ALL.len()],
    tokens: ShardedHashSet,
    sent: ShardedHashSet,
    requests: Mutex<Requests>,
}

#[derive(Debug, Default)]
struct Requests {
    count: u64,
    statuses: BTreeMap<u16, u64>,
    outages: BTreeMap<FailureMode, u64>,
    versions: BTreeMap<&'static str, u64>,
    arrived: RateWindow,
    first_at: Option<Timestamp>,
    last_at: Option<Timestamp>,
}

// === impl MessageCounts ===

impl MessageCounts {
    /// Counts a request with that many messages.
    pub fn arrived(&self, messages: u64, version: Version, at: Timestamp) {
        let mut requests = lock(&self.requests);
        requests.count += 1;
        *requests.versions.entry(version_label(version)).or_default() += 1;
        if messages > 0 {
            // The clock is read under the lock, so that the window's times never decrease.
            requests.arrived.add(Instant::now(), messages);
            requests.first_at.get_or_insert(at);
            requests.last_at = Some(at);
        }
    }

    /// Counts the answer to a request.
    pub fn replied(&self, reply: &HttpReply) {
        let mut requests = lock(&self.requests);
        *requests.statuses.entry(reply.seen_status()).or_default() += 1;
        if let Some(mode) = reply.failure_mode {
            *requests.outages.entry(mode).or_default() += 1;
        }
    }

    /// Counts messages by the answer that they got.
    pub fn answered(&self, answer: Answer, messages: u64) {
        self.answers[answer as usize].fetch_add(messages, Relaxed);
    }

    /// Counts a message that was taken. Messages with the same token and `identity` are duplicates.
    pub fn take(&self, token: &str, identity: u64) {
        let token = hash(token);
        self.taken.fetch_add(1, Relaxed);
        self.tokens.insert(token);
        // Multiplied, so that the pairs (a, b) and (b, a) do not collide; an odd factor loses no bits.
        if !self.sent.insert(token ^ identity.wrapping_mul(0x9E37_79B9_7F4A_7C15)) {
            self.duplicates.fetch_add(1, Relaxed);
        }
    }

    /// Sets everything to zero.
    pub fn reset(&self) {
        for counter in self.answers.iter().chain([&self.taken, &self.duplicates]) {
            counter.store(0, Relaxed);
        }
        self.tokens.clear();
        self.sent.clear();
        *lock(&self.requests) = Requests::default();
    }

    pub fn statistics(&self) -> ProviderStatistics {
        let answers = Answer::ALL.into_iter().zip(&self.answers);
        let answers = answers
            .map(|(answer, count)| (answer, count.load(Relaxed)))
            .filter(|(_, count)| *count > 0)
            .collect();
        let requests = lock(&self.requests);
        ProviderStatistics {
            taken: self.taken.load(Relaxed),
            distinct_tokens: self.tokens.len(),
            duplicates: self.duplicates.load(Relaxed),
            answers,
            requests: requests.count,
            statuses: requests.statuses.clone(),
            outages: requests.outages.clone(),
            http_versions: requests
                .versions
                .iter()
                .map(|(version, count)| ((*version).to_owned(), *count))
                .collect(),
            peak_per_second: requests.arrived.peak,
            first_at: requests.first_at,
            last_at: requests.last_at,
        }
    }
}

/// `HTTP/1.1`, `HTTP/2.0`.
pub(super) fn version_label(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_2 => "HTTP/2.0",
        _ => "HTTP/1.1",
    }
}

/// A count over the last second, and the maximum that it ever had.
#[derive(Debug, Default)]
pub(super) struct RateWindow {
    entries: VecDeque<(Instant, u64)>,
    sum: u64,
    peak: u64,
}

impl RateWindow {
    const WIDTH: Duration = Duration::from_secs(1);
    /// Arrivals this close to each other share an entry: at most 10,000 entries, whatever the rate.
    const GRAIN: Duration = Duration::from_micros(100);

    pub fn add(&mut self, now: Instant, count: u64) {
        self.slide(now);
        match self.entries.back_mut() {
            Some((at, sum)) if now < *at + Self::GRAIN => *sum += count,
            _ => self.entries.push_back((now, count)),
        }
        self.sum += count;
        self.peak = self.peak.max(self.sum);
    }

    /// The count over the second that ends now.
    pub fn sum(&mut self, now: Instant) -> u64 {
        self.slide(now);
        self.sum
    }

    fn slide(&mut self, now: Instant) {
        while let Some((_, count)) = self.entries.pop_front_if(|(at, _)| *at + Self::WIDTH <= now) {
            self.sum -= count;
        }
    }
}

/// A set of 64-bit hashes that many threads fill.
#[derive(Debug)]
struct ShardedHashSet([Mutex<HashSet<u64, BuildHasherDefault<IdentityHasher>>>; 64]);

impl Default for ShardedHashSet {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Mutex::default()))
    }
}

impl ShardedHashSet {
    /// Returns whether the hash is new.
    fn insert(&self, hash: u64) -> bool {
        // Neither the low bits nor the top seven: `HashSet` uses those within a shard.
        lock(&self.0[(hash >> 40) as usize % self.0.len()]).insert(hash)
    }

    fn len(&self) -> u64 {
        self.0.iter().map(|shard| lock(shard).len() as u64).sum()
    }

    fn clear(&self) {
        for shard in &self.0 {
            *lock(shard) = HashSet::default();
        }
    }
}

/// Returns a `u64` unchanged: the keys are hashes already.
#[derive(Debug, Default)]
struct IdentityHasher(u64);

impl Hasher for IdentityHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        self.0 = bytes.iter().fold(self.0, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(*byte)));
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peak_is_that_of_a_sliding_second() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut window = RateWindow::default();
        for (ms, count) in [(0, 5), (900, 10), (1_100, 20), (1_899, 1), (1_901, 2), (5_000, 3)] {
            window.add(at(ms), count);
        }
        assert_eq!(window.peak, 31, "900 to 1,899: neither the 5 before nor the 2 after");
        assert_eq!(window.sum(at(5_999)), 3);
        assert_eq!(window.sum(at(6_000)), 0, "a second later it no longer counts");
    }

    #[test]
    fn a_window_at_any_rate_has_few_entries() {
        let start = Instant::now();
        let mut window = RateWindow::default();
        for us in 0..2_000_000 {
            window.add(start + Duration::from_micros(us), 1);
        }
        assert!(window.entries.len() <= 10_001);
        assert!((999_800..=1_000_000).contains(&window.peak), "{}", window.peak);
    }

    #[test]
    fn a_duplicate_is_the_same_notification_to_the_same_token() {
        let counts = MessageCounts::default();
        for (token, notification) in [("a", "x"), ("b", "x"), ("a", "y"), ("a", "x"), ("a", "x")] {
            counts.take(token, hash(notification));
        }
        let statistics = counts.statistics();
        assert_eq!((statistics.taken, statistics.distinct_tokens, statistics.duplicates), (5, 2, 2));
    }
}
