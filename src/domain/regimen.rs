//! A medication regimen: which doses, at which local times. When they are due is [`super::recurrence`]'s to say.

use jiff::{
    civil::{Date, Time, Weekday},
    tz::TimeZone,
};

use super::{ProfileId, UserId};

/// A regimen as it now is.
#[derive(Clone, Debug, PartialEq)]
pub struct Regimen {
    /// Whose medication.
    pub profile: ProfileId,
    /// Who is rung.
    pub user: UserId,
    /// Shown in the title.
    pub medicine_name: String,
    /// Shown in the text.
    pub dosage: String,
    /// The zone in which its times are local. Named, so it has an IANA name.
    pub timezone: TimeZone,
    /// Which days and times.
    pub rule: Rule,
    /// First day.
    pub start_date: Date,
    /// Last day, included.
    pub end_date: Option<Date>,
    /// A disabled regimen rings nothing.
    pub enabled: bool,
}

/// A time of day, to the minute.
pub type LocalTime = Time;

/// Which days and times of day. Its text form (`Display`, `FromStr`) is what the store keeps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rule {
    /// These times on these days.
    Times {
        /// In order, without repeats, at least one.
        times: Vec<LocalTime>,
        /// On which days.
        days: EveryDay,
    },
    /// An iCalendar recurrence rule (RFC 5545), counted in local time from `start_date`.
    Rrule {
        /// The rule's text, without `RRULE:`. Checked when it was read.
        text: String,
        /// Times of day; none = the rule's own BYHOUR and BYMINUTE.
        times: Vec<LocalTime>,
    },
}

/// Which days.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EveryDay {
    /// Every n-th day from the start date; 1 = daily.
    Nth(u32),
    /// These days of the week, at least one.
    Weekdays(Vec<Weekday>),
}
