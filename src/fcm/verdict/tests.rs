//! The bodies come from FCM's documentation and from issues that quote them.

use serde_json::json;

use super::*;

const WAIT: Option<Duration> = Some(Duration::from_secs(9));

fn token() -> Token {
    Token::parse(&format!("cIBxWSjHTQCvp4QfBUPZ1a:APA91b{}", "x".repeat(134))).unwrap()
}

/// The reply to a message with this answer.
fn to(status: u16, body: &str) -> Reply {
    reply(&FcmAnswer { status, retry_after: WAIT, body }, &token())
}

/// An error body in FCM's format.
fn error(code: u16, status: &str, message: &str, details: &str) -> String {
    format!(
        r#"{{"error":{{"code":{code},"message":"{message}","status":"{status}","details":[{details}]}}}}"#
    )
}

fn fcm(code: &str) -> String {
    format!(r#"{{"@type":"type.googleapis.com/google.firebase.fcm.v1.FcmError","errorCode":"{code}"}}"#)
}

/// The verdict of a reply to one message.
fn only(reply: &Reply) -> Option<&Verdict> {
    match reply {
        Reply::Each(verdicts) if verdicts.len() == 1 => verdicts.first(),
        _ => None,
    }
}

fn dead(reason: &str) -> Reply {
    Reply::Each(vec![Verdict::Dead { reason: reason.to_owned() }])
}

#[test]
fn a_message_with_a_name_was_taken() {
    let taken = Reply::Each(vec![Verdict::Accepted { ticket: None }]);
    assert_eq!(
        to(200, r#"{"name":"projects/myproject/messages/0:1500415314455276%31bd1c9631bd1c96"}"#),
        taken
    );
    assert_eq!(to(200, r#"{"name":"projects/myproject/messages/fake_message_id"}"#), taken);
}

#[test]
fn a_success_that_cannot_be_read_is_ambiguous() {
    for body in ["", "{}", "<html>"] {
        assert!(matches!(to(200, body), Reply::Down { ambiguous: true, .. }), "{body}");
    }
}

#[test]
fn an_unregistered_token_is_dead() {
    assert_eq!(
        to(404, &error(404, "NOT_FOUND", "Requested entity was not found.", &fcm("UNREGISTERED"))),
        dead("UNREGISTERED")
    );
}

#[test]
fn a_detail_of_an_unknown_form_hides_no_other() {
    let details = format!(r#"{{"@type":5,"violations":"x"}},{}"#, fcm("UNREGISTERED"));
    assert_eq!(
        to(404, &error(404, "NOT_FOUND", "Requested entity was not found.", &details)),
        dead("UNREGISTERED")
    );
}

#[test]
fn a_bare_404_is_a_wrong_project_and_not_a_dead_token() {
    for body in [
        error(404, "NOT_FOUND", "Requested entity was not found.", ""),
        "<html>404</html>".into(),
        String::new(),
    ] {
        assert!(matches!(to(404, &body), Reply::CredentialsRefused { .. }), "{body}");
    }
}

#[test]
fn an_invalid_argument_is_a_dead_token_only_with_its_one_message() {
    let invalid_token = "The registration token is not a valid FCM registration token";
    assert_eq!(
        to(400, &error(400, "INVALID_ARGUMENT", invalid_token, &fcm("INVALID_ARGUMENT"))),
        dead("INVALID_ARGUMENT")
    );
    // Without FCM's own code, or with another message, it is not.
    assert!(matches!(to(400, &error(400, "INVALID_ARGUMENT", invalid_token, "")), Reply::Refused { .. }));
    let other = "Request contains an invalid argument.";
    assert!(matches!(
        to(400, &error(400, "INVALID_ARGUMENT", other, &fcm("INVALID_ARGUMENT"))),
        Reply::Refused { .. }
    ));
}

#[test]
fn a_wrong_field_of_the_payload_refuses_the_payload_and_a_wrong_target_only_the_message() {
    let violation = |field: &str| {
        let description = format!("Invalid value at '{field}' (TYPE_STRING), 12");
        let violations = json!([{"field": field, "description": description}]);
        let bad =
            json!({"@type": "type.googleapis.com/google.rpc.BadRequest", "fieldViolations": violations});
        let message = "Invalid value at 'message.data[0].value' (TYPE_STRING), 12";
        to(400, &error(400, "INVALID_ARGUMENT", message, &bad.to_string()))
    };
    assert!(matches!(only(&violation("message.data[0].value")), Some(Verdict::PayloadRefused { .. })));
    assert!(matches!(violation("message.token"), Reply::Refused { .. }));
    assert!(matches!(violation("message.fid"), Reply::Refused { .. }));
}

#[test]
fn a_token_of_another_project_is_dead() {
    assert_eq!(
        to(403, &error(403, "PERMISSION_DENIED", "SenderId mismatch", &fcm("SENDER_ID_MISMATCH"))),
        dead("SENDER_ID_MISMATCH")
    );
}

#[test]
fn the_projects_quota_throttles_the_route() {
    let throttled = Reply::Throttled { retry_after: WAIT };
    let rate_limit = concat!(
        r#"{"@type":"type.googleapis.com/google.rpc.ErrorInfo","reason":"RATE_LIMIT_EXCEEDED","#,
        r#""domain":"googleapis.com","metadata":{"quota_limit_value":"600000","consumer":"projects/1","#,
        r#""quota_metric":"fcm.googleapis.com/send_requests","quota_unit":"1/min/{project}","#,
        r#""quota_limit":"SendsPerMinutePerProject"}},"#,
        r#"{"@type":"type.googleapis.com/google.rpc.Help","#,
        r#""links":[{"description":"Request a higher quota limit.","#,
        r#""url":"https://cloud.google.com/docs/quotas/help/request_increase"}]}"#,
    );
    let message = "Quota exceeded for quota metric 'Send requests' and limit 'Send requests per minute' of \
                   service 'fcm.googleapis.com' for consumer 'project_number:1'.";
    assert_eq!(to(429, &error(429, "RESOURCE_EXHAUSTED", message, rate_limit)), throttled);
    assert_eq!(
        to(429, &error(429, "RESOURCE_EXHAUSTED", "Quota exceeded.", &fcm("QUOTA_EXCEEDED"))),
        throttled
    );
    assert_eq!(to(429, "<html>"), throttled);
    let quota = r#"{"@type":"type.googleapis.com/google.rpc.QuotaFailure",
        "violations":[{"subject":"project:1","description":"Project quota exceeded"}]}"#;
    assert_eq!(to(429, &error(429, "RESOURCE_EXHAUSTED", "Quota exceeded.", quota)), throttled);
    let none = r#"{"@type":"type.googleapis.com/google.rpc.QuotaFailure","violations":[]}"#;
    assert_eq!(to(429, &error(429, "RESOURCE_EXHAUSTED", "Quota exceeded.", none)), throttled);
}

#[test]
fn a_devices_quota_delays_that_device_only() {
    let quota = r#"{"@type":"type.googleapis.com/google.rpc.QuotaFailure",
        "violations":[{"subject":"device:abc","description":"Device message rate exceeded"}]}"#;
    let details = format!("{},{quota}", fcm("QUOTA_EXCEEDED"));
    let busy = Reply::Each(vec![Verdict::DeviceBusy { retry_after: WAIT }]);
    assert_eq!(to(429, &error(429, "RESOURCE_EXHAUSTED", "Quota exceeded.", &details)), busy);
}

#[test]
fn a_server_error_is_ambiguous_and_waits_as_long_as_fcm_asks() {
    for (status, body) in [
        (503, error(503, "UNAVAILABLE", "The service is currently unavailable.", &fcm("UNAVAILABLE"))),
        (500, error(500, "INTERNAL", "Internal error encountered.", &fcm("INTERNAL"))),
        (502, "<html>502</html>".into()),
        (504, String::new()),
        (400, "<html>400</html>".into()),
    ] {
        let reply = to(status, &body);
        assert!(
            matches!(reply, Reply::Down { ambiguous: true, retry_after: WAIT, .. }),
            "{status} {reply:?}"
        );
    }
}

#[test]
fn a_wrong_apns_key_concerns_that_platform_only() {
    let body = error(
        401,
        "UNAUTHENTICATED",
        "Auth error from APNS or Web Push Service",
        &fcm("THIRD_PARTY_AUTH_ERROR"),
    );
    assert!(matches!(only(&to(401, &body)), Some(Verdict::CredentialsRefused { .. })));
}

#[test]
fn our_own_credentials_halt_the_route() {
    let unauthenticated =
        error(401, "UNAUTHENTICATED", "Request had invalid authentication credentials.", "");
    let denied = error(403, "PERMISSION_DENIED", "Permission 'cloudmessaging.messages.create' denied", "");
    assert!(matches!(to(401, &unauthenticated), Reply::CredentialsRefused { .. }));
    assert!(
        matches!(to(403, &denied), Reply::CredentialsRefused { why } if why.contains("PERMISSION_DENIED"))
    );
}

#[test]
fn every_code_of_fcm_has_its_reply() {
    type Expected = fn(&Reply) -> bool;
    let dead: Expected = |reply| matches!(only(reply), Some(Verdict::Dead { .. }));
    let apns: Expected = |reply| matches!(only(reply), Some(Verdict::CredentialsRefused { .. }));
    let throttled: Expected = |reply| matches!(reply, Reply::Throttled { retry_after: WAIT });
    let down: Expected = |reply| matches!(reply, Reply::Down { ambiguous: true, retry_after: WAIT, .. });
    let refused: Expected = |reply| matches!(reply, Reply::Refused { .. });
    for (http, status, code, expected) in [
        (404, "NOT_FOUND", "UNREGISTERED", dead),
        (403, "PERMISSION_DENIED", "SENDER_ID_MISMATCH", dead),
        (400, "INVALID_ARGUMENT", "INVALID_ARGUMENT", refused),
        (429, "RESOURCE_EXHAUSTED", "QUOTA_EXCEEDED", throttled),
        (503, "UNAVAILABLE", "UNAVAILABLE", down),
        (500, "INTERNAL", "INTERNAL", down),
        (401, "UNAUTHENTICATED", "THIRD_PARTY_AUTH_ERROR", apns),
        (401, "UNAUTHENTICATED", "APNS_AUTH_ERROR", apns),
    ] {
        let reply = to(http, &error(http, status, "A text of Google's.", &fcm(code)));
        assert!(expected(&reply), "{http} {code}: {reply:?}");
    }
}

#[test]
fn anything_else_is_unrecognised() {
    for (status, body) in
        [(404, error(404, "NOT_FOUND", "?", &fcm("NOVELTY"))), (302, String::new()), (409, "{}".into())]
    {
        assert!(
            matches!(to(status, &body), Reply::Unrecognised { status: code, .. } if code == status),
            "{status}"
        );
    }
}

#[test]
fn no_reply_holds_a_token() {
    let token = token();
    for reply in [
        to(400, &error(400, "INVALID_ARGUMENT", &format!("{} is bad", token.as_str()), "")),
        to(409, token.as_str()),
        to(503, token.as_str()),
    ] {
        assert!(!format!("{reply:?}").contains(token.as_str()), "{reply:?}");
    }
}
