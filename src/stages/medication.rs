//! Keeps regimens and their due rows; hands each dose on at its time.

use std::time::Duration;

use serde::Deserialize;

/// `[medication]` of config/default.toml.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "config/default.toml is the manual")]
pub struct Settings {
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required")]
    pub tick_every: Duration,
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required")]
    pub max_lateness: Duration,
    pub title: String,
    pub body: String,
    pub screen: String,
    pub sound: String,
    pub channel: String,
}
