//! One logical notification: what a person reads, and how urgent it is.

use std::collections::BTreeMap;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use sha2::{Digest, Sha256};

use super::{NotificationId, Timestamp};

/// How urgent a notification is. Each lane has topics, consumers and permits of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Lane {
    /// Reminders: they take the next request slot.
    Urgent,
    /// Broadcasts: they wait for urgent ones.
    Bulk,
}

impl Lane {
    /// Both, the urgent one first.
    pub const ALL: [Self; 2] = [Self::Urgent, Self::Bulk];

    /// `urgent` or `bulk`.
    pub fn label(self) -> &'static str {
        match self {
            Self::Urgent => "urgent",
            Self::Bulk => "bulk",
        }
    }
}

/// What is sent to every token of an audience.
#[derive(Clone, Debug, PartialEq)]
pub struct Notification {
    /// Its identity: every copy of it carries the same id.
    pub id: NotificationId,
    /// The first line that is shown.
    pub title: String,
    /// The text below it.
    pub body: String,
    /// What the app receives beside the text.
    pub data: Data,
    /// Sound to play, `default` or one that the app ships; none = silent.
    pub sound: Option<String>,
    /// Android channel. Android shows nothing on a channel that the app has not made.
    pub channel: String,
    /// When it is no longer worth sending.
    pub expires_at: Timestamp,
}

/// Values of the app's own, by name and in the order of their names. pushcast carries them and does not
/// interpret them.
pub type Data = BTreeMap<String, DataValue>;

/// One value of [`Data`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DataValue {
    /// A string.
    String(String),
    /// Any other JSON value, as valid and compact JSON.
    Json(String),
}

// === impl Notification ===

impl Notification {
    /// A short text that is the same for every copy of this notification: Android `tag`, iOS collapse id. A
    /// repeat then replaces the first on the screen.
    ///
    /// The first 22 characters of base64url(SHA-256(id)): 132 bits, and within APNs' 64 bytes.
    pub fn tag(&self) -> String {
        let mut tag = URL_SAFE_NO_PAD.encode(Sha256::digest(self.id.as_str()));
        tag.truncate(22);
        tag
    }
}

// === impl DataValue ===

impl DataValue {
    /// The string itself, or the JSON: its form for a provider that carries strings only.
    pub fn as_str(&self) -> &str {
        match self {
            Self::String(text) | Self::Json(text) => text,
        }
    }
}

impl From<&str> for DataValue {
    fn from(text: &str) -> Self {
        Self::String(text.to_owned())
    }
}
