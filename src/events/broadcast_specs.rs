//! The plan of a broadcast: the text in [`crate::domain::Plan::spec`], kept in the store. The parts are made
//! from it, also when they have to be produced again.

use serde::{Deserialize, Serialize};

use super::{
    Unreadable,
    fields::{self, Id, Moment, Provider},
    json,
    notification::NotificationRecord,
};
use crate::domain::{Notification, ProviderId, Timestamp, UserId};

/// What was decided about a broadcast.
#[derive(Clone, Debug, PartialEq)]
pub struct Spec {
    /// What is sent.
    pub notification: Notification,
    /// Whom it is sent to.
    pub audience: Audience,
    /// The providers that it is sent through: those that were configured when it was planned.
    pub providers: Vec<ProviderId>,
    /// The time of the post's record.
    pub posted_at: Timestamp,
}

/// The audience of a broadcast.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Audience {
    /// The whole ring of tokens.
    Everybody {
        /// The number of slices that it is cut into: a power of two.
        slices: u32,
        /// The user who is left out: the author.
        exclude: Option<UserId>,
        /// Whether tokens without a user are included.
        include_anonymous: bool,
    },
    /// These users, each once.
    Users(Vec<UserId>),
}

/// Reads a plan.
///
/// # Errors
/// The text is no plan.
pub fn read(spec: &str) -> Result<Spec, Unreadable> {
    let record: Record = json::object(Some(spec.as_bytes()))?;
    let audience = match record.audience {
        AudienceRecord::Everybody { slices, .. } if !slices.is_power_of_two() => {
            return Err(json::invalid(
                "audience.everybody.slices",
                format_args!("{slices} is not a power of two"),
            ));
        }
        AudienceRecord::Everybody { slices, exclude, include_anonymous } => {
            Audience::Everybody { slices, exclude: exclude.map(|id| UserId::new(id.0)), include_anonymous }
        }
        AudienceRecord::Users(users) => {
            Audience::Users(users.into_iter().map(|id| UserId::new(id.0)).collect())
        }
    };
    Ok(Spec {
        notification: record.notification.into(),
        audience,
        providers: record.providers.into_iter().map(|provider| provider.0).collect(),
        posted_at: record.posted_at.0,
    })
}

/// Writes a plan.
pub fn write(spec: &Spec) -> String {
    let id = |user: &UserId| Id(user.as_str().to_owned());
    let audience = match &spec.audience {
        Audience::Everybody { slices, exclude, include_anonymous } => AudienceRecord::Everybody {
            slices: *slices,
            exclude: exclude.as_ref().map(id),
            include_anonymous: *include_anonymous,
        },
        Audience::Users(users) => AudienceRecord::Users(users.iter().map(id).collect()),
    };
    let record = Record {
        notification: (&spec.notification).into(),
        audience,
        providers: spec.providers.iter().copied().map(Provider).collect(),
        posted_at: Moment(spec.posted_at),
    };
    String::from_utf8_lossy(&json::bytes(&record)).into_owned()
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Record {
    notification: NotificationRecord,
    audience: AudienceRecord,
    providers: Vec<Provider>,
    posted_at: Moment,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
enum AudienceRecord {
    Everybody {
        slices: u32,
        #[serde(default, deserialize_with = "fields::optional", skip_serializing_if = "Option::is_none")]
        exclude: Option<Id>,
        include_anonymous: bool,
    },
    Users(Vec<Id>),
}
