//! iCalendar recurrence rules (RFC 5545), by way of the `rrule` crate.
//!
//! A rule is followed in *floating* time: its start date at midnight, as if in UTC. Only then are its local
//! times placed in the regimen's zone, by the same rules as plain times of day. `UNTIL` is applied here,
//! because the crate would compare it with floating times.

use std::{iter, time::Duration};

use ::rrule::{Frequency, RRule, RRuleSet};
use jiff::{
    civil::{Date, DateTime, Time, date},
    tz::TimeZone,
};

use super::{InvalidRule, days_between, first_shown};
use crate::domain::{
    Timestamp,
    limits::{RRULE_BYTES_MAX, RRULE_COUNT_MAX, TIMES_A_DAY_MAX},
};

/// Occurrences that one search follows at most, those before the wanted one included.
const SEARCH_MAX: usize = 200_000;

/// A rule that was parsed and checked.
struct Compiled {
    set: RRuleSet,
    rule: RRule,
    until: Option<Until>,
}

/// The last moment of a rule, included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Until {
    Local(DateTime),
    Moment(Timestamp),
}

/// Checks a recurrence rule and brings it into the form that [`crate::domain::Rule`] keeps: upper case,
/// without `RRULE:`.
///
/// COUNT counts what the rule itself names: days, where times of day are given beside it. UNTIL may be a day
/// (all of it), a local time, or a moment in UTC.
///
/// # Errors
/// It is no rule, holds more than a rule (DTSTART, EXDATE), occurs more often than once a minute, or would
/// take too much work to follow. The message says which.
pub fn parse_rrule(text: &str) -> Result<String, InvalidRule> {
    let text = text.trim().to_ascii_uppercase();
    let text = text.strip_prefix("RRULE:").unwrap_or(&text);
    compile(text, date(2000, 1, 1)).map(|_| text.to_owned())
}

/// The rule's local times from `from` on, in order; if `times` holds any, these times on the rule's days.
///
/// A text that [`parse_rrule`] would refuse has none.
pub(super) fn local_times<'a>(
    text: &str,
    times: &'a [Time],
    start: Date,
    zone: &'a TimeZone,
    from: Date,
) -> Box<dyn Iterator<Item = DateTime> + 'a> {
    let Ok(Compiled { set, rule, until }) = compile(text, start) else { return Box::new(iter::empty()) };
    let named =
        floating(&shortly_before(set, rule, start, from)).skip_while(move |local| local.date() < from);
    let within = move |local: &DateTime| until.is_none_or(|until| until.allows(*local, zone));
    if times.is_empty() {
        return Box::new(named.take_while(within));
    }
    let mut last = None;
    let days = named.map(|local| local.date()).filter(move |day| last.replace(*day) != Some(*day));
    Box::new(days.flat_map(|day| times.iter().map(move |time| day.to_datetime(*time))).take_while(within))
}

fn compile(text: &str, start: Date) -> Result<Compiled, InvalidRule> {
    let refuse = |why: String| Err(InvalidRule(why));
    if text.len() > RRULE_BYTES_MAX || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return refuse(format!(
            "a rule is one line of at most {RRULE_BYTES_MAX} characters without spaces, \
             and nothing beside the rule"
        ));
    }
    let (untils, parts): (Vec<&str>, Vec<&str>) =
        text.split(';').filter(|part| !part.is_empty()).partition(|part| part.starts_with("UNTIL="));
    let until = match untils[..] {
        [] => None,
        [one] => Some(Until::parse(&one["UNTIL=".len()..])?),
        _ => return refuse("more than one UNTIL".to_owned()),
    };
    let set: RRuleSet = format!("DTSTART:{}T000000Z\nRRULE:{}", start.strftime("%Y%m%d"), parts.join(";"))
        .parse()
        .map_err(|error: ::rrule::RRuleError| InvalidRule(error.to_string()))?;
    let [rule] = &set.get_rrule()[..] else { return refuse("exactly one rule is needed".to_owned()) };
    if rule.get_freq() == Frequency::Secondly || rule.get_by_second() != [0] {
        return refuse("doses are due on the minute, FREQ=SECONDLY and BYSECOND are not possible".to_owned());
    }
    if rule.get_freq() == Frequency::Minutely && parts.iter().any(|part| part.starts_with("BY")) {
        // The crate is wrong there: it steps over hours and days that it should visit.
        return refuse(
            "FREQ=MINUTELY goes with INTERVAL only; FREQ=HOURLY or DAILY take BYHOUR and BYMINUTE".to_owned(),
        );
    }
    if rule.get_interval() == 0 {
        return refuse("INTERVAL must be at least 1".to_owned());
    }
    if rule.get_count().is_some_and(|count| count == 0 || count > RRULE_COUNT_MAX) {
        return refuse(format!("COUNT must be 1 to {RRULE_COUNT_MAX}"));
    }
    if rule.get_count().is_some() && until.is_some() {
        return refuse("COUNT and UNTIL exclude each other".to_owned());
    }
    if rule.get_by_hour().len().max(1) * rule.get_by_minute().len().max(1) > TIMES_A_DAY_MAX {
        return refuse(format!("BYHOUR and BYMINUTE name more than {TIMES_A_DAY_MAX} times a day"));
    }
    let rule = rule.clone();
    Ok(Compiled { set, rule, until })
}

/// The same rule, started a whole number of its periods later but well before `from`, so that a rule of many
/// years is not followed from its first day at every search. With a COUNT it has to be.
fn shortly_before(set: RRuleSet, rule: RRule, start: Date, from: Date) -> RRuleSet {
    let begin = *set.get_dt_start();
    match skippable_seconds(&rule, start, from) {
        // The rule is validated: what it took from its start date (a day of the month, a weekday) stays in
        // it.
        Some(seconds) => RRuleSet::new(begin + Duration::from_secs(seconds)).rrule(rule),
        None => set,
    }
    .limit()
}

fn skippable_seconds(rule: &RRule, start: Date, from: Date) -> Option<u64> {
    const DAY: i64 = 24 * 60 * 60;
    if rule.get_count().is_some() {
        return None;
    }
    let interval = i64::from(rule.get_interval());
    // Whole periods up to `from`, less one, so that the start lies before it.
    let whole = |length: i64, period: i64| (length / period - 1) * period;
    let days = days_between(start, from);
    let months = i64::from(from.year() - start.year()) * 12 + i64::from(from.month() - start.month());
    let first_of_month = |months: i64| {
        let month = i64::from(start.year()) * 12 + i64::from(start.month()) - 1 + months;
        let day = Date::new(
            i16::try_from(month.div_euclid(12)).ok()?,
            i8::try_from(month.rem_euclid(12) + 1).ok()?,
            1,
        )
        .ok()?;
        Some(days_between(start, day) * DAY)
    };
    let seconds = match rule.get_freq() {
        Frequency::Yearly => {
            let years = whole(i64::from(from.year() - start.year()), interval);
            // January: a year's period begins with it.
            first_of_month(years * 12 + 1 - i64::from(start.month()))?
        }
        Frequency::Monthly => first_of_month(whole(months, interval))?,
        Frequency::Weekly => whole(days, interval * 7) * DAY,
        Frequency::Daily => whole(days, interval) * DAY,
        Frequency::Hourly => whole(days * 24, interval) * 60 * 60,
        Frequency::Minutely => whole(days * 24 * 60, interval) * 60,
        Frequency::Secondly => return None,
    };
    u64::try_from(seconds).ok().filter(|seconds| *seconds > 0)
}

/// The floating times of a set, in order.
fn floating(set: &RRuleSet) -> impl Iterator<Item = DateTime> + use<> {
    set.into_iter()
        .take(SEARCH_MAX)
        .map_while(|time| Timestamp::from_second(time.timestamp()).ok())
        .map(|time| TimeZone::UTC.to_datetime(time))
}

impl Until {
    fn parse(text: &str) -> Result<Self, InvalidRule> {
        let parsed = if text.ends_with('Z') {
            text.parse().map(Self::Moment)
        } else if text.contains('T') {
            text.parse().map(Self::Local)
        } else {
            text.parse().map(|day: Date| Self::Local(day.to_datetime(Time::MAX)))
        };
        parsed.map_err(|_| {
            InvalidRule(format!(
                "UNTIL={text} is no date, local time or UTC time of the form 20261231T170000Z"
            ))
        })
    }

    fn allows(self, local: DateTime, zone: &TimeZone) -> bool {
        match self {
            Self::Local(last) => local <= last,
            Self::Moment(last) => first_shown(zone, local).is_some_and(|at| at <= last),
        }
    }
}
