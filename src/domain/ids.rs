//! Identifiers. Upstream may write them as strings or numbers; here each kind is a type of its own, and text.

use std::fmt;

macro_rules! text_id {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {$(
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Box<str>);

        impl $name {
            /// Takes the text as it is: its form and length were checked when its record was read.
            pub fn new(text: impl Into<Box<str>>) -> Self {
                Self(text.into())
            }

            /// The text, for keys, columns and logs.
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
    /// A user, who may own devices.
    UserId,
    /// A physical device, as the app names it; the anchor of the replacement rule.
    DeviceId,
    /// A post upstream.
    PostId,
    /// A person who takes medication; one user may care for several profiles.
    ProfileId,
    /// A medication plan.
    RegimenId,
    /// A broadcast: one notification to many tokens, `post:<post id>`.
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
