//! Firebase Cloud Messaging, HTTP v1.

use std::time::Duration;

use secrecy::SecretString;
use serde::Deserialize;

/// `[fcm]` of config/default.toml.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "config/default.toml is the manual")]
pub struct Settings {
    pub url: String,
    pub project_id: String,
    pub credentials_file: String,
    pub client_email: String,
    pub private_key: SecretString,
    pub token_url: String,
    pub rate_per_second: u32,
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required")]
    pub ramp_up: Duration,
    pub requests_in_flight: usize,
    pub connections: usize,
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required")]
    pub request_timeout: Duration,
    pub validate_only: bool,
}
