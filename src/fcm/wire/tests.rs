use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::domain::{Data, DataValue, NotificationId, Token};

fn notification() -> Notification {
    Notification {
        id: NotificationId::new("dose:pr1:r1:2026-11-20T01:00:00Z"),
        title: "Time for Metformin".into(),
        body: "500 mg, 08:00".into(),
        data: Data::from([
            ("screen".to_owned(), "medication".into()),
            ("regimen_id".to_owned(), DataValue::Json("7".to_owned())),
            ("nested".to_owned(), DataValue::Json(r#"{"a":[1]}"#.to_owned())),
        ]),
        sound: Some("default".into()),
        channel: "default".into(),
        expires_at: Timestamp::UNIX_EPOCH,
    }
}

fn sent(notification: &Notification, token: &str, ttl: u64) -> Value {
    let body = Body::of(notification, false).unwrap();
    let token = Token::parse(token).unwrap();
    let message = PushMessage { body: &body, token: &token, platform: None, ttl: Duration::from_secs(ttl) };
    serde_json::from_slice(&request(&message, Timestamp::from_second(1_000).unwrap())).unwrap()
}

#[test]
fn a_message_has_the_fields_of_both_platforms() {
    let token = "t".repeat(64);
    let tag = notification().tag();
    assert_eq!(
        sent(&notification(), &token, 3600),
        json!({"validate_only": false, "message": {
            "token": token,
            "notification": {"title": "Time for Metformin", "body": "500 mg, 08:00"},
            "data": {"screen": "medication", "regimen_id": "7", "nested": "{\"a\":[1]}"},
            "android": {
                "priority": "HIGH", "ttl": "3600s",
                "notification": {"channel_id": "default", "tag": tag, "sound": "default"}
            },
            "apns": {
                "headers": {"apns-priority": "10", "apns-expiration": "4600", "apns-collapse-id": tag},
                "payload": {"aps": {"sound": "default"}}
            }
        }})
    );
}

#[test]
fn an_installation_id_has_a_field_of_its_own() {
    let message = &sent(&notification(), "cIBxWSjHTQCvp4QfBUPZ-_", 1)["message"];
    assert_eq!(message["fid"], "cIBxWSjHTQCvp4QfBUPZ-_");
    assert!(message.get("token").is_none());
}

#[test]
fn empty_fields_are_left_out() {
    let silent = Notification { sound: None, channel: String::new(), data: Data::new(), ..notification() };
    let message = &sent(&silent, &"t".repeat(64), 0)["message"];
    assert!(message.get("data").is_none());
    assert_eq!(
        message["android"],
        json!({"priority": "HIGH", "ttl": "1s", "notification": {"tag": silent.tag()}})
    );
    assert_eq!(message["apns"]["payload"], json!({"aps": {}}));
}

#[test]
fn a_dry_run_sets_validate_only() {
    let body = Body::of(&notification(), true).unwrap();
    let token = Token::parse(&"t".repeat(64)).unwrap();
    let message = PushMessage { body: &body, token: &token, platform: None, ttl: Duration::ZERO };
    let sent: Value = serde_json::from_slice(&request(&message, Timestamp::UNIX_EPOCH)).unwrap();
    assert_eq!(sent["validate_only"], true);
}

#[test]
fn too_long_a_text_is_cut_and_too_much_data_is_refused() {
    let long = Notification { body: "ü".repeat(5000), ..notification() };
    let message = &sent(&long, &"t".repeat(64), 1)["message"];
    assert!(
        message["notification"]["body"].as_str().is_some_and(|text| text.ends_with('…') && text.len() < 4096)
    );
    assert_eq!(message["data"]["screen"], "medication");

    let heavy =
        Notification { data: Data::from([("x".to_owned(), (&*"y".repeat(4096)).into())]), ..notification() };
    assert!(Body::of(&heavy, false).is_err());
}

proptest! {
    #[test]
    fn whatever_is_spliced_reads_back_as_it_was(
        token in "[A-Za-z0-9:_-]{64,200}|[A-Za-z0-9_-]{22}",
        title in any::<String>(),
        text in any::<String>(),
        data in prop::collection::btree_map(any::<String>(), any::<String>(), 0..5),
        ttl in 1..3_000_000_u64,
    ) {
        let object = data.iter().map(|(key, value)| (key.clone(), value.as_str().into())).collect();
        let notification =
            Notification { title: title.clone(), body: text.clone(), data: object, ..notification() };
        let sent = sent(&notification, &token, ttl);
        let message = &sent["message"];
        prop_assert_eq!(message.get("token").or(message.get("fid")), Some(&Value::from(token)));
        prop_assert_eq!(&message["notification"], &json!({"title": title, "body": text}));
        prop_assert_eq!(message.get("data").cloned().unwrap_or(json!({})), json!(data));
        prop_assert_eq!(&message["android"]["ttl"], &Value::from(format!("{}s", ttl.min(TTL_MAX))));
    }
}
