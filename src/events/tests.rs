mod reading;
mod round_trips;

use std::{collections::BTreeSet, fs, path::PathBuf};

use serde_json::Value;

use super::*;

fn folder(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("schemas").join(name)
}

fn examples() -> Vec<(String, String)> {
    let mut examples: Vec<_> = fs::read_dir(folder("examples"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| {
            (path.file_stem().unwrap().to_str().unwrap().to_owned(), fs::read_to_string(path).unwrap())
        })
        .collect();
    examples.sort();
    examples
}

/// Reads a value as a record of that topic; returns the event's `Debug` text.
fn read_of(topic: &str, value: &[u8]) -> Result<String, Unreadable> {
    fn shown<T: std::fmt::Debug>(read: Result<T, Unreadable>) -> Result<String, Unreadable> {
        read.map(|event| format!("{event:?}"))
    }
    let value = Some(value);
    match topic {
        topics::DEVICE_TOKENS => shown(device_tokens::read(None, value)),
        topics::POSTS_CREATED => shown(posts_created::read(None, value)),
        topics::MEDICATION_REGIMENS => shown(medication_regimens::read(None, value)),
        topics::MEDICATION_TICKS => shown(medication_ticks::read(None, value)),
        topics::EXPO_RECEIPTS => shown(receipts::read(None, value)),
        topics::INVALID_TOKENS => shown(invalid_tokens::read(None, value)),
        topics::PUSH_OUTCOMES => shown(push_outcomes::read(None, value)),
        topic if topic.starts_with("push.") => shown(jobs::read(None, value)),
        topic => panic!("no events on {topic}"),
    }
}

fn topic_of(example: &str) -> &'static str {
    topics::ALL.into_iter().find(|topic| example.starts_with(&format!("{topic}."))).unwrap()
}

fn snake_case(name: &str) -> String {
    let mut snake = String::new();
    for c in name.chars() {
        if c.is_ascii_uppercase() {
            snake.push('_');
        }
        snake.push(c.to_ascii_lowercase());
    }
    snake
}

/// The object with all its names in snake_case, except those in the app's own objects.
fn in_snake_case(value: Value) -> Value {
    match value {
        Value::Object(object) => Value::Object(
            object
                .into_iter()
                .map(|(name, value)| match name.as_str() {
                    "deviceInfo" | "data" => (snake_case(&name), value),
                    _ => (snake_case(&name), in_snake_case(value)),
                })
                .collect(),
        ),
        other => other,
    }
}

#[test]
fn every_example_reads_as_recorded() {
    let read: Vec<String> = examples()
        .iter()
        .map(|(name, text)| format!("{name}: {}", read_of(topic_of(name), text.as_bytes()).unwrap()))
        .collect();
    insta::assert_snapshot!(read.join("\n\n"));
}

#[test]
fn every_topic_with_events_has_an_example() {
    let shown: BTreeSet<_> = examples().iter().map(|(name, _)| topic_of(name)).collect();
    // A dead letter has the original's bytes; fcm.urgent has the format of expo.urgent.
    let expected = topics::ALL
        .into_iter()
        .filter(|topic| ![topics::DEAD_LETTERS, topics::PUSH_FCM_URGENT].contains(topic))
        .collect();
    assert_eq!(shown, expected);
}

#[test]
fn names_in_snake_case_are_read_too() {
    for (name, text) in examples() {
        let topic = topic_of(&name);
        // Written and read by pushcast alone.
        if topic.starts_with("push.") || topic == topics::EXPO_RECEIPTS {
            continue;
        }
        let snake = in_snake_case(serde_json::from_str(&text).unwrap()).to_string();
        assert_eq!(read_of(topic, snake.as_bytes()), read_of(topic, text.as_bytes()), "{snake}");
    }
}

#[test]
fn unknown_fields_are_ignored() {
    for (name, text) in examples() {
        let mut value: Value = serde_json::from_str(&text).unwrap();
        value
            .as_object_mut()
            .unwrap()
            .insert("somethingNew".to_owned(), serde_json::json!({ "a": [1, null] }));
        assert_eq!(
            read_of(topic_of(&name), value.to_string().as_bytes()),
            read_of(topic_of(&name), text.as_bytes())
        );
    }
}

/// `UPDATE_SCHEMAS=1 cargo test --lib schemas` writes them.
#[test]
fn the_schemas_are_those_of_the_types() {
    let folder = folder("events");
    for (name, schema) in schemas() {
        let path = folder.join(format!("{name}.schema.json"));
        let generated = serde_json::to_string_pretty(&schema).unwrap() + "\n";
        if std::env::var_os("UPDATE_SCHEMAS").is_some() {
            fs::write(&path, &generated).unwrap();
        }
        assert_eq!(fs::read_to_string(&path).unwrap_or_default(), generated, "{}", path.display());
    }
    assert_eq!(fs::read_dir(folder).unwrap().count(), schemas().len(), "a schema without a topic");
}

#[test]
fn a_schema_names_every_field_of_its_examples() {
    let schemas = schemas();
    for (name, text) in examples() {
        let topic = topic_of(&name);
        let (_, schema) = schemas
            .iter()
            .find(|(name, _)| topic == *name || topic.starts_with(&format!("{name}.")))
            .unwrap();
        let schema = schema.as_value().to_string();
        let value: Value = serde_json::from_str(&text).unwrap();
        for field in value.as_object().unwrap().keys() {
            assert!(schema.contains(&format!("\"{field}\":")), "{topic}: {field}");
        }
    }
}
