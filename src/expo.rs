//! Expo's push service: up to 100 messages a request, a ticket for each, a receipt later.
//!
//! `client` makes requests, `wire` holds the formats of requests and answers, `verdict` what an answer means.

mod client;
mod verdict;
mod wire;

use std::time::Duration;

use secrecy::SecretString;
use serde::Deserialize;

pub use self::{
    client::{Expo, ExpoMisconfigured},
    wire::Body,
};

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
    pub gzip: bool,
    pub receipts: bool,
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required")]
    pub receipt_delay: Duration,
    pub dead_token_errors: Vec<String>,
}
