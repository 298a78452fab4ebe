//! `push.<provider>.<lane>`: a notification and its audience. Written and read by pushcast.

use schemars::{JsonSchema, Schema, schema_for};
use serde::{Deserialize, Serialize};

use super::{
    Unreadable,
    fields::{self, Id, LongId, Moment, Provider},
    json,
    notification::NotificationRecord,
    topics,
};
use crate::domain::{
    BroadcastId, DoseJob, Job, Lane, ListJob, Listeners, ProfileId, ProviderId, RegimenId, Slice, SliceJob,
    UserId, Work,
    limits::{LIST_USERS_MAX, SLICES_MAX},
};

/// The topic of that provider and lane.
pub fn topic(provider: ProviderId, lane: Lane) -> &'static str {
    match (provider, lane) {
        (ProviderId::Expo, Lane::Urgent) => topics::PUSH_EXPO_URGENT,
        (ProviderId::Expo, Lane::Bulk) => topics::PUSH_EXPO_BULK,
        (ProviderId::Fcm, Lane::Urgent) => topics::PUSH_FCM_URGENT,
        (ProviderId::Fcm, Lane::Bulk) => topics::PUSH_FCM_BULK,
    }
}

/// The record's key: the same job has the same key. A dose is named by its notification, a part of a
/// broadcast by its number.
pub fn key(job: &Job) -> String {
    match &job.work {
        Work::Dose(_) => job.notification.id.as_str().to_owned(),
        Work::List(list) => format!("{}:{}", list.broadcast, list.part),
        Work::Slice(slice) => format!("{}:{}", slice.broadcast, slice.slice.index),
    }
}

/// Reads a record.
///
/// # Errors
/// The record is no job.
pub fn read(_key: Option<&[u8]>, value: Option<&[u8]>) -> Result<Job, Unreadable> {
    let record: Record = json::object(value)?;
    let work = match record.work {
        WorkRecord::Dose(dose) => Work::Dose(DoseJob {
            profile: ProfileId::new(dose.profile_id.0),
            regimen: RegimenId::new(dose.regimen_id.0),
            user: UserId::new(dose.user_id.0),
            schedule_time: dose.schedule_time.0,
        }),
        WorkRecord::List(list) => {
            if list.users.len() > LIST_USERS_MAX {
                return Err(json::invalid(
                    "work.list.users",
                    format_args!("{} users, at most {LIST_USERS_MAX} are allowed", list.users.len()),
                ));
            }
            Work::List(ListJob {
                broadcast: BroadcastId::new(list.broadcast_id.0),
                part: list.part,
                users: list.users.into_iter().map(|id| UserId::new(id.0)).collect(),
            })
        }
        WorkRecord::Slice(slice) => {
            if !slice.of.is_power_of_two() || slice.of > SLICES_MAX || slice.index >= slice.of {
                return Err(json::invalid(
                    "work.slice",
                    format_args!("there is no slice {} of {}", slice.index, slice.of),
                ));
            }
            Work::Slice(SliceJob {
                broadcast: BroadcastId::new(slice.broadcast_id.0),
                slice: Slice { index: slice.index, of: slice.of },
                to: Listeners {
                    exclude: slice.exclude.map(|id| UserId::new(id.0)),
                    include_anonymous: slice.include_anonymous,
                },
            })
        }
    };
    Ok(Job { provider: record.provider.0, notification: record.notification.into(), work })
}

/// Writes a job.
pub fn write(job: &Job) -> Vec<u8> {
    let work = match &job.work {
        Work::Dose(dose) => WorkRecord::Dose(Dose {
            profile_id: Id(dose.profile.as_str().to_owned()),
            regimen_id: Id(dose.regimen.as_str().to_owned()),
            user_id: Id(dose.user.as_str().to_owned()),
            schedule_time: Moment(dose.schedule_time),
        }),
        Work::List(list) => WorkRecord::List(List {
            broadcast_id: LongId(list.broadcast.as_str().to_owned()),
            part: list.part,
            users: list.users.iter().map(|user| Id(user.as_str().to_owned())).collect(),
        }),
        Work::Slice(slice) => WorkRecord::Slice(Part {
            broadcast_id: LongId(slice.broadcast.as_str().to_owned()),
            index: slice.slice.index,
            of: slice.slice.of,
            exclude: slice.to.exclude.as_ref().map(|user| Id(user.as_str().to_owned())),
            include_anonymous: slice.to.include_anonymous,
        }),
    };
    json::bytes(&Record { provider: Provider(job.provider), notification: (&job.notification).into(), work })
}

pub(super) fn schema() -> Schema {
    schema_for!(Record)
}

/// A notification and its audience: the records of `push.<provider>.<lane>`. Written by pushcast for itself.
#[derive(Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "Job")]
struct Record {
    /// The provider that it is sent through.
    provider: Provider,
    /// What is sent.
    notification: NotificationRecord,
    /// Whom it is sent to.
    work: WorkRecord,
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "Work")]
enum WorkRecord {
    Dose(Dose),
    List(List),
    Slice(Part),
}

/// A dose, for all tokens of one user.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", expecting = "an object")]
struct Dose {
    profile_id: Id,
    regimen_id: Id,
    user_id: Id,
    schedule_time: Moment,
}

/// Named users of a broadcast.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", expecting = "an object")]
struct List {
    broadcast_id: LongId,
    /// The part's number.
    part: u32,
    #[schemars(length(max = LIST_USERS_MAX))]
    users: Vec<Id>,
}

/// A slice of the token ring, of a broadcast to everybody.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", expecting = "an object")]
#[schemars(rename = "Slice")]
struct Part {
    broadcast_id: LongId,
    /// The number of the slice, from 0; also the part's number.
    index: u32,
    /// How many slices the ring is cut into: a power of two.
    of: u32,
    /// The user who is left out: the author.
    #[serde(default, deserialize_with = "fields::optional", skip_serializing_if = "Option::is_none")]
    exclude: Option<Id>,
    /// Whether tokens without a user are included.
    include_anonymous: bool,
}
