//! What the planning stages produce for the delivery stages.

use super::{BroadcastId, Lane, Notification, ProfileId, ProviderId, RegimenId, Slice, Timestamp, UserId};

/// One record of a `push.<provider>.<lane>` topic: a notification and its audience.
#[derive(Clone, Debug, PartialEq)]
pub struct Job {
    /// The provider that it is sent through.
    pub provider: ProviderId,
    /// What is sent.
    pub notification: Notification,
    /// Whom it is sent to.
    pub work: Work,
}

/// The audience of a job.
#[derive(Clone, Debug, PartialEq)]
pub enum Work {
    /// A dose, for all tokens of one user.
    Dose(DoseJob),
    /// Named users of a broadcast.
    List(ListJob),
    /// A slice of the token ring, of a broadcast to everybody.
    Slice(SliceJob),
}

/// A dose that is due.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DoseJob {
    /// The person whose dose it is.
    pub profile: ProfileId,
    /// The regimen that it belongs to.
    pub regimen: RegimenId,
    /// The user who is reminded.
    pub user: UserId,
    /// When it is due.
    pub schedule_time: Timestamp,
}

/// At most [`LIST_USERS_MAX`](super::limits::LIST_USERS_MAX) users of a broadcast.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListJob {
    /// The broadcast that it is a part of.
    pub broadcast: BroadcastId,
    /// The part's number.
    pub part: u32,
    /// The users who are notified.
    pub users: Vec<UserId>,
}

/// A slice of the token ring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceJob {
    /// The broadcast that it is a part of. The part's number is the slice's index.
    pub broadcast: BroadcastId,
    /// The slice that the tokens lie in.
    pub slice: Slice,
    /// Which of their users are notified.
    pub to: Listeners,
}

/// Which tokens a broadcast to everybody is sent to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listeners {
    /// The user who is left out: the author.
    pub exclude: Option<UserId>,
    /// Whether tokens without a user are included.
    pub include_anonymous: bool,
}

impl Listeners {
    /// All tokens, those without a user too.
    pub const ALL: Self = Self { exclude: None, include_anonymous: true };

    /// Whether a token of this user (`None` = no user's) is sent to.
    pub fn include(&self, user: Option<&str>) -> bool {
        user.map_or(self.include_anonymous, |user| {
            self.exclude.as_ref().is_none_or(|exclude| exclude.as_str() != user)
        })
    }
}

impl Work {
    /// The lane whose topic it is produced to.
    pub fn lane(&self) -> Lane {
        match self {
            Self::Dose(_) => Lane::Urgent,
            Self::List(_) | Self::Slice(_) => Lane::Bulk,
        }
    }
}
