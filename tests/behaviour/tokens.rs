//! Who rings: tokens that move, die, come back, and go with their users.

use std::time::Duration;

use pushcast::domain::Counts;
use serde_json::json;

use crate::world::{Phone, story, until};

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_token_is_revoked_and_its_sibling_still_rings() {
    story()
        .tell(async |w| {
            let (dead, alive) = (Phone::expo("bobs-dead-phone"), Phone::expo("bobs-tablet"));
            w.registers("bob", &dead).await;
            w.registers("bob", &alive).await;

            w.posts("p1").by("ann").await;
            assert_eq!(w.outcome_of("post:p1").await, Counts { sent: 1, dead: 1, ..Counts::default() });
            w.forgets(&dead).await;
            w.posts("p2").by("ann").await;
            assert_eq!(w.outcome_of("post:p2").await, Counts { sent: 1, ..Counts::default() });
            assert_eq!(w.rung(&alive), ["p1", "p2"]);
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_moved_rings_its_new_owner_only() {
    story()
        .tell(async |w| {
            let phone = Phone::expo("the-familys-phone");
            w.registers("ann", &phone).await;
            w.registers("bob", &phone).await;

            w.posts("for ann").to(&["ann"]).by("eve").await;
            w.posts("for bob").to(&["bob"]).by("eve").await;
            w.outcome_of("post:for ann").await;
            w.outcome_of("post:for bob").await;
            assert_eq!(w.rung(&phone), ["for bob"]);
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refreshed_token_rings_in_the_place_of_the_old_one() {
    story()
        .tell(async |w| {
            let (old, new) = (Phone::expo("old-token"), Phone::expo("new-token"));
            w.registers("bob", &old).await;
            w.says("device-tokens", &json!({"token": new.0, "previousToken": old.0, "userId": "bob"})).await;
            w.forgets(&old).await;

            w.posts("p1").by("ann").await;
            w.outcome_of("post:p1").await;
            assert_eq!((w.rung(&old), w.rung(&new)), (vec![], vec!["p1".to_owned()]));
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_token_on_the_same_device_takes_the_old_ones_place() {
    story()
        .tell(async |w| {
            let (old, new) = (Phone::expo("before-the-update"), Phone::expo("after-the-update"));
            w.says("device-tokens", &json!({"token": old.0, "userId": "bob", "deviceId": "d1"})).await;
            until("the login", async || w.registration(&old).await).await;
            w.says("device-tokens", &json!({"token": new.0, "userId": "bob", "deviceId": "d1"})).await;
            w.forgets(&old).await;
            assert_eq!(w.owner(&new).await.as_deref(), Some("bob"));
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unregistered_token_an_erased_one_and_those_of_a_deleted_user_do_not_ring() {
    story()
        .tell(async |w| {
            let phones = ["logged-out", "erased", "of-a-deleted-user", "still-there"].map(Phone::expo);
            let [logged_out, erased, deleted, there] = &phones;
            for (user, phone) in ["ann", "bob", "cid", "dan"].iter().zip(&phones) {
                w.registers(user, phone).await;
            }
            w.says("device-tokens", &json!({"event": "unregistered", "token": logged_out.0})).await;
            w.neighbour.writes("device-tokens", Some(&erased.0), None, None).await;
            w.says("device-tokens", &json!({"event": "userDeleted", "userId": "cid"})).await;
            for gone in [logged_out, erased, deleted] {
                w.forgets(gone).await;
            }

            w.posts("p1").by("eve").await;
            assert_eq!(w.outcome_of("post:p1").await, Counts { sent: 1, ..Counts::default() });
            assert_eq!(w.rung(there), ["p1"]);
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_token_that_registers_again_while_its_verdict_is_on_the_way_survives() {
    story()
        .tell(async |w| {
            let phone = Phone::expo("dead-and-back");
            w.registers("bob", &phone).await;
            let sent_to = w.registration(&phone).await.unwrap().version;

            w.faults(|faults| faults.expo.latency = Duration::from_millis(1500));
            w.posts("p1").by("ann").await;
            until("the request to be on the wire", async || {
                (w.sandbox.statistics().expo.requests == 1).then_some(())
            })
            .await;
            w.registers("bob", &phone).await;
            until("the new registration", async || {
                w.registration(&phone).await.filter(|now| now.version > sent_to)
            })
            .await;

            assert_eq!(w.outcome_of("post:p1").await, Counts { dead: 1, ..Counts::default() });
            w.settles().await;
            assert_eq!(w.metrics().token_changes_total.with_label_values(&["spared"]).get(), 1);
            assert_eq!(w.owner(&phone).await.as_deref(), Some("bob"));
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outsider_may_say_that_a_token_is_dead() {
    story()
        .tell(async |w| {
            let phone = Phone::expo("of-a-blocked-user");
            w.registers("bob", &phone).await;
            w.says("invalid-tokens", &json!({"token": phone.0, "reason": "UserBlocked"})).await;
            w.forgets(&phone).await;
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_only_its_receipt_calls_dead_is_revoked_too() {
    story()
        .tell(async |w| {
            let (ghost, alive) = (Phone::expo("ghost"), Phone::expo("alive"));
            w.registers("bob", &ghost).await;
            w.registers("cid", &alive).await;
            // Expo knows nothing for a while: the tickets go back to the tail until it does.
            w.faults(|faults| faults.expo.receipt_delay = Duration::from_millis(500));

            w.posts("p1").by("ann").await;
            assert_eq!(w.outcome_of("post:p1").await, Counts { sent: 2, ..Counts::default() });
            w.forgets(&ghost).await;
            assert!(w.registration(&alive).await.is_some());
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_phone_before_login_hears_of_posts_unless_it_must_not() {
    for (include, expected) in [("true", vec!["p1".to_owned()]), ("false", vec![])] {
        story()
            .set("posts.include_anonymous", include)
            .tell(async |w| {
                let phone = Phone::expo("before-login");
                w.says("device-tokens", &json!({"token": phone.0})).await;
                until("the registration", async || w.registration(&phone).await).await;

                w.posts("p1").by("ann").await;
                w.outcome_of("post:p1").await;
                assert_eq!(w.rung(&phone), expected);
            })
            .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_names_of_the_replaced_systems_are_understood() {
    story()
        .tell(async |w| {
            let (ios, android) = (Phone::expo("snake"), Phone::expo("expos"));
            w.says(
                "device-tokens",
                &json!({"push_token": ios.0, "user_id": 7, "device_type": "ios", "device_id": "d1"}),
            )
            .await;
            w.says(
                "device-tokens",
                &json!({"expoToken": android.0, "userId": "8", "platform": "android", "extra": [1]}),
            )
            .await;
            w.settles().await;
            assert_eq!(
                (w.owner(&ios).await.as_deref(), w.owner(&android).await.as_deref()),
                (Some("7"), Some("8"))
            );

            w.says(
                "posts-created",
                &json!({"post_id": 12, "author_id": 8, "author_name": "Ann", "title": "On walking"}),
            )
            .await;
            w.outcome_of("post:12").await;
            let [heard] = &w.heard(&ios)[..] else { panic!("once") };
            assert_eq!(
                (heard.title.as_deref(), heard.body.as_deref()),
                (Some("New Reflection from Ann"), Some("On walking"))
            );
            assert_eq!(heard.data, json!({"post_id": "12", "screen": "post_detail"}));
            assert_eq!(w.rung(&android), [""; 0], "8 is the author");
        })
        .await;
}
