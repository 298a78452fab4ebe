//! `invalid-tokens`: this token is dead. Public: pushcast writes it, other systems may read and write it.

use schemars::{JsonSchema, Schema, schema_for};
use serde::{Deserialize, Serialize};

use super::{
    Unreadable,
    device_tokens::of_kind,
    fields::{self, DeviceToken, Kind, Moment, Provider, Text},
    json,
};
use crate::domain::{DeadToken, Version};

/// Reads a record.
///
/// # Errors
/// The record names no token, or no reason.
pub fn read(_key: Option<&[u8]>, value: Option<&[u8]>) -> Result<DeadToken, Unreadable> {
    let record: Record = json::object(value)?;
    Ok(DeadToken {
        token: of_kind(record.token, record.kind)?,
        provider: record.provider.map(|provider| provider.0),
        reason: record.reason.0,
        source: record.source.map(|source| source.0),
        registration: record.registration.map(Version::from_i64),
        detected_at: record.detected_at.map(|detected_at| detected_at.0),
    })
}

/// Writes a verdict.
pub fn write(dead: &DeadToken) -> Vec<u8> {
    json::bytes(&Record {
        token: DeviceToken(dead.token.clone()),
        kind: Some(Kind(dead.token.kind())),
        provider: dead.provider.map(Provider),
        reason: Text(dead.reason.clone()),
        source: dead.source.clone().map(Text),
        registration: dead.registration.map(Version::as_i64),
        detected_at: dead.detected_at.map(Moment),
    })
}

pub(super) fn schema() -> Schema {
    schema_for!(Record)
}

/// A token that is dead. The record's key is the token. Other systems write `token` and `reason`; their
/// verdict is about the registration that was current at the earlier of `detectedAt` and the record's time.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "DeadToken")]
struct Record {
    token: DeviceToken,
    /// The form of the token; absent = as its text shows.
    #[serde(default, deserialize_with = "fields::optional", skip_serializing_if = "Option::is_none")]
    kind: Option<Kind>,
    /// The provider whose verdict it is.
    #[serde(default, deserialize_with = "fields::optional", skip_serializing_if = "Option::is_none")]
    provider: Option<Provider>,
    /// The provider's error code, such as DeviceNotRegistered, or the other system's reason.
    reason: Text,
    /// Where it was reported: ticket, receipt, response, or another system's text.
    #[serde(default, deserialize_with = "fields::optional", skip_serializing_if = "Option::is_none")]
    source: Option<Text>,
    /// The registration that was sent to. Other systems know none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    registration: Option<i64>,
    /// When it was reported.
    #[serde(
        default,
        alias = "detected_at",
        deserialize_with = "fields::optional",
        skip_serializing_if = "Option::is_none"
    )]
    detected_at: Option<Moment>,
}
