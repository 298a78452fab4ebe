use std::{io::Read as _, sync::Arc, time::Duration};

use flate2::read::GzDecoder;
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::domain::{NotificationId, Timestamp};

fn notification() -> Notification {
    Notification {
        id: NotificationId::new("post:p1"),
        title: "New Reflection from Ann".into(),
        body: "On walking".into(),
        data: data(json!({"post_id": 7, "screen": "post_detail"})),
        sound: Some("default".into()),
        channel: "default".into(),
        expires_at: Timestamp::UNIX_EPOCH,
    }
}

fn data(object: Value) -> Data {
    let value = |value: &Value| match value {
        Value::String(text) => DataValue::String(text.clone()),
        other => DataValue::Json(other.to_string()),
    };
    object.as_object().unwrap().iter().map(|(name, json)| (name.clone(), value(json))).collect()
}

fn sent(notification: &Notification, to: &[(&str, Option<Platform>)], ttl: Duration) -> Value {
    let body = Body::of(notification).unwrap();
    let to: Vec<_> = to.iter().map(|(token, platform)| (Token::parse(token).unwrap(), *platform)).collect();
    let messages: Vec<_> = to
        .iter()
        .map(|(token, platform)| PushMessage { body: &body, token, platform: *platform, ttl })
        .collect();
    serde_json::from_slice(&plain(&Request::send(&messages, &grouped(&messages), true))).unwrap()
}

fn plain(request: &Request) -> Vec<u8> {
    let mut bytes = Vec::new();
    if request.gzipped {
        GzDecoder::new(&request.bytes[..]).read_to_end(&mut bytes).unwrap();
    } else {
        bytes.clone_from(&request.bytes);
    }
    bytes
}

#[test]
fn android_gets_a_tag_and_ios_a_collapse_id() {
    let tag = notification().tag();
    let common = json!({
        "title": "New Reflection from Ann", "body": "On walking",
        "data": {"post_id": 7, "screen": "post_detail"},
        "sound": "default", "priority": "high", "channelId": "default", "ttl": 60,
    });
    let with = |extra: Value| {
        let mut message = common.clone();
        message.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        message
    };
    let sent = sent(
        &notification(),
        &[
            ("ExponentPushToken[A]", Some(Platform::Android)),
            ("ExponentPushToken[B]", Some(Platform::Ios)),
            ("ExponentPushToken[C]", None),
        ],
        Duration::from_millis(60_900),
    );
    assert_eq!(
        sent,
        json!([
            with(json!({"to": ["ExponentPushToken[A]", "ExponentPushToken[C]"], "tag": tag})),
            with(json!({"to": "ExponentPushToken[B]", "collapseId": tag})),
        ])
    );
}

#[test]
fn only_messages_of_the_same_content_share_an_object() {
    let body = |id: &str| Body::of(&Notification { id: NotificationId::new(id), ..notification() }).unwrap();
    let one = body("post:p1");
    let other = body("post:p2");
    let token = Token::parse("ExponentPushToken[A]").unwrap();
    let contents = [(&one, 60), (&other, 60), (&one, 61), (&one, 60), (&other, 60)];
    let messages = contents.map(|(body, seconds)| PushMessage {
        body,
        token: &token,
        platform: None,
        ttl: Duration::from_secs(seconds),
    });
    let indices: Vec<_> = grouped(&messages).into_iter().map(|group| group.indices).collect();
    assert_eq!(indices, [vec![0, 3], vec![1, 4], vec![2]]);
}

#[test]
fn empty_fields_are_left_out() {
    let silent = Notification { sound: None, channel: String::new(), data: Data::new(), ..notification() };
    let sent = sent(&silent, &[("ExponentPushToken[A]", None)], Duration::ZERO);
    let keys: Vec<&str> = sent[0].as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(keys, ["body", "priority", "tag", "title", "to", "ttl"]);
    assert_eq!(sent[0]["ttl"], 1);
}

#[test]
fn only_a_long_body_is_compressed() {
    let ids: Vec<Arc<str>> = (0..200).map(|i| format!("id-{i:04}").into()).collect();
    assert!(Request::receipts(&ids, true).unwrap().gzipped);
    assert!(!Request::receipts(&ids[..10], true).unwrap().gzipped);
}

#[test]
fn too_long_a_text_is_cut_and_too_much_data_is_refused() {
    let long = Notification { body: "ü".repeat(5000), ..notification() };
    let sent = sent(&long, &[("ExponentPushToken[A]", None)], Duration::ZERO);
    let text = sent[0]["body"].as_str().unwrap();
    assert!(text.ends_with('…') && text.len() < 4096);
    assert_eq!(sent[0]["data"]["post_id"], 7);

    let heavy = Notification { data: data(json!({"x": "y".repeat(4096)})), ..notification() };
    assert!(Body::of(&heavy).is_err());
}

#[test]
fn a_token_is_the_same_device_in_both_bracketed_forms() {
    let ours = Token::parse("ExponentPushToken[AAA]").unwrap();
    assert!(same_device("ExpoPushToken[AAA]", &ours));
    assert!(!same_device("ExponentPushToken[AAB]", &ours));
}

fn any_data() -> impl Strategy<Value = serde_json::Map<String, Value>> {
    let value = prop_oneof![
        any::<i64>().prop_map(Value::from),
        any::<bool>().prop_map(Value::from),
        any::<String>().prop_map(Value::from)
    ];
    prop::collection::vec((any::<String>(), value), 0..5).prop_map(|pairs| pairs.into_iter().collect())
}

proptest! {
    #[test]
    fn whatever_is_spliced_reads_back_as_it_was(
        ids in prop::collection::vec("[!-~]{1,60}", 1..5),
        title in any::<String>(),
        text in any::<String>(),
        data in any_data(),
        ttl in 1..3_000_000_u64,
    ) {
        let app_data = self::data(data.clone().into());
        let notification =
            Notification { title: title.clone(), body: text.clone(), data: app_data, ..notification() };
        let tokens: Vec<String> = ids.iter().map(|id| format!("ExponentPushToken[{id}]")).collect();
        let to: Vec<(&str, Option<Platform>)> =
            tokens.iter().map(|token| (token.as_str(), Some(Platform::Ios))).collect();
        let sent = sent(&notification, &to, Duration::from_secs(ttl));
        let message = &sent[0];
        prop_assert_eq!(sent.as_array().unwrap().len(), 1);
        let expected = if let [token] = &tokens[..] { json!(token) } else { json!(tokens) };
        prop_assert_eq!(&message["to"], &expected);
        prop_assert_eq!(&message["title"], &title);
        prop_assert_eq!(&message["body"], &text);
        let sent_data = message.get("data").and_then(Value::as_object).cloned().unwrap_or_default();
        prop_assert_eq!(sent_data, data.clone());
        prop_assert_eq!(&message["ttl"], ttl.min(TTL_MAX));
    }
}
