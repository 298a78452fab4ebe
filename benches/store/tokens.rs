//! The tokens of the bench, as events and as rows.

use pushcast::domain::{DeviceId, Platform, Timestamp, Token, TokenChange, UserId, Version};
use scylla::{DeserializeValue, SerializeValue};

const DEVICE_INFO: &str =
    r#"{"manufacturer":"Apple","model":"iPhone15,2","osVersion":"18.1","deviceType":"phone"}"#;

/// The cell of a token, as defined in `schemas/cql`.
#[derive(SerializeValue, DeserializeValue)]
pub struct State {
    pub ver: i64,
    pub active: bool,
    pub user_id: Option<String>,
    pub kind: String,
    pub platform: Option<String>,
    pub device_id: Option<String>,
    pub device_info: Option<String>,
    pub created_at: Option<i64>,
    pub reason: Option<String>,
}

/// Names that no other run uses.
#[derive(Clone, Copy)]
pub struct Names(u32);

impl Names {
    pub fn new() -> Self {
        Self(rand::random())
    }

    pub fn token(self, n: u64) -> String {
        format!("ExponentPushToken[{:08x}{n:010}]", self.0)
    }

    pub fn user(self, n: u64) -> String {
        format!("user-{:08x}{n:010}", self.0)
    }

    pub fn device(self, n: u64) -> String {
        format!("device-{:08x}{n:010}", self.0)
    }

    /// The n-th registration.
    pub fn registered(self, n: u64) -> TokenChange {
        TokenChange::Registered {
            token: Token::parse(&self.token(n)).unwrap(),
            user: Some(UserId::new(self.user(n))),
            platform: Some(Platform::Ios),
            device: Some(DeviceId::new(self.device(n))),
            device_info: Some(DEVICE_INFO.to_owned()),
            previous: None,
        }
    }

    /// The state that the n-th registration leaves in the token's row.
    pub fn state(self, n: u64, version: Version) -> State {
        State {
            ver: version.as_i64(),
            active: true,
            user_id: Some(self.user(n)),
            kind: "expo".to_owned(),
            platform: Some("ios".to_owned()),
            device_id: Some(self.device(n)),
            device_info: Some(DEVICE_INFO.to_owned()),
            created_at: Some(version.as_i64()),
            reason: None,
        }
    }
}

/// The version of a record with the offset `n` and the current time.
pub fn version(n: u64) -> Version {
    Version::of_record(Timestamp::now(), n.cast_signed())
}
