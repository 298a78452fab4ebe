//! The runtime's metrics.

use prometheus::{GaugeVec, IntCounterVec, IntGaugeVec, Opts};

/// The runtime's metrics, which the host names and registers. Those of [`ConsumerMetrics::default`] are in no
/// registry, for hosts that expose none.
#[derive(Clone, Debug)]
pub struct ConsumerMetrics {
    /// Records by `stage` and `fate` (done, dead_letter, unfinished).
    pub records_total: IntCounterVec,
    /// Records that a `stage` has not settled yet, over its assigned partitions.
    pub stage_lag_records: IntGaugeVec,
    /// Age of the oldest record that a `stage` has not settled yet, in seconds.
    pub stage_lag_seconds: GaugeVec,
    /// Offsets of a `stage` between two delivered records that were never delivered: markers of transactions,
    /// or records that were compacted or deleted.
    pub offset_gaps_total: IntCounterVec,
    /// Offset resets of a `stage`: records were deleted unread, or the topic was created again.
    pub offset_resets_total: IntCounterVec,
    /// Records written to the topic of dead letters, by the `topic` they came from and the `cause`.
    pub dead_letters_total: IntCounterVec,
}

impl Default for ConsumerMetrics {
    #[expect(clippy::expect_used, reason = "names and labels are literals")]
    fn default() -> Self {
        let opts = |name: &str| Opts::new(name, name);
        let counter = |name, labels: &[&str]| IntCounterVec::new(opts(name), labels).expect("a valid metric");
        Self {
            records_total: counter("records_total", &["stage", "fate"]),
            stage_lag_records: IntGaugeVec::new(opts("stage_lag_records"), &["stage"])
                .expect("a valid metric"),
            stage_lag_seconds: GaugeVec::new(opts("stage_lag_seconds"), &["stage"]).expect("a valid metric"),
            offset_gaps_total: counter("offset_gaps_total", &["stage"]),
            offset_resets_total: counter("offset_resets_total", &["stage"]),
            dead_letters_total: counter("dead_letters_total", &["topic", "cause"]),
        }
    }
}
