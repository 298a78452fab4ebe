//! `device-tokens`: the life of a token.

use schemars::{JsonSchema, Schema, schema_for};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::{
    Unreadable,
    fields::{self, DevicePlatform, DeviceToken, Id, Kind},
    json,
};
use crate::domain::{DeviceId, Token, TokenChange, UserId};

/// Reads a record. A null value with a token as its key unregisters the token.
///
/// # Errors
/// The record is no event of a token.
pub fn read(key: Option<&[u8]>, value: Option<&[u8]>) -> Result<TokenChange, Unreadable> {
    if value.is_none() {
        return unregistered(key);
    }
    match json::event_of(value)?.as_deref() {
        None | Some("registered") => json::object::<Registered>(value)?.change(),
        Some("seen") => json::object::<Named>(value)?.token().map(TokenChange::Seen),
        Some("unregistered") => json::object::<Named>(value)?.token().map(TokenChange::Unregistered),
        Some("userDeleted" | "user_deleted") => {
            let UserDeleted { user_id } = json::object(value)?;
            Ok(TokenChange::UserDeleted(UserId::new(user_id.0)))
        }
        Some(event) => Err(json::unknown_event(event, "registered, seen, unregistered, userDeleted")),
    }
}

pub(super) fn schema() -> Schema {
    schema_for!(Event)
}

/// An event in the life of a device token. The record's key is the token; a null value with a key unregisters
/// it. Every name may be written in snake_case too.
#[derive(JsonSchema)]
#[schemars(tag = "event", rename_all = "camelCase", transform = json::first_event_by_default)]
#[expect(dead_code, reason = "only for the schema: `read` chooses the object by `event`")]
enum Event {
    /// The token is active and belongs to this user, or to no user.
    Registered(Registered),
    /// The app was opened.
    Seen(Named),
    /// The user logged out, or the app was removed.
    Unregistered(Named),
    /// The user was deleted: all of the user's tokens are revoked.
    UserDeleted(UserDeleted),
}

#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", expecting = "an object")]
struct Registered {
    /// Also called `push_token`, `expoToken`, `deviceToken`.
    #[serde(
        alias = "pushToken",
        alias = "push_token",
        alias = "expoToken",
        alias = "expo_token",
        alias = "deviceToken",
        alias = "device_token"
    )]
    token: DeviceToken,
    /// The form of the token; absent = as its text shows.
    #[serde(default, deserialize_with = "fields::optional")]
    kind: Option<Kind>,
    /// The token's user from now on; absent = no user, never "as before".
    #[serde(default, alias = "user_id", deserialize_with = "fields::optional")]
    user_id: Option<Id>,
    /// Also called `device_type`.
    #[serde(default, alias = "deviceType", alias = "device_type", deserialize_with = "fields::optional")]
    platform: Option<DevicePlatform>,
    /// The device that the token belongs to; the device's other tokens of the same kind are replaced.
    #[serde(default, alias = "device_id", deserialize_with = "fields::optional")]
    device_id: Option<Id>,
    /// What the app reports about the device: manufacturer, model, osVersion, deviceType, …
    #[serde(default, alias = "device_info", deserialize_with = "fields::object")]
    device_info: Map<String, Value>,
    /// The token that this one replaces.
    #[serde(default, alias = "previous_token", deserialize_with = "fields::optional")]
    previous_token: Option<DeviceToken>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(expecting = "an object")]
struct Named {
    /// Also called `push_token`, `expoToken`, `deviceToken`.
    #[serde(
        alias = "pushToken",
        alias = "push_token",
        alias = "expoToken",
        alias = "expo_token",
        alias = "deviceToken",
        alias = "device_token"
    )]
    token: DeviceToken,
    /// The form of the token; absent = as its text shows.
    #[serde(default, deserialize_with = "fields::optional")]
    kind: Option<Kind>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", expecting = "an object")]
struct UserDeleted {
    /// The user who was deleted.
    #[serde(alias = "user_id")]
    user_id: Id,
}

impl Registered {
    fn change(self) -> Result<TokenChange, Unreadable> {
        let token = of_kind(self.token, self.kind)?;
        // A token that replaced itself would be registered and deactivated by one event.
        let previous = self.previous_token.map(|previous| previous.0).filter(|previous| *previous != token);
        Ok(TokenChange::Registered {
            previous,
            token,
            user: self.user_id.map(|id| UserId::new(id.0)),
            platform: self.platform.map(|platform| platform.0),
            device: self.device_id.map(|id| DeviceId::new(id.0)),
            device_info: (!self.device_info.is_empty()).then(|| Value::Object(self.device_info).to_string()),
        })
    }
}

impl Named {
    fn token(self) -> Result<Token, Unreadable> {
        of_kind(self.token, self.kind)
    }
}

/// The token, if it has the form of that kind.
pub(super) fn of_kind(DeviceToken(token): DeviceToken, kind: Option<Kind>) -> Result<Token, Unreadable> {
    match kind {
        Some(Kind(kind)) if kind != token.kind() => Err(json::invalid(
            "token",
            format_args!("invalid token format: it is not of kind {}", kind.label()),
        )),
        _ => Ok(token),
    }
}

fn unregistered(key: Option<&[u8]>) -> Result<TokenChange, Unreadable> {
    let key = key.ok_or_else(|| Unreadable::malformed("a null value without a key"))?;
    let token = std::str::from_utf8(key).ok().and_then(|key| Token::parse(key.trim()).ok());
    token.map(TokenChange::Unregistered).ok_or_else(|| Unreadable::invalid("key: invalid token format"))
}
