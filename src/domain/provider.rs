//! The push services that messages are sent through.

use std::fmt;

/// A push service. Metrics, topics, logs and the store call it by [`ProviderId::label`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ProviderId {
    /// Expo's push service, in front of FCM and APNs.
    Expo,
    /// Firebase Cloud Messaging, HTTP v1.
    Fcm,
}

impl ProviderId {
    /// All of them, in the order in which they are shown.
    pub const ALL: [Self; 2] = [Self::Expo, Self::Fcm];

    /// `expo` or `fcm`.
    pub fn label(self) -> &'static str {
        match self {
            Self::Expo => "expo",
            Self::Fcm => "fcm",
        }
    }

    /// The provider of that label; none for an unknown one.
    pub fn from_label(label: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|provider| provider.label() == label)
    }
}

impl fmt::Display for ProviderId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}
