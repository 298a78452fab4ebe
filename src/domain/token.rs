//! Device tokens: their forms, their users, and the events of their life.

use std::{fmt, sync::Arc};

use sha2::{Digest, Sha256};

use super::{DeviceId, ProviderId, UserId, Version, limits::TOKEN_BYTES_MAX};

/// The form of a token, which decides the provider that delivers to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TokenKind {
    /// `ExponentPushToken[…]`, `ExpoPushToken[…]` or a UUID.
    Expo,
    /// A registration token of Firebase Cloud Messaging.
    Fcm,
    /// A Firebase Installation ID: what FCM is moving to.
    Fid,
}

/// A device token. `Debug` and `Display` show its hash: a token never reaches a log.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Token {
    /// Shared: while a message is sent, its page, its request and its ticket hold the token.
    text: Arc<str>,
    kind: TokenKind,
}

/// Stands for a token in logs and in `inspect`: the first 12 hexadecimal digits of its SHA-256.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TokenHash([u8; 6]);

/// The text has none of the known forms of a token.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("invalid token format")]
pub struct InvalidToken;

/// The platform of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Platform {
    /// iOS, iPadOS.
    Ios,
    /// Android.
    Android,
    /// A browser.
    Web,
}

/// An active token, as the store holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registration {
    /// The token that is sent to.
    pub token: Token,
    /// The version of the event that registered it; a verdict names it.
    pub version: Version,
    /// Its user; none before login.
    pub user: Option<UserId>,
    /// The device's platform, if known.
    pub platform: Option<Platform>,
    /// The device, if known.
    pub device: Option<DeviceId>,
    /// What the app reported about the device, as the text of a JSON object.
    pub device_info: Option<String>,
}

/// The part of a registration that is needed to send to it, and to name it in a verdict. Small: there is one
/// for each message of a broadcast.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recipient {
    /// The token that is sent to.
    pub token: Token,
    /// The version of the event that registered it; a verdict names it.
    pub version: Version,
    /// The device's platform, if known.
    pub platform: Option<Platform>,
}

/// An event in the life of a token.
#[derive(Clone, Debug, PartialEq)]
pub enum TokenChange {
    /// The token is active and belongs to this user, or to no user.
    Registered {
        /// The token.
        token: Token,
        /// Its user from now on; `None` = no user, never "as before".
        user: Option<UserId>,
        /// The device's platform.
        platform: Option<Platform>,
        /// The device that it belongs to; other tokens of that device and of the same kind are replaced.
        device: Option<DeviceId>,
        /// The text of a JSON object.
        device_info: Option<String>,
        /// The token that this one replaces.
        previous: Option<Token>,
    },
    /// The app was opened; the token keeps its user.
    Seen(Token),
    /// The user logged out, the app was removed, or the key's tombstone arrived.
    Unregistered(Token),
    /// All of this user's tokens are revoked, also those whose older registrations arrive later.
    UserDeleted(UserId),
}

// === impl Recipient ===

impl From<Registration> for Recipient {
    fn from(Registration { token, version, platform, .. }: Registration) -> Self {
        Self { token, version, platform }
    }
}

// === impl TokenKind ===

impl TokenKind {
    /// The provider that delivers to it.
    pub fn provider(self) -> ProviderId {
        match self {
            Self::Expo => ProviderId::Expo,
            Self::Fcm | Self::Fid => ProviderId::Fcm,
        }
    }

    /// `expo`, `fcm` or `fid`, as events and the store name it.
    pub fn label(self) -> &'static str {
        match self {
            Self::Expo => "expo",
            Self::Fcm => "fcm",
            Self::Fid => "fid",
        }
    }

    /// The kind of that label; none for an unknown one.
    pub fn from_label(label: &str) -> Option<Self> {
        [Self::Expo, Self::Fcm, Self::Fid].into_iter().find(|kind| kind.label() == label)
    }

    /// The form that `text` has. The forms do not overlap: Expo's have brackets or are UUIDs (36 characters),
    /// an installation id has 22, a registration token 64 and more.
    fn of(text: &str) -> Option<Self> {
        let bracketed = |prefix: &str| {
            text.strip_prefix(prefix).and_then(|rest| rest.strip_suffix(']')).is_some_and(|id| {
                !id.is_empty() && id.len() <= 256 && id.bytes().all(|b| b.is_ascii_graphic())
            })
        };
        let url_safe = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
        if bracketed("ExponentPushToken[") || bracketed("ExpoPushToken[") || is_uuid(text) {
            Some(Self::Expo)
        } else if text.len() == 22 && text.bytes().all(url_safe) {
            Some(Self::Fid)
        } else if (64..=TOKEN_BYTES_MAX).contains(&text.len())
            && text.bytes().all(|b| url_safe(b) || b == b':')
        {
            Some(Self::Fcm)
        } else {
            None
        }
    }
}

// === impl Token ===

impl Token {
    /// Reads a token by its form.
    ///
    /// # Errors
    /// The text has none of the known forms.
    pub fn parse(text: &str) -> Result<Self, InvalidToken> {
        let kind = TokenKind::of(text).ok_or(InvalidToken)?;
        Ok(Self { text: text.into(), kind })
    }

    /// Reads a token whose kind is given: it must have that kind's form.
    ///
    /// # Errors
    /// The text does not have the form of that kind.
    pub fn parse_as(text: &str, kind: TokenKind) -> Result<Self, InvalidToken> {
        Self::parse(text).and_then(|token| if token.kind == kind { Ok(token) } else { Err(InvalidToken) })
    }

    /// The token itself, for the provider and the store.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Its form.
    pub fn kind(&self) -> TokenKind {
        self.kind
    }

    /// Its hash, for everything that people read.
    pub fn hash(&self) -> TokenHash {
        let mut hash = [0; 6];
        hash.copy_from_slice(&Sha256::digest(self.text.as_bytes())[..6]);
        TokenHash(hash)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token({})", self.hash())
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.hash().fmt(f)
    }
}

// === impl TokenHash ===

impl TokenHash {
    /// Reads the hash as it is printed: 12 hexadecimal digits. No token has that form.
    pub fn parse(text: &str) -> Option<Self> {
        let mut hash = [0; 6];
        let is_whole = base16ct::mixed::decode(text, &mut hash).is_ok_and(|bytes| bytes.len() == 6);
        is_whole.then_some(Self(hash))
    }
}

impl fmt::Display for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&base16ct::lower::encode_string(&self.0))
    }
}

impl fmt::Debug for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

// === impl Platform ===

impl Platform {
    /// `ios`, `android` or `web`.
    pub fn label(self) -> &'static str {
        match self {
            Self::Ios => "ios",
            Self::Android => "android",
            Self::Web => "web",
        }
    }

    /// The platform of that label; none for an unknown one.
    pub fn from_label(label: &str) -> Option<Self> {
        [Self::Ios, Self::Android, Self::Web].into_iter().find(|platform| platform.label() == label)
    }
}

/// Expo's third form, as its SDK's pattern has it: case-insensitive letters, not only hexadecimal ones.
fn is_uuid(text: &str) -> bool {
    let groups: Vec<&str> = text.split('-').collect();
    groups.iter().map(|group| group.len()).eq([8, 4, 4, 4, 12])
        && groups.iter().all(|group| group.bytes().all(|b| b.is_ascii_alphanumeric()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_form_has_its_kind() {
        let kind = |text: &str| Token::parse(text).map(|token| token.kind());
        assert_eq!(kind("ExponentPushToken[AAA]"), Ok(TokenKind::Expo));
        assert_eq!(kind("ExpoPushToken[x-1_Y]"), Ok(TokenKind::Expo));
        assert_eq!(kind("F5741A13-BCDA-434B-A316-5DC0E6FFA94F"), Ok(TokenKind::Expo));
        assert_eq!(kind("cIBxWSjHTQCvp4QfBUPZ-_"), Ok(TokenKind::Fid));
        assert_eq!(kind(&format!("cIBxWSjHTQCvp4QfBUPZ1a:APA91b{}", "x".repeat(134))), Ok(TokenKind::Fcm));
    }

    #[test]
    fn anything_else_is_no_token() {
        for text in [
            "",
            "AAA",
            "ExponentPushToken[]",
            "ExponentPushToken[a b]",
            "ExponentPushToken[AAA",
            &"x".repeat(63),
            &"ü".repeat(70),
            &"x".repeat(4097),
        ] {
            assert_eq!(Token::parse(text), Err(InvalidToken), "{text:?}");
        }
    }

    #[test]
    fn a_printed_hash_reads_back() {
        let hash = Token::parse("ExponentPushToken[AAA]").unwrap().hash();
        assert_eq!(TokenHash::parse(&hash.to_string()), Some(hash));
        for text in ["", "0123456789a", "0123456789abc", "0123456789ag", "+1+2+3+4+5+6"] {
            assert_eq!(TokenHash::parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn a_token_is_never_printed() {
        let token = Token::parse("ExponentPushToken[secret]").unwrap();
        assert!(!format!("{token:?} {token}").contains("secret"));
    }
}
