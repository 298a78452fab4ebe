//! Expo's push service.

use std::time::Duration;

use secrecy::SecretString;
use serde::Deserialize;

/// `[expo]` of config/default.toml.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "config/default.toml is the manual")]
pub struct Settings {
    pub enabled: bool,
    pub url: String,
    pub access_token: SecretString,
    pub rate_per_second: u32,
    pub requests_in_flight: usize,
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required")]
    pub request_timeout: Duration,
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required")]
    pub receipt_delay: Duration,
    pub dead_token_errors: Vec<String>,
}
