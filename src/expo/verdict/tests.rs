//! The bodies come from Expo's documentation, its SDK's tests and its issues.

use super::*;

fn token(id: &str) -> Token {
    Token::parse(&format!("ExponentPushToken[{id}]")).unwrap()
}

/// The reply to messages to these tokens.
fn to(ids: &[&str], status: u16, body: &str) -> Reply {
    let tokens: Vec<Token> = ids.iter().map(|id| token(id)).collect();
    let answer = ExpoAnswer { status, retry_after: Some(Duration::from_secs(9)), body };
    reply(&answer, &tokens.iter().collect::<Vec<_>>(), &VerdictReader { dead: Vec::new(), receipts: true })
}

fn accepted(ticket: &str) -> Verdict {
    Verdict::Accepted { ticket: Some(ticket.into()) }
}

/// The verdict on a message whose ticket is an error with these details.
fn on(details: &str) -> Verdict {
    let message = r#""\"ExponentPushToken[AAA]\" is wrong""#;
    let body = format!(r#"{{"data":[{{"status":"error","message":{message},"details":{details}}}]}}"#);
    match to(&["AAA"], 200, &body) {
        Reply::Each(mut verdicts) => verdicts.remove(0),
        other => panic!("{other:?}"),
    }
}

#[test]
fn tickets_are_read_by_their_position() {
    let body = r#"{"data":[
        {"status":"ok","id":"XXXXXXXX-XXXX-XXXX-XXXX-XXXXXXXXXXXX"},
        {"status":"error",
         "message":"\"ExponentPushToken[BBB]\" is not a registered push notification recipient",
         "details":{"error":"DeviceNotRegistered","expoPushToken":"ExponentPushToken[BBB]"}},
        {"status":"ok","id":"YYYYYYYY-YYYY-YYYY-YYYY-YYYYYYYYYYYY"}]}"#;
    assert_eq!(
        to(&["AAA", "BBB", "CCC"], 200, body),
        Reply::Each(vec![
            accepted("XXXXXXXX-XXXX-XXXX-XXXX-XXXXXXXXXXXX"),
            Verdict::Dead { reason: "DeviceNotRegistered".into() },
            accepted("YYYYYYYY-YYYY-YYYY-YYYY-YYYYYYYYYYYY"),
        ])
    );
}

#[test]
fn a_single_ticket_may_come_without_its_array() {
    assert_eq!(to(&["AAA"], 200, r#"{"data":{"status":"ok","id":"X"}}"#), Reply::Each(vec![accepted("X")]));
}

#[test]
fn every_error_of_a_ticket_has_its_verdict() {
    let dead = Verdict::Dead { reason: "DeviceNotRegistered".into() };
    assert_eq!(on(r#"{"error":"DeviceNotRegistered"}"#), dead);
    assert_eq!(on(r#"{"error":"DeviceNotRegistered","expoPushToken":"ExpoPushToken[AAA]"}"#), dead);
    assert!(matches!(on(r#"{"error":"InvalidCredentials"}"#), Verdict::CredentialsRefused { .. }));
    assert!(matches!(on(r#"{"error":"MismatchSenderId"}"#), Verdict::CredentialsRefused { .. }));
    assert!(matches!(on(r#"{"error":"InvalidProviderToken"}"#), Verdict::CredentialsRefused { .. }));
    assert!(matches!(on(r#"{"error":"MessageTooBig"}"#), Verdict::PayloadRefused { .. }));
    assert_eq!(on(r#"{"error":"MessageRateExceeded"}"#), Verdict::DeviceBusy { retry_after: None });
    assert!(matches!(on(r#"{"error":"ExpoError","fault":"expo"}"#), Verdict::Down { ambiguous: false, .. }));
    assert!(matches!(on(r#"{"error":"ProviderError"}"#), Verdict::Down { ambiguous: false, .. }));
    for unknown in
        [r#"{"error":"DeveloperError"}"#, r#"{"error":"Novelty"}"#, r#"{"fault":"x"}"#, r#""text""#, "null"]
    {
        assert!(matches!(on(unknown), Verdict::Unrecognised { .. }), "{unknown}");
    }
}

#[test]
fn a_ticket_that_names_another_token_declares_none_dead() {
    let other = on(r#"{"error":"DeviceNotRegistered","expoPushToken":"ExponentPushToken[ZZZ]"}"#);
    assert!(matches!(other, Verdict::Unrecognised { .. }), "{other:?}");
}

#[test]
fn a_deployment_may_list_further_errors_that_mean_a_dead_token() {
    let ours = token("AAA");
    let body = r#"{"data":[{"status":"error","message":"","details":{"error":"InvalidCredentials"}}]}"#;
    let answer = ExpoAnswer { status: 200, retry_after: None, body };
    let reply = reply(
        &answer,
        &[&ours],
        &VerdictReader { dead: vec!["InvalidCredentials".to_owned()], receipts: true },
    );
    assert_eq!(reply, Reply::Each(vec![Verdict::Dead { reason: "InvalidCredentials".into() }]));
}

#[test]
fn tickets_that_do_not_match_the_messages_are_ambiguous() {
    let short = to(&["AAA", "BBB"], 200, r#"{"data":[{"status":"ok","id":"X"}]}"#);
    assert!(
        matches!(&short, Reply::Down { ambiguous: true, why, .. } if why == "1 tickets for 2 messages"),
        "{short:?}"
    );
}

#[test]
fn a_success_that_cannot_be_read_is_ambiguous() {
    for body in [
        "",
        "<html>ok</html>",
        "{}",
        r#"{"data":null}"#,
        r#"{"data":[{"id":"no status"}]}"#,
        r#"{"errors":[{"code":"X"}]}"#,
    ] {
        assert!(matches!(to(&["AAA"], 200, body), Reply::Down { ambiguous: true, .. }), "{body}");
    }
}

#[test]
fn too_many_requests_throttle_as_long_as_expo_asks() {
    let throttled = Reply::Throttled { retry_after: Some(Duration::from_secs(9)) };
    let body = r#"{"errors":[{"code":"TOO_MANY_REQUESTS","isTransient":true,
        "message":"Exceeded 600 notifications per second, please try again."}]}"#;
    assert_eq!(to(&["AAA"], 429, body), throttled);
    assert_eq!(to(&["AAA"], 429, "<html>Too Many Requests</html>"), throttled);
    assert_eq!(to(&["AAA"], 400, body), throttled);
}

#[test]
fn tokens_of_several_projects_are_split_by_project() {
    let body = concat!(
        r#"{"errors":[{"code":"PUSH_TOO_MANY_EXPERIENCE_IDS","#,
        r#""message":"All push notification messages in the same request must be for the same project; "#,
        r#"check the details field to investigate conflicting tokens.","#,
        r#""details":{"@ann/walks":["ExponentPushToken[AAA]","ExponentPushToken[CCC]"],"#,
        r#""@bob/runs":["ExponentPushToken[BBB]"]},"isTransient":false}]}"#,
    );
    assert_eq!(
        to(&["AAA", "BBB", "CCC", "DDD"], 400, body),
        Reply::Split(vec![vec![0, 2], vec![1], vec![3]])
    );
}

#[test]
fn without_usable_details_a_mixed_request_is_halved_down_to_one() {
    let body = r#"{"errors":[{"code":"PUSH_TOO_MANY_EXPERIENCE_IDS","message":"mixed",
        "details":{"@ann/walks":["ExponentPushToken[ZZZ]"]}}]}"#;
    assert_eq!(to(&["AAA", "BBB", "CCC"], 400, body), Reply::Split(vec![vec![0], vec![1, 2]]));
    assert!(matches!(to(&["AAA"], 400, body), Reply::Refused { .. }));
}

#[test]
fn an_unauthorized_request_is_refused_credentials() {
    let body = r#"{"errors":[{"code":"UNAUTHORIZED","message":"The bearer token is invalid."}]}"#;
    for status in [400, 401, 403] {
        assert!(matches!(to(&["AAA"], status, body), Reply::CredentialsRefused { .. }), "{status}");
    }
    assert!(matches!(to(&["AAA"], 401, ""), Reply::CredentialsRefused { .. }));
    assert!(matches!(to(&["AAA"], 403, "<html>Forbidden</html>"), Reply::CredentialsRefused { .. }));
}

#[test]
fn every_error_of_a_request_has_its_reply() {
    let answer = |code: &str| {
        format!(r#"{{"errors":[{{"code":"{code}","message":"a text of Expo's","isTransient":false}}]}}"#)
    };
    type Expected = fn(&Reply) -> bool;
    let refused: Expected = |reply| matches!(reply, Reply::Refused { .. });
    let down: Expected = |reply| matches!(reply, Reply::Down { ambiguous: true, .. });
    let credentials: Expected = |reply| matches!(reply, Reply::CredentialsRefused { .. });
    let throttled: Expected = |reply| matches!(reply, Reply::Throttled { .. });
    for (status, code, expected) in [
        (429, "TOO_MANY_REQUESTS", throttled),
        (400, "PUSH_TOO_MANY_NOTIFICATIONS", refused),
        (400, "VALIDATION_ERROR", refused),
        (400, "API_ERROR", refused),
        (401, "UNAUTHORIZED", credentials),
        (403, "UNAUTHORIZED", credentials),
        (500, "INTERNAL_SERVER_ERROR", down),
        (503, "SERVICE_UNAVAILABLE", down),
    ] {
        let reply = to(&["AAA", "BBB"], status, &answer(code));
        assert!(expected(&reply), "{status} {code}: {reply:?}");
    }
    // Two halves, where Expo does not list the projects' tokens.
    let mixed = to(&["AAA", "BBB"], 400, &answer("PUSH_TOO_MANY_EXPERIENCE_IDS"));
    assert!(matches!(mixed, Reply::Split(halves) if halves.len() == 2));
}

#[test]
fn every_error_of_a_receipt_has_its_meaning() {
    let on = |error: &str| {
        let body = format!(
            r#"{{"data":{{"a":{{"status":"error","message":"text","details":{{"error":"{error}"}}}}}}}}"#
        );
        receipts(&ExpoAnswer { status: 200, retry_after: None, body }, &[]).unwrap().remove(0).1
    };
    assert!(matches!(on("DeviceNotRegistered"), Receipt::Dead { .. }));
    for error in ["InvalidCredentials", "MismatchSenderId", "InvalidProviderToken"] {
        assert!(matches!(on(error), Receipt::CredentialsRefused { .. }), "{error}");
    }
    for failed in
        ["MessageTooBig", "MessageRateExceeded", "DeveloperError", "ExpoError", "ProviderError", "Novelty"]
    {
        assert!(matches!(on(failed), Receipt::Failed { why } if why.contains(failed)), "{failed}");
    }
}

#[test]
fn any_other_bad_request_is_refused() {
    let body = r#"{"errors":[{"code":"VALIDATION_ERROR","message":"\"[0].to\" must be a string."}]}"#;
    assert_eq!(
        to(&["AAA"], 400, body),
        Reply::Refused { why: r#"HTTP 400 VALIDATION_ERROR: "[0].to" must be a string."#.into() }
    );
    assert!(matches!(
        to(&["AAA"], 400, r#"{"errors":[{"code":17,"message":"old"}]}"#),
        Reply::Refused { .. }
    ));
    assert!(matches!(to(&["AAA"], 400, "Bad Request"), Reply::Refused { .. }));
}

#[test]
fn a_server_error_and_a_proxys_page_are_ambiguous() {
    for (status, body) in [
        (500, r#"{"errors":[{"code":"INTERNAL_SERVER_ERROR","message":"An unknown error occurred."}]}"#),
        (502, "<html><head><title>502 Bad Gateway</title></head></html>"),
        (503, ""),
        (504, "upstream request timeout"),
        (400, "\n<!DOCTYPE html>"),
        (404, "<html>Error 404</html>"),
    ] {
        let reply = to(&["AAA"], status, body);
        assert!(
            matches!(reply, Reply::Down { ambiguous: true, retry_after: Some(_), .. }),
            "{status} {reply:?}"
        );
    }
}

#[test]
fn anything_else_is_unrecognised() {
    for (status, body) in [(302, ""), (404, "{}"), (413, ""), (418, r#"{"errors":[{"code":"TEAPOT"}]}"#)] {
        assert!(
            matches!(to(&["AAA"], status, body), Reply::Unrecognised { status: code, .. } if code == status),
            "{status}"
        );
    }
}

#[test]
fn no_reply_holds_a_token() {
    for reply in [
        to(&["AAA"], 400, r#"{"errors":[{"code":"X","message":"ExponentPushToken[AAA] is bad"}]}"#),
        to(&["AAA"], 400, "ExponentPushToken[AAA]"),
        to(&["AAA"], 418, "ExpoPushToken[AAA]"),
        Reply::Each(vec![on(r#"{"error":"InvalidCredentials"}"#), on(r#"{"error":"Novelty"}"#)]),
    ] {
        assert!(!format!("{reply:?}").contains("AAA"), "{reply:?}");
    }
}

#[test]
fn each_receipt_is_read_by_its_id_and_an_absent_one_is_left_out() {
    let body = r#"{"data":{
        "a":{"status":"ok"},
        "b":{"status":"error","message":"The device is gone.","details":{"error":"DeviceNotRegistered"}},
        "c":{"status":"error","message":"Bad key",
             "details":{"error":"InvalidCredentials","fault":"developer"}},
        "d":{"status":"error","message":"Too big","details":{"error":"MessageTooBig"}},
        "e":{"status":"pending"}}}"#;
    let receipts = receipts(&ExpoAnswer { status: 200, retry_after: None, body }, &[]).unwrap();
    let receipt = |id: &str| receipts.iter().find(|(of, _)| of == id).map(|(_, receipt)| receipt.clone());
    assert_eq!(receipt("a"), Some(Receipt::Delivered));
    assert_eq!(receipt("b"), Some(Receipt::Dead { reason: "DeviceNotRegistered".into() }));
    assert_eq!(receipt("c"), Some(Receipt::CredentialsRefused { why: "InvalidCredentials: Bad key".into() }));
    assert_eq!(receipt("d"), Some(Receipt::Failed { why: "MessageTooBig: Too big".into() }));
    assert!(matches!(receipt("e"), Some(Receipt::Failed { .. })));
    assert_eq!(receipt("f"), None);
}

#[test]
fn an_answer_without_receipts_is_an_error() {
    for (status, body) in
        [(503, ""), (200, "<html>"), (400, r#"{"errors":[{"code":"PUSH_TOO_MANY_RECEIPTS"}]}"#), (200, "{}")]
    {
        assert!(receipts(&ExpoAnswer { status, retry_after: None, body }, &[]).is_err(), "{status}");
    }
}
