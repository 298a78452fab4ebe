//! As much of JSON Schema (draft 7) as the Compose Specification's schema uses. A word of it that is not
//! known here is a panic, never a pass.

use serde_json::{Map, Value};

/// What of a document does not fit, each with its place.
pub fn mistakes(schema: &Value, document: &Value) -> Vec<String> {
    let mut mistakes = Vec::new();
    Check { root: schema, mistakes: &mut mistakes }.value(schema, document, "");
    mistakes
}

struct Check<'a> {
    root: &'a Value,
    mistakes: &'a mut Vec<String>,
}

impl Check<'_> {
    fn value(&mut self, schema: &Value, value: &Value, place: &str) {
        let words = match schema {
            Value::Bool(true) => return,
            Value::Bool(false) => return self.mistakes.push(format!("{place}: must not be there")),
            schema => schema.as_object().expect("a schema"),
        };
        // Beside a reference nothing else counts.
        if let Some(target) = words.get("$ref") {
            let target = target.as_str().unwrap().strip_prefix('#').expect("the schema is one file");
            return self.value(self.root.pointer(target).expect("what is referred to"), value, place);
        }
        for (word, rule) in words {
            let fits = match word.as_str() {
                "type" => rule.as_str().map_or_else(
                    || rule.as_array().unwrap().iter().any(|kind| is(kind, value)),
                    |_| is(rule, value),
                ),
                "enum" => rule.as_array().unwrap().contains(value),
                "minimum" => value.as_f64().is_none_or(|number| number >= rule.as_f64().unwrap()),
                "maximum" => value.as_f64().is_none_or(|number| number <= rule.as_f64().unwrap()),
                "pattern" => value.as_str().is_none_or(|text| matches(rule.as_str().unwrap(), text)),
                "uniqueItems" => value
                    .as_array()
                    .is_none_or(|items| items.iter().enumerate().all(|(n, item)| !items[..n].contains(item))),
                "required" => value.as_object().is_none_or(|fields| {
                    rule.as_array().unwrap().iter().all(|name| fields.contains_key(name.as_str().unwrap()))
                }),
                "oneOf" => {
                    rule.as_array().unwrap().iter().filter(|choice| self.fits(choice, value)).count() == 1
                }
                "items" => {
                    for (n, item) in value.as_array().into_iter().flatten().enumerate() {
                        self.value(rule, item, &format!("{place}/{n}"));
                    }
                    true
                }
                "properties" | "patternProperties" | "additionalProperties" => true,
                "$schema" | "$id" | "title" | "description" | "deprecated" | "default" | "definitions" => {
                    true
                }
                word => panic!("{word} is not known here"),
            };
            if !fits {
                self.mistakes.push(format!("{place}: {value} does not fit {word}: {rule}"));
            }
        }
        if let Some(fields) = value.as_object() {
            self.fields(words, fields, place);
        }
    }

    fn fields(&mut self, words: &Map<String, Value>, fields: &Map<String, Value>, place: &str) {
        for (name, value) in fields {
            let place = format!("{place}/{name}");
            let named = words.get("properties").and_then(|named| named.get(name));
            let patterns = words.get("patternProperties").and_then(Value::as_object).into_iter().flatten();
            let rules: Vec<_> = named
                .into_iter()
                .chain(patterns.filter(|(pattern, _)| matches(pattern, name)).map(|(_, rule)| rule))
                .collect();
            for rule in &rules {
                self.value(rule, value, &place);
            }
            if let (true, Some(rule)) = (rules.is_empty(), words.get("additionalProperties")) {
                self.value(rule, value, &place);
            }
        }
    }

    fn fits(&self, schema: &Value, value: &Value) -> bool {
        let mut mistakes = Vec::new();
        Check { root: self.root, mistakes: &mut mistakes }.value(schema, value, "");
        mistakes.is_empty()
    }
}

fn is(kind: &Value, value: &Value) -> bool {
    match kind.as_str().unwrap() {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        "number" => value.is_number(),
        "integer" => value.is_i64() || value.is_u64(),
        kind => panic!("{kind} is not known here"),
    }
}

/// The schema's few patterns, by hand.
fn matches(pattern: &str, text: &str) -> bool {
    match pattern {
        "^x-" => text.starts_with("x-"),
        "^.+$" | ".+" => !text.is_empty(),
        "^[a-z]+$" => !text.is_empty() && text.bytes().all(|b| b.is_ascii_lowercase()),
        "^[a-zA-Z0-9._-]+$" => {
            !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        }
        pattern => panic!("{pattern} is not known here"),
    }
}

#[test]
fn each_word_refuses_what_breaks_it() {
    use serde_json::json;
    let schema = json!({
        "type": "object", "required": ["a"], "additionalProperties": false, "patternProperties": { "^x-": {} },
        "properties": {
            "a": { "$ref": "#/definitions/few" },
            "b": { "type": ["string", "integer"], "minimum": 1, "maximum": 3 },
            "c": { "oneOf": [{ "type": "string" }, { "enum": ["s", 1] }] },
        },
        "definitions": { "few": { "type": "array", "uniqueItems": true, "items": { "type": "boolean" } } },
    });
    let places = |document: Value| {
        mistakes(&schema, &document)
            .iter()
            .map(|mistake| mistake.split(':').next().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(places(json!({ "a": [true, false], "b": 2, "c": 1, "x-d": null })), [""; 0]);
    assert_eq!(places(json!({ "b": "text", "c": "t" })), [""]);
    assert_eq!(places(json!([])), [""]);
    assert_eq!(places(json!({ "a": [true, true] })), ["/a"]);
    assert_eq!(places(json!({ "a": [true, "x"] })), ["/a/1"]);
    assert_eq!(places(json!({ "a": {} })), ["/a"]);
    assert_eq!(places(json!({ "a": [], "d": 1 })), ["/d"]);
    assert_eq!(places(json!({ "a": [], "b": 4 })), ["/b"]);
    assert_eq!(places(json!({ "a": [], "b": 0 })), ["/b"]);
    assert_eq!(places(json!({ "a": [], "b": 1.5 })), ["/b"]);
    assert_eq!(places(json!({ "a": [], "c": "s" })), ["/c"], "both of oneOf");
    assert_eq!(places(json!({ "a": [], "c": 2 })), ["/c"], "none of oneOf");
}
