//! Which tokens are sent to: those that move, die, come back, and are removed with their users.

use std::time::Duration;

use pushcast::domain::Counts;
use serde_json::json;

use crate::world::{Phone, until, world};

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_token_is_revoked_and_the_users_other_token_is_still_sent_to() {
    world()
        .run(async |w| {
            let dead = Phone::expo("bobs-dead-phone");
            let alive = Phone::expo("bobs-tablet");
            w.register("bob", &dead).await;
            w.register("bob", &alive).await;

            w.post("p1").by("ann").await;
            assert_eq!(w.outcome_of("post:p1").await, Counts { sent: 1, dead: 1, ..Counts::default() });
            w.wait_until_removed(&dead).await;
            w.post("p2").by("ann").await;
            assert_eq!(w.outcome_of("post:p2").await, Counts { sent: 1, ..Counts::default() });
            assert_eq!(w.sent_to(&alive), ["p1", "p2"]);
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_moved_is_sent_to_for_its_new_owner_only() {
    world()
        .run(async |w| {
            let phone = Phone::expo("the-familys-phone");
            w.register("ann", &phone).await;
            w.register("bob", &phone).await;

            w.post("for ann").to(&["ann"]).by("eve").await;
            w.post("for bob").to(&["bob"]).by("eve").await;
            w.outcome_of("post:for ann").await;
            w.outcome_of("post:for bob").await;
            assert_eq!(w.sent_to(&phone), ["for bob"]);
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refreshed_token_replaces_the_old_one() {
    world()
        .run(async |w| {
            let old = Phone::expo("old-token");
            let new = Phone::expo("new-token");
            w.register("bob", &old).await;
            w.produce("device-tokens", &json!({"token": new.0, "previousToken": old.0, "userId": "bob"}))
                .await;
            w.wait_until_removed(&old).await;

            w.post("p1").by("ann").await;
            w.outcome_of("post:p1").await;
            assert_eq!((w.sent_to(&old), w.sent_to(&new)), (vec![], vec!["p1".to_owned()]));
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_token_of_the_same_device_replaces_the_old_one() {
    world()
        .run(async |w| {
            let old = Phone::expo("before-the-update");
            let new = Phone::expo("after-the-update");
            w.produce("device-tokens", &json!({"token": old.0, "userId": "bob", "deviceId": "d1"})).await;
            until("the login", async || w.registration(&old).await).await;
            w.produce("device-tokens", &json!({"token": new.0, "userId": "bob", "deviceId": "d1"})).await;
            w.wait_until_removed(&old).await;
            assert_eq!(w.owner(&new).await.as_deref(), Some("bob"));
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unregistered_token_an_erased_one_and_those_of_a_deleted_user_are_not_sent_to() {
    world()
        .run(async |w| {
            let phones = ["logged-out", "erased", "of-a-deleted-user", "still-there"].map(Phone::expo);
            let [logged_out, erased, deleted, there] = &phones;
            for (user, phone) in ["ann", "bob", "cid", "dan"].iter().zip(&phones) {
                w.register(user, phone).await;
            }
            w.produce("device-tokens", &json!({"event": "unregistered", "token": logged_out.0})).await;
            w.kafka.produce("device-tokens", Some(&erased.0), None, None).await;
            w.produce("device-tokens", &json!({"event": "userDeleted", "userId": "cid"})).await;
            for removed in [logged_out, erased, deleted] {
                w.wait_until_removed(removed).await;
            }

            w.post("p1").by("eve").await;
            assert_eq!(w.outcome_of("post:p1").await, Counts { sent: 1, ..Counts::default() });
            assert_eq!(w.sent_to(there), ["p1"]);
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_token_that_registers_again_before_its_verdict_comes_is_kept() {
    world()
        .run(async |w| {
            let phone = Phone::expo("dead-and-back");
            w.register("bob", &phone).await;
            let sent_to = w.registration(&phone).await.unwrap().version;

            w.faults(|faults| faults.expo.latency = Duration::from_millis(1500));
            w.post("p1").by("ann").await;
            until("the request to be on the wire", async || {
                (w.sandbox.statistics().expo.requests == 1).then_some(())
            })
            .await;
            w.register("bob", &phone).await;
            until("the new registration", async || {
                w.registration(&phone).await.filter(|now| now.version > sent_to)
            })
            .await;

            assert_eq!(w.outcome_of("post:p1").await, Counts { dead: 1, ..Counts::default() });
            w.wait_until_settled().await;
            assert_eq!(w.metrics().token_changes_total.with_label_values(&["spared"]).get(), 1);
            assert_eq!(w.owner(&phone).await.as_deref(), Some("bob"));
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_service_may_report_that_a_token_is_dead() {
    world()
        .run(async |w| {
            let phone = Phone::expo("of-a-blocked-user");
            w.register("bob", &phone).await;
            w.produce("invalid-tokens", &json!({"token": phone.0, "reason": "UserBlocked"})).await;
            w.wait_until_removed(&phone).await;
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_only_its_receipt_reports_as_dead_is_revoked_too() {
    world()
        .run(async |w| {
            let ghost = Phone::expo("ghost");
            let alive = Phone::expo("alive");
            w.register("bob", &ghost).await;
            w.register("cid", &alive).await;
            // Expo has no receipts for a while: until it has, the tickets are put back at the tail.
            w.faults(|faults| faults.expo.receipt_delay = Duration::from_millis(500));

            w.post("p1").by("ann").await;
            assert_eq!(w.outcome_of("post:p1").await, Counts { sent: 2, ..Counts::default() });
            w.wait_until_removed(&ghost).await;
            assert!(w.registration(&alive).await.is_some());
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_phone_before_login_is_sent_posts_unless_the_settings_exclude_it() {
    for (include, expected) in [("true", vec!["p1".to_owned()]), ("false", vec![])] {
        world()
            .set("posts.include_anonymous", include)
            .run(async |w| {
                let phone = Phone::expo("before-login");
                w.produce("device-tokens", &json!({"token": phone.0})).await;
                until("the registration", async || w.registration(&phone).await).await;

                w.post("p1").by("ann").await;
                w.outcome_of("post:p1").await;
                assert_eq!(w.sent_to(&phone), expected);
            })
            .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_field_names_of_the_replaced_systems_are_understood() {
    world()
        .run(async |w| {
            let ios = Phone::expo("snake");
            let android = Phone::expo("expos");
            w.produce(
                "device-tokens",
                &json!({"push_token": ios.0, "user_id": 7, "device_type": "ios", "device_id": "d1"}),
            )
            .await;
            w.produce(
                "device-tokens",
                &json!({"expoToken": android.0, "userId": "8", "platform": "android", "extra": [1]}),
            )
            .await;
            w.wait_until_settled().await;
            assert_eq!(
                (w.owner(&ios).await.as_deref(), w.owner(&android).await.as_deref()),
                (Some("7"), Some("8"))
            );

            w.produce(
                "posts-created",
                &json!({"post_id": 12, "author_id": 8, "author_name": "Ann", "title": "On walking"}),
            )
            .await;
            w.outcome_of("post:12").await;
            let [message] = &w.messages_to(&ios)[..] else { panic!("one message") };
            assert_eq!(
                (message.title.as_deref(), message.body.as_deref()),
                (Some("New Reflection from Ann"), Some("On walking"))
            );
            assert_eq!(message.data, json!({"post_id": "12", "screen": "post_detail"}));
            assert_eq!(w.sent_to(&android), [""; 0], "8 is the author");
        })
        .await;
}
