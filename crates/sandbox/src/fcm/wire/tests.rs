use serde_json::{Value, json};

use super::*;

fn parse(message: Value) -> Result<u64, PayloadError> {
    let body = json!({ "message": message }).to_string();
    Envelope::parse(body.as_bytes()).map(|envelope| envelope.identity)
}

#[test]
fn a_full_message_is_taken() {
    let message = json!({
        "token": "abc:123",
        "notification": { "title": "T", "body": "B" },
        "data": { "post_id": "p1", "screen": "post_detail" },
        "android": {
            "priority": "HIGH",
            "ttl": "86400s",
            "notification": { "channel_id": "default", "sound": "default", "tag": "t1" },
        },
        "apns": {
            "headers": { "apns-collapse-id": "t1", "apns-priority": "10" },
            "payload": { "aps": { "sound": "default" } },
        },
    });
    assert_eq!(parse(message), Ok(counts::hash("t1")));
}

#[test]
fn a_refusal_has_the_wording_of_fcm() {
    for (message, by_fcm, why) in [
        (json!({ "notification": {} }), true, "Recipient of the message is not set."),
        (json!({ "token": "a", "fid": "b" }), false, "oneof field 'target' is already set"),
        (
            json!({ "token": "a", "data": { "a": "1", "n": 5 } }),
            false,
            "Invalid value at 'message.data[1].value' (TYPE_STRING), 5",
        ),
        (json!({ "token": "a", "data": { "from": "x" } }), true, "Invalid data payload key: from"),
        (json!({ "token": "a", "tag": "x" }), false, "Unknown name \"tag\" at 'message': Cannot find field."),
        (
            json!({ "token": "a", "android": { "notification": { "badge": 1 } } }),
            false,
            "Unknown name \"badge\"",
        ),
        (
            json!({ "token": "a", "android": { "ttl": "60" } }),
            false,
            "Invalid value at 'message.android.ttl'",
        ),
        (
            json!({ "token": "a", "android": { "ttl": "2419201s" } }),
            false,
            "Invalid value at 'message.android.ttl'",
        ),
        (
            json!({ "token": "a", "notification": { "body": "x".repeat(4097) } }),
            true,
            "Android message is too big",
        ),
    ] {
        let err = parse(message).unwrap_err();
        assert!(err.why.contains(why) && err.by_fcm == by_fcm, "{err:?}");
    }
}

#[test]
fn the_invalid_field_is_named() {
    let err = parse(json!({ "token": "a", "data": { "n": 5 } })).unwrap_err();
    assert_eq!(err.field, "message.data[0].value");
}

#[test]
fn the_same_notification_has_the_same_identity() {
    let tag = json!({ "token": "a", "android": { "notification": { "tag": "t" } } });
    let collapse_id = json!({ "fid": "b", "apns": { "headers": { "apns-collapse-id": "t" } } });
    let text = |body: &str| json!({ "token": "a", "notification": { "title": "T", "body": body } });
    assert_eq!(parse(tag), parse(collapse_id));
    assert_eq!(parse(text("x")), parse(text("x")));
    assert_ne!(parse(text("x")), parse(text("y")));
}
