//! Bad input harms only itself: it is in `dead-letters` byte for byte, and the next record is handled.

use pushcast::domain::{Counts, Timestamp};
use serde_json::json;

use crate::world::{Phone, world};

const GARBAGE: &[u8] = b"\x00\xffnot json";

#[tokio::test(flavor = "multi_thread")]
async fn a_garbage_record_lands_in_dead_letters_and_the_next_one_is_delivered() {
    world()
        .run(async |w| {
            let phone = Phone::expo("bobs");
            w.register("bob", &phone).await;
            // One key, so one partition: the post comes after the garbage.
            w.kafka.produce("posts-created", Some("k"), Some(GARBAGE), None).await;
            let post = json!({"postId": "p1", "authorId": "ann", "title": "p1"}).to_string();
            w.kafka.produce("posts-created", Some("k"), Some(post.as_bytes()), None).await;

            w.outcome_of("post:p1").await;
            assert_eq!(w.sent_to(&phone), ["p1"]);
            let letter = w.dead_letters(1).await.remove(0);
            assert_eq!((letter.key.as_deref(), letter.value.as_deref()), (Some(&b"k"[..]), Some(GARBAGE)));
            assert_eq!(
                (letter.header("pushcast.topic"), letter.header("pushcast.cause")),
                ("posts-created", "unreadable")
            );
            assert_eq!(
                (letter.header("pushcast.group"), letter.header("pushcast.offset")),
                ("pushcast.posts", "0")
            );
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_in_every_topic_stops_none_of_them() {
    let topics = [
        "device-tokens",
        "posts-created",
        "medication-regimens",
        "medication-ticks",
        "push.expo.urgent",
        "push.expo.bulk",
        "expo-receipts",
        "invalid-tokens",
    ];
    world()
        .run(async |w| {
            for topic in topics {
                for value in [Some(GARBAGE), Some(b""), Some(b"[1]"), Some(b"null"), None] {
                    w.kafka.produce(topic, None, value, None).await;
                }
            }
            let letters = w.dead_letters(8 * 5).await;
            for topic in topics {
                let of_topic = letters.iter().filter(|letter| letter.header("pushcast.topic") == topic);
                assert_eq!(of_topic.count(), 5, "{topic}");
            }
            assert!(letters.iter().all(|letter| !letter.header("pushcast.error").is_empty()));

            let phone = Phone::expo("bobs");
            let ghost = Phone::expo("ghost");
            w.register("bob", &phone).await;
            w.register("bob", &ghost).await;
            w.post("p1").by("ann").await;
            assert_eq!(w.outcome_of("post:p1").await, Counts { sent: 2, ..Counts::default() });
            w.wait_until_removed(&ghost).await;
            w.dose_is_due("bob", Timestamp::now()).await;
            w.wait_until_settled().await;
            assert_eq!(w.sent_to(&phone).len(), 2);
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_error_of_a_dead_letter_does_not_hold_the_token() {
    world()
        .run(async |w| {
            let secret = "SecretButNoTokenOfAnyForm";
            for event in [
                json!({"token": secret, "userId": "bob"}),
                json!({"token": format!("ExponentPushToken[{secret}]"), "kind": "fcm"}),
                json!({"token": format!("ExponentPushToken[{secret}]"), "platform": "toaster"}),
                json!({"event": format!("ExponentPushToken[{secret}]")}),
            ] {
                w.produce("device-tokens", &event).await;
            }
            let letters = w.dead_letters(4).await;
            let errors: Vec<_> = letters.iter().map(|letter| letter.header("pushcast.error")).collect();
            assert!(errors.iter().any(|error| error.contains("invalid token format")), "{errors:?}");
            assert!(errors.iter().all(|error| !error.contains(secret)), "{errors:?}");
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_part_of_a_broadcast_and_a_job_in_the_wrong_topic_are_dead_letters() {
    world()
        .run(async |w| {
            let job = |provider: &str| {
                json!({
                    "provider": provider,
                    "notification": {
                        "id": "post:p9", "title": "t", "body": "b", "data": {}, "channel": "default",
                        "expiresAt": "2099-01-01T00:00:00Z",
                    },
                    "work": {"list": {"broadcastId": "post:p9", "part": 0, "users": ["bob"]}},
                })
            };
            w.produce("push.expo.bulk", &job("expo")).await;
            w.produce("push.expo.bulk", &job("fcm")).await;
            let letters = w.dead_letters(2).await;
            assert!(letters.iter().all(|letter| letter.header("pushcast.cause") == "invalid"), "{letters:?}");
        })
        .await;
}
