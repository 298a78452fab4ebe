//! When a regimen's doses are due.
//!
//! A local time is due **at the first moment at which the wall clock shows it or has jumped over it**. So a
//! time in a skipped hour is due when the clock jumps, two times in the same skipped hour are one dose, and a
//! time in a repeated hour is due the first time only. By this rule later local times are never due earlier,
//! and the search may stop at the first hit.
//!
//! Every call is bounded: by the first days from `after` on for times of day, by the limits of
//! [`parse_rrule`] and of the `rrule` crate for recurrence rules.

mod rrule;
#[cfg(test)]
mod tests;

use std::iter;

use jiff::{
    Span, ToSpan as _,
    civil::{Date, DateTime},
    tz::{AmbiguousOffset, TimeZone},
};

pub use self::rrule::parse_rrule;
use super::{EveryDay, Regimen, Rule, Timestamp};

/// The text is not a recurrence rule that can be followed. The message says why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidRule(pub String);

impl Regimen {
    /// The first dose after that moment; none when the regimen has ended, is disabled, or its rule never
    /// occurs.
    pub fn next_after(&self, after: Timestamp) -> Option<Timestamp> {
        if !self.enabled {
            return None;
        }
        // Until a time is due, the clock has shown earlier ones only: none of yesterday's can be still to
        // come.
        let today = self.timezone.to_datetime(after).date();
        let from = today.max(self.start_date);
        self.local_times(from)
            .take_while(|local| self.is_within(local.date()))
            .map_while(|local| first_shown(&self.timezone, local))
            .find(|at| *at > after)
            // A time that was skipped on the last day may be due on the day after it.
            .filter(|at| self.is_within(self.timezone.to_datetime(*at).date()))
    }

    /// Whether a dose is due at exactly that moment.
    pub fn is_occurrence(&self, at: Timestamp) -> bool {
        at.checked_sub(1.nanosecond()).is_ok_and(|before| self.next_after(before) == Some(at))
    }

    fn is_within(&self, day: Date) -> bool {
        self.end_date.is_none_or(|end| day <= end)
    }

    /// The rule's local times from that day on, in order.
    fn local_times(&self, from: Date) -> Box<dyn Iterator<Item = DateTime> + '_> {
        match &self.rule {
            Rule::Times { times, days } => Box::new(
                days_from(days, self.start_date, from)
                    .flat_map(|day| times.iter().map(move |time| day.to_datetime(*time))),
            ),
            Rule::Rrule { text, times } => {
                rrule::local_times(text, times, self.start_date, &self.timezone, from)
            }
        }
    }
}

/// The days of a rule from `from` on. `from` is not before `start`.
fn days_from(days: &EveryDay, start: Date, from: Date) -> Box<dyn Iterator<Item = Date> + '_> {
    match days {
        EveryDay::Nth(n) => {
            let n = i64::from(*n).max(1);
            let ahead = (-days_between(start, from)).rem_euclid(n);
            Box::new(iter::successors(days_later(from, ahead), move |day| days_later(*day, n)))
        }
        EveryDay::Weekdays(weekdays) if weekdays.is_empty() => Box::new(iter::empty()),
        EveryDay::Weekdays(weekdays) => Box::new(
            iter::successors(Some(from), |day| day.tomorrow().ok())
                .filter(|day| weekdays.contains(&day.weekday())),
        ),
    }
}

fn days_between(start: Date, end: Date) -> i64 {
    start.duration_until(end).as_hours() / 24
}

fn days_later(day: Date, days: i64) -> Option<Date> {
    day.checked_add(Span::new().try_days(days).ok()?).ok()
}

/// The first moment at which a clock on the wall shows `local` or has jumped over it.
fn first_shown(zone: &TimeZone, local: DateTime) -> Option<Timestamp> {
    match zone.to_ambiguous_timestamp(local).offset() {
        AmbiguousOffset::Unambiguous { offset } => offset.to_timestamp(local).ok(),
        AmbiguousOffset::Fold { before, .. } => before.to_timestamp(local).ok(),
        AmbiguousOffset::Gap { after, .. } => {
            // Read with the offset after the jump, a skipped time lies before the jump.
            let before_jump = after.to_timestamp(local).ok()?;
            zone.following(before_jump).next().map(|jump| jump.timestamp())
        }
    }
}
