//! The settings of the whole process: what each part needs, read from four layers.
//!
//! From the weakest to the strongest: `config/default.toml` (compiled in; it is the manual and the schema at
//! once), a file, the variables of the systems that pushcast replaces (`EXPO_PUSH_URL`, `FIREBASE_…`), and
//! `PUSHCAST__SECTION__KEY`. Each part owns its `Settings`; here they are put together, and rules that no
//! part can see alone are checked.
//!
//! **Invariant:** a mistake is refused, never repaired or ignored, and all mistakes are shown at once.
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

/// Every setting, checked. `Debug` shows what [`Config::redacted`] does.
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
    set: Vec<Set>,
}

/// A setting that somebody has set, fit to be printed.
#[derive(Clone)]
struct Set {
    key: String,
    value: String,
    origin: SettingOrigin,
}

/// What was set, and where: for the log line of the start. Shows no secret.
#[derive(Clone, Copy)]
pub struct Redacted<'a>(&'a [Set]);

/// The sections as serde sees them.
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
    /// Everything that is wrong, in one go.
    pub fn load(file: Option<&Path>, environment: &Environment) -> Result<Self, ConfigErrors> {
        let mut mistakes = Vec::new();
        let mut effective = layers::Effective::of_defaults();
        if let Some(path) = file {
            match std::fs::read_to_string(path) {
                Ok(text) => effective.read_file(path, &text, &mut mistakes),
                Err(err) => mistakes.push(ConfigError::of_file(path, format!("can't be read: {err}"))),
            }
        }
        effective.read_names_of_old(environment, &mut mistakes);
        effective.read_environment(environment, &mut mistakes);
        let config = Self::of(&effective);
        for broken in rules::broken(&config) {
            mistakes.push(effective.complaint(broken.key, broken.expected));
        }
        if mistakes.is_empty() { Ok(config) } else { Err(ConfigErrors(mistakes)) }
    }

    /// What was set, and where, without secrets.
    pub fn redacted(&self) -> Redacted<'_> {
        Redacted(&self.set)
    }

    fn of(effective: &layers::Effective) -> Self {
        let set = effective
            .set()
            .map(|(key, value, origin)| Set {
                key: key.to_owned(),
                value: redact::shown(key, value),
                origin: origin.clone(),
            })
            .collect();
        let Sections { kafka, store, push, expo, fcm, posts, medication, http, log } = effective.sections();
        Self { kafka, store, push, expo, fcm, posts, medication, http, log, set }
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
        for (index, Set { key, value, origin }) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { ", " };
            write!(f, "{separator}{key} = {value} ({origin})")?;
        }
        Ok(())
    }
}
