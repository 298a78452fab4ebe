//! Plans a broadcast for each post.

use serde::Deserialize;

/// `[posts]` of config/default.toml.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "config/default.toml is the manual")]
pub struct Settings {
    pub slices: u32,
    pub include_anonymous: bool,
    pub title: String,
    pub body: String,
    pub screen: String,
    pub sound: String,
    pub channel: String,
}
