//! A record that can't be handled, as it is written to the dead letters: key and value untouched, its headers,
//! and where it came from and why it is here. Whoever replays it reads these headers.

use sha2::{Digest, Sha256};

use super::DeadLetters;
use crate::{Cause, Header, Message, Record};

const ERROR_BYTES_MAX: usize = 1024;

/// The dead letter of a record that a stage of `group` could not handle.
pub(super) fn letter(record: &Record, cause: &Cause, group: &str, to: &DeadLetters) -> Message {
    let ours = [
        ("topic", record.topic.to_string()),
        ("partition", record.partition.to_string()),
        ("offset", record.offset.to_string()),
        ("timestamp", record.timestamp.as_millisecond().to_string()),
        ("group", group.to_owned()),
        ("cause", cause.label().to_owned()),
        ("error", shortened(cause.detail(), ERROR_BYTES_MAX).to_owned()),
        ("version", to.version.clone()),
    ]
    .map(|(name, value)| to.header(name, value));
    // A letter that was replayed and failed again would else say twice, and differently, where it came from.
    let theirs =
        record.headers.iter().filter(|theirs| ours.iter().all(|ours| ours.name != theirs.name)).cloned();
    Message {
        topic: to.topic.clone(),
        partition: None,
        key: record.key.clone(),
        value: record.value.clone(),
        headers: theirs.chain(ours.iter().cloned()).collect(),
    }
}

/// The same letter when the topic takes nothing that large: the value's size and hash stand for the value.
pub(super) fn without_value(letter: Message, to: &DeadLetters) -> Message {
    let value = letter.value.unwrap_or_default();
    let hash = base16ct::lower::encode_string(&Sha256::digest(&value));
    let mut headers: Vec<_> =
        letter.headers.into_iter().filter(|header| header.name.starts_with(&to.header_prefix)).collect();
    headers.extend([to.header("value-bytes", value.len().to_string()), to.header("value-sha256", hash)]);
    Message { value: None, headers, ..letter }
}

impl DeadLetters {
    fn header(&self, name: &str, value: String) -> Header {
        Header { name: format!("{}{name}", self.header_prefix), value: Some(value.into_bytes()) }
    }
}

/// The beginning of a text, cut between characters.
fn shortened(text: &str, bytes_max: usize) -> &str {
    &text[..text.floor_char_boundary(bytes_max)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::Timestamp;

    fn dead_letters() -> DeadLetters {
        DeadLetters {
            topic: "dead-letters".to_owned(),
            header_prefix: "pushcast.".to_owned(),
            version: "1.2.3".to_owned(),
        }
    }

    fn record(headers: &[(&str, &str)]) -> Record {
        Record {
            topic: "posts-created".into(),
            partition: 3,
            offset: 41,
            timestamp: Timestamp::from_millisecond(1_700_000_000_123).unwrap(),
            key: Some(vec![0xff, 0x00]),
            value: Some(b"not json".to_vec()),
            headers: headers
                .iter()
                .map(|(name, value)| Header { name: (*name).into(), value: Some(value.as_bytes().into()) })
                .collect(),
        }
    }

    fn texts(message: &Message) -> Vec<(&str, &str)> {
        message
            .headers
            .iter()
            .map(|header| (&*header.name, str::from_utf8(header.value.as_deref().unwrap()).unwrap()))
            .collect()
    }

    #[test]
    fn a_dead_letter_holds_the_bytes_untouched_and_where_they_came_from() {
        let letter = letter(
            &record(&[("trace", "abc")]),
            &Cause::unreadable("expected value at line 1"),
            "pushcast.posts",
            &dead_letters(),
        );
        assert_eq!(
            (letter.key.as_deref(), letter.value.as_deref()),
            (Some(&[0xff, 0x00][..]), Some(&b"not json"[..]))
        );
        assert_eq!(
            texts(&letter),
            [
                ("trace", "abc"),
                ("pushcast.topic", "posts-created"),
                ("pushcast.partition", "3"),
                ("pushcast.offset", "41"),
                ("pushcast.timestamp", "1700000000123"),
                ("pushcast.group", "pushcast.posts"),
                ("pushcast.cause", "unreadable"),
                ("pushcast.error", "expected value at line 1"),
                ("pushcast.version", "1.2.3"),
            ]
        );
    }

    #[test]
    fn a_letter_that_comes_back_says_once_where_it_came_from() {
        let again = letter(
            &record(&[("pushcast.offset", "7"), ("pushcast.origin", "x")]),
            &Cause::invalid("no"),
            "g",
            &dead_letters(),
        );
        let said: Vec<_> = texts(&again).into_iter().filter(|(name, _)| *name == "pushcast.offset").collect();
        assert_eq!(said, [("pushcast.offset", "41")]);
        assert!(texts(&again).contains(&("pushcast.origin", "x")), "what we don't write now is kept");
    }

    #[test]
    fn a_long_error_is_cut_between_characters() {
        let letter = letter(&record(&[]), &Cause::invalid("ö".repeat(600)), "g", &dead_letters());
        let (_, error) = texts(&letter).into_iter().find(|(name, _)| *name == "pushcast.error").unwrap();
        assert_eq!(error.len(), 1024);
        assert_eq!(shortened("aö", 2), "a");
    }

    #[test]
    fn a_letter_too_large_for_the_topic_keeps_size_and_hash_of_its_value() {
        let letter = without_value(
            letter(&record(&[("huge", "…")]), &Cause::invalid("no"), "g", &dead_letters()),
            &dead_letters(),
        );
        assert_eq!(letter.value, None);
        let said = texts(&letter);
        assert!(said.contains(&("pushcast.value-bytes", "8")));
        assert!(
            said.contains(&(
                "pushcast.value-sha256",
                "7ccfa1fbf3940e6f0c0375d87c0f9235a50514e14cb427bdfaf5077987b26ccf"
            )),
            "{said:?}"
        );
        assert!(said.iter().all(|(name, _)| *name != "huge"));
    }
}
