//! The settings that an operator may write, and the errors about wrong ones.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "all of this file is tests")]

use std::{io::Write, time::Duration};

use pushcast::config::{Config, ConfigErrors, Environment};
use secrecy::ExposeSecret;

/// Loads a file of this text under an environment of these variables. The file is called `pushcast.toml` in
/// errors.
fn load(file: &str, environment: &[(&str, &str)]) -> Result<Config, Vec<String>> {
    let mut written = tempfile::NamedTempFile::new().unwrap();
    written.write_all(file.as_bytes()).unwrap();
    let environment: Environment =
        environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let path = written.path().display().to_string();
    Config::load(Some(written.path()), &environment).map_err(|ConfigErrors(all)| {
        all.iter().map(|error| error.to_string().replace(&path, "pushcast.toml")).collect()
    })
}

fn errors(file: &str, environment: &[(&str, &str)]) -> Vec<String> {
    load(file, environment).map(|config| config.redacted().to_string()).expect_err("errors")
}

#[test]
fn the_defaults_load_by_themselves() {
    let config = Config::load(None, &Environment::new()).unwrap();
    assert_eq!(config.redacted().to_string(), "all defaults");
    assert_eq!(config.expo.rate_per_second, 600);
    assert_eq!(config.push.bulk_life, Duration::from_secs(24 * 60 * 60));
    assert_eq!(config.posts.slices, 64);
}

#[test]
fn the_stronger_layer_wins() {
    let file = "[expo]\nurl = \"http://file/send\"\nrate_per_second = 100\n[push]\nenabled = true";
    assert_eq!(load(file, &[]).unwrap().expo.url, "http://file/send");

    let legacy = [("EXPO_PUSH_URL", "http://old/send"), ("ENABLE_PUSH_NOTIFICATIONS", "no")];
    let config = load(file, &legacy).unwrap();
    assert_eq!(
        (config.expo.url.as_str(), config.push.enabled, config.expo.rate_per_second),
        ("http://old/send", false, 100)
    );

    let new = [
        ("PUSHCAST__EXPO__URL", "http://new/send"),
        ("PUSHCAST__EXPO__RATE_PER_SECOND", "300"),
        legacy[0],
        legacy[1],
    ];
    let config = load(file, &new).unwrap();
    assert_eq!(
        (config.expo.url.as_str(), config.push.enabled, config.expo.rate_per_second),
        ("http://new/send", false, 300)
    );
}

#[test]
fn a_variable_is_read_as_the_type_of_its_setting() {
    let config = load(
        "",
        &[
            ("PUSHCAST__EXPO__DEAD_TOKEN_ERRORS", "DeviceNotRegistered, InvalidCredentials"),
            ("PUSHCAST__PUSH__ENABLED", "0"),
            ("PUSHCAST__KAFKA__IN_FLIGHT_BYTES", "1_000_000"),
            ("PUSHCAST__MEDICATION__TICK_EVERY", "0s"),
            ("PUSHCAST__LOG__FORMAT", "json"),
            ("PUSHCAST__POSTS__TITLE", "12"),
        ],
    )
    .unwrap();
    assert_eq!(config.expo.dead_token_errors, ["DeviceNotRegistered", "InvalidCredentials"]);
    assert_eq!((config.push.enabled, config.kafka.in_flight_bytes), (false, 1_000_000));
    assert_eq!((config.medication.tick_every, config.posts.title.as_str()), (Duration::ZERO, "12"));
}

#[test]
fn the_legacy_switch_accepts_common_spellings() {
    for (spelling, on) in [
        ("true", true),
        ("TRUE", true),
        ("1", true),
        ("yes", true),
        ("false", false),
        ("0", false),
        ("no", false),
        ("", true),
    ] {
        assert_eq!(
            load("", &[("ENABLE_PUSH_NOTIFICATIONS", spelling)]).unwrap().push.enabled,
            on,
            "{spelling:?}"
        );
    }
}

#[test]
fn a_private_key_in_one_line_gets_its_line_breaks_back() {
    let key = r#""-----BEGIN PRIVATE KEY-----\nMIIE\n-----END PRIVATE KEY-----\n""#;
    let parts = [
        ("FIREBASE_PRIVATE_KEY", key),
        ("FIREBASE_CLIENT_EMAIL", "push@p.example"),
        ("FIREBASE_PROJECT_ID", "p"),
    ];
    let config = load("", &parts).unwrap();
    assert_eq!(
        config.fcm.private_key.expose_secret(),
        "-----BEGIN PRIVATE KEY-----\nMIIE\n-----END PRIVATE KEY-----\n"
    );
    assert_eq!((config.fcm.client_email.as_str(), config.fcm.project_id.as_str()), ("push@p.example", "p"));
}

#[test]
fn properties_of_the_environment_are_merged_with_those_of_the_file() {
    let file = concat!(
        "[kafka.properties]\nsecurity.protocol = \"sasl_ssl\"\n",
        "\"client.rack\" = \"a\"\nsocket.keepalive.enable = true",
    );
    let config =
        load(file, &[("PUSHCAST__KAFKA__PROPERTIES", r#"{"client.rack":"b","fetch.wait.max.ms":50}"#)])
            .unwrap();
    let properties: Vec<_> =
        config.kafka.properties.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    assert_eq!(
        properties,
        [
            ("client.rack", "b"),
            ("fetch.wait.max.ms", "50"),
            ("security.protocol", "sasl_ssl"),
            ("socket.keepalive.enable", "true")
        ]
    );
}

#[test]
fn every_error_of_every_layer_is_shown_with_its_origin() {
    let file = r#"
[expo]
rate_per_secnod = 5
request_timeout = "20s"

[push]
page_size = 0
open_pages = -1
bulk_life = "a day"

[kafka]
group_protocol = "modern"
in_flight = "many"

[exop]
url = "x"
"#;
    let environment = [
        ("PUSHCAST__POSTS__SLICES", "48"),
        ("PUSHCAST__FCM__CONECTIONS", "3"),
        ("PUSHCAST__FCM__RAMP_UP", "soon"),
        ("PUSHCAST__KAFKA__SPAN", "1e4"),
        ("ENABLE_PUSH_NOTIFICATIONS", "maybe"),
    ];
    assert_eq!(
        errors(file, &environment),
        [
            "pushcast.toml:15: exop: is not a setting; did you mean expo?",
            "pushcast.toml:3: expo.rate_per_secnod: is not a setting; did you mean expo.rate_per_second?",
            "pushcast.toml:12: kafka.group_protocol = \"modern\": unknown variant `modern`, expected \
             `classic` or `consumer`",
            "pushcast.toml:13: kafka.in_flight = \"many\": expected a whole number",
            "pushcast.toml:9: push.bulk_life = \"a day\": expected a duration such as \"500ms\", \
             \"15s\", \"10m\" or \"24h\"",
            "pushcast.toml:8: push.open_pages = -1: expected 0 or more",
            "ENABLE_PUSH_NOTIFICATIONS: push.enabled = \"maybe\": expected true or false (or 1, 0, yes, \
             no, on, off)",
            "PUSHCAST__FCM__CONECTIONS: is not a setting; did you mean PUSHCAST__FCM__CONNECTIONS?",
            "PUSHCAST__FCM__RAMP_UP: fcm.ramp_up = \"soon\": expected a duration such as \"500ms\", \
             \"15s\", \"10m\" or \"24h\"",
            "PUSHCAST__KAFKA__SPAN: kafka.span = \"1e4\": expected a whole number",
            "pushcast.toml:7: push.page_size = 0: expected 1 to 500",
            "pushcast.toml:4: expo.request_timeout = \"20s\": expected more than 0s and less than \
             kafka.drain_timeout (20s), or a stop cuts requests short",
            "PUSHCAST__POSTS__SLICES: posts.slices = 48: expected a power of two and a multiple of \
             kafka.partitions (16): 16, 32, … 4096",
        ]
    );
}

#[test]
fn each_rule_refuses_a_value_that_violates_it() {
    let pem = "-----BEGIN PRIVATE KEY-----";
    let rules: &[(&[(&str, &str)], &str)] = &[
        (&[("KAFKA__BOOTSTRAP_SERVERS", "")], "kafka.bootstrap_servers = \"\""),
        (&[("KAFKA__BOOTSTRAP_SERVERS", "a:9092,b")], "kafka.bootstrap_servers = \"a:9092,b\""),
        (&[("KAFKA__GROUP_PREFIX", "")], "kafka.group_prefix"),
        (&[("KAFKA__SESSION_TIMEOUT", "1s")], "kafka.session_timeout"),
        (&[("KAFKA__COMMIT_EVERY", "0s")], "kafka.commit_every"),
        (&[("KAFKA__IN_FLIGHT", "0")], "kafka.in_flight = 0"),
        (&[("KAFKA__REPLICATION_FACTOR", "-1")], "kafka.replication_factor = -1"),
        (&[("KAFKA__PARTITIONS", "24")], "kafka.partitions = 24"),
        (&[("KAFKA__PARTITIONS", "0")], "kafka.partitions = 0"),
        (&[("KAFKA__PARTITIONS", "-16")], "kafka.partitions = -16"),
        (&[("KAFKA__PARTITIONS", "128")], "posts.slices"),
        (&[("KAFKA__PROPERTIES", r#"{"enable.auto.commit":"true"}"#)], "kafka.properties"),
        (&[("STORE__URL", "postgres://x")], "expected embedded:memory, embedded:/path/to/file or scylla://"),
        (&[("STORE__URL", "scylla://db:9042")], "the keyspace is missing"),
        (&[("STORE__URL", "scylla://db:9042/Push")], "a keyspace is up to 44 of a-z"),
        (&[("STORE__KEY_FILE", "key.pem")], "needed beside store.key_file"),
        (
            &[("STORE__CERTIFICATE_FILE", "cert.pem"), ("STORE__CA_FILE", "ca.pem")],
            "needed beside store.certificate_file",
        ),
        (&[("STORE__CERTIFICATE_FILE", "cert.pem"), ("STORE__KEY_FILE", "key.pem")], "store.ca_file"),
        (&[("STORE__REPLICATION_FACTOR", "-1")], "store.replication_factor"),
        (&[("PUSH__OPEN_PAGES", "0")], "push.open_pages"),
        (&[("PUSH__PAGE_SIZE", "501")], "push.page_size"),
        (&[("PUSH__BULK_LIFE", "673h")], "push.bulk_life"),
        (&[("PUSH__URGENT_LIFE", "0s")], "push.urgent_life"),
        (&[("PUSH__PAGE_STALE_AFTER", "0s")], "push.page_stale_after"),
        (&[("EXPO__URL", "exp.host/send")], "expo.url"),
        (&[("EXPO__URL", "ftp://exp.host/send")], "expo.url"),
        (&[("EXPO__RATE_PER_SECOND", "1")], "expo.rate_per_second"),
        (&[("EXPO__REQUESTS_IN_FLIGHT", "1")], "expo.requests_in_flight"),
        (&[("EXPO__REQUEST_TIMEOUT", "0s")], "expo.request_timeout"),
        (&[("EXPO__RECEIPT_DELAY", "24h")], "expo.receipt_delay"),
        (&[("FCM__URL", "http://127.0.0.1:1/v1")], "fcm.url"),
        (&[("FCM__TOKEN_URL", "")], "fcm.token_url"),
        (&[("FCM__CONNECTIONS", "0")], "fcm.connections"),
        (&[("FCM__REQUEST_TIMEOUT", "25s")], "fcm.request_timeout"),
        (&[("FCM__CLIENT_EMAIL", "a@b.example"), ("FCM__PROJECT_ID", "p")], "needed beside fcm.client_email"),
        (&[("FCM__PRIVATE_KEY", pem), ("FCM__PROJECT_ID", "p")], "needed beside fcm.private_key"),
        (&[("FCM__PRIVATE_KEY", pem), ("FCM__CLIENT_EMAIL", "a@b.example")], "fcm.project_id"),
        (
            &[("FCM__PRIVATE_KEY", "MIIE"), ("FCM__CLIENT_EMAIL", "a@b.example"), ("FCM__PROJECT_ID", "p")],
            "expected a PEM key",
        ),
        (&[("POSTS__SLICES", "8")], "posts.slices"),
        (&[("POSTS__SLICES", "48")], "posts.slices"),
        (&[("POSTS__BODY", "by {author}")], "{author} is not a field"),
        (&[("MEDICATION__TITLE", "{title}")], "{title} is not a field"),
        (&[("MEDICATION__TICK_EVERY", "1h")], "medication.tick_every"),
        (&[("MEDICATION__MAX_LATENESS", "0s"), ("MEDICATION__TICK_EVERY", "0s")], "medication.max_lateness"),
        (&[("HTTP__ADMIN_LISTEN", "9464")], "http.admin_listen"),
        (&[("HTTP__LISTEN", "127.0.0.1:9464")], "expected another address than http.admin_listen"),
        (&[("LOG__FILTER", "pushcast=loud")], "log.filter"),
    ];
    for (variables, expected) in rules {
        let variables: Vec<_> =
            variables.iter().map(|(name, value)| (format!("PUSHCAST__{name}"), *value)).collect();
        let variables: Vec<_> = variables.iter().map(|(name, value)| (name.as_str(), *value)).collect();
        let all = errors("", &variables);
        assert!(all.iter().any(|error| error.contains(expected)), "{variables:?}: {all:?}");
    }
}

#[test]
fn no_secret_is_shown_in_an_error_or_at_the_start() {
    let secret = "S3CRET";
    let config = load(
        &format!("[kafka.properties]\nsasl.password = \"{secret}\"\n[expo]\naccess_token = \"{secret}\""),
        &[("PUSHCAST__EXPO__URL", &format!("https://ann:{secret}@proxy.example/send"))],
    )
    .unwrap();
    let shown = config.redacted().to_string();
    assert!(
        shown.contains("sasl.password = \"[redacted]\"")
            && shown.contains("expo.access_token = \"[redacted]\""),
        "{shown}"
    );
    assert!(
        shown.contains("expo.url = \"https://[redacted]@proxy.example/send\" (PUSHCAST__EXPO__URL)"),
        "{shown}"
    );
    assert!(!format!("{shown} {config:?}").contains(secret), "{shown} {config:?}");

    let all = errors(
        &format!("[expo]\naccess_tokn = \"{secret}\"\n[store]\nurl = \"scylla://ann:{secret}@db:9042/Push\""),
        &[
            ("FIREBASE_PRIVATE_KEY", secret),
            ("PUSHCAST__KAFKA__PROPERTIES", &format!(r#"{{"sasl.password":"{secret}",}}"#)),
            ("PUSHCAST__EXPO__ACCES_TOKEN", secret),
        ],
    );
    // Five, and the client_email that a private key requires.
    assert_eq!(all.len(), 6, "{all:?}");
    assert!(!all.join("\n").contains(secret), "{all:?}");
}

#[test]
fn a_file_that_is_not_toml_is_refused_with_its_line() {
    let all = errors("[expo]\nurl = \n[push]\nenabled = ture", &[]);
    assert!(all[0].starts_with("pushcast.toml:2: is not TOML: "), "{all:?}");
    assert!(all.iter().any(|error| error.starts_with("pushcast.toml:4: ")), "{all:?}");
}

#[test]
fn a_missing_file_is_named_in_the_error() {
    let missing =
        Config::load(Some("/no/such/pushcast.toml".as_ref()), &Environment::new()).unwrap_err().to_string();
    assert!(missing.starts_with("/no/such/pushcast.toml: can't be read: "), "{missing}");
}

#[test]
fn variables_with_other_prefixes_are_ignored() {
    // Kubernetes sets such ones for a service called "pushcast".
    load(
        "",
        &[("PUSHCAST_SERVICE_HOST", "10.0.0.1"), ("PUSHCAST_PORT", "tcp://10.0.0.1:80"), ("PATH", "/bin")],
    )
    .unwrap();
}
