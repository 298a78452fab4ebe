//! The part of JSON Schema (draft 7) that the Compose Specification's schema uses. Another keyword is a
//! panic, never ignored.

use serde_json::{Map, Value};

/// Where a document violates a schema, each error with its path in the document.
pub fn errors(schema: &Value, document: &Value) -> Vec<String> {
    let mut errors = Vec::new();
    Check { root: schema, errors: &mut errors }.value(schema, document, "");
    errors
}

struct Check<'a> {
    root: &'a Value,
    errors: &'a mut Vec<String>,
}

impl Check<'_> {
    fn value(&mut self, schema: &Value, value: &Value, path: &str) {
        let keywords = match schema {
            Value::Bool(true) => return,
            Value::Bool(false) => return self.errors.push(format!("{path}: is not allowed")),
            schema => schema.as_object().expect("a schema"),
        };
        // Other keywords beside a reference are ignored.
        if let Some(target) = keywords.get("$ref") {
            let target = target.as_str().unwrap().strip_prefix('#').expect("the schema is one file");
            return self.value(self.root.pointer(target).expect("the referenced schema"), value, path);
        }
        for (keyword, rule) in keywords {
            let fits = match keyword.as_str() {
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
                        self.value(rule, item, &format!("{path}/{n}"));
                    }
                    true
                }
                "properties" | "patternProperties" | "additionalProperties" => true,
                "$schema" | "$id" | "title" | "description" | "deprecated" | "default" | "definitions" => {
                    true
                }
                keyword => panic!("the keyword {keyword} is not implemented"),
            };
            if !fits {
                self.errors.push(format!("{path}: {value} violates {keyword}: {rule}"));
            }
        }
        if let Some(fields) = value.as_object() {
            self.fields(keywords, fields, path);
        }
    }

    fn fields(&mut self, keywords: &Map<String, Value>, fields: &Map<String, Value>, path: &str) {
        for (name, value) in fields {
            let path = format!("{path}/{name}");
            let named = keywords.get("properties").and_then(|named| named.get(name));
            let patterns = keywords.get("patternProperties").and_then(Value::as_object).into_iter().flatten();
            let rules: Vec<_> = named
                .into_iter()
                .chain(patterns.filter(|(pattern, _)| matches(pattern, name)).map(|(_, rule)| rule))
                .collect();
            for rule in &rules {
                self.value(rule, value, &path);
            }
            if let (true, Some(rule)) = (rules.is_empty(), keywords.get("additionalProperties")) {
                self.value(rule, value, &path);
            }
        }
    }

    fn fits(&self, schema: &Value, value: &Value) -> bool {
        let mut errors = Vec::new();
        Check { root: self.root, errors: &mut errors }.value(schema, value, "");
        errors.is_empty()
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
        kind => panic!("the type {kind} is not implemented"),
    }
}

/// Matches the schema's few patterns without a regex engine.
fn matches(pattern: &str, text: &str) -> bool {
    match pattern {
        "^x-" => text.starts_with("x-"),
        "^.+$" | ".+" => !text.is_empty(),
        "^[a-z]+$" => !text.is_empty() && text.bytes().all(|b| b.is_ascii_lowercase()),
        "^[a-zA-Z0-9._-]+$" => {
            !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        }
        pattern => panic!("the pattern {pattern} is not implemented"),
    }
}

#[test]
fn each_keyword_refuses_a_value_that_violates_it() {
    use serde_json::json;
    let schema = json!({
        "type": "object", "required": ["a"], "additionalProperties": false,
        "patternProperties": { "^x-": {} },
        "properties": {
            "a": { "$ref": "#/definitions/few" },
            "b": { "type": ["string", "integer"], "minimum": 1, "maximum": 3 },
            "c": { "oneOf": [{ "type": "string" }, { "enum": ["s", 1] }] },
        },
        "definitions": { "few": { "type": "array", "uniqueItems": true, "items": { "type": "boolean" } } },
    });
    let paths = |document: Value| {
        errors(&schema, &document)
            .iter()
            .map(|error| error.split(':').next().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(paths(json!({ "a": [true, false], "b": 2, "c": 1, "x-d": null })), [""; 0]);
    assert_eq!(paths(json!({ "b": "text", "c": "t" })), [""]);
    assert_eq!(paths(json!([])), [""]);
    assert_eq!(paths(json!({ "a": [true, true] })), ["/a"]);
    assert_eq!(paths(json!({ "a": [true, "x"] })), ["/a/1"]);
    assert_eq!(paths(json!({ "a": {} })), ["/a"]);
    assert_eq!(paths(json!({ "a": [], "d": 1 })), ["/d"]);
    assert_eq!(paths(json!({ "a": [], "b": 4 })), ["/b"]);
    assert_eq!(paths(json!({ "a": [], "b": 0 })), ["/b"]);
    assert_eq!(paths(json!({ "a": [], "b": 1.5 })), ["/b"]);
    assert_eq!(paths(json!({ "a": [], "c": "s" })), ["/c"], "both of oneOf");
    assert_eq!(paths(json!({ "a": [], "c": 2 })), ["/c"], "none of oneOf");
}
