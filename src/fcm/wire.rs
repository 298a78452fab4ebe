//! How requests to FCM and its answers look, and a service account's file.
//!
//! A notification is serialised once ([`Body`]); a message is its token, its time to live and its end spliced
//! into that.

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

/// What FCM keeps a message at most: four weeks, in seconds.
const TTL_MAX: u64 = 2_419_200;

/// A notification as FCM wants it, in the two pieces between what each message has of its own:
/// `{"message":{"token":`**token**`,"android":{"ttl":"`**ttl**`s",`*middle*`"apns-expiration":"`**end**`",`*tail*`}`.
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
    /// A repeat replaces the first on the screen. Not a collapse key: FCM keeps only four of those for a
    /// device.
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
    data: BTreeMap<&'a str, Cow<'a, str>>,
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

/// What FCM answers when it took a message.
#[derive(Deserialize)]
pub(super) struct Taken<'a> {
    /// `projects/…/messages/…`
    #[serde(borrow, rename = "name")]
    pub _name: Cow<'a, str>,
}

/// What FCM answers when it did not.
pub(super) struct Failure<'a> {
    pub message: Cow<'a, str>,
    /// gRPC's word for the HTTP status.
    pub status: Cow<'a, str>,
    details: Vec<Detail<'a>>,
}

#[derive(Deserialize)]
struct Failed<'a> {
    #[serde(borrow)]
    error: FailedError<'a>,
}

#[derive(Deserialize)]
struct FailedError<'a> {
    #[serde(borrow, default)]
    message: Cow<'a, str>,
    #[serde(borrow, default)]
    status: Cow<'a, str>,
    /// Read one by one, so that one of a shape we don't know hides no other.
    #[serde(borrow, default)]
    details: Vec<&'a RawValue>,
}

/// One of `error.details`: of each `@type` its own fields are there.
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

/// A service account's file, as Google Cloud gives it out. All optional, so that what is missing can be
/// named.
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
        let data: BTreeMap<&str, Cow<'_, str>> =
            notification.data.iter().map(|(key, value)| (key.as_str(), text_of(value))).collect();
        let weight: usize = data.iter().map(|(key, value)| key.len() + value.len()).sum();
        let text = payload::fit(&notification.body, notification.title.len() + weight)?;
        let (tag, sound) = (notification.tag(), notification.sound.as_deref());

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

/// The headers of all requests that show this bearer. Whoever sends one puts its length in.
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
    // Zero would mean "now or never" to a device that dozes.
    let ttl = message.ttl.as_secs().clamp(1, TTL_MAX);
    let end = now.saturating_add(Duration::from_secs(ttl)).map_or(0, Timestamp::as_second);

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
    splice_number(&mut bytes, end);
    bytes.extend_from_slice(br#"","#);
    bytes.extend_from_slice(tail);
    bytes
}

/// FCM's data are strings: a string as it is, anything else as its JSON text.
fn text_of(value: &Value) -> Cow<'_, str> {
    match value {
        Value::String(text) => Cow::Borrowed(text),
        other => Cow::Owned(other.to_string()),
    }
}

/// A JSON object without its braces.
fn members(value: &impl Serialize) -> Result<Vec<u8>, PayloadRefused> {
    let mut object = serde_json::to_vec(value)
        .map_err(|error| PayloadRefused { reason: format!("it is no JSON: {error}") })?;
    object.pop();
    object.remove(0);
    Ok(object)
}

// === impl Failure ===

impl<'a> Failure<'a> {
    /// The error in a body, if it has FCM's form.
    pub(super) fn parse(body: &'a [u8]) -> Option<Self> {
        let Failed { error } = serde_json::from_slice(body).ok()?;
        let details = error.details.iter().filter_map(|raw| serde_json::from_str(raw.get()).ok()).collect();
        Some(Self { message: error.message, status: error.status, details })
    }

    /// FCM's own code, which says more than the HTTP status; not every error has one.
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

    /// What was said of the quota that is used up, one text for each violation.
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
