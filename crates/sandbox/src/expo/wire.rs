//! Requests to Expo, parsed without copying.

use std::{borrow::Cow, fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{Error, SeqAccess, Visitor},
};
use serde_json::{Value, value::RawValue};

use crate::{counts, wire::Text};

/// The messages of a request: an array, or one alone.
#[derive(Debug)]
pub(super) struct Batch<'a> {
    messages: Vec<Message<'a>>,
    array: bool,
    recipients: usize,
}

impl<'a> Batch<'a> {
    /// # Errors
    /// Expo's message about what is wrong with the request.
    pub fn parse(body: &'a [u8]) -> Result<Self, String> {
        // UTF-8 is checked once here; parsing bytes would check each string on its own.
        let body = str::from_utf8(body).map_err(|err| err.to_string())?;
        let array = body.trim_start().starts_with('[');
        let parsed = if array {
            serde_json::from_str(body)
        } else {
            serde_json::from_str(body).map(|message| vec![message])
        };
        let messages: Vec<Message<'a>> = parsed.map_err(|err| err.to_string())?;
        if messages.is_empty() {
            return Err("\"value\" must contain at least 1 items".to_owned());
        }
        for (index, message) in messages.iter().enumerate() {
            message.check().map_err(|why| format!("\"[{index}].{why}"))?;
        }
        let recipients = messages.iter().map(|message| message.to.iter().count()).sum();
        Ok(Self { messages, array, recipients })
    }

    /// The number of notifications: each recipient counts.
    pub fn len(&self) -> usize {
        self.recipients
    }

    /// One object with one recipient: its ticket is returned alone, not in an array.
    pub fn is_lone(&self) -> bool {
        !self.array && self.recipients == 1
    }

    pub fn messages(&self) -> impl Iterator<Item = &Message<'a>> {
        self.messages.iter()
    }

    pub fn tokens(&self) -> impl Iterator<Item = &str> {
        self.messages.iter().flat_map(|message| message.to.iter())
    }
}

/// One message to one or several recipients. Other fields are ignored.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
#[expect(dead_code, reason = "some fields are only read for their type")]
pub(super) struct Message<'a> {
    #[serde(borrow)]
    pub to: Recipients<'a>,
    #[serde(borrow)]
    pub title: Option<Text<'a>>,
    #[serde(borrow)]
    subtitle: Option<Text<'a>>,
    #[serde(borrow)]
    pub body: Option<Text<'a>>,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
    ttl: Option<u64>,
    expiration: Option<u64>,
    priority: Option<Priority>,
    badge: Option<i64>,
    #[serde(borrow)]
    channel_id: Option<Text<'a>>,
    #[serde(borrow)]
    pub tag: Option<Text<'a>>,
    #[serde(borrow)]
    pub collapse_id: Option<Text<'a>>,
    mutable_content: Option<bool>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Priority {
    Default,
    Normal,
    High,
}

/// The body of a request for receipts.
#[derive(Debug, Deserialize)]
pub(super) struct Ids<'a> {
    #[serde(borrow)]
    pub ids: Vec<Cow<'a, str>>,
}

impl Message<'_> {
    fn check(&self) -> Result<(), &'static str> {
        if self.data.is_some_and(|data| !data.get().starts_with('{')) {
            return Err("data\" must be of type object.");
        }
        if self.to.iter().next().is_none() {
            return Err("to\" must contain at least 1 items.");
        }
        Ok(())
    }

    /// Equal for two notifications that count as the same: by `tag`, else `collapseId`, else the text.
    pub fn identity(&self) -> u64 {
        match self.tag.as_deref().or(self.collapse_id.as_deref()) {
            Some(id) => counts::hash(id),
            None => counts::hash((self.title.as_deref(), self.body.as_deref())),
        }
    }

    /// Bytes that count towards the limit; Expo does not publish the exact rule.
    pub fn payload(&self) -> usize {
        let text = |text: &Option<Text>| text.as_ref().map_or(0, |text| text.len());
        text(&self.title)
            + text(&self.subtitle)
            + text(&self.body)
            + self.data.map_or(0, |data| data.get().len())
    }
}

/// Whether a text has one of the three forms of an Expo push token.
pub(super) fn is_token(text: &str) -> bool {
    let bracketed = ["ExponentPushToken[", "ExpoPushToken["].iter().any(|start| text.starts_with(start))
        && text.ends_with(']');
    bracketed || is_uuid_like(text)
}

fn is_uuid_like(text: &str) -> bool {
    text.len() == 36
        && text.bytes().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => byte.is_ascii_alphanumeric(),
        })
}

/// The message at that index, with all its fields. Slow: only for messages that are kept.
pub(super) fn nth(body: &[u8], index: usize) -> Value {
    match serde_json::from_slice(body) {
        Ok(Value::Array(mut messages)) if index < messages.len() => messages.swap_remove(index),
        Ok(message) => message,
        Err(_) => Value::Null,
    }
}

/// `"to"`: one token or several.
#[derive(Debug)]
pub(super) enum Recipients<'a> {
    One(Cow<'a, str>),
    Many(Vec<Text<'a>>),
}

impl Recipients<'_> {
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        let (one, many) = match self {
            Self::One(token) => (Some(&**token), &[][..]),
            Self::Many(tokens) => (None, &tokens[..]),
        };
        one.into_iter().chain(many.iter().map(|token| &**token))
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Recipients<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OneOrMany<'a>(PhantomData<&'a ()>);

        impl<'de: 'a, 'a> Visitor<'de> for OneOrMany<'a> {
            type Value = Recipients<'a>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a token or an array of tokens")
            }

            fn visit_borrowed_str<E: Error>(self, token: &'de str) -> Result<Self::Value, E> {
                Ok(Recipients::One(Cow::Borrowed(token)))
            }

            fn visit_str<E: Error>(self, token: &str) -> Result<Self::Value, E> {
                Ok(Recipients::One(Cow::Owned(token.to_owned())))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut tokens: A) -> Result<Self::Value, A::Error> {
                let mut many = Vec::new();
                while let Some(token) = tokens.next_element()? {
                    many.push(token);
                }
                Ok(Recipients::Many(many))
            }
        }

        deserializer.deserialize_any(OneOrMany(PhantomData))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_recipient_counts() {
        let body =
            br#"[{"to":["ExpoPushToken[a]","ExpoPushToken[b]"],"body":"x"},{"to":"ExpoPushToken[c]"}]"#;
        let batch = Batch::parse(body).unwrap();
        assert_eq!(
            batch.tokens().collect::<Vec<_>>(),
            ["ExpoPushToken[a]", "ExpoPushToken[b]", "ExpoPushToken[c]"]
        );
        assert_eq!((batch.len(), batch.is_lone()), (3, false));
        assert!(Batch::parse(br#"{"to":"ExpoPushToken[c]"}"#).unwrap().is_lone());
    }

    #[test]
    fn the_error_names_what_is_malformed() {
        for (body, why) in [
            ("[]", "at least 1 items"),
            ("[{\"body\":\"x\"}]", "missing field `to`"),
            ("[{\"to\":\"ExpoPushToken[a]\",\"data\":\"x\"}]", "\"[0].data\" must be of type object."),
            ("[{\"to\":\"ExpoPushToken[a]\",\"ttl\":\"60\"}]", "invalid type: string"),
            ("[{\"to\":\"ExpoPushToken[a]\",\"priority\":\"urgent\"}]", "unknown variant"),
            ("[{\"to\":[]}]", "\"[0].to\" must contain"),
            ("not json", "expected"),
        ] {
            let found = Batch::parse(body.as_bytes()).unwrap_err();
            assert!(found.contains(why), "{body}: {found}");
        }
    }

    #[test]
    fn plain_texts_are_borrowed() {
        let batch = Batch::parse(br#"[{"to":"ExpoPushToken[a]","title":"plain","body":"with \"escapes\""}]"#)
            .unwrap();
        let message = batch.messages().next().unwrap();
        assert!(matches!(message.title, Some(Text(Cow::Borrowed("plain")))));
        assert_eq!(message.body.as_deref(), Some("with \"escapes\""));
    }

    #[test]
    fn the_three_forms_of_a_token() {
        for good in ["ExponentPushToken[x]", "ExpoPushToken[x]", "1A2b3c4d-1a2b-1a2b-1a2b-1a2b3c4d5e6z"] {
            assert!(is_token(good), "{good}");
        }
        for bad in ["", "ExponentPushToken[x", "ExponentPushToken", "1a2b3c4d_1a2b-1a2b-1a2b-1a2b3c4d5e6f"] {
            assert!(!is_token(bad), "{bad}");
        }
    }
}
