//! The layers of settings, merged into one value for each key, with its origin.
//!
//! `config/default.toml` is the schema: a key that is not in it does not exist, and a value must have the
//! type of its default. What a type cannot express (a range, one of three words) is checked by deserialising
//! the section's own `Settings`, one value at a time, so that every error is found and is reported with its
//! own line.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use serde::Deserialize;
use toml::{
    Spanned, Table, Value,
    de::{DeTable, DeValue},
};

use super::{ConfigError, Environment, Sections, SettingOrigin, redact};

const DEFAULTS: &str = include_str!("../../config/default.toml");
const PREFIX: &str = "PUSHCAST__";

/// The one key whose value has keys that are not in the schema: those of librdkafka.
const PROPERTIES: &str = "kafka.properties";

/// Variables of the replaced systems, and the settings that they set.
const LEGACY_ENV: [(&str, &str); 6] = [
    ("EXPO_PUSH_URL", "expo.url"),
    ("ENABLE_PUSH_NOTIFICATIONS", "push.enabled"),
    ("FIREBASE_PROJECT_ID", "fcm.project_id"),
    ("FIREBASE_CLIENT_EMAIL", "fcm.client_email"),
    ("FIREBASE_PRIVATE_KEY", "fcm.private_key"),
    ("GOOGLE_APPLICATION_CREDENTIALS", "fcm.credentials_file"),
];

/// The settings after some layers, by dotted key.
#[derive(Debug)]
pub(super) struct Effective(BTreeMap<String, Setting>);

#[derive(Clone, Debug)]
struct Setting {
    kind: ValueKind,
    value: Value,
    origin: SettingOrigin,
}

/// The type of a value, taken from its default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ValueKind {
    Text,
    Duration,
    Number,
    Bool,
    List,
    Properties,
}

// === impl Effective ===

impl Effective {
    /// The defaults, which are compiled in.
    pub fn of_defaults() -> Self {
        #[expect(clippy::expect_used, reason = "compiled in, and a test reads it")]
        let defaults: Table = DEFAULTS.parse().expect("config/default.toml is TOML");
        let mut settings = BTreeMap::new();
        for (section, values) in defaults {
            for (key, value) in values.as_table().into_iter().flatten() {
                let setting = Setting {
                    kind: ValueKind::of(value),
                    value: value.clone(),
                    origin: SettingOrigin::Default,
                };
                settings.insert(format!("{section}.{key}"), setting);
            }
        }
        Self(settings)
    }

    /// Adds a file as the top layer.
    pub fn read_file(&mut self, path: &Path, text: &str, errors: &mut Vec<ConfigError>) {
        let path: Arc<str> = path.display().to_string().into();
        let at = |offset: usize| SettingOrigin::File {
            path: path.clone(),
            line: 1 + text[..offset].matches('\n').count(),
        };
        let (document, syntax_errors) = DeTable::parse_recoverable(text);
        for err in &syntax_errors {
            let origin = at(err.span().map_or(0, |span| span.start));
            errors.push(ConfigError {
                origin: origin.to_string(),
                setting: None,
                expected: format!("is not TOML: {}", err.message()),
            });
        }
        for (section, values) in document.get_ref() {
            let name = section.get_ref();
            let Some(values) = values.get_ref().as_table().filter(|_| self.has_section(name)) else {
                errors.push(ConfigError::unknown(&at(section.span().start), Some(name), self.closest(name)));
                continue;
            };
            for (key, value) in values {
                let key = Spanned::new(key.span(), format!("{name}.{}", key.get_ref()));
                let origin = at(key.span().start);
                let key = key.get_ref();
                if self.0.contains_key(key) {
                    self.put(key, plain(value.get_ref()), origin, errors);
                } else {
                    errors.push(ConfigError::unknown(&origin, Some(key), self.closest(key)));
                }
            }
        }
    }

    /// Adds the variables of the replaced systems as the top layer. An empty one counts as unset: compose
    /// files pass unset ones on as empty.
    pub fn read_legacy_environment(&mut self, environment: &Environment, errors: &mut Vec<ConfigError>) {
        for (name, key) in LEGACY_ENV {
            if let Some(text) = environment.get(name).filter(|text| !text.is_empty()) {
                self.put_text(key, text, SettingOrigin::Variable(name.to_owned()), errors);
            }
        }
    }

    /// Adds `PUSHCAST__SECTION__KEY` as the top layer.
    pub fn read_environment(&mut self, environment: &Environment, errors: &mut Vec<ConfigError>) {
        for (name, text) in environment {
            let Some(path) = name.strip_prefix(PREFIX) else { continue };
            let key = path.to_lowercase().replace("__", ".");
            let origin = SettingOrigin::Variable(name.clone());
            if self.0.contains_key(&key) {
                self.put_text(&key, text, origin, errors);
            } else {
                errors.push(ConfigError::unknown(
                    &origin,
                    None,
                    self.closest(&key).map(|key| variable(&key)),
                ));
            }
        }
    }

    /// The settings that are not at their defaults.
    pub fn overrides(&self) -> impl Iterator<Item = (&str, &Value, &SettingOrigin)> {
        let overrides = self.0.iter().filter(|(_, setting)| setting.origin != SettingOrigin::Default);
        overrides.map(|(key, Setting { value, origin, .. })| (key.as_str(), value, origin))
    }

    /// An error about the present value of a key.
    pub fn error_about(&self, key: &str, expected: String) -> ConfigError {
        let Setting { value, origin, .. } = &self.0[key];
        ConfigError::of_value(origin, key, &redact::redacted(key, value), expected)
    }

    /// The settings as the modules' own types.
    pub fn sections(&self) -> Sections {
        #[expect(
            clippy::expect_used,
            reason = "put() has refused every value that the sections refuse; a test reads the defaults"
        )]
        Sections::deserialize(self.document()).expect("every value was checked before it was put")
    }

    /// Puts a value that is given as text.
    fn put_text(&mut self, key: &str, text: &str, origin: SettingOrigin, errors: &mut Vec<ConfigError>) {
        match self.0[key].kind.read(key, text) {
            Ok(value) => self.put(key, value, origin, errors),
            Err(expected) => {
                let redacted = redact::redacted(key, &Value::from(text));
                // A malformed JSON object of properties may contain a password anywhere.
                let redacted = if key == PROPERTIES { "\"[redacted]\"" } else { &redacted };
                errors.push(ConfigError::of_value(&origin, key, redacted, expected));
            }
        }
    }

    /// Puts a value, if it is of the right type and its section accepts it. Otherwise the previous one stays,
    /// so that the rules between settings can still be checked.
    fn put(&mut self, key: &str, value: Value, origin: SettingOrigin, errors: &mut Vec<ConfigError>) {
        let before = &self.0[key];
        let refusal = |value: &Value, expected: String| {
            ConfigError::of_value(&origin, key, &redact::redacted(key, value), expected)
        };
        let value = match before.kind.accept(value, &before.value) {
            Ok(value) => value,
            Err(value) => {
                return errors.push(refusal(&value, format!("expected {}", before.kind.description())));
            }
        };
        let kind = before.kind;
        let mut trial = self.document();
        let (section, name) = key.split_once('.').unwrap_or((key, ""));
        if let Some(section) = trial.get_mut(section).and_then(Value::as_table_mut) {
            section.insert(name.to_owned(), value.clone());
        }
        match Sections::deserialize(trial) {
            Ok(_) => drop(self.0.insert(key.to_owned(), Setting { kind, value, origin })),
            Err(_) if kind == ValueKind::Number => {
                let range = if value.as_integer().is_some_and(i64::is_negative) {
                    "0 or more"
                } else {
                    "a smaller number"
                };
                errors.push(refusal(&value, format!("expected {range}")));
            }
            Err(_) if kind == ValueKind::Duration => {
                errors.push(refusal(&value, format!("expected {}", kind.description())))
            }
            Err(err) => errors.push(refusal(&value, in_one_line(err.message()))),
        }
    }

    fn document(&self) -> Table {
        let mut document = Table::new();
        for (key, Setting { value, .. }) in &self.0 {
            let (section, name) = key.split_once('.').unwrap_or((key, ""));
            let section = document.entry(section).or_insert_with(|| Value::Table(Table::new()));
            if let Value::Table(section) = section {
                section.insert(name.to_owned(), value.clone());
            }
        }
        document
    }

    fn has_section(&self, name: &str) -> bool {
        self.0.keys().any(|key| key.split('.').next() == Some(name))
    }

    /// The known name that a misspelt one probably stands for: the closest by edits, at most a third of its
    /// length; or the same key in its right section.
    fn closest(&self, misspelt: &str) -> Option<String> {
        let sections = self.0.keys().filter_map(|key| Some(key.split_once('.')?.0.to_owned()));
        let known = self.0.keys().cloned().chain(sections);
        let (distance, closest) =
            known.map(|name| (strsim::damerau_levenshtein(&name, misspelt), name)).min()?;
        if distance <= misspelt.len() / 3 {
            return Some(closest);
        }
        let name = misspelt.rsplit('.').next()?;
        self.0.keys().find(|key| key.rsplit('.').next() == Some(name)).cloned()
    }
}

// === impl ValueKind ===

impl ValueKind {
    /// The type of a default. A text that parses as a duration is one.
    fn of(default: &Value) -> Self {
        match default {
            Value::Boolean(_) => Self::Bool,
            Value::Integer(_) | Value::Float(_) => Self::Number,
            Value::Array(_) => Self::List,
            Value::Table(_) => Self::Properties,
            Value::String(text) if text.parse::<jiff::SignedDuration>().is_ok() => Self::Duration,
            Value::String(_) | Value::Datetime(_) => Self::Text,
        }
    }

    fn description(self) -> &'static str {
        match self {
            Self::Text => "a text",
            Self::Duration => "a duration such as \"500ms\", \"15s\", \"10m\" or \"24h\"",
            Self::Number => "a whole number",
            Self::Bool => "true or false",
            Self::List => "a list of texts",
            Self::Properties => "names and values of librdkafka's properties",
        }
    }

    /// Reads a variable's text.
    fn read(self, key: &str, text: &str) -> Result<Value, String> {
        let expected = || format!("expected {}", self.description());
        match self {
            // A PEM key is in one line here, with its line breaks written as \n; some env files keep the
            // quotes too.
            Self::Text if key == "fcm.private_key" => {
                Ok(Value::from(text.trim().trim_matches('"').replace("\\n", "\n")))
            }
            Self::Text | Self::Duration => Ok(Value::from(text)),
            Self::Number => text.trim().replace('_', "").parse().map(Value::Integer).map_err(|_| expected()),
            Self::Bool => match text.trim().to_ascii_lowercase().as_str() {
                "true" | "1" | "yes" | "on" => Ok(Value::Boolean(true)),
                "false" | "0" | "no" | "off" => Ok(Value::Boolean(false)),
                _ => Err("expected true or false (or 1, 0, yes, no, on, off)".to_owned()),
            },
            Self::List => Ok(Value::Array(
                text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(Value::from).collect(),
            )),
            Self::Properties if text.trim().is_empty() => Ok(Value::Table(Table::new())),
            Self::Properties => serde_json::from_str(text).map(Value::Table).map_err(|err| {
                format!(
                    "expected one JSON object, as in {{\"security.protocol\":\"ssl\"}} (column {})",
                    err.column()
                )
            }),
        }
    }

    /// The value as it is stored. `Err` returns the value: it is of another type.
    fn accept(self, value: Value, previous: &Value) -> Result<Value, Value> {
        match (self, &value) {
            (Self::Text | Self::Duration, Value::String(_))
            | (Self::Number, Value::Integer(_))
            | (Self::Bool, Value::Boolean(_)) => Ok(value),
            (Self::List, Value::Array(items)) if items.iter().all(Value::is_str) => Ok(value),
            (Self::Properties, Value::Table(properties)) => {
                // Properties are merged with those of the weaker layers.
                let mut all = previous.as_table().cloned().unwrap_or_default();
                if flatten("", properties, &mut all) { Ok(Value::Table(all)) } else { Err(value) }
            }
            _ => Err(value),
        }
    }
}

/// librdkafka's names have dots in them, which TOML reads as tables, and its values are all text. False = one
/// of the values is neither text, number nor boolean.
fn flatten(prefix: &str, properties: &Table, into: &mut Table) -> bool {
    properties.iter().all(|(name, value)| {
        let name = format!("{prefix}{name}");
        let text = match value {
            Value::Table(inner) => return flatten(&format!("{name}."), inner, into),
            Value::String(text) => text.clone(),
            Value::Integer(_) | Value::Float(_) | Value::Boolean(_) => value.to_string(),
            Value::Array(_) | Value::Datetime(_) => return false,
        };
        into.insert(name, Value::String(text));
        true
    })
}

/// A parsed value without its spans. A number that does not fit stays text, and is refused as such.
fn plain(value: &DeValue<'_>) -> Value {
    match value {
        DeValue::String(text) => Value::from(text.as_ref()),
        DeValue::Integer(number) => match i64::from_str_radix(number.as_str(), number.radix()) {
            Ok(number) => Value::Integer(number),
            Err(_) => Value::from(number.as_str()),
        },
        DeValue::Float(number) => {
            number.as_str().parse().map_or_else(|_| Value::from(number.as_str()), Value::Float)
        }
        DeValue::Boolean(value) => Value::Boolean(*value),
        DeValue::Datetime(time) => Value::Datetime(*time),
        DeValue::Array(items) => Value::Array(items.iter().map(|item| plain(item.get_ref())).collect()),
        DeValue::Table(table) => Value::Table(
            table.iter().map(|(key, value)| (key.get_ref().to_string(), plain(value.get_ref()))).collect(),
        ),
    }
}

fn variable(key: &str) -> String {
    format!("{PREFIX}{}", key.to_uppercase().replace('.', "__"))
}

fn in_one_line(message: &str) -> String {
    message.lines().map(str::trim).collect::<Vec<_>>().join(" ")
}
