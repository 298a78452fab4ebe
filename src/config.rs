//! The settings of the whole process, read from four layers.
//!
//! From the weakest to the strongest: `config/default.toml` (compiled in; both the manual and the schema), a
//! file, the variables of the systems that pushcast replaces (`EXPO_PUSH_URL`, `FIREBASE_…`), and
//! `PUSHCAST__SECTION__KEY`. Each module owns its `Settings`; here they are put together, and the rules
//! between settings of several modules are checked.
//!
//! **Invariant:** an error is refused, never repaired or ignored, and all errors are reported at once.
//! **Invariant:** the environment is an argument; nothing below `main` reads it. **Invariant:** no secret is
//! ever printed.

mod error;
mod layers;
mod redact;
mod rules;

use std::{collections::BTreeMap, fmt, path::Path};

use serde::Deserialize;

pub use self::error::{ConfigError, ConfigErrors, SettingOrigin};
use crate::{
    dispatch, expo, fcm, http,
    stages::{medication, posts},
    store, telemetry,
};

/// The environment's variables, by name.
pub type Environment = BTreeMap<String, String>;

/// Every setting, checked. `Debug` prints what [`Config::redacted`] does.
#[derive(Clone)]
#[expect(missing_docs, reason = "config/default.toml is the manual")]
pub struct Config {
    pub kafka: consumer::Settings,
    pub store: store::Settings,
    pub push: dispatch::Settings,
    pub expo: expo::Settings,
    pub fcm: fcm::Settings,
    pub posts: posts::Settings,
    pub medication: medication::Settings,
    pub http: http::Settings,
    pub log: telemetry::Settings,
    overrides: Vec<Override>,
}

/// A setting that is not at its default, redacted.
#[derive(Clone)]
struct Override {
    key: String,
    value: String,
    origin: SettingOrigin,
}

/// The settings that are not at their defaults, and their origins, without secrets: for the log at the start.
#[derive(Clone, Copy)]
pub struct Redacted<'a>(&'a [Override]);

/// The sections as serde reads them.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Sections {
    kafka: consumer::Settings,
    store: store::Settings,
    push: dispatch::Settings,
    expo: expo::Settings,
    fcm: fcm::Settings,
    posts: posts::Settings,
    medication: medication::Settings,
    http: http::Settings,
    log: telemetry::Settings,
}

// === impl Config ===

impl Config {
    /// Reads the layers. `file` is the one that `--config` names.
    ///
    /// # Errors
    /// All errors of all layers.
    pub fn load(file: Option<&Path>, environment: &Environment) -> Result<Self, ConfigErrors> {
        let mut errors = Vec::new();
        let mut effective = layers::Effective::of_defaults();
        if let Some(path) = file {
            match std::fs::read_to_string(path) {
                Ok(text) => effective.read_file(path, &text, &mut errors),
                Err(err) => errors.push(ConfigError::of_file(path, format!("can't be read: {err}"))),
            }
        }
        effective.read_legacy_environment(environment, &mut errors);
        effective.read_environment(environment, &mut errors);
        let config = Self::of(&effective);
        for violation in rules::violations(&config) {
            errors.push(effective.error_about(violation.key, violation.expected));
        }
        if errors.is_empty() { Ok(config) } else { Err(ConfigErrors(errors)) }
    }

    /// The settings that are not at their defaults, and their origins, without secrets.
    pub fn redacted(&self) -> Redacted<'_> {
        Redacted(&self.overrides)
    }

    fn of(effective: &layers::Effective) -> Self {
        let overrides = effective
            .overrides()
            .map(|(key, value, origin)| Override {
                key: key.to_owned(),
                value: redact::redacted(key, value),
                origin: origin.clone(),
            })
            .collect();
        let Sections { kafka, store, push, expo, fcm, posts, medication, http, log } = effective.sections();
        Self { kafka, store, push, expo, fcm, posts, medication, http, log, overrides }
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Config({})", self.redacted())
    }
}

// === impl Redacted ===

impl fmt::Display for Redacted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("all defaults");
        }
        for (index, Override { key, value, origin }) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { ", " };
            write!(f, "{separator}{key} = {value} ({origin})")?;
        }
        Ok(())
    }
}
