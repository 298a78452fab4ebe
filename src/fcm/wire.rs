//! The formats of requests to FCM, of its answers, and of a service account's file.
//!
//! A notification is serialised once ([`Body`]); for each message its token, its time to live and its expiry
//! are spliced in.

use std::{borrow::Cow, collections::BTreeMap, time::Duration};

use http::{
    HeaderMap, HeaderValue,
    header::{ACCEPT, AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, USER_AGENT},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, value::RawValue};

use crate::{
    dispatch::{PayloadRefused, PushMessage, payload, splice, splice_number},
    domain::{Notification, Timestamp, TokenKind},
};

/// The longest time to live that FCM accepts: four weeks, in seconds.
const TTL_MAX: u64 = 2_419_200;

/// A notification in FCM's format, as the two pieces between the fields that differ by message:
/// `{"message":{"token":`**token**`,"android":{"ttl":"`**ttl**`s",`*middle*
/// `"apns-expiration":"`**expiry**`",`*tail*`}`.
#[derive(Debug)]
pub struct Body {
    middle: Box<[u8]>,
    tail: Box<[u8]>,
}

#[derive(Serialize)]
struct Android<'a> {
    priority: &'static str,
    notification: AndroidNotification<'a>,
}

#[derive(Serialize)]
struct AndroidNotification<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    channel_id: &'a str,
    /// A repeat with the same tag replaces the first on the screen. Not a collapse key: FCM keeps only four
    /// of those for a device.
    tag: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    sound: Option<&'a str>,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct ApnsHeaders<'a> {
    apns_priority: &'static str,
    apns_collapse_id: &'a str,
}

#[derive(Serialize)]
struct Apns<'a> {
    payload: ApnsPayload<'a>,
}

#[derive(Serialize)]
struct ApnsPayload<'a> {
    aps: Aps<'a>,
}

#[derive(Serialize)]
struct Aps<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    sound: Option<&'a str>,
}

#[derive(Serialize)]
struct Shown<'a> {
    notification: Texts<'a>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    data: BTreeMap<&'a str, &'a str>,
}

#[derive(Serialize)]
struct Texts<'a> {
    title: &'a str,
    body: &'a str,
}

#[derive(Serialize)]
struct Options {
    validate_only: bool,
}

/// FCM's answer when it took a message.
#[derive(Deserialize)]
pub(super) struct SendResponse<'a> {
    /// `projects/…/messages/…`
    #[serde(borrow, rename = "name")]
    pub _name: Cow<'a, str>,
}

/// FCM's answer when it did not.
pub(super) struct Failure<'a> {
    pub message: Cow<'a, str>,
    /// gRPC's code, such as `NOT_FOUND`.
    pub status: Cow<'a, str>,
    details: Vec<Detail<'a>>,
}

#[derive(Deserialize)]
struct ErrorResponse<'a> {
    #[serde(borrow)]
    error: ErrorStatus<'a>,
}

#[derive(Deserialize)]
struct ErrorStatus<'a> {
    #[serde(borrow, default)]
    message: Cow<'a, str>,
    #[serde(borrow, default)]
    status: Cow<'a, str>,
    /// Parsed one by one, so that one of an unknown form hides no other.
    #[serde(borrow, default)]
    details: Vec<&'a RawValue>,
}

/// One of `error.details`; which fields it has depends on its `@type`.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Detail<'a> {
    #[serde(borrow, rename = "@type")]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    error_code: Cow<'a, str>,
    violations: Vec<BTreeMap<String, Value>>,
    #[serde(borrow)]
    field_violations: Vec<FieldViolation<'a>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct FieldViolation<'a> {
    #[serde(borrow)]
    field: Cow<'a, str>,
}

/// A service account's file, as downloaded from Google Cloud. All optional, so that the error can name what
/// is missing.
#[derive(Deserialize)]
pub(super) struct ServiceAccountFile {
    pub project_id: Option<String>,
    pub private_key: Option<String>,
    pub client_email: Option<String>,
    pub token_uri: Option<String>,
}

// === impl Body ===

impl Body {
    pub(super) fn of(notification: &Notification, validate_only: bool) -> Result<Self, PayloadRefused> {
        // FCM takes strings only as data: a string is unchanged, any other value becomes its JSON text.
        let data: BTreeMap<&str, &str> =
            notification.data.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        let data_size: usize = data.iter().map(|(key, value)| key.len() + value.len()).sum();
        let text = payload::fit(&notification.body, notification.title.len() + data_size)?;
        let tag = notification.tag();
        let sound = notification.sound.as_deref();

        let android = AndroidNotification { channel_id: &notification.channel, tag: &tag, sound };
        let mut middle = members(&Android { priority: "HIGH", notification: android })?;
        middle.extend_from_slice(br#"},"apns":{"headers":{"#);

        let mut tail = members(&ApnsHeaders { apns_priority: "10", apns_collapse_id: &tag })?;
        tail.extend_from_slice(b"},");
        tail.extend(members(&Apns { payload: ApnsPayload { aps: Aps { sound } } })?);
        tail.extend_from_slice(b"},");
        tail.extend(members(&Shown {
            notification: Texts { title: &notification.title, body: &text },
            data,
        })?);
        tail.extend_from_slice(b"},");
        tail.extend(members(&Options { validate_only })?);
        tail.push(b'}');
        Ok(Self { middle: middle.into_boxed_slice(), tail: tail.into_boxed_slice() })
    }
}

/// The headers of all requests with this bearer. The sender of a request sets its Content-Length.
pub(super) fn headers(bearer: HeaderValue) -> HeaderMap {
    HeaderMap::from_iter([
        (AUTHORIZATION, bearer),
        (USER_AGENT, HeaderValue::from_static(concat!("pushcast/", env!("CARGO_PKG_VERSION")))),
        (ACCEPT, HeaderValue::from_static("application/json")),
        (CONTENT_TYPE, HeaderValue::from_static("application/json")),
        (CONTENT_LENGTH, HeaderValue::from_static("0")),
    ])
}

/// The request for one message, sent `now`.
pub(super) fn request(message: &PushMessage<'_, Body>, now: Timestamp) -> Vec<u8> {
    let Body { middle, tail } = message.body;
    let token = message.token.as_str();
    // With zero, a device that dozes never gets the message.
    let ttl = message.ttl.as_secs().clamp(1, TTL_MAX);
    let expiry = now.saturating_add(Duration::from_secs(ttl)).map_or(0, Timestamp::as_second);

    let mut bytes = Vec::with_capacity(middle.len() + tail.len() + token.len() + 96);
    bytes.extend_from_slice(match message.token.kind() {
        TokenKind::Fid => br#"{"message":{"fid":""#,
        TokenKind::Fcm | TokenKind::Expo => br#"{"message":{"token":""#,
    });
    splice(&mut bytes, token);
    bytes.extend_from_slice(br#"","android":{"ttl":""#);
    splice_number(&mut bytes, ttl.cast_signed());
    bytes.extend_from_slice(br#"s","#);
    bytes.extend_from_slice(middle);
    bytes.extend_from_slice(br#""apns-expiration":""#);
    splice_number(&mut bytes, expiry);
    bytes.extend_from_slice(br#"","#);
    bytes.extend_from_slice(tail);
    bytes
}

/// A string as it is, any other value as its JSON text.
fn text_of(value: &Value) -> Cow<'_, str> {
    match value {
        Value::String(text) => Cow::Borrowed(text),
        other => Cow::Owned(other.to_string()),
    }
}

/// A JSON object without its braces.
fn members(value: &impl Serialize) -> Result<Vec<u8>, PayloadRefused> {
    let mut object = serde_json::to_vec(value)
        .map_err(|error| PayloadRefused { reason: format!("it can't be written as JSON: {error}") })?;
    object.pop();
    object.remove(0);
    Ok(object)
}

// === impl Failure ===

impl<'a> Failure<'a> {
    /// The error in a body, if it has FCM's form.
    pub(super) fn parse(body: &'a [u8]) -> Option<Self> {
        let ErrorResponse { error } = serde_json::from_slice(body).ok()?;
        let details = error.details.iter().filter_map(|raw| serde_json::from_str(raw.get()).ok()).collect();
        Some(Self { message: error.message, status: error.status, details })
    }

    /// FCM's own code, which is more precise than the HTTP status; not every error has one.
    pub(super) fn fcm_code(&self) -> Option<&str> {
        self.details
            .iter()
            .filter(|detail| detail.is("FcmError"))
            .map(|detail| detail.error_code.as_ref())
            .find(|code| !code.is_empty())
    }

    /// The fields of the request that are wrong.
    pub(super) fn wrong_fields(&self) -> impl Iterator<Item = &str> {
        let details = self.details.iter().filter(|detail| detail.is("BadRequest"));
        details.flat_map(|detail| detail.field_violations.iter().map(|violation| violation.field.as_ref()))
    }

    /// The values of each quota violation, as one text in lower case.
    pub(super) fn violated_quotas(&self) -> impl Iterator<Item = String> {
        let details = self.details.iter().filter(|detail| detail.is("QuotaFailure"));
        details.flat_map(|detail| {
            detail.violations.iter().map(|violation| {
                let texts: Vec<String> =
                    violation.values().map(|value| text_of(value).to_ascii_lowercase()).collect();
                texts.join(" ")
            })
        })
    }
}

impl Detail<'_> {
    /// Whether its `@type` ends in this name.
    fn is(&self, name: &str) -> bool {
        self.kind.rsplit('.').next() == Some(name)
    }
}

#[cfg(test)]
mod tests;
