//! The recurrence against a simulated wall clock that goes minute by minute.

use ::rrule::RRuleSet;
use jiff::civil::{DateTime, Time, Weekday, date, time};
use proptest::{collection::vec, option, prelude::*, sample::select};

use super::*;
use crate::domain::{ProfileId, UserId};

/// Zones, and for each a moment amid something unusual.
const SCENES: [(&str, &str); 16] = [
    ("Asia/Bangkok", "2026-06-15T00:00:00Z"),
    ("Europe/Berlin", "2026-03-29T01:00:00Z"),
    ("Europe/Berlin", "2026-10-25T01:00:00Z"),
    ("America/New_York", "2026-03-08T07:00:00Z"),
    ("America/New_York", "2026-11-01T06:00:00Z"),
    // Half an hour.
    ("Australia/Lord_Howe", "2026-04-04T15:00:00Z"),
    ("Australia/Lord_Howe", "2026-10-03T15:30:00Z"),
    // A whole day left out.
    ("Pacific/Apia", "2011-12-30T10:00:00Z"),
    // Twice a year around Ramadan.
    ("Africa/Casablanca", "2026-02-15T02:00:00Z"),
    ("Africa/Casablanca", "2026-03-22T02:00:00Z"),
    // Midnight is skipped, or comes twice.
    ("Africa/Cairo", "2026-04-23T22:00:00Z"),
    ("Africa/Cairo", "2026-10-29T21:00:00Z"),
    ("America/Havana", "2026-03-08T05:00:00Z"),
    ("America/Havana", "2026-11-01T05:00:00Z"),
    // The jump goes over midnight's border.
    ("America/Nuuk", "2026-03-29T01:00:00Z"),
    ("UTC", "2028-02-29T12:00:00Z"),
];

fn regimen(zone: &str, rule: Rule, start_date: Date, end_date: Option<Date>) -> Regimen {
    Regimen {
        profile: ProfileId::new("pr1"),
        user: UserId::new("u1"),
        medicine_name: "Metformin".to_owned(),
        dosage: "500 mg".to_owned(),
        timezone: TimeZone::get(zone).unwrap(),
        rule,
        start_date,
        end_date,
        enabled: true,
    }
}

fn daily(zone: &str, times: &[(i8, i8)], start_date: Date) -> Regimen {
    let times = times.iter().map(|(hour, minute)| time(*hour, *minute, 0, 0)).collect();
    regimen(zone, Rule::Times { times, days: EveryDay::Nth(1) }, start_date, None)
}

fn by_rrule(text: &str, times: &[(i8, i8)], start_date: Date) -> Regimen {
    let times = times.iter().map(|(hour, minute)| time(*hour, *minute, 0, 0)).collect();
    regimen("Europe/Berlin", Rule::Rrule { text: parse_rrule(text).unwrap(), times }, start_date, None)
}

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

/// The doses after that moment, in the zone's local time.
fn doses(regimen: &Regimen, after: &str, count: usize) -> Vec<String> {
    let dose = |after: &Timestamp| regimen.next_after(*after);
    iter::successors(dose(&at(after)), dose)
        .take(count)
        .map(|at| regimen.timezone.to_datetime(at).strftime("%F %R").to_string())
        .collect()
}

/// Steps the wall clock: a time is due when the clock shows it, or has jumped over it, for the first time.
fn watched(regimen: &Regimen, from: Timestamp, until: Timestamp) -> Vec<Timestamp> {
    let mut doses = Vec::new();
    let mut now = from - 48.hours();
    let mut latest = regimen.timezone.to_datetime(now);
    while now < until {
        now += 1.minute();
        let shown = regimen.timezone.to_datetime(now);
        let mut due = false;
        while latest < shown {
            latest += 1.minute();
            due |= is_due(regimen, latest);
        }
        if due && now > from && regimen.end_date.is_none_or(|end| shown.date() <= end) {
            doses.push(now);
        }
    }
    doses
}

fn is_due(regimen: &Regimen, local: DateTime) -> bool {
    let Rule::Times { times, days } = &regimen.rule else { panic!("watched by their times") };
    let day_is_due = match days {
        EveryDay::Nth(n) => (local.date() - regimen.start_date).get_days() % i32::try_from(*n).unwrap() == 0,
        EveryDay::Weekdays(weekdays) => weekdays.contains(&local.weekday()),
    };
    let within = regimen.start_date <= local.date() && regimen.end_date.is_none_or(|end| local.date() <= end);
    within && day_is_due && times.contains(&local.time())
}

fn times() -> impl Strategy<Value = Vec<Time>> {
    // Most clocks jump around midnight and in the hours after it.
    let hour = prop_oneof![2 => 0..4_i8, 1 => 22..24_i8, 1 => 0..24_i8];
    vec((hour, 0..60_i8).prop_map(|(hour, minute)| time(hour, minute, 0, 0)), 1..6).prop_map(|mut times| {
        times.sort();
        times.dedup();
        times
    })
}

fn weekdays() -> impl Strategy<Value = Vec<Weekday>> {
    vec((1..=7_i8).prop_map(|day| Weekday::from_monday_one_offset(day).unwrap()), 1..5)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, ..ProptestConfig::default() })]

    #[test]
    fn exactly_the_times_that_the_wall_clock_reaches_are_due(
        (zone, moment) in select(&SCENES[..]),
        times in times(),
        days in prop_oneof![(1..4_u32).prop_map(EveryDay::Nth), weekdays().prop_map(EveryDay::Weekdays)],
        starts_before in 0..9_i64,
        ends_after in option::of(0..4_i64),
    ) {
        let middle = at(moment);
        let zone_today = TimeZone::get(zone).unwrap().to_datetime(middle).date();
        let end = ends_after.map(|days| zone_today + days.days());
        let regimen = regimen(zone, Rule::Times { times, days }, zone_today - starts_before.days(), end);
        let from = middle - 72.hours();
        let until = middle + 96.hours();

        let next = |after: &Timestamp| regimen.next_after(*after).filter(|at| *at <= until);
        let due: Vec<_> = iter::successors(next(&from), next).collect();

        prop_assert_eq!(&due, &watched(&regimen, from, until));
        prop_assert!(due.iter().all(|at| regimen.is_occurrence(*at)));
        prop_assert!(due.iter().all(|at| !regimen.is_occurrence(*at + 1.second())));
        prop_assert!(due.iter().all(|at| !regimen.is_occurrence(*at - 1.second())));
    }

    #[test]
    fn the_next_dose_comes_strictly_later_whatever_the_rule_is(
        (zone, moment) in select(&SCENES[..]),
        rule in rrules(),
        times in prop_oneof![Just(Vec::new()), times()],
        days in 0..1_000_i64,
    ) {
        let middle = at(moment);
        let start = TimeZone::get(zone).unwrap().to_datetime(middle).date() - days.days();
        let regimen = regimen(zone, Rule::Rrule { text: rule, times }, start, None);
        let mut after = middle;
        for _ in 0..5 {
            let Some(next) = regimen.next_after(after) else { break };
            prop_assert!(next > after);
            prop_assert!(regimen.is_occurrence(next));
            prop_assert!(regimen.timezone.to_datetime(next).date() >= start);
            after = next;
        }
    }

    #[test]
    fn a_rule_is_the_same_whether_followed_from_its_start_or_from_shortly_before(
        rule in rrules(),
        days in 0..3_000_i64,
    ) {
        let start = date(2020, 1, 31);
        let from = start + days.days();
        let whole: RRuleSet = format!("DTSTART:20200131T000000Z\nRRULE:{rule}").parse().unwrap();
        let later = from.to_zoned(TimeZone::UTC).unwrap().timestamp().as_second();
        let seconds = whole.limit().into_iter().map(|time| time.timestamp());
        let followed: Vec<_> = seconds.filter(|second| *second >= later).take(5).collect();

        let regimen = regimen("UTC", Rule::Rrule { text: rule, times: Vec::new() }, start, None);
        let next = |after: Timestamp| regimen.next_after(after);
        let first = next(Timestamp::from_second(later - 1).unwrap());
        let due = iter::successors(first, |at| next(*at));
        let found: Vec<_> = due.take(5).map(|at| at.as_second()).collect();

        prop_assert_eq!(found, followed);
    }

    #[test]
    fn an_hourly_rule_visits_every_hour_that_it_names(
        interval in 1..40_i64,
        hours in vec(0..24_i8, 0..4),
        days in option::of(weekdays()),
        skip in 0..2_000_i64,
    ) {
        let name = |day: &Weekday| {
            ["MO", "TU", "WE", "TH", "FR", "SA", "SU"][day.to_monday_zero_offset() as usize].to_owned()
        };
        let part = |key: &str, values: Vec<String>| {
            if values.is_empty() { String::new() } else { format!(";{key}={}", values.join(",")) }
        };
        let by_hour = part("BYHOUR", hours.iter().map(i8::to_string).collect());
        let by_day = part("BYDAY", days.iter().flatten().map(name).collect());
        let text = format!("FREQ=HOURLY;INTERVAL={interval}{by_hour}{by_day};BYMINUTE=0,30");
        let text = parse_rrule(&text).unwrap();
        let start = date(2026, 1, 1);
        let named = |hour: i64| {
            let local = start.to_datetime(Time::midnight()) + hour.hours();
            let is_hour = hours.is_empty() || hours.contains(&local.hour());
            let is_day = days.as_ref().is_none_or(|days| days.contains(&local.weekday()));
            (is_hour && is_day).then_some([local, local + 30.minutes()])
        };
        let skipped = start.to_datetime(Time::midnight()) + skip.hours();
        let every = (0..).step_by(usize::try_from(interval).unwrap()).take(6_000);
        let all = every.filter_map(named).flatten();
        let expected: Vec<_> = all.filter(|local| *local > skipped).take(4).collect();

        let regimen = regimen("UTC", Rule::Rrule { text, times: Vec::new() }, start, None);
        let after = at("2026-01-01T00:00:00Z") + skip.hours();
        let due = iter::successors(regimen.next_after(after), |at| regimen.next_after(*at));
        let found: Vec<_> = due.take(4).map(|at| TimeZone::UTC.to_datetime(at)).collect();

        prop_assert_eq!(found, expected);
    }

    #[test]
    fn any_text_is_accepted_as_a_rule_or_refused_and_never_panics(
        text in "[A-Z=;,0-9:é -]{0,40}",
        value in "[-A-Z0-9,é]{0,12}",
        field in 0..12_usize,
    ) {
        let field = [
            "FREQ", "INTERVAL", "COUNT", "BYDAY", "BYMONTHDAY", "BYHOUR", "BYSETPOS", "UNTIL", "WKST",
            "BYYEARDAY", "BYWEEKNO", "BYMONTH",
        ][field];
        let daily = format!("FREQ=DAILY;{field}={value}");
        let yearly = format!("RRULE:FREQ=YEARLY;{field}={value}");
        for text in [text, daily, yearly] {
            if let Ok(accepted) = parse_rrule(&text) {
                by_rrule(&accepted, &[], date(2026, 1, 1)).next_after(at("2026-06-01T00:00:00Z"));
            }
        }
    }
}

/// Rules that `parse_rrule` accepts, with every frequency.
fn rrules() -> impl Strategy<Value = String> {
    let parts = select(vec![
        "",
        ";BYHOUR=8,20",
        ";BYHOUR=9;BYMINUTE=30",
        ";BYDAY=MO,WE,SU;BYHOUR=7",
        ";BYMONTH=2,6;BYHOUR=12;BYMINUTE=0",
        ";BYMONTHDAY=1,-1;BYHOUR=6",
        ";BYDAY=2TU;BYHOUR=6",
        ";BYDAY=MO,TU,WE,TH,FR;BYSETPOS=-1;BYHOUR=10",
        ";WKST=SU;BYDAY=SU,MO;BYHOUR=10",
    ]);
    (select(vec!["YEARLY", "MONTHLY", "WEEKLY", "DAILY", "HOURLY", "MINUTELY"]), 1..14_u32, parts)
        .prop_map(|(freq, interval, parts)| {
            let interval = if freq == "MINUTELY" { interval * 15 } else { interval };
            format!("FREQ={freq};INTERVAL={interval}{parts}")
        })
        .prop_filter("a rule of RFC 5545", |text| parse_rrule(text).is_ok())
}

#[test]
fn a_dose_in_a_skipped_hour_is_due_when_the_clock_jumps_and_only_once() {
    let regimen = daily("Europe/Berlin", &[(2, 10), (2, 40), (3, 0), (8, 0)], date(2026, 3, 1));
    assert_eq!(
        doses(&regimen, "2026-03-28T20:00:00Z", 4),
        ["2026-03-29 03:00", "2026-03-29 08:00", "2026-03-30 02:10", "2026-03-30 02:40"]
    );
}

#[test]
fn a_dose_in_a_repeated_hour_is_due_the_first_time_only() {
    let regimen = daily("America/New_York", &[(1, 30)], date(2026, 10, 1));
    assert_eq!(regimen.next_after(at("2026-10-31T12:00:00Z")), Some(at("2026-11-01T05:30:00Z")));
    assert_eq!(regimen.next_after(at("2026-11-01T05:30:00Z")), Some(at("2026-11-02T06:30:00Z")));
    assert!(!regimen.is_occurrence(at("2026-11-01T06:30:00Z")));
}

#[test]
fn the_doses_of_a_day_that_the_calendar_left_out_are_due_once_at_its_end() {
    let regimen = daily("Pacific/Apia", &[(8, 0), (20, 0)], date(2011, 12, 29));
    assert_eq!(
        doses(&regimen, "2011-12-29T20:00:00Z", 4),
        ["2011-12-29 20:00", "2011-12-31 00:00", "2011-12-31 08:00", "2011-12-31 20:00"]
    );
}

#[test]
fn nothing_is_due_before_the_first_day_or_after_the_last() {
    let mut regimen = daily("Asia/Bangkok", &[(0, 0), (23, 59)], date(2026, 11, 2));
    regimen.end_date = Some(date(2026, 11, 3));
    assert_eq!(
        doses(&regimen, "2020-01-01T00:00:00Z", 9),
        ["2026-11-02 00:00", "2026-11-02 23:59", "2026-11-03 00:00", "2026-11-03 23:59"]
    );
    regimen.end_date = Some(date(2026, 11, 1));
    assert_eq!(regimen.next_after(at("2020-01-01T00:00:00Z")), None);
}

#[test]
fn nothing_is_due_after_the_last_day_even_if_the_calendar_left_that_day_out() {
    let mut regimen = daily("Pacific/Apia", &[(8, 0)], date(2011, 12, 29));
    regimen.end_date = Some(date(2011, 12, 30));
    assert_eq!(doses(&regimen, "2011-12-29T00:00:00Z", 9), ["2011-12-29 08:00"]);
}

#[test]
fn a_disabled_regimen_has_no_doses() {
    let mut regimen = daily("UTC", &[(8, 0)], date(2026, 1, 1));
    regimen.enabled = false;
    assert_eq!(regimen.next_after(at("2026-01-01T00:00:00Z")), None);
    assert!(!regimen.is_occurrence(at("2026-01-02T08:00:00Z")));
}

#[test]
fn every_nth_day_is_counted_from_the_first_day() {
    let mut regimen = daily("UTC", &[(8, 0)], date(2026, 1, 30));
    regimen.rule = Rule::Times { times: vec![time(8, 0, 0, 0)], days: EveryDay::Nth(3) };
    assert_eq!(doses(&regimen, "2026-02-01T00:00:00Z", 2), ["2026-02-02 08:00", "2026-02-05 08:00"]);
    regimen.rule = Rule::Times { times: vec![time(8, 0, 0, 0)], days: EveryDay::Nth(u32::MAX) };
    assert_eq!(regimen.next_after(at("2026-02-01T00:00:00Z")), None);
}

#[test]
fn a_recurrence_rule_keeps_to_local_time_over_the_change_of_the_clock() {
    let regimen = by_rrule("RRULE:FREQ=DAILY;BYHOUR=2,9;BYMINUTE=30", &[], date(2020, 1, 1));
    assert_eq!(
        doses(&regimen, "2026-03-28T02:00:00Z", 4),
        ["2026-03-28 09:30", "2026-03-29 03:00", "2026-03-29 09:30", "2026-03-30 02:30"]
    );
}

#[test]
fn times_of_day_beside_a_rule_are_due_on_the_days_of_the_rule() {
    let regimen = by_rrule("freq=monthly;byday=-1fr;byhour=3,4", &[(8, 0), (20, 0)], date(2020, 1, 1));
    assert_eq!(
        doses(&regimen, "2026-11-01T00:00:00Z", 3),
        ["2026-11-27 08:00", "2026-11-27 20:00", "2026-12-25 08:00"]
    );
}

#[test]
fn a_count_is_counted_from_the_first_day() {
    let regimen = by_rrule("FREQ=DAILY;COUNT=3", &[(8, 0), (20, 0)], date(2026, 1, 1));
    assert_eq!(
        doses(&regimen, "2026-01-02T12:00:00Z", 9),
        ["2026-01-02 20:00", "2026-01-03 08:00", "2026-01-03 20:00"]
    );
}

#[test]
fn until_is_a_day_a_local_time_or_a_moment() {
    let last = |until: &str| {
        let regimen = by_rrule(&format!("FREQ=DAILY;UNTIL={until}"), &[(8, 0), (20, 0)], date(2026, 1, 1));
        doses(&regimen, "2026-01-02T00:00:00Z", 9).pop().unwrap()
    };
    assert_eq!(last("20260103"), "2026-01-03 20:00");
    assert_eq!(last("20260103T080000"), "2026-01-03 08:00");
    assert_eq!(last("20260103T070000Z"), "2026-01-03 08:00");
    assert_eq!(last("20260103T065959Z"), "2026-01-02 20:00");
}

#[test]
fn a_rule_that_never_occurs_has_no_doses() {
    let regimen = by_rrule("FREQ=MONTHLY;BYMONTH=2;BYMONTHDAY=30", &[(8, 0)], date(2026, 1, 1));
    assert_eq!(regimen.next_after(at("2026-01-02T00:00:00Z")), None);
}

#[test]
fn a_rule_that_cannot_be_followed_is_refused_with_the_reason() {
    for (text, reason) in [
        ("", "FREQ"),
        ("FREQ=OFTEN", "OFTEN"),
        ("BYHOUR=8", "FREQ"),
        ("FREQ=SECONDLY", "on the minute"),
        ("FREQ=DAILY;BYSECOND=30", "on the minute"),
        ("FREQ=MINUTELY;INTERVAL=60;BYHOUR=7;BYDAY=MO", "MINUTELY"),
        ("FREQ=DAILY;INTERVAL=0", "INTERVAL"),
        ("FREQ=DAILY;COUNT=0", "COUNT"),
        ("FREQ=DAILY;COUNT=10001", "COUNT"),
        ("FREQ=DAILY;COUNT=3;UNTIL=20270101", "exclude"),
        ("FREQ=DAILY;UNTIL=tomorrow", "UNTIL"),
        ("FREQ=DAILY\nEXDATE:20260101T000000Z", "nothing beside"),
        ("FREQ=DAILY;BYHOUR=0,1,2,3,4,5,6,7,8,9;BYMINUTE=0,1,2,3,4,5,6,7,8,9", "96 times"),
    ] {
        let message = parse_rrule(text).unwrap_err().to_string();
        assert!(message.contains(reason), "{text:?}: {message}");
    }
}
