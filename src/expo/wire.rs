//! The formats of requests to Expo and of its answers.
//!
//! A notification is serialised once ([`Body`]); for each message its token and its time to live are put in
//! front. Of an answer only what a verdict needs is parsed, and borrowed where it can be.

use std::{borrow::Cow, collections::BTreeMap, fmt, io::Write as _, sync::Arc};

use flate2::{Compression, write::GzEncoder};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{self, MapAccess, SeqAccess, Visitor},
    ser::{self, SerializeMap as _},
};
use serde_json::{Value, value::RawValue};

use crate::{
    dispatch::{PayloadRefused, PushMessage, payload, splice, splice_number},
    domain::{Data, DataValue, Notification, Platform, Token},
};

/// The longest time to live that Expo accepts: four weeks, in seconds.
const TTL_MAX: u64 = 2_419_200;

/// Bodies longer than this are compressed: below, it saves no packet.
const GZIP_ABOVE: usize = 1024;

/// A notification in Expo's format: everything of a message that comes after its token and time to live.
#[derive(Debug)]
pub struct Body {
    /// For iOS, where a repeat with the same collapse id replaces the first.
    ios: Box<[u8]>,
    /// For all others, where one with the same tag does. Never a collapse id here: FCM keeps only four
    /// collapse keys for a device that is offline, so that one for each notification would lose some.
    other: Box<[u8]>,
}

/// A message without its token.
#[derive(Debug)]
struct Content<'a> {
    rest: &'a [u8],
    /// Seconds.
    ttl: u64,
}

/// Messages of the same content, by their indices among all messages of the request.
#[derive(Debug)]
pub(super) struct Group<'a> {
    content: Content<'a>,
    pub indices: Vec<usize>,
}

/// A request body as it is sent.
pub(super) struct Request {
    pub bytes: Vec<u8>,
    pub gzipped: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Rest<'a> {
    title: &'a str,
    body: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<AppData<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sound: Option<&'a str>,
    priority: &'static str,
    #[serde(skip_serializing_if = "str::is_empty")]
    channel_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    tag: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    collapse_id: Option<&'a str>,
}

/// The app's data as a JSON object.
#[derive(Clone, Copy)]
struct AppData<'a>(&'a Data);

#[derive(Serialize)]
struct ReceiptsRequest<'a> {
    ids: Vec<&'a str>,
}

/// Expo's answer to a request that sends messages.
#[derive(Deserialize)]
pub(super) struct SendResponse<'a> {
    #[serde(borrow)]
    pub data: Option<Tickets<'a>>,
    #[serde(borrow)]
    pub errors: Option<Vec<RequestError<'a>>>,
}

/// Expo's answer to a request for receipts; an id without a receipt is absent.
#[derive(Deserialize)]
pub(super) struct ReceiptsResponse<'a> {
    #[serde(borrow)]
    pub data: Option<BTreeMap<String, Ticket<'a>>>,
}

/// One for each message, in their order; Expo may write a single one without the array.
pub(super) struct Tickets<'a>(pub Vec<Ticket<'a>>);

/// What Expo reports of one message: tickets and receipts have the same form.
#[derive(Deserialize)]
pub(super) struct Ticket<'a> {
    #[serde(borrow)]
    pub status: Text<'a>,
    #[serde(borrow)]
    pub id: Option<Text<'a>>,
    #[serde(borrow)]
    pub message: Option<Text<'a>>,
    /// Parsed only when the status is an error, so that an unknown form does not spoil the other tickets.
    #[serde(borrow)]
    pub details: Option<&'a RawValue>,
}

/// `details` of a ticket or a receipt.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Details<'a> {
    #[serde(borrow)]
    pub error: Option<Text<'a>>,
    #[serde(borrow)]
    pub expo_push_token: Option<Text<'a>>,
}

/// Why a whole request was refused.
#[derive(Deserialize)]
pub(super) struct RequestError<'a> {
    /// A string today, a number in old documentation.
    pub code: Option<Value>,
    #[serde(borrow)]
    pub message: Option<Text<'a>>,
    #[serde(borrow)]
    pub details: Option<&'a RawValue>,
}

/// A text of an answer; serde borrows it inside an `Option` only when it is a type of its own.
#[derive(Deserialize)]
#[serde(transparent)]
pub(super) struct Text<'a>(#[serde(borrow)] pub Cow<'a, str>);

// === impl Body ===

impl Body {
    pub(super) fn of(notification: &Notification) -> Result<Self, PayloadRefused> {
        let data = (!notification.data.is_empty()).then_some(AppData(&notification.data));
        let weight = data.map_or(Ok(0), |data| json(&data).map(|bytes| bytes.len()))?;
        let text = payload::fit(&notification.body, notification.title.len() + weight)?;
        let tag = notification.tag();
        let rest = |tag, collapse_id| {
            let rest = Rest {
                title: &notification.title,
                body: &text,
                data,
                sound: notification.sound.as_deref(),
                priority: "high",
                channel_id: &notification.channel,
                tag,
                collapse_id,
            };
            json(&rest).map(|mut object| {
                // The opening brace becomes the comma after the token and the time to live.
                object[0] = b',';
                object.into_boxed_slice()
            })
        };
        Ok(Self { ios: rest(None, Some(&tag))?, other: rest(Some(&tag), None)? })
    }

    fn rest(&self, platform: Option<Platform>) -> &[u8] {
        match platform {
            Some(Platform::Ios) => &self.ios,
            Some(Platform::Android | Platform::Web) | None => &self.other,
        }
    }
}

// === impl Content ===

impl<'a> Content<'a> {
    fn of(message: &PushMessage<'a, Body>) -> Self {
        // With zero, a device that dozes never gets the message.
        Self { rest: message.body.rest(message.platform), ttl: message.ttl.as_secs().clamp(1, TTL_MAX) }
    }
}

impl PartialEq for Content<'_> {
    /// Two notifications with equal texts differ in their tag: it is enough to compare addresses.
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self.rest, other.rest) && self.ttl == other.ttl
    }
}

/// These messages by their content.
pub(super) fn grouped<'a>(messages: &[PushMessage<'a, Body>]) -> Vec<Group<'a>> {
    let mut groups: Vec<Group<'_>> = Vec::new();
    for (index, message) in messages.iter().enumerate() {
        let content = Content::of(message);
        match groups.iter_mut().find(|group| group.content == content) {
            Some(group) => group.indices.push(index),
            None => {
                let mut indices = Vec::with_capacity(messages.len());
                indices.push(index);
                groups.push(Group { content, indices });
            }
        }
    }
    groups
}

// === impl Request ===

impl Request {
    /// All messages as an array of objects, compressed or not. Those that differ in their token alone share
    /// an object: a hundred of them are a tenth of the bytes. Expo answers with a ticket for each recipient,
    /// in this order.
    pub(super) fn send(messages: &[PushMessage<'_, Body>], groups: &[Group<'_>], gzip: bool) -> Self {
        let size = groups.iter().map(|group| group.content.rest.len() + 48).sum::<usize>()
            + messages.iter().map(|message| message.token.as_str().len() + 3).sum::<usize>();
        let mut bytes = Vec::with_capacity(size);
        for Group { content, indices } in groups {
            bytes.push(if bytes.is_empty() { b'[' } else { b',' });
            bytes.extend_from_slice(br#"{"to":"#);
            if let [index] = indices[..] {
                push_token(&mut bytes, messages[index].token.as_str());
            } else {
                for (position, &index) in indices.iter().enumerate() {
                    bytes.push(if position == 0 { b'[' } else { b',' });
                    push_token(&mut bytes, messages[index].token.as_str());
                }
                bytes.push(b']');
            }
            bytes.extend_from_slice(br#","ttl":"#);
            splice_number(&mut bytes, content.ttl.cast_signed());
            bytes.extend_from_slice(content.rest);
        }
        bytes.push(b']');
        Self::of(bytes, gzip)
    }

    /// Asks for the receipts of these tickets.
    pub(super) fn receipts(ids: &[Arc<str>], gzip: bool) -> serde_json::Result<Self> {
        serde_json::to_vec(&ReceiptsRequest { ids: ids.iter().map(|id| &**id).collect() })
            .map(|bytes| Self::of(bytes, gzip))
    }

    fn of(plain: Vec<u8>, gzip: bool) -> Self {
        if !gzip || plain.len() <= GZIP_ABOVE {
            return Self { bytes: plain, gzipped: false };
        }
        let mut gzip = GzEncoder::new(Vec::with_capacity(plain.len() / 4), Compression::new(1));
        match gzip.write_all(&plain).and_then(|()| gzip.finish()) {
            Ok(bytes) => Self { bytes, gzipped: true },
            // Writing to memory does not fail; if it did, the plain body is as good.
            Err(_) => Self { bytes: plain, gzipped: false },
        }
    }
}

impl Serialize for AppData<'_> {
    fn serialize<S: Serializer>(&self, json: S) -> Result<S::Ok, S::Error> {
        let mut object = json.serialize_map(Some(self.0.len()))?;
        for (name, value) in self.0 {
            match value {
                DataValue::String(text) => object.serialize_entry(name, text)?,
                DataValue::Json(text) => {
                    let raw: &RawValue = serde_json::from_str(text).map_err(ser::Error::custom)?;
                    object.serialize_entry(name, raw)?;
                }
            }
        }
        object.end()
    }
}

fn json(value: &impl Serialize) -> Result<Vec<u8>, PayloadRefused> {
    serde_json::to_vec(value)
        .map_err(|error| PayloadRefused { reason: format!("it can't be written as JSON: {error}") })
}

/// Appends a token as a JSON string.
fn push_token(bytes: &mut Vec<u8>, token: &str) {
    bytes.push(b'"');
    splice(bytes, token);
    bytes.push(b'"');
}

// === impl Tickets ===

impl<'de: 'a, 'a> Deserialize<'de> for Tickets<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OneOrMany;

        impl<'de> Visitor<'de> for OneOrMany {
            type Value = Tickets<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a ticket or an array of tickets")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let mut tickets = Vec::with_capacity(100);
                while let Some(ticket) = seq.next_element()? {
                    tickets.push(ticket);
                }
                Ok(Tickets(tickets))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                Ticket::deserialize(de::value::MapAccessDeserializer::new(map))
                    .map(|ticket| Tickets(vec![ticket]))
            }
        }

        deserializer.deserialize_any(OneOrMany)
    }
}

impl<'a> Ticket<'a> {
    pub(super) fn details(&self) -> Details<'a> {
        self.details.and_then(|raw| serde_json::from_str(raw.get()).ok()).unwrap_or_default()
    }
}

impl RequestError<'_> {
    pub(super) fn code(&self) -> &str {
        self.code.as_ref().and_then(Value::as_str).unwrap_or_default()
    }

    /// The tokens of each project, as `PUSH_TOO_MANY_EXPERIENCE_IDS` lists them.
    pub(super) fn tokens_by_project(&self) -> BTreeMap<String, Vec<String>> {
        self.details.and_then(|raw| serde_json::from_str(raw.get()).ok()).unwrap_or_default()
    }
}

/// Whether two tokens are of one device: Expo may write `ExpoPushToken[x]` for `ExponentPushToken[x]`.
pub(super) fn same_device(named: &str, ours: &Token) -> bool {
    fn id(token: &str) -> &str {
        token.split_once('[').map_or(token, |(_, rest)| rest.strip_suffix(']').unwrap_or(rest))
    }
    id(named).eq_ignore_ascii_case(id(ours.as_str()))
}

#[cfg(test)]
mod tests;
