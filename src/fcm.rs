//! Firebase Cloud Messaging, HTTP v1: one message a request, over a few HTTP/2 connections.
//!
//! `client` makes requests, `connections` carries them, `wire` holds the formats of requests and answers,
//! `verdict` what an answer means; `credentials` fetches and renews the OAuth token.

mod client;
mod connections;
mod credentials;
mod verdict;
mod wire;

use std::time::Duration;

use secrecy::SecretString;
use serde::Deserialize;

pub use self::{
    client::{Fcm, FcmMisconfigured},
    credentials::{BadCredentials, NoCredential},
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

#[cfg(test)]
impl Settings {
    /// No account and no server.
    fn empty() -> Self {
        Self {
            url: String::new(),
            project_id: String::new(),
            credentials_file: String::new(),
            client_email: String::new(),
            private_key: "".into(),
            token_url: String::new(),
            rate_per_second: 0,
            ramp_up: Duration::ZERO,
            requests_in_flight: 1,
            connections: 1,
            request_timeout: Duration::from_secs(1),
            validate_only: false,
        }
    }
}
