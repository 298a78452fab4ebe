//! Reads JSON objects, and describes what is wrong with one without quoting what may be a token.

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{Unreadable, fields};

/// Reads the record's value as one JSON object.
pub(super) fn object<T: DeserializeOwned>(value: Option<&[u8]>) -> Result<T, Unreadable> {
    let value = value.ok_or_else(|| Unreadable::malformed("a null value, expected a JSON object"))?;
    let text = std::str::from_utf8(value).map_err(|_| Unreadable::malformed("not UTF-8"))?;
    // serde would read `[…]` as the fields in their order.
    if !text.trim_start().starts_with('{') {
        return Err(Unreadable::malformed("not a JSON object"));
    }
    let mut json = serde_json::Deserializer::from_str(text);
    let object = serde_path_to_error::deserialize(&mut json)
        .map_err(|err| described(&err.path().to_string(), err.inner()))?;
    json.end().map_err(|err| described(".", &err))?;
    Ok(object)
}

/// The value of `event`, if there is one.
pub(super) fn event_of(value: Option<&[u8]>) -> Result<Option<String>, Unreadable> {
    #[derive(Deserialize)]
    struct Which {
        #[serde(default, deserialize_with = "fields::optional")]
        event: Option<fields::Text>,
    }
    object::<Which>(value).map(|which| which.event.map(|event| event.0))
}

/// The topic does not know this value of `event`.
pub(super) fn unknown_event(event: &str, known: &str) -> Unreadable {
    Unreadable::invalid(format!("`event`: {} is not one of {known}", fields::shown(event)))
}

/// The field is absent, null or empty.
pub(super) fn missing(field: &str) -> Unreadable {
    Unreadable::malformed(format!("missing field `{field}`"))
}

/// The field has an impossible value.
pub(super) fn invalid(field: &str, why: impl std::fmt::Display) -> Unreadable {
    Unreadable::invalid(format!("`{field}`: {why}"))
}

/// Writes a record's value.
pub(super) fn bytes(record: &impl Serialize) -> Vec<u8> {
    #[expect(
        clippy::expect_used,
        reason = "our records have text keys and no failing fields; writing to memory does not fail"
    )]
    serde_json::to_vec(record).expect("a record can be written as JSON")
}

fn described(path: &str, err: &serde_json::Error) -> Unreadable {
    if !err.is_data() {
        return Unreadable::malformed(format!("not JSON: {err}"));
    }
    let text = err.to_string();
    let text =
        text.strip_suffix(&format!(" at line {} column {}", err.line(), err.column())).unwrap_or(&text);
    let at = |why: &str| if path == "." { why.to_owned() } else { format!("`{path}`: {why}") };
    if let Some(unexpected) =
        text.strip_prefix("invalid type: ").or_else(|| text.strip_prefix("invalid value: "))
    {
        Unreadable::malformed(at(&expectation(unexpected)))
    } else if let Some(unknown) = text.strip_prefix("unknown variant ") {
        Unreadable::malformed(at(&expectation(unknown)))
    } else if text.starts_with("missing field ") || text.starts_with("duplicate field ") {
        Unreadable::malformed(at(text))
    } else {
        // The message of a field's own parser, which refused its text.
        Unreadable::invalid(at(text))
    }
}

/// serde's message `string "…", expected a boolean` quotes the text, and any text may be a token in the wrong
/// place.
fn expectation(text: &str) -> String {
    let Some((found, expected)) = text.rsplit_once(", expected ") else {
        return "a value of another type".to_owned();
    };
    let found = match found {
        "null" => "null",
        "map" => "an object",
        "sequence" => "a list",
        "boolean `true`" | "boolean `false`" => "a boolean",
        found if found.starts_with("integer") || found.starts_with("floating point") => "a number",
        _ => "a text",
    };
    format!("expected {expected}, found {found}")
}

/// In a schema of several events: a record without `event` is the first of them.
pub(super) fn first_event_by_default(schema: &mut schemars::Schema) {
    let first = schema.get_mut("oneOf").and_then(|events| events.get_mut(0));
    if let Some(required) =
        first.and_then(|first| first.get_mut("required")).and_then(serde_json::Value::as_array_mut)
    {
        required.retain(|name| name != "event");
    }
}
