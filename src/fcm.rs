//! Firebase Cloud Messaging, HTTP v1: one message a request, over a few HTTP/2 connections.
//!
//! `client` makes requests, `connections` carries them, `wire` is how they and their answers look, `verdict` is what an answer means, and
//! `credentials` is where the OAuth token comes from.

mod client;
mod connections;
mod credentials;
mod verdict;
mod wire;

use std::time::Duration;

use secrecy::SecretString;
use serde::Deserialize;

pub use self::{
    client::{Fcm, Misconfigured},
    credentials::BadCredentials,
    wire::Body,
};

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
