//! `medication-ticks`: a clock tick, one shard's tick, or a dose that upstream found due itself.

use schemars::{JsonSchema, Schema, schema_for};
use serde::{Deserialize, Serialize};

use super::{
    Unreadable,
    fields::{self, Id, Moment, Text, Zone},
    json,
    medication_regimens::NAMELESS,
};
use crate::domain::{ProfileId, RegimenId, Tick, Timestamp, UpstreamDose, UserId};

/// Reads a record. The stage checks whether there is such a shard.
///
/// # Errors
/// The record is no tick.
pub fn read(_key: Option<&[u8]>, value: Option<&[u8]>) -> Result<Tick, Unreadable> {
    let record: Record = json::object(value)?;
    match (record.dose, record.shard, record.at) {
        (Some(dose), None, None) => Ok(Tick::Dose(dose.into())),
        (Some(_), _, _) => Err(json::invalid("dose", "can't be given together with `at` or `shard`")),
        (None, Some(shard), Some(at)) => Ok(Tick::Shard { shard, at: at.0 }),
        (None, Some(_), None) => Err(json::missing("at")),
        (None, None, at) => Ok(Tick::Clock { at: at.map(|at| at.0) }),
    }
}

/// Writes a tick.
pub fn write(tick: &Tick) -> Vec<u8> {
    json::bytes(&match tick {
        Tick::Clock { at } => Record { at: at.map(Moment), shard: None, dose: None },
        Tick::Shard { shard, at } => Record { at: Some(Moment(*at)), shard: Some(*shard), dose: None },
        Tick::Dose(dose) => Record { at: None, shard: None, dose: Some(dose.into()) },
    })
}

/// Writes one shard's tick.
pub fn write_shard(shard: u16, at: Timestamp) -> Vec<u8> {
    write(&Tick::Shard { shard, at })
}

pub(super) fn schema() -> Schema {
    schema_for!(Record)
}

/// `{}` and `{"at":…}` are ticks of the clock, `{"shard":…,"at":…}` is one shard's, `{"dose":…}` is a dose
/// that upstream found due itself. Every name may be written in snake_case too.
#[derive(Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "Tick")]
struct Record {
    /// Doses up to here are due, if it is earlier than now; absent = now.
    #[serde(default, deserialize_with = "fields::optional", skip_serializing_if = "Option::is_none")]
    at: Option<Moment>,
    /// The number of the shard. Written by pushcast: a clock tick is cut into these.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    shard: Option<u16>,
    /// A dose that is due at its time; the regimen is not asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    dose: Option<Dose>,
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", expecting = "an object")]
struct Dose {
    #[serde(alias = "regimen_id")]
    regimen_id: Id,
    /// The person who takes the medication.
    #[serde(alias = "profile_id")]
    profile_id: Id,
    /// The user who is reminded.
    #[serde(alias = "user_id")]
    user_id: Id,
    /// When the dose is due; a dose of the future is kept until then.
    #[serde(alias = "schedule_time")]
    schedule_time: Moment,
    /// Absent = "your medicine".
    #[serde(default, alias = "medicine_name", deserialize_with = "fields::optional")]
    medicine_name: Option<Text>,
    #[serde(default, deserialize_with = "fields::optional")]
    dosage: Option<Text>,
    /// The zone in which its time is shown; absent = the regimen's, else UTC.
    #[serde(default, deserialize_with = "fields::optional", skip_serializing_if = "Option::is_none")]
    timezone: Option<Zone>,
}

impl From<Dose> for UpstreamDose {
    fn from(dose: Dose) -> Self {
        Self {
            regimen: RegimenId::new(dose.regimen_id.0),
            profile: ProfileId::new(dose.profile_id.0),
            user: UserId::new(dose.user_id.0),
            schedule_time: dose.schedule_time.0,
            medicine_name: dose.medicine_name.map_or_else(|| NAMELESS.to_owned(), |text| text.0),
            dosage: dose.dosage.map(|text| text.0).unwrap_or_default(),
            timezone: dose.timezone.and_then(|zone| zone.0.iana_name().map(str::to_owned)),
        }
    }
}

impl From<&UpstreamDose> for Dose {
    fn from(dose: &UpstreamDose) -> Self {
        Self {
            regimen_id: Id(dose.regimen.as_str().to_owned()),
            profile_id: Id(dose.profile.as_str().to_owned()),
            user_id: Id(dose.user.as_str().to_owned()),
            schedule_time: Moment(dose.schedule_time),
            medicine_name: Some(Text(dose.medicine_name.clone())),
            dosage: Some(Text(dose.dosage.clone())),
            timezone: dose.timezone.as_deref().and_then(|name| <Zone as fields::Field>::of_text(name).ok()),
        }
    }
}
