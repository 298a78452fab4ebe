//! A record that can't be handled, as it is written to the topic of dead letters: key and value untouched,
//! its headers, and headers of ours that say where it came from and why. Tools that replay dead letters read
//! these.

use sha2::{Digest, Sha256};

use super::DeadLetters;
use crate::{Cause, Header, Message, Record};

const ERROR_BYTES_MAX: usize = 1024;

/// The dead letter of a record that a stage of `group` could not handle.
pub(super) fn message(record: &Record, cause: &Cause, group: &str, to: &DeadLetters) -> Message {
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
    // A dead letter that was replayed and failed again has headers of ours already: the old ones are
    // replaced.
    let others =
        record.headers.iter().filter(|other| ours.iter().all(|ours| ours.name != other.name)).cloned();
    Message {
        topic: to.topic.clone(),
        partition: None,
        key: record.key.clone(),
        value: record.value.clone(),
        headers: others.chain(ours.iter().cloned()).collect(),
    }
}

/// The same dead letter when it is too large for the topic: headers with the value's size and hash replace
/// the value and the headers without our prefix.
pub(super) fn without_value(message: Message, to: &DeadLetters) -> Message {
    let value = message.value.unwrap_or_default();
    let hash = base16ct::lower::encode_string(&Sha256::digest(&value));
    let mut headers: Vec<_> =
        message.headers.into_iter().filter(|header| header.name.starts_with(&to.header_prefix)).collect();
    headers.extend([to.header("value-bytes", value.len().to_string()), to.header("value-sha256", hash)]);
    Message { value: None, headers, ..message }
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
            header_prefix: "app.".to_owned(),
            version: "1.2.3".to_owned(),
        }
    }

    fn record(headers: &[(&str, &str)]) -> Record {
        Record {
            topic: "orders".into(),
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
        let message = message(
            &record(&[("trace", "abc")]),
            &Cause::unreadable("expected value at line 1"),
            "app.billing",
            &dead_letters(),
        );
        assert_eq!(
            (message.key.as_deref(), message.value.as_deref()),
            (Some(&[0xff, 0x00][..]), Some(&b"not json"[..]))
        );
        assert_eq!(
            texts(&message),
            [
                ("trace", "abc"),
                ("app.topic", "orders"),
                ("app.partition", "3"),
                ("app.offset", "41"),
                ("app.timestamp", "1700000000123"),
                ("app.group", "app.billing"),
                ("app.cause", "unreadable"),
                ("app.error", "expected value at line 1"),
                ("app.version", "1.2.3"),
            ]
        );
    }

    #[test]
    fn a_dead_letter_that_was_replayed_and_fails_again_names_its_origin_once() {
        let again = message(
            &record(&[("app.offset", "7"), ("app.origin", "x")]),
            &Cause::invalid("no"),
            "g",
            &dead_letters(),
        );
        let offsets: Vec<_> = texts(&again).into_iter().filter(|(name, _)| *name == "app.offset").collect();
        assert_eq!(offsets, [("app.offset", "41")]);
        assert!(
            texts(&again).contains(&("app.origin", "x")),
            "a header with our prefix that we do not write is kept"
        );
    }

    #[test]
    fn a_long_error_is_cut_between_characters() {
        let message = message(&record(&[]), &Cause::invalid("ö".repeat(600)), "g", &dead_letters());
        let (_, error) = texts(&message).into_iter().find(|(name, _)| *name == "app.error").unwrap();
        assert_eq!(error.len(), 1024);
        assert_eq!(shortened("aö", 2), "a");
    }

    #[test]
    fn a_dead_letter_too_large_for_the_topic_keeps_size_and_hash_of_its_value() {
        let message = without_value(
            message(&record(&[("huge", "…")]), &Cause::invalid("no"), "g", &dead_letters()),
            &dead_letters(),
        );
        assert_eq!(message.value, None);
        let headers = texts(&message);
        assert!(headers.contains(&("app.value-bytes", "8")));
        assert!(
            headers.contains(&(
                "app.value-sha256",
                "7ccfa1fbf3940e6f0c0375d87c0f9235a50514e14cb427bdfaf5077987b26ccf"
            )),
            "{headers:?}"
        );
        assert!(headers.iter().all(|(name, _)| *name != "huge"));
    }
}
