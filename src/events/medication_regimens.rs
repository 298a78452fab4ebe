//! `medication-regimens`: a regimen as it now is, or that it was removed.

use jiff::civil::{Date, Weekday, date};
use schemars::{JsonSchema, Schema, schema_for};
use serde::Deserialize;

use super::{
    Unreadable,
    fields::{self, Day, DayOfWeek, Id, Text, TimeOfDay, Zone},
    json,
};
use crate::domain::{
    EveryDay, LocalTime, ProfileId, Regimen, RegimenEvent, RegimenId, Rule, UserId,
    limits::{EVERY_DAYS_MAX, TIMES_A_DAY_MAX},
    recurrence::parse_rrule,
};

/// What a reminder calls a medicine without a name: "Time for your medicine".
pub const NAMELESS: &str = "your medicine";

/// The first day of a regimen that names none: earlier than any dose.
const FIRST_DAY: Date = date(1970, 1, 1);

/// Reads a record. A null value with a regimen's id as its key removes the regimen.
///
/// # Errors
/// The record is no regimen that can be kept.
pub fn read(key: Option<&[u8]>, value: Option<&[u8]>) -> Result<RegimenEvent, Unreadable> {
    if value.is_none() {
        return removed(key);
    }
    match json::event_of(value)?.as_deref() {
        None | Some("set") => json::object::<Set>(value)?.event(),
        Some("removed") => {
            let Removed { regimen_id } = json::object(value)?;
            Ok(RegimenEvent::Removed(RegimenId::new(regimen_id.0)))
        }
        Some(event) => Err(json::unknown_event(event, "set, removed")),
    }
}

pub(super) fn schema() -> Schema {
    schema_for!(Event)
}

/// A medication regimen. The record's key is its id; a null value with a key removes it. Every name may be
/// written in snake_case too.
#[derive(JsonSchema)]
#[schemars(tag = "event", rename_all = "camelCase", transform = json::first_event_by_default)]
#[expect(dead_code, reason = "only for the schema: `read` chooses the object by `event`")]
enum Event {
    /// The regimen as it now is.
    Set(Set),
    /// The regimen was removed.
    Removed(Removed),
}

/// `times` or `rrule` is required.
#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", expecting = "an object")]
struct Set {
    #[serde(alias = "regimen_id")]
    regimen_id: Id,
    /// The person who takes the medication.
    #[serde(alias = "profile_id")]
    profile_id: Id,
    /// The user who is reminded.
    #[serde(alias = "user_id")]
    user_id: Id,
    /// Absent = "your medicine".
    #[serde(default, alias = "medicine_name", deserialize_with = "fields::optional")]
    medicine_name: Option<Text>,
    #[serde(default, deserialize_with = "fields::optional")]
    dosage: Option<Text>,
    /// The zone in which its times are local.
    timezone: Zone,
    /// The times of day of its doses.
    #[serde(default)]
    #[schemars(length(max = TIMES_A_DAY_MAX))]
    times: Option<Vec<TimeOfDay>>,
    /// The days of the week that have doses; absent = all.
    #[serde(default)]
    days: Option<Vec<DayOfWeek>>,
    /// Doses on every n-th day, counted from the first day.
    #[serde(default, alias = "every_days")]
    #[schemars(range(min = 1, max = EVERY_DAYS_MAX))]
    every_days: Option<u32>,
    /// An iCalendar rule (RFC 5545) instead of `days` and `everyDays`, counted in local time from the first
    /// day.
    #[serde(default, deserialize_with = "fields::optional")]
    rrule: Option<Text>,
    /// The first day; absent = 1970-01-01.
    #[serde(default, alias = "start_date", deserialize_with = "fields::optional")]
    start_date: Option<Day>,
    /// The last day, included; absent = no end.
    #[serde(default, alias = "end_date", deserialize_with = "fields::optional")]
    end_date: Option<Day>,
    /// A disabled regimen has no doses.
    #[serde(default = "enabled")]
    enabled: bool,
}

#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", expecting = "an object")]
struct Removed {
    #[serde(alias = "regimen_id")]
    regimen_id: Id,
}

fn enabled() -> bool {
    true
}

impl Set {
    fn event(self) -> Result<RegimenEvent, Unreadable> {
        let rule = self.rule()?;
        let start_date = self.start_date.map_or(FIRST_DAY, |day| day.0);
        let end_date = self.end_date.map(|day| day.0);
        if end_date.is_some_and(|end_date| end_date < start_date) {
            return Err(json::invalid("endDate", "before startDate"));
        }
        let regimen = Regimen {
            profile: ProfileId::new(self.profile_id.0),
            user: UserId::new(self.user_id.0),
            medicine_name: self.medicine_name.map_or_else(|| NAMELESS.to_owned(), |text| text.0),
            dosage: self.dosage.map(|text| text.0).unwrap_or_default(),
            timezone: self.timezone.0,
            rule,
            start_date,
            end_date,
            enabled: self.enabled,
        };
        Ok(RegimenEvent::Set(RegimenId::new(self.regimen_id.0), Box::new(regimen)))
    }

    fn rule(&self) -> Result<Rule, Unreadable> {
        let times = self.times()?;
        let Some(Text(text)) = &self.rrule else {
            return if times.is_empty() {
                Err(json::missing("times"))
            } else {
                Ok(Rule::Times { times, days: self.every_day()? })
            };
        };
        if self.days.is_some() || self.every_days.is_some() {
            return Err(json::invalid(
                "rrule",
                "says on which days; `days` and `everyDays` can't be given with it",
            ));
        }
        let text = parse_rrule(text).map_err(|why| not_a_rule(&why.to_string()))?;
        if self.start_date.is_none() && text.contains("COUNT=") {
            return Err(json::invalid("rrule", "COUNT counts from the first day: `startDate` is missing"));
        }
        Ok(Rule::Rrule { text, times })
    }

    fn times(&self) -> Result<Vec<LocalTime>, Unreadable> {
        let mut times: Vec<LocalTime> = self.times.iter().flatten().map(|time| time.0).collect();
        if times.len() > TIMES_A_DAY_MAX {
            return Err(json::invalid(
                "times",
                format_args!("{} times, at most {TIMES_A_DAY_MAX} are allowed", times.len()),
            ));
        }
        times.sort_unstable();
        times.dedup();
        Ok(times)
    }

    fn every_day(&self) -> Result<EveryDay, Unreadable> {
        match (&self.days, self.every_days) {
            (None, None) => Ok(EveryDay::Nth(1)),
            (None, Some(n @ 1..=EVERY_DAYS_MAX)) => Ok(EveryDay::Nth(n)),
            (None, Some(n)) => {
                Err(json::invalid("everyDays", format_args!("{n} is not from 1 to {EVERY_DAYS_MAX}")))
            }
            (Some(days), None) if days.is_empty() => {
                Err(json::invalid("days", "empty; leave it out for every day"))
            }
            (Some(days), None) => {
                let mut days: Vec<Weekday> = days.iter().map(|day| day.0).collect();
                days.sort_unstable_by_key(|day| day.to_monday_one_offset());
                days.dedup();
                Ok(EveryDay::Weekdays(days))
            }
            (Some(_), Some(_)) => Err(json::invalid("days", "can't be given together with `everyDays`")),
        }
    }
}

/// The reason may quote the rule's text, and any text may be a token in the wrong place.
fn not_a_rule(why: &str) -> Unreadable {
    let why = if fields::may_hold_a_token(why) { String::new() } else { format!(": {why}") };
    json::invalid("rrule", format_args!("not a recurrence rule (RFC 5545) that can be followed{why}"))
}

fn removed(key: Option<&[u8]>) -> Result<RegimenEvent, Unreadable> {
    let key = key.ok_or_else(|| Unreadable::malformed("a null value without a key"))?;
    let id = std::str::from_utf8(key).map_err(|_| Unreadable::malformed("key: not UTF-8"))?.trim();
    if id.is_empty() {
        return Err(Unreadable::malformed("key: empty, expected a regimen's id"));
    }
    <Id as fields::Field>::of_text(id)
        .map(|id| RegimenEvent::Removed(RegimenId::new(id.0)))
        .map_err(|why| Unreadable::invalid(format!("key: {why}")))
}
