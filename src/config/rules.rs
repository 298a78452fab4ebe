//! What a value's type cannot express: ranges, formats, and rules between settings.

use std::{net::SocketAddr, time::Duration};

use reqwest::Url;
use secrecy::ExposeSecret;

use super::Config;
use crate::{
    dispatch,
    domain::template,
    expo, fcm, http,
    stages::{medication, posts},
    store, telemetry,
};

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(60 * 60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// The most partitions that a topic is created with.
const PARTITIONS_MAX: i32 = 1024;

/// The most slices of a broadcast: each is a record and a row.
const SLICES_MAX: u32 = 4096;

/// A rule that a setting violates.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct RuleViolation {
    /// The setting that is reported.
    pub key: &'static str,
    /// The rule, with its reason if that is not obvious.
    pub expected: String,
}

/// Every rule that these settings violate.
pub(super) fn violations(config: &Config) -> Vec<RuleViolation> {
    let mut rules = RuleCheck::default();
    kafka(&mut rules, &config.kafka);
    store(&mut rules, &config.store);
    push(&mut rules, &config.push);
    expo(&mut rules, &config.expo);
    fcm(&mut rules, &config.fcm);
    drain(&mut rules, config);
    posts(&mut rules, &config.posts, config.kafka.partitions);
    medication(&mut rules, &config.medication);
    http(&mut rules, &config.http);
    log(&mut rules, &config.log);
    rules.0
}

fn kafka(rules: &mut RuleCheck, kafka: &consumer::Settings) {
    rules.ensure(
        "kafka.bootstrap_servers",
        kafka.bootstrap_servers.split(',').all(|server| is_host_and_port(server.trim())),
        || "expected host:port, or several of them separated by commas",
    );
    let prefix = &kafka.group_prefix;
    let legal = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    rules.ensure(
        "kafka.group_prefix",
        !prefix.is_empty() && prefix.bytes().all(legal),
        || "expected letters, digits, '.', '_' or '-'",
    );
    rules.ensure(
        "kafka.session_timeout",
        (SECOND * 6..=SECOND * 1800).contains(&kafka.session_timeout),
        || {
            "expected 6s to 30m, the range that brokers allow (group.min.session.timeout.ms, \
             group.max.session.timeout.ms)"
        },
    );
    rules.ensure(
        "kafka.commit_every",
        (SECOND / 10..=SECOND * 60).contains(&kafka.commit_every),
        || "expected 100ms to 60s",
    );
    rules.at_least_one("kafka.in_flight", kafka.in_flight);
    rules.at_least_one("kafka.in_flight_bytes", kafka.in_flight_bytes);
    rules.at_least_one("kafka.span", kafka.span);
    rules.ensure(
        "kafka.partitions",
        (1..=PARTITIONS_MAX).contains(&kafka.partitions) && (kafka.partitions & (kafka.partitions - 1)) == 0,
        || format!("expected a power of two: 1, 2, 4, … {PARTITIONS_MAX}"),
    );
    rules.ensure(
        "kafka.replication_factor",
        kafka.replication_factor >= 0,
        || "expected 0 (as many as there are brokers, at most 3) or more",
    );
    // Auto-commit would commit records that are read rather than settled; one group id would join all stages
    // into one group. `latest` would skip records that were written while no process was reading, `error`
    // would stop the consumer.
    for name in ["enable.auto.commit", "enable.auto.offset.store", "auto.offset.reset", "group.id"] {
        rules.ensure("kafka.properties", !kafka.properties.contains_key(name), || {
            format!("{name} can't be changed: records would be lost")
        });
    }
}

fn store(rules: &mut RuleCheck, store: &store::Settings) {
    if let Err(invalid) = store.location() {
        rules.refuse("store.url", invalid);
    }
    rules.ensure(
        "store.replication_factor",
        store.replication_factor >= 0,
        || "expected 0 (as many as there are nodes, at most 3) or more",
    );
    let certificate = !store.certificate_file.is_empty();
    let key = !store.key_file.is_empty();
    rules.ensure("store.certificate_file", certificate || !key, || "needed beside store.key_file");
    rules.ensure("store.key_file", key || !certificate, || "needed beside store.certificate_file");
    rules.ensure(
        "store.ca_file",
        !store.ca_file.is_empty() || !(certificate || key),
        || "needed beside store.certificate_file",
    );
}

fn push(rules: &mut RuleCheck, push: &dispatch::Settings) {
    rules.at_least_one("push.open_pages", push.open_pages);
    rules.ensure("push.page_size", (1..=500).contains(&push.page_size), || "expected 1 to 500");
    let provider_max = DAY * 28;
    rules.ensure(
        "push.bulk_life",
        (SECOND..=provider_max).contains(&push.bulk_life),
        || "expected 1s to 28 days (672h)",
    );
    rules.ensure(
        "push.urgent_life",
        (SECOND..=provider_max).contains(&push.urgent_life),
        || "expected 1s to 28 days (672h)",
    );
    rules.ensure("push.brake_dead", push.brake_dead >= 1, || "expected 1 or more");
    rules.ensure("push.brake_percent", push.brake_percent <= 100, || "expected 0 to 100 (100 = no brake)");
    rules.ensure("push.brake_window", (SECOND..=HOUR).contains(&push.brake_window), || "expected 1s to 1h");
    rules.ensure("push.page_stale_after", push.page_stale_after >= SECOND, || "expected 1s or more");
}

fn expo(rules: &mut RuleCheck, expo: &expo::Settings) {
    rules.url("expo.url", &expo.url);
    rules.rate("expo.rate_per_second", expo.rate_per_second);
    rules.request_slots("expo.requests_in_flight", expo.requests_in_flight);
    rules.ensure(
        "expo.receipt_delay",
        expo.receipt_delay < DAY,
        || "expected less than 24h: Expo forgets receipts then",
    );
    rules.ensure(
        "expo.dead_token_errors",
        expo.dead_token_errors.iter().all(|code| !code.trim().is_empty()),
        || "expected no empty text",
    );
}

fn fcm(rules: &mut RuleCheck, fcm: &fcm::Settings) {
    rules.ensure(
        "fcm.url",
        url_of(&fcm.url).is_some_and(|url| url.path() == "/" && url.query().is_none()),
        || "expected an origin: http:// or https://, a host, perhaps a port, and no path",
    );
    rules.url("fcm.token_url", &fcm.token_url);
    rules.rate("fcm.rate_per_second", fcm.rate_per_second);
    rules.request_slots("fcm.requests_in_flight", fcm.requests_in_flight);
    rules.at_least_one("fcm.connections", fcm.connections);
    let key = fcm.private_key.expose_secret();
    rules.ensure(
        "fcm.private_key",
        key.is_empty() || key.contains("-----BEGIN "),
        || "expected a PEM key: -----BEGIN PRIVATE KEY-----…",
    );
    if !fcm.credentials_file.is_empty() {
        return;
    }
    // Credentials in parts: both and a project, or none.
    match (fcm.client_email.is_empty(), key.is_empty()) {
        (true, true) => {}
        (false, false) => rules.ensure(
            "fcm.project_id",
            !fcm.project_id.is_empty(),
            || "needed beside fcm.client_email and fcm.private_key, which do not name the project",
        ),
        (false, true) => rules.refuse(
            "fcm.private_key",
            "needed beside fcm.client_email (or fcm.credentials_file instead of both)",
        ),
        (true, false) => rules.refuse(
            "fcm.client_email",
            "needed beside fcm.private_key (or fcm.credentials_file instead of both)",
        ),
    }
}

/// A stop waits for requests in flight; one with a longer time-out would be cut off, and its messages sent
/// twice.
fn drain(rules: &mut RuleCheck, config: &Config) {
    let drain = config.kafka.drain_timeout;
    let timeouts = [
        ("expo.request_timeout", config.expo.request_timeout),
        ("fcm.request_timeout", config.fcm.request_timeout),
    ];
    for (key, timeout) in timeouts {
        rules.ensure(key, !timeout.is_zero() && timeout < drain, || {
            format!(
                "expected more than 0s and less than kafka.drain_timeout ({drain:?}), or a stop cuts \
                 requests short"
            )
        });
    }
}

fn posts(rules: &mut RuleCheck, posts: &posts::Settings, partitions: i32) {
    let least = u32::try_from(partitions).unwrap_or(1);
    let is_valid = posts.slices.is_power_of_two() && (least..=SLICES_MAX).contains(&posts.slices);
    rules.ensure("posts.slices", is_valid, || {
        format!(
            "expected a power of two and a multiple of kafka.partitions ({partitions}): {partitions}, {}, … \
             {SLICES_MAX}",
            2 * least
        )
    });
    let fields = ["author_name", "title", "body", "post_id", "author_id"];
    rules.template("posts.title", &posts.title, &fields);
    rules.template("posts.body", &posts.body, &fields);
}

fn medication(rules: &mut RuleCheck, medication: &medication::Settings) {
    rules.ensure("medication.max_lateness", medication.max_lateness >= SECOND, || "expected 1s or more");
    rules.ensure("medication.tick_every", medication.tick_every < medication.max_lateness, || {
        format!(
            "expected less than medication.max_lateness ({:?}), or doses are missed between two ticks",
            medication.max_lateness
        )
    });
    let fields = ["medicine_name", "dosage", "local_time"];
    rules.template("medication.title", &medication.title, &fields);
    rules.template("medication.body", &medication.body, &fields);
}

fn http(rules: &mut RuleCheck, http: &http::Settings) {
    let listens = |address: &str| address.is_empty() || address.parse::<SocketAddr>().is_ok();
    let expected = || "expected address:port, as in 127.0.0.1:8080 or [::]:8080, or an empty text for none";
    rules.ensure("http.listen", listens(&http.listen), expected);
    rules.ensure("http.admin_listen", listens(&http.admin_listen), expected);
    // Port 0 is a different port each time.
    let same = http.listen == http.admin_listen && !http.listen.is_empty() && !http.listen.ends_with(":0");
    rules.ensure("http.listen", !same, || "expected another address than http.admin_listen");
}

fn log(rules: &mut RuleCheck, log: &telemetry::Settings) {
    if let Err(err) = telemetry::filter(log) {
        rules.refuse(
            "log.filter",
            format!("expected a filter as in \"info\" or \"pushcast=debug,info\": {err}"),
        );
    }
}

/// Collects the violations.
#[derive(Default)]
struct RuleCheck(Vec<RuleViolation>);

impl RuleCheck {
    fn refuse(&mut self, key: &'static str, expected: impl ToString) {
        self.0.push(RuleViolation { key, expected: expected.to_string() });
    }

    fn ensure<T: ToString>(&mut self, key: &'static str, holds: bool, expected: impl FnOnce() -> T) {
        if !holds {
            self.refuse(key, expected().to_string());
        }
    }

    fn at_least_one(&mut self, key: &'static str, number: usize) {
        self.ensure(key, number >= 1, || "expected 1 or more");
    }

    fn request_slots(&mut self, key: &'static str, number: usize) {
        self.ensure(key, number >= 2, || "expected 2 or more: one is reserved for urgent ones");
    }

    fn rate(&mut self, key: &'static str, rate: u32) {
        self.ensure(key, rate != 1, || "expected 2 or more, or 0 for no limit");
    }

    fn url(&mut self, key: &'static str, text: &str) {
        self.ensure(key, url_of(text).is_some(), || "expected a URL with http:// or https://");
    }

    /// A word in braces is a field; any other brace is text.
    fn template(&mut self, key: &'static str, template: &str, fields: &[&str]) {
        for name in template::placeholders(template) {
            self.ensure(key, fields.contains(&name), || {
                let known: Vec<_> = fields.iter().map(|field| format!("{{{field}}}")).collect();
                format!("{{{name}}} is not a field; expected {}", known.join(", "))
            });
        }
    }
}

fn url_of(text: &str) -> Option<Url> {
    Url::parse(text).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
}

fn is_host_and_port(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let is_host = match bare {
        Some(v6) => v6.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || b".-_".contains(&b)),
    };
    is_host && port.parse::<u16>().is_ok_and(|port| port > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_a_host_and_a_port() {
        for good in ["kafka:9092", "127.0.0.1:9092", "[::1]:9092", "b-1.msk.example.com:9096"] {
            assert!(is_host_and_port(good), "{good}");
        }
        for bad in [
            "",
            "kafka",
            "kafka:",
            "kafka:0",
            "kafka:99999",
            ":9092",
            "::1:9092",
            "http://kafka:9092",
            "a b:9092",
        ] {
            assert!(!is_host_and_port(bad), "{bad}");
        }
    }

    #[test]
    fn a_template_may_contain_other_braces_but_no_unknown_field() {
        let violations = |template: &str| {
            let mut rules = RuleCheck::default();
            rules.template("posts.title", template, &["title"]);
            rules.0.len()
        };
        assert_eq!(violations("{title}: {} {a b} { and }, :-}"), 0);
        assert_eq!(violations("{titel} by {author}"), 2);
    }
}
