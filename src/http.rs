//! The two HTTP listeners.

use serde::Deserialize;

/// `[http]` of config/default.toml.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "config/default.toml is the manual")]
pub struct Settings {
    pub listen: String,
    pub admin_listen: String,
}
