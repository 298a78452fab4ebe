//! A medication regimen: which doses, at which local times. [`super::recurrence`] computes when they are due.

use std::{fmt, str::FromStr};

use jiff::{
    civil::{Date, Time, Weekday},
    tz::TimeZone,
};

use super::{ProfileId, UserId, recurrence::InvalidRule};

/// A regimen as it now is.
#[derive(Clone, Debug, PartialEq)]
pub struct Regimen {
    /// The person who takes the medication.
    pub profile: ProfileId,
    /// The user who is reminded.
    pub user: UserId,
    /// `{medicine_name}` of the reminder's texts.
    pub medicine_name: String,
    /// `{dosage}` of the reminder's texts.
    pub dosage: String,
    /// The zone in which its times are local. It has an IANA name.
    pub timezone: TimeZone,
    /// Its days and times.
    pub rule: Rule,
    /// Its first day.
    pub start_date: Date,
    /// Its last day, included.
    pub end_date: Option<Date>,
    /// A disabled regimen has no doses.
    pub enabled: bool,
}

/// A time of day, to the minute.
pub type LocalTime = Time;

/// Days and times of day. Its text form (`Display`, `FromStr`) is what the store keeps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rule {
    /// These times on these days.
    Times {
        /// In order, without repeats, at least one.
        times: Vec<LocalTime>,
        /// The days that they are due on.
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

/// The days of a rule with plain times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EveryDay {
    /// Every n-th day from the start date; 1 = daily.
    Nth(u32),
    /// These days of the week, at least one.
    Weekdays(Vec<Weekday>),
}

// === impl Rule ===

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Times { times, days } => write!(f, "times={};{days}", times_text(times)),
            Self::Rrule { text, times } if times.is_empty() => write!(f, "rrule={text}"),
            Self::Rrule { text, times } => write!(f, "rrule={text}|times={}", times_text(times)),
        }
    }
}

impl FromStr for Rule {
    type Err = InvalidRule;

    /// Reads what `Display` wrote. A recurrence rule is not checked again.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let unknown = || InvalidRule(format!("unknown rule {text:?}"));
        if let Some(rrule) = text.strip_prefix("rrule=") {
            let (text, times) = match rrule.split_once("|times=") {
                Some((text, times)) => (text, parse_times(times)?),
                None => (rrule, Vec::new()),
            };
            return Ok(Self::Rrule { text: text.to_owned(), times });
        }
        let (times, days) =
            text.strip_prefix("times=").and_then(|rest| rest.split_once(';')).ok_or_else(unknown)?;
        let days = match days.split_once('=') {
            Some(("every", n)) => EveryDay::Nth(n.parse().ok().filter(|n| *n > 0).ok_or_else(unknown)?),
            Some(("weekdays", names)) => EveryDay::Weekdays(
                names.split(',').map(parse_weekday).collect::<Option<_>>().ok_or_else(unknown)?,
            ),
            _ => return Err(unknown()),
        };
        Ok(Self::Times { times: parse_times(times)?, days })
    }
}

impl fmt::Display for EveryDay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nth(n) => write!(f, "every={n}"),
            Self::Weekdays(weekdays) => {
                let names: Vec<_> = weekdays.iter().map(|weekday| weekday_name(*weekday)).collect();
                write!(f, "weekdays={}", names.join(","))
            }
        }
    }
}

fn times_text(times: &[LocalTime]) -> String {
    let texts: Vec<_> = times.iter().map(|time| format!("{:02}:{:02}", time.hour(), time.minute())).collect();
    texts.join(",")
}

fn parse_times(text: &str) -> Result<Vec<LocalTime>, InvalidRule> {
    text.split(',')
        .map(|time| {
            LocalTime::strptime("%H:%M", time).map_err(|_| InvalidRule(format!("{time:?} is no time of day")))
        })
        .collect()
}

fn weekday_name(weekday: Weekday) -> &'static str {
    match weekday {
        Weekday::Monday => "mon",
        Weekday::Tuesday => "tue",
        Weekday::Wednesday => "wed",
        Weekday::Thursday => "thu",
        Weekday::Friday => "fri",
        Weekday::Saturday => "sat",
        Weekday::Sunday => "sun",
    }
}

fn parse_weekday(name: &str) -> Option<Weekday> {
    Weekday::Monday.cycle_forward().take(7).find(|weekday| weekday_name(*weekday) == name)
}

#[cfg(test)]
mod tests {
    use jiff::civil::time;
    use proptest::{collection::vec, prelude::*, sample::select};

    use super::*;

    fn rules() -> impl Strategy<Value = Rule> {
        let times = || vec((0..24_i8, 0..60_i8).prop_map(|(hour, minute)| time(hour, minute, 0, 0)), 1..5);
        let weekday = (1..=7_i8).prop_map(|day| Weekday::from_monday_one_offset(day).unwrap());
        let days = prop_oneof![
            (1..u32::MAX).prop_map(EveryDay::Nth),
            vec(weekday, 1..8).prop_map(EveryDay::Weekdays)
        ];
        let texts = select(vec![
            "FREQ=DAILY",
            "FREQ=WEEKLY;BYDAY=MO,FR;UNTIL=20271231T235959Z",
            "FREQ=MONTHLY;BYMONTHDAY=-1;BYHOUR=9",
        ]);
        prop_oneof![
            (times(), days).prop_map(|(times, days)| Rule::Times { times, days }),
            (texts, prop_oneof![Just(Vec::new()), times()])
                .prop_map(|(text, times)| Rule::Rrule { text: text.to_owned(), times }),
        ]
    }

    proptest! {
        #[test]
        fn a_rule_is_read_back_from_its_text(rule in rules()) {
            prop_assert_eq!(rule.to_string().parse(), Ok(rule));
        }
    }

    #[test]
    fn the_text_of_a_rule_is_what_the_store_already_holds() {
        let times = vec![time(8, 0, 0, 0), time(20, 0, 0, 0)];
        let daily = Rule::Times { times: times.clone(), days: EveryDay::Nth(1) };
        let twice_a_week = Rule::Times {
            times: times.clone(),
            days: EveryDay::Weekdays(vec![Weekday::Monday, Weekday::Friday]),
        };
        let rrule = Rule::Rrule { text: "FREQ=DAILY;INTERVAL=2".to_owned(), times };
        assert_eq!(daily.to_string(), "times=08:00,20:00;every=1");
        assert_eq!(twice_a_week.to_string(), "times=08:00,20:00;weekdays=mon,fri");
        assert_eq!(rrule.to_string(), "rrule=FREQ=DAILY;INTERVAL=2|times=08:00,20:00");
    }

    #[test]
    fn anything_else_is_no_rule() {
        for text in [
            "",
            "times=",
            "times=08:00",
            "times=;every=1",
            "times=24:00;every=1",
            "times=08:00;every=0",
            "times=08:00;weekdays=",
            "every=1",
        ] {
            assert!(text.parse::<Rule>().is_err(), "{text:?}");
        }
    }
}
