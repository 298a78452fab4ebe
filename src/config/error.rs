//! What is wrong with the settings, each mistake on one line: where, which key, which value, what is
//! expected.

use std::{fmt, path::Path, sync::Arc};

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SettingOrigin {
    /// Compiled in.
    Default,
    /// A line of the file.
    File {
        /// Its path as it was given.
        path: Arc<str>,
        /// From 1.
        line: usize,
    },
    /// An environment variable.
    Variable(String),
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// Where.
    pub origin: String,
    /// The key and the value, if it is about one. Holds no secret.
    pub setting: Option<String>,
    /// What is expected instead.
    pub expected: String,
}

/// Everything that is wrong. Displayed one a line.
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
    /// The file as a whole.
    pub(super) fn of_file(path: &Path, expected: String) -> Self {
        Self { origin: path.display().to_string(), setting: None, expected }
    }

    /// A key that nobody knows. Its value is not shown: it may be a secret under a misspelt name.
    pub(super) fn unknown(origin: &SettingOrigin, key: Option<&str>, alike: Option<String>) -> Self {
        let expected = match alike {
            Some(alike) => format!("is not a setting; did you mean {alike}?"),
            None => "is not a setting; config/default.toml lists them all".to_owned(),
        };
        Self { origin: origin.to_string(), setting: key.map(str::to_owned), expected }
    }

    /// A value that does not do. `shown` holds no secret.
    pub(super) fn of_value(
        origin: &SettingOrigin,
        key: &str,
        shown: &str,
        expected: impl Into<String>,
    ) -> Self {
        Self {
            origin: origin.to_string(),
            setting: Some(format!("{key} = {shown}")),
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
        for (index, mistake) in self.0.iter().enumerate() {
            let newline = if index == 0 { "" } else { "\n" };
            write!(f, "{newline}{mistake}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}
