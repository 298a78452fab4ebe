//! Identifiers. Upstream may write them as strings or numbers; here they are text and never mixed up.

use std::fmt;

macro_rules! text_id {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {$(
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Box<str>);

        impl $name {
            /// Takes the identifier as it is.
            pub fn new(text: impl Into<Box<str>>) -> Self {
                Self(text.into())
            }

            /// The identifier's text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    )*};
}

text_id! {
    /// Somebody who may own devices.
    UserId,
    /// A physical device, as the app names it; the anchor of the replacement rule.
    DeviceId,
    /// A post upstream.
    PostId,
    /// Whose medication it is; one user may care for several profiles.
    ProfileId,
    /// A medication plan.
    RegimenId,
    /// A broadcast: one notification for many, `post:<post id>`.
    BroadcastId,
    /// One logical notification: `post:<post id>` or `dose:<profile>:<regimen>:<time>`. The key of
    /// `push-outcomes`.
    NotificationId,
}

impl BroadcastId {
    /// The broadcast that a post causes; the same post twice is one broadcast.
    pub fn of_post(post: &PostId) -> Self {
        Self::new(format!("post:{post}"))
    }

    /// A broadcast is one notification, so the two share their text.
    pub fn notification(&self) -> NotificationId {
        NotificationId::new(self.as_str())
    }
}
