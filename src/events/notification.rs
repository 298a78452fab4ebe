//! A notification as jobs and plans carry it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::fields::{self, LongId, Moment};
use crate::domain::{Data, Notification, NotificationId};

/// What is sent to every token of an audience.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", expecting = "an object")]
#[schemars(rename = "Notification")]
pub(super) struct NotificationRecord {
    id: LongId,
    title: String,
    body: String,
    /// What the app receives beside the text.
    #[serde(default, deserialize_with = "fields::read_data", serialize_with = "fields::write_data")]
    #[schemars(with = "Map<String, Value>")]
    data: Data,
    /// Absent = silent.
    #[serde(default, deserialize_with = "fields::optional", skip_serializing_if = "Option::is_none")]
    sound: Option<fields::Text>,
    /// The Android channel.
    channel: String,
    /// When it is no longer worth sending.
    expires_at: Moment,
}

impl From<NotificationRecord> for Notification {
    fn from(record: NotificationRecord) -> Self {
        Self {
            id: NotificationId::new(record.id.0),
            title: record.title,
            body: record.body,
            data: record.data,
            sound: record.sound.map(|sound| sound.0),
            channel: record.channel,
            expires_at: record.expires_at.0,
        }
    }
}

impl From<&Notification> for NotificationRecord {
    fn from(notification: &Notification) -> Self {
        Self {
            id: LongId(notification.id.as_str().to_owned()),
            title: notification.title.clone(),
            body: notification.body.clone(),
            data: notification.data.clone(),
            sound: notification.sound.clone().map(fields::Text),
            channel: notification.channel.clone(),
            expires_at: Moment(notification.expires_at),
        }
    }
}
