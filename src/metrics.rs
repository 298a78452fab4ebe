//! Every metric: its name, its help and its closed set of labels.
//!
//! The doc comment of a field is its help text, so an undocumented metric does not compile. Label values come
//! from the `label()` of our own types; an id or a token never becomes a label. There is one [`Metrics`] in a
//! process, passed as an argument and not global, so that one test can run two instances.

use consumer::ConsumerMetrics;
use prometheus::{
    Encoder, Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec,
    Opts, Registry, TextEncoder,
};

macro_rules! metrics {
    ($(
        $(#[doc = $help:literal])+
        $field:ident: $kind:ident $([$($label:literal),+])? $(in $buckets:expr)?;
    )+) => {
        /// The process's metrics.
        #[derive(Debug)]
        pub struct Metrics {
            registry: Registry,
            $($(#[doc = $help])+ pub $field: $kind,)+
        }

        /// Name, kind, labels, buckets and help of each: a family without series is not in an exposition.
        #[cfg(test)]
        const DECLARED: &[[&str; 5]] = &[$([
            concat!("pushcast_", stringify!($field)),
            stringify!($kind),
            concat!("", $($($label, " "),+)?),
            concat!("", $(stringify!($buckets))?),
            concat!($($help),+),
        ],)+];

        impl Metrics {
            /// All metrics at zero, in a registry of their own.
            #[allow(
                clippy::expect_used,
                reason = "names and labels are literals of this file; its test builds them all"
            )]
            pub fn new() -> Self {
                let registry = Registry::new();
                $(
                    let name = concat!("pushcast_", stringify!($field));
                    let help = concat!($($help),+).trim();
                    let labels: &[&str] = &[$($($label),+)?];
                    let buckets: Option<&[f64]> = None $(.or(Some(&$buckets)))?;
                    let $field = <$kind as Family>::family(name, help, labels, buckets);
                    registry.register(Box::new($field.clone())).expect("each metric is declared once");
                )+
                Self { registry, $($field,)+ }
            }
        }
    };
}

const SECONDS: [f64; 14] =
    [0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0];
const LATENESS: [f64; 10] = [1.0, 2.0, 5.0, 10.0, 15.0, 30.0, 60.0, 300.0, 900.0, 3600.0];

metrics! {
    /// Messages by provider, lane and final outcome; every message that entered delivery ends here once.
    notifications_total: IntCounterVec["provider", "lane", "outcome"];
    /// Records by stage and fate (done, dead_letter, unfinished).
    records_total: IntCounterVec["stage", "fate"];
    /// Records that a stage has not settled yet, over its assigned partitions.
    stage_lag_records: IntGaugeVec["stage"];
    /// Age of the oldest record that a stage has not settled yet, in seconds.
    stage_lag_seconds: GaugeVec["stage"];
    /// Time from a record's timestamp to a message's final outcome, in seconds.
    delivery_seconds: HistogramVec["provider", "lane"] in SECONDS;
    /// Time from a dose's schedule time to the provider's answer, in seconds.
    dose_lateness_seconds: Histogram in LATENESS;
    /// When the last clock tick was handled, in seconds since 1970.
    last_tick_timestamp_seconds: IntGauge;
    /// 1 for the state that a provider's route is in (unknown, running, waiting, breaker, paused, halted,
    /// braked), 0 for the others.
    route_state: IntGaugeVec["provider", "state"];
    /// The rate in messages per second: allowed to the whole deployment, and this instance's share of it.
    rate_limit: GaugeVec["provider", "of"];
    /// Requests by provider and HTTP status; `none` = no answer.
    provider_requests_total: IntCounterVec["provider", "status"];
    /// Duration of requests to a provider, in seconds.
    provider_request_duration_seconds: HistogramVec["provider"] in SECONDS;
    /// Messages of which it is unknown whether the provider took them, and which were sent again.
    ambiguous_sends_total: IntCounterVec["provider"];
    /// Answers of a provider that pushcast does not recognise.
    unrecognised_answers_total: IntCounterVec["provider"];
    /// Events applied to tokens, by their effect (registered, seen, unregistered, user_deleted, revoked,
    /// spared).
    token_changes_total: IntCounterVec["change"];
    /// Receipts by result (delivered, dead, failed, credentials, missing).
    receipts_total: IntCounterVec["result"];
    /// Duration of store operations, in seconds.
    store_seconds: HistogramVec["operation"] in SECONDS;
    /// Events of the driver of a CQL store (request, error, retry, timeout): one operation is several
    /// requests.
    store_driver_total: IntCounterVec["what"];
    /// Connections to a CQL store.
    store_connections: IntGauge;
    /// The 99th percentile of the duration of requests to a CQL store, in seconds.
    store_request_p99_seconds: Gauge;
    /// Offsets skipped between two records: transaction markers, or records that were compacted or deleted.
    offset_gaps_total: IntCounterVec["stage"];
    /// Offsets out of range: a stage's next record was deleted unread, or the topic was created anew.
    offset_resets_total: IntCounterVec["stage"];
    /// Records written to dead-letters, by the topic they came from and the cause.
    dead_letters_total: IntCounterVec["topic", "cause"];
    /// Resident memory of this process, in bytes; 0 where the system does not report it.
    resident_memory_bytes: IntGauge;
}

/// How each kind of metric is made.
trait Family: prometheus::core::Collector + Clone + Sized + 'static {
    fn family(name: &str, help: &str, labels: &[&str], buckets: Option<&[f64]>) -> Self;
}

macro_rules! family {
    ($($kind:ident = |$name:ident, $help:ident, $labels:ident, $buckets:ident| $make:expr;)+) => {$(
        impl Family for $kind {
            #[allow(
                unused_variables,
                clippy::expect_used,
                reason = "not every kind has labels and buckets; all are literals of this file"
            )]
            fn family($name: &str, $help: &str, $labels: &[&str], $buckets: Option<&[f64]>) -> Self {
                $make.expect("a valid metric")
            }
        }
    )+};
}

family! {
    Gauge = |name, help, labels, buckets| Gauge::new(name, help);
    IntGauge = |name, help, labels, buckets| IntGauge::new(name, help);
    IntCounterVec = |name, help, labels, buckets| IntCounterVec::new(Opts::new(name, help), labels);
    IntGaugeVec = |name, help, labels, buckets| IntGaugeVec::new(Opts::new(name, help), labels);
    GaugeVec = |name, help, labels, buckets| GaugeVec::new(Opts::new(name, help), labels);
    Histogram = |name, help, labels, buckets| Histogram::with_opts(histogram(name, help, buckets));
    HistogramVec = |name, help, labels, buckets| HistogramVec::new(histogram(name, help, buckets), labels);
}

fn histogram(name: &str, help: &str, buckets: Option<&[f64]>) -> HistogramOpts {
    HistogramOpts::new(name, help).buckets(buckets.unwrap_or(&SECONDS).to_vec())
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// The metrics that the Kafka runtime updates.
    pub fn consumer(&self) -> ConsumerMetrics {
        ConsumerMetrics {
            records_total: self.records_total.clone(),
            stage_lag_records: self.stage_lag_records.clone(),
            stage_lag_seconds: self.stage_lag_seconds.clone(),
            offset_gaps_total: self.offset_gaps_total.clone(),
            offset_resets_total: self.offset_resets_total.clone(),
            dead_letters_total: self.dead_letters_total.clone(),
        }
    }

    /// All metrics in Prometheus' text format.
    pub fn exposition(&self) -> String {
        self.resident_memory_bytes.set(resident_memory());
        let mut text = Vec::new();
        #[expect(clippy::expect_used, reason = "writing to memory does not fail")]
        TextEncoder::new().encode(&self.registry.gather(), &mut text).expect("encoding to memory");
        String::from_utf8_lossy(&text).into_owned()
    }
}

/// The resident memory that Linux reports, in bytes. Reading /proc does not block.
fn resident_memory() -> i64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kibibytes = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix("kB")?.trim().parse::<i64>().ok());
    kibibytes.unwrap_or_default() * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_metrics_that_others_rely_on_keep_their_names_and_labels() {
        let lines = DECLARED.iter().map(|[name, kind, labels, buckets, help]| {
            let labels = labels.trim().replace(' ', ",");
            format!("{}\n   {help}", format!("{name}{{{labels}}} {kind} {buckets}").trim_end())
        });
        insta::assert_snapshot!(lines.collect::<Vec<_>>().join("\n"));
    }

    #[test]
    fn a_counted_message_is_in_the_exposition() {
        let metrics = Metrics::new();
        metrics.notifications_total.with_label_values(&["expo", "urgent", "sent"]).inc_by(3);
        let text = metrics.exposition();
        assert!(
            text.contains(r#"pushcast_notifications_total{lane="urgent",outcome="sent",provider="expo"} 3"#),
            "{text}"
        );
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn memory_is_measured_for_each_exposition() {
        let metrics = Metrics::new();
        assert_eq!(metrics.resident_memory_bytes.get(), 0);
        metrics.exposition();
        assert!(metrics.resident_memory_bytes.get() > 1_000_000, "a test uses more than a megabyte");
    }
}
