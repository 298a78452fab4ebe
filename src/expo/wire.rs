//! How requests to Expo and its answers look.
//!
//! A notification is serialised once ([`Body`]); a message is its token and its time to live put in front of
//! that. Of an answer only what a verdict needs is parsed, and borrowed where it can be.

use std::{borrow::Cow, collections::BTreeMap, fmt, io::Write as _, sync::Arc};

use flate2::{Compression, write::GzEncoder};
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{self, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Value, value::RawValue};

use crate::{
    dispatch::{PayloadRefused, PushMessage, payload, splice, splice_number},
    domain::{Notification, Platform, Token},
};

/// What Expo keeps a message at most: four weeks, in seconds.
const TTL_MAX: u64 = 2_419_200;

/// Bodies longer than this are compressed: below, it saves no packet.
const GZIP_ABOVE: usize = 1024;

/// A notification as Expo wants it: everything of a message that comes after its token and time to live.
#[derive(Debug)]
pub struct Body {
    /// For iOS, where the collapse id makes a repeat replace the first.
    ios: Box<[u8]>,
    /// For all others, where the tag does. Never a collapse id here: FCM keeps only four collapse keys for a
    /// device that is offline, so that one for each notification would lose some.
    other: Box<[u8]>,
}

/// What a message says, to whomever.
#[derive(Debug)]
struct Said<'a> {
    rest: &'a [u8],
    /// Seconds.
    ttl: u64,
}

/// Messages that say the same, by their places in the request's order.
#[derive(Debug)]
pub(super) struct Group<'a> {
    said: Said<'a>,
    pub places: Vec<usize>,
}

/// A request body as it goes over the wire.
pub(super) struct Request {
    pub bytes: Vec<u8>,
    pub gzipped: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Rest<'a> {
    title: &'a str,
    body: &'a str,
    #[serde(skip_serializing_if = "Map::is_empty")]
    data: &'a Map<String, Value>,
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

#[derive(Serialize)]
struct ReceiptsRequest<'a> {
    ids: Vec<&'a str>,
}

/// What Expo answers to a request for sending.
#[derive(Deserialize)]
pub(super) struct Sent<'a> {
    #[serde(borrow)]
    pub data: Option<Tickets<'a>>,
    #[serde(borrow)]
    pub errors: Option<Vec<RequestError<'a>>>,
}

/// What Expo answers to a request for receipts; an id without a receipt is absent.
#[derive(Deserialize)]
pub(super) struct Received<'a> {
    #[serde(borrow)]
    pub data: Option<BTreeMap<String, Ticket<'a>>>,
}

/// One per message, in their order; Expo writes a single one without the array.
pub(super) struct Tickets<'a>(pub Vec<Ticket<'a>>);

/// What Expo says of one message, in a ticket and in a receipt alike.
#[derive(Deserialize)]
pub(super) struct Ticket<'a> {
    #[serde(borrow)]
    pub status: Text<'a>,
    #[serde(borrow)]
    pub id: Option<Text<'a>>,
    #[serde(borrow)]
    pub message: Option<Text<'a>>,
    /// Read only when the status is an error, so that a shape we don't know spoils nobody else's ticket.
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
    /// A word today, a number in old documentation.
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
        let data = if notification.data.is_empty() { 0 } else { json(&notification.data)?.len() };
        let text = payload::fit(&notification.body, notification.title.len() + data)?;
        let tag = notification.tag();
        let rest = |tag, collapse_id| {
            let rest = Rest {
                title: &notification.title,
                body: &text,
                data: &notification.data,
                sound: notification.sound.as_deref(),
                priority: "high",
                channel_id: &notification.channel,
                tag,
                collapse_id,
            };
            json(&rest).map(|mut object| {
                // The opening brace becomes the comma after what is put in front.
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

// === impl Said ===

impl<'a> Said<'a> {
    fn by(message: &PushMessage<'a, Body>) -> Self {
        // Zero would mean "now or never" to a device that dozes.
        Self { rest: message.body.rest(message.platform), ttl: message.ttl.as_secs().clamp(1, TTL_MAX) }
    }
}

impl PartialEq for Said<'_> {
    /// Two notifications with equal texts differ in their tag: it is enough to compare where the text lies.
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self.rest, other.rest) && self.ttl == other.ttl
    }
}

/// These messages by what they say.
pub(super) fn grouped<'a>(messages: &[PushMessage<'a, Body>]) -> Vec<Group<'a>> {
    let mut groups: Vec<Group<'_>> = Vec::new();
    for (place, message) in messages.iter().enumerate() {
        let said = Said::by(message);
        match groups.iter_mut().find(|group| group.said == said) {
            Some(group) => group.places.push(place),
            None => {
                let mut places = Vec::with_capacity(messages.len());
                places.push(place);
                groups.push(Group { said, places });
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
        let size = groups.iter().map(|group| group.said.rest.len() + 48).sum::<usize>()
            + messages.iter().map(|message| message.token.as_str().len() + 3).sum::<usize>();
        let mut bytes = Vec::with_capacity(size);
        for Group { said, places } in groups {
            bytes.push(if bytes.is_empty() { b'[' } else { b',' });
            bytes.extend_from_slice(br#"{"to":"#);
            if let [place] = places[..] {
                push_token(&mut bytes, messages[place].token.as_str());
            } else {
                for (index, &place) in places.iter().enumerate() {
                    bytes.push(if index == 0 { b'[' } else { b',' });
                    push_token(&mut bytes, messages[place].token.as_str());
                }
                bytes.push(b']');
            }
            bytes.extend_from_slice(br#","ttl":"#);
            splice_number(&mut bytes, said.ttl.cast_signed());
            bytes.extend_from_slice(said.rest);
        }
        bytes.push(b']');
        Self::of(bytes, gzip)
    }

    /// A question for these tickets' receipts.
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
            // Memory does not fail to be written to; if it did, the plain body is as good.
            Err(_) => Self { bytes: plain, gzipped: false },
        }
    }
}

fn json(value: &impl Serialize) -> Result<Vec<u8>, PayloadRefused> {
    serde_json::to_vec(value).map_err(|error| PayloadRefused { reason: format!("it is no JSON: {error}") })
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

    /// Which tokens belong to which project, as `PUSH_TOO_MANY_EXPERIENCE_IDS` says it.
    pub(super) fn tokens_by_project(&self) -> BTreeMap<String, Vec<String>> {
        self.details.and_then(|raw| serde_json::from_str(raw.get()).ok()).unwrap_or_default()
    }
}

/// Whether two texts name one device: Expo may write `ExpoPushToken[x]` for `ExponentPushToken[x]`.
pub(super) fn same_device(named: &str, ours: &Token) -> bool {
    fn id(token: &str) -> &str {
        token.split_once('[').map_or(token, |(_, rest)| rest.strip_suffix(']').unwrap_or(rest))
    }
    id(named).eq_ignore_ascii_case(id(ours.as_str()))
}

#[cfg(test)]
mod tests;
