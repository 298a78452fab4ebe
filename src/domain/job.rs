//! What the planning stages hand to delivery.

use super::{BroadcastId, Lane, Notification, ProfileId, ProviderId, RegimenId, Slice, Timestamp, UserId};

/// One record of a `push.<provider>.<lane>` topic: a notification and for whom.
#[derive(Clone, Debug, PartialEq)]
pub struct Job {
    /// Through whom.
    pub provider: ProviderId,
    /// What.
    pub notification: Notification,
    /// For whom.
    pub work: Work,
}

/// For whom a notification is.
#[derive(Clone, Debug, PartialEq)]
pub enum Work {
    /// A dose, for all tokens of one user.
    Dose(DoseJob),
    /// A broadcast's named users.
    List(ListJob),
    /// A broadcast's piece of the token ring.
    Slice(SliceJob),
}

/// A dose that is due.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DoseJob {
    /// Whose dose.
    pub profile: ProfileId,
    /// Of which regimen.
    pub regimen: RegimenId,
    /// Who is rung.
    pub user: UserId,
    /// Due when.
    pub schedule_time: Timestamp,
}

/// At most 500 users of a broadcast.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListJob {
    /// Whose part.
    pub broadcast: BroadcastId,
    /// Its number.
    pub part: u32,
    /// Who is rung.
    pub users: Vec<UserId>,
}

/// A piece of the token ring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceJob {
    /// Whose part. The part's number is the slice's index.
    pub broadcast: BroadcastId,
    /// Which tokens.
    pub slice: Slice,
    /// Who of their owners.
    pub to: Listeners,
}

/// Who hears of a broadcast to all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listeners {
    /// Who is not rung: the author.
    pub exclude: Option<UserId>,
    /// Whether tokens of nobody are rung.
    pub include_anonymous: bool,
}

impl Listeners {
    /// Whoever has a token, and tokens of nobody too.
    pub const ALL: Self = Self { exclude: None, include_anonymous: true };

    /// Whether a token of this user (`None` = nobody's) is rung.
    pub fn include(&self, user: Option<&str>) -> bool {
        user.map_or(self.include_anonymous, |user| {
            self.exclude.as_ref().is_none_or(|exclude| exclude.as_str() != user)
        })
    }
}

impl Work {
    /// Which lane it travels on.
    pub fn lane(&self) -> Lane {
        match self {
            Self::Dose(_) => Lane::Urgent,
            Self::List(_) | Self::Slice(_) => Lane::Bulk,
        }
    }
}
