//! What is read, and what is refused with which error.

use jiff::civil::{Weekday, date, time};

use super::*;
use crate::domain::{
    DeviceId, EveryDay, Platform, PostEvent, PostId, Regimen, RegimenEvent, RegimenId, Rule, Tick, Token,
    TokenChange, UserId, limits::AUDIENCE_USERS_MAX,
};

fn token(text: &str) -> Token {
    Token::parse(text).unwrap()
}

fn change(text: &str) -> Result<TokenChange, Unreadable> {
    device_tokens::read(None, Some(text.as_bytes()))
}

fn why(topic: &str, text: &str) -> String {
    match read_of(topic, text.as_bytes()).unwrap_err() {
        Unreadable::Malformed(detail) => format!("unreadable: {detail}"),
        Unreadable::Invalid(detail) => format!("invalid: {detail}"),
    }
}

const REGIMEN: &str = r#""regimenId":"r1","profileId":"pr1","userId":"u1","timezone":"Asia/Bangkok""#;

fn regimen(rest: &str) -> Result<Regimen, String> {
    match medication_regimens::read(None, Some(format!("{{{REGIMEN},{rest}}}").as_bytes())) {
        Ok(RegimenEvent::Set(_, regimen)) => Ok(*regimen),
        Ok(RegimenEvent::Removed(_)) => panic!("removed"),
        Err(err) => Err(err.to_string()),
    }
}

// === device-tokens ===

#[test]
fn a_plain_line_registers_a_token() {
    let line = concat!(
        r#"{"token":"ExponentPushToken[AAA]","userId":7,"platform":"iOS","deviceId":"d1","#,
        r#""deviceInfo":{"model":"iPhone15,2"}}"#
    );
    assert_eq!(
        change(line),
        Ok(TokenChange::Registered {
            token: token("ExponentPushToken[AAA]"),
            user: Some(UserId::new("7")),
            platform: Some(Platform::Ios),
            device: Some(DeviceId::new("d1")),
            device_info: Some(r#"{"model":"iPhone15,2"}"#.to_owned()),
            previous: None,
        })
    );
}

#[test]
fn a_token_and_its_platform_have_several_names() {
    let expected = change(r#"{"token":"ExponentPushToken[AAA]","platform":"android"}"#).unwrap();
    for (token, platform) in
        [("push_token", "device_type"), ("expoToken", "deviceType"), ("pushToken", "device_type")]
    {
        assert_eq!(
            change(&format!(r#"{{"{token}":" ExponentPushToken[AAA]\n","{platform}":"ANDROID"}}"#)).unwrap(),
            expected
        );
    }
}

#[test]
fn a_token_without_a_user_may_be_written_in_three_ways() {
    let without = change(r#"{"token":"ExponentPushToken[AAA]"}"#).unwrap();
    assert!(matches!(&without, TokenChange::Registered { user: None, .. }));
    assert_eq!(change(r#"{"token":"ExponentPushToken[AAA]","userId":null}"#).unwrap(), without);
    assert_eq!(change(r#"{"token":"ExponentPushToken[AAA]","userId":""}"#).unwrap(), without);
}

#[test]
fn a_token_never_replaces_itself() {
    let line = r#"{"token":"ExponentPushToken[AAA]","previousToken":"ExponentPushToken[AAA]"}"#;
    assert!(matches!(change(line), Ok(TokenChange::Registered { previous: None, .. })));
}

#[test]
fn a_null_value_unregisters_the_token_that_is_the_key() {
    assert_eq!(
        device_tokens::read(Some(b"ExponentPushToken[AAA]"), None),
        Ok(TokenChange::Unregistered(token("ExponentPushToken[AAA]")))
    );
    assert_eq!(
        device_tokens::read(Some(b"secret"), None),
        Err(Unreadable::invalid("key: invalid token format"))
    );
    assert_eq!(
        device_tokens::read(Some(&[0xff]), None),
        Err(Unreadable::invalid("key: invalid token format"))
    );
    assert_eq!(device_tokens::read(None, None), Err(Unreadable::malformed("a null value without a key")));
}

#[test]
fn what_is_wrong_with_a_token_event_is_named() {
    let why = |text: &str| why(topics::DEVICE_TOKENS, text);
    assert_eq!(why(r#"{"userId":"u1"}"#), "unreadable: missing field `token`");
    assert_eq!(why(r#"{"token":null}"#), "unreadable: `token`: expected a device token, found null");
    assert_eq!(why(r#"{"token":""}"#), "invalid: `token`: empty, expected a device token");
    assert_eq!(why(r#"{"token":12}"#), "unreadable: `token`: expected a device token, found a number");
    assert_eq!(why(r#"{"push_token":"AAA"}"#), "invalid: `push_token`: invalid token format");
    assert_eq!(
        why(r#"{"token":"ExponentPushToken[AAA]","kind":"fcm"}"#),
        "invalid: `token`: invalid token format: it is not of kind fcm"
    );
    assert_eq!(
        why(r#"{"token":"ExponentPushToken[AAA]","kind":"apns"}"#),
        r#"invalid: `kind`: "apns" is not one of expo, fcm, fid"#
    );
    assert_eq!(
        why(r#"{"token":"ExponentPushToken[AAA]","platform":"toaster"}"#),
        r#"invalid: `platform`: "toaster" is not one of ios, android, web"#
    );
    assert_eq!(
        why(r#"{"token":"ExponentPushToken[AAA]","deviceInfo":"phone"}"#),
        "unreadable: `deviceInfo`: expected a map, found a text"
    );
    assert_eq!(why(r#"{"event":"userDeleted"}"#), "unreadable: missing field `userId`");
    assert_eq!(
        why(r#"{"event":"lost","token":"ExponentPushToken[AAA]"}"#),
        r#"invalid: `event`: "lost" is not one of registered, seen, unregistered, userDeleted"#
    );
    assert_eq!(
        why(r#"{"token":"ExponentPushToken[A]","push_token":"ExponentPushToken[B]"}"#),
        "unreadable: duplicate field `token`"
    );
    assert_eq!(
        why(&format!(r#"{{"token":"ExponentPushToken[AAA]","userId":"{}"}}"#, "x".repeat(257))),
        "invalid: `userId`: 257 bytes, at most 256 are allowed"
    );
    assert_eq!(
        why(r#"{"token":"ExponentPushToken[AAA]","userId":1.5}"#),
        "unreadable: `userId`: expected a text or a whole number, found a number"
    );
}

#[test]
fn anything_but_an_object_is_unreadable() {
    let why = |text: &str| why(topics::MEDICATION_TICKS, text);
    for text in ["[]", "null", "7", "\"{}\"", ""] {
        assert_eq!(why(text), "unreadable: not a JSON object", "{text}");
    }
    assert_eq!(why("{"), "unreadable: not JSON: EOF while parsing an object at line 1 column 1");
    assert_eq!(why("{} {}"), "unreadable: not JSON: trailing characters at line 1 column 4");
    assert_eq!(
        read_of(topics::MEDICATION_TICKS, b"{\"a\":\"\xff\"}"),
        Err(Unreadable::malformed("not UTF-8"))
    );
}

#[test]
fn an_error_never_quotes_a_token() {
    let tokens = [
        "ExponentPushToken[c2VjcmV0]",
        "cIBxWSjHTQCvp4QfBUPZ1a",
        &format!("dGhpcw:APA91b{}", "x".repeat(120)),
    ];
    for token in tokens {
        for value in [
            format!(r#"{{"event":"{token}"}}"#),
            format!(r#"{{"token":"{token}!"}}"#),
            format!(r#"{{"token":["{token}"]}}"#),
            format!(r#"{{"token":"{token}","kind":"{token}"}}"#),
            format!(r#"{{"token":"{token}","platform":" {token}, "}}"#),
            format!(r#"{{"token":"{token}","deviceInfo":"{token}"}}"#),
            format!(r#"{{"type":"{token}"}}"#),
            format!(r#"{{"postId":"p","audience":"{token}"}}"#),
            format!(r#"{{"postId":"p","audience":{{"users":"{token}"}}}}"#),
            format!(r#"{{"at":"{token}"}}"#),
            format!(r#"{{{REGIMEN},"times":["{token}"]}}"#),
            format!(r#"{{{REGIMEN},"times":[],"rrule":"{token}"}}"#),
            format!(r#"{{{REGIMEN},"times":["08:00"],"enabled":"{token}"}}"#),
            format!(r#"{{{REGIMEN},"times":["08:00"],"everyDays":"{token}"}}"#),
            format!(r#"{{"timezone":"{token}"}}"#),
            format!(r#"{{"provider":"{token}"}}"#),
            format!(r#"{{"work":"{token}"}}"#),
            format!(r#"{{"work":{{"{token}":1}}}}"#),
            format!(r#"{{"{token}":"#),
        ] {
            for topic in topics::ALL.into_iter().filter(|topic| *topic != topics::DEAD_LETTERS) {
                if let Err(err) = read_of(topic, value.as_bytes()) {
                    let hidden = token.trim_start_matches("ExponentPushToken").trim_matches(['[', ']']);
                    assert!(
                        !err.to_string().to_lowercase().contains(&hidden.to_lowercase()),
                        "{topic}: {}",
                        err
                    );
                }
            }
        }
    }
}

// === posts-created ===

#[test]
fn a_post_without_an_audience_is_for_everybody() {
    let Ok(PostEvent::Posted(post)) =
        posts_created::read(None, Some(br#"{"post_id":12,"authorName":"","audience":null}"#))
    else {
        panic!()
    };
    assert_eq!(
        (post.id, post.author, post.author_name, post.audience),
        (PostId::new("12"), None, None, None)
    );
}

#[test]
fn what_is_wrong_with_a_post_is_named() {
    let why = |text: &str| why(topics::POSTS_CREATED, text);
    assert_eq!(why("{}"), "unreadable: missing field `postId`");
    assert_eq!(why(r#"{"postId":"p1","audience":{}}"#), "unreadable: `audience`: missing field `users`");
    assert_eq!(
        why(r#"{"postId":"p1","audience":{"users":["u1",null]}}"#),
        "unreadable: `audience.users[1]`: expected a text or a whole number, found null"
    );
    assert_eq!(
        why(&format!(r#"{{"postId":"p1","data":{{"x":"{}"}}}}"#, "x".repeat(5000))),
        "invalid: `data`: 5008 bytes, at most 4096 are allowed"
    );
    let users = vec!["1"; AUDIENCE_USERS_MAX + 1].join(",");
    assert_eq!(
        why(&format!(r#"{{"postId":"p1","audience":{{"users":[{users}]}}}}"#)),
        "invalid: `audience.users`: 100001 users, at most 100000 are allowed"
    );
    assert_eq!(read_of(topics::POSTS_CREATED, b""), Err(Unreadable::malformed("not a JSON object")));
    assert_eq!(
        posts_created::read(Some(b"p1"), None),
        Err(Unreadable::malformed("a null value, expected a JSON object"))
    );
}

// === medication-regimens ===

#[test]
fn times_are_sorted_and_repeats_are_dropped() {
    let regimen = regimen(r#""times":["20:00","08:00:00","08:00"]"#).unwrap();
    assert_eq!(
        regimen.rule,
        Rule::Times { times: vec![time(8, 0, 0, 0), time(20, 0, 0, 0)], days: EveryDay::Nth(1) }
    );
    assert_eq!((regimen.start_date, regimen.end_date, regimen.enabled), (date(1970, 1, 1), None, true));
    assert_eq!((regimen.medicine_name.as_str(), regimen.dosage.as_str()), ("your medicine", ""));
}

#[test]
fn days_of_the_week_are_names_or_numbers() {
    let regimen = regimen(r#""times":["08:00"],"days":["Fri","MONDAY",5,7]"#).unwrap();
    let Rule::Times { days, .. } = regimen.rule else { panic!() };
    assert_eq!(days, EveryDay::Weekdays(vec![Weekday::Monday, Weekday::Friday, Weekday::Sunday]));
}

#[test]
fn a_rule_replaces_days_and_may_name_its_own_times() {
    let rule = |rest| regimen(rest).map(|regimen| regimen.rule);
    let text = "FREQ=DAILY;BYHOUR=8;BYMINUTE=0;BYSECOND=0".to_owned();
    assert_eq!(
        rule(r#""rrule":"RRULE:freq=daily;byhour=8;byminute=0;bysecond=0""#),
        Ok(Rule::Rrule { text, times: Vec::new() })
    );
    assert_eq!(
        rule(r#""rrule":"FREQ=DAILY","times":["08:00"],"everyDays":2"#),
        Err("`rrule`: says on which days; `days` and `everyDays` can't be given with it".to_owned())
    );
    assert_eq!(
        rule(r#""rrule":"FREQ=DAILY;COUNT=3","times":["08:00"]"#),
        Err("`rrule`: COUNT counts from the first day: `startDate` is missing".to_owned())
    );
    for (text, why) in [
        ("FREQ=SOMETIMES", "SOMETIMES"),
        ("FREQ=MINUTELY;BYHOUR=8", "FREQ=MINUTELY goes with INTERVAL only"),
        ("FREQ=DAILY;COUNT=20000", "COUNT must be 1 to 10000"),
        ("FREQ=DAILY;UNTIL=tomorrow", "UNTIL=TOMORROW is no date"),
    ] {
        let fields = format!(r#""rrule":"{text}","times":["08:00"],"startDate":"2026-11-01""#);
        let refused = regimen(&fields).unwrap_err();
        assert!(
            refused.starts_with("`rrule`: not a recurrence rule (RFC 5545) that can be followed: "),
            "{refused}"
        );
        assert!(refused.contains(why), "{refused}");
    }
    assert!(rule(r#""rrule":"FREQ=DAILY\nEXDATE:20260101T000000Z","times":["08:00"]"#).is_err());
}

#[test]
fn what_is_wrong_with_a_regimen_is_named() {
    let why = |rest| regimen(rest).unwrap_err();
    assert_eq!(why(r#""dosage":"1""#), "missing field `times`");
    assert_eq!(why(r#""times":[]"#), "missing field `times`");
    assert_eq!(why(r#""times":["25:00"]"#), r#"`times[0]`: "25:00" is not a time of day (HH:MM)"#);
    assert_eq!(why(r#""times":["08:00","8:0"]"#), r#"`times[1]`: "8:0" is not a time of day (HH:MM)"#);
    assert_eq!(why(r#""times":["08:00"],"days":[]"#), "`days`: empty; leave it out for every day");
    assert_eq!(
        why(r#""times":["08:00"],"days":[8]"#),
        "`days[0]`: expected a day of the week (mon to sun, or 1 to 7), found a number"
    );
    assert_eq!(
        why(r#""times":["08:00"],"days":["m"]"#),
        r#"`days[0]`: "m" is not a day of the week (mon to sun, or 1 to 7)"#
    );
    assert_eq!(
        why(r#""times":["08:00"],"days":["mon"],"everyDays":2"#),
        "`days`: can't be given together with `everyDays`"
    );
    assert_eq!(why(r#""times":["08:00"],"everyDays":0"#), "`everyDays`: 0 is not from 1 to 3660");
    assert_eq!(
        why(r#""times":["08:00"],"startDate":"2026-11-02","endDate":"2026-11-01""#),
        "`endDate`: before startDate"
    );
    assert_eq!(
        why(r#""times":["08:00"],"startDate":"2026-13-01""#),
        r#"`startDate`: "2026-13-01" is not a day (YYYY-MM-DD)"#
    );
    assert_eq!(
        why(r#""times":["08:00"],"startDate":"2026-11-01T00:00:00Z""#),
        r#"`startDate`: "2026-11-01T00:00:00Z" is not a day (YYYY-MM-DD)"#
    );
    assert_eq!(why(r#""times":["08:00"],"enabled":null"#), "`enabled`: expected a boolean, found null");
    assert_eq!(
        super::read_of(
            topics::MEDICATION_REGIMENS,
            br#"{"regimenId":1,"profileId":1,"userId":1,"timezone":"Mars/Base","times":["08:00"]}"#
        )
        .unwrap_err(),
        Unreadable::invalid(r#"`timezone`: no such time zone "Mars/Base""#)
    );
}

#[test]
fn a_null_value_removes_the_regimen_that_is_the_key() {
    assert_eq!(medication_regimens::read(Some(b"r1"), None), Ok(RegimenEvent::Removed(RegimenId::new("r1"))));
    assert!(medication_regimens::read(Some(b" "), None).is_err());
    assert!(medication_regimens::read(None, None).is_err());
}

// === medication-ticks ===

#[test]
fn a_time_finer_than_the_stores_keep_is_cut() {
    let at = |text: &str| medication_ticks::read(None, Some(format!(r#"{{"at":"{text}"}}"#).as_bytes()));
    assert_eq!(at("2026-11-20T01:00:00.123456789Z"), at("2026-11-20T01:00:00.123456Z"));
    assert_ne!(at("2026-11-20T01:00:00.123457Z"), at("2026-11-20T01:00:00.123456Z"));
}

#[test]
fn a_tick_is_of_the_clock_of_a_shard_or_of_a_dose() {
    assert_eq!(medication_ticks::read(None, Some(b"{}")), Ok(Tick::Clock { at: None }));
    assert!(matches!(
        medication_ticks::read(None, Some(br#"{"at":"2026-11-20T08:00:00+07:00","shard":3}"#)),
        Ok(Tick::Shard { shard: 3, .. })
    ));
    let why = |text: &str| why(topics::MEDICATION_TICKS, text);
    assert_eq!(why(r#"{"shard":3}"#), "unreadable: missing field `at`");
    assert_eq!(why(r#"{"dose":{}}"#), "unreadable: `dose`: missing field `regimenId`");
    assert_eq!(
        why(r#"{"at":"2026-11-20T01:00:00"}"#),
        r#"invalid: `at`: "2026-11-20T01:00:00" is not a time (RFC 3339, such as 2026-11-20T01:00:00Z)"#
    );
}

// === jobs ===

#[test]
fn a_slice_that_does_not_exist_is_refused() {
    let example = examples().into_iter().find(|(name, _)| name == "push.fcm.bulk.slice").unwrap().1;
    for (index, of) in [(64, 64), (0, 0), (1, 3), (0, 131_072)] {
        let text = example.replace(r#""index": 5, "of": 64"#, &format!(r#""index": {index}, "of": {of}"#));
        assert_ne!(text, example);
        assert_eq!(
            why(topics::PUSH_FCM_BULK, &text),
            format!("invalid: `work.slice`: there is no slice {index} of {of}")
        );
    }
}
