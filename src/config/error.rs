//! The errors in the settings, each on one line: origin, key, value, and what is expected.

use std::{fmt, path::Path, sync::Arc};

/// The origin of a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SettingOrigin {
    /// Compiled in.
    Default,
    /// A line of the file.
    File {
        /// Its path as in `--config`.
        path: Arc<str>,
        /// From 1.
        line: usize,
    },
    /// An environment variable.
    Variable(String),
}

/// One error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// File and line, or variable.
    pub origin: String,
    /// The key and the redacted value, if the error is about one.
    pub setting: Option<String>,
    /// What is expected instead.
    pub expected: String,
}

/// All errors. `Display` writes one a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigErrors(pub Vec<ConfigError>);

// === impl SettingOrigin ===

impl fmt::Display for SettingOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { path, line } => write!(f, "{path}:{line}"),
            Self::Variable(name) => f.write_str(name),
        }
    }
}

// === impl ConfigError ===

impl ConfigError {
    /// An error about the file as a whole.
    pub(super) fn of_file(path: &Path, expected: String) -> Self {
        Self { origin: path.display().to_string(), setting: None, expected }
    }

    /// An unknown key. Its value is not shown: it may be a secret under a misspelt name.
    pub(super) fn unknown(origin: &SettingOrigin, key: Option<&str>, closest: Option<String>) -> Self {
        let expected = match closest {
            Some(closest) => format!("is not a setting; did you mean {closest}?"),
            None => "is not a setting; config/default.toml lists them all".to_owned(),
        };
        Self { origin: origin.to_string(), setting: key.map(str::to_owned), expected }
    }

    /// A refused value. `redacted` contains no secret.
    pub(super) fn of_value(
        origin: &SettingOrigin,
        key: &str,
        redacted: &str,
        expected: impl Into<String>,
    ) -> Self {
        Self {
            origin: origin.to_string(),
            setting: Some(format!("{key} = {redacted}")),
            expected: expected.into(),
        }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.setting {
            Some(setting) => write!(f, "{}: {setting}: {}", self.origin, self.expected),
            None => write!(f, "{}: {}", self.origin, self.expected),
        }
    }
}

// === impl ConfigErrors ===

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.0.iter().enumerate() {
            let newline = if index == 0 { "" } else { "\n" };
            write!(f, "{newline}{error}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}
