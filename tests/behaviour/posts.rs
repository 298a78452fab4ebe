//! Broadcasts: whom they reach, how often, what stops them.

use pushcast::domain::{Counts, Report, Timestamp};
use serde_json::json;

use crate::world::{Phone, until, world};

#[tokio::test(flavor = "multi_thread")]
async fn a_post_is_sent_to_every_phone_but_those_of_its_author() {
    world()
        .with_fcm()
        .run(async |w| {
            let anns = Phone::expo("anns");
            let anns_tablet = Phone::fcm("anns-tablet");
            let bobs = Phone::expo("bobs");
            let cids = Phone::fcm("cids");
            for (user, phone) in [("ann", &anns), ("ann", &anns_tablet), ("bob", &bobs), ("cid", &cids)] {
                w.register(user, phone).await;
            }
            w.post("p1").by("ann").await;
            assert_eq!(w.outcome_of("post:p1").await, Counts { sent: 2, ..Counts::default() });
            assert_eq!([&anns, &anns_tablet, &bobs, &cids].map(|phone| w.sent_to(phone).len()), [0, 0, 1, 1]);
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_post_twice_is_one_broadcast_and_is_sent_once() {
    world()
        .run(async |w| {
            let phones = Phone::many(50);
            w.register_all(&phones).await;
            w.post("p1").by("ann").await;
            w.post("p1").by("ann").await;
            w.outcome_of("post:p1").await;
            w.post("p1").by("ann").await;
            w.wait_until_settled().await;

            let outcomes = w.outcomes_of("post:p1");
            assert!(phones.iter().all(|phone| w.sent_to(phone) == ["p1"]));
            let first = w.outcome_of("post:p1").await;
            assert_eq!(first, Counts { sent: 50, ..Counts::default() });
            let is_first =
                |outcome: &Report| matches!(outcome, Report::Broadcast { counts, .. } if *counts == first);
            assert!(outcomes.iter().all(is_first), "{outcomes:#?}");
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_post_to_named_users_is_sent_once_to_each_of_their_phones_and_to_no_other() {
    world()
        .with_fcm()
        .run(async |w| {
            let bobs = Phone::expo("bobs");
            let bobs_tablet = Phone::fcm("bobs-tablet");
            let eves = Phone::expo("eves");
            let anns = Phone::expo("anns");
            for (user, phone) in [("bob", &bobs), ("bob", &bobs_tablet), ("eve", &eves), ("ann", &anns)] {
                w.register(user, phone).await;
            }
            w.post("p1").to(&["bob", "unknown", "ann", "bob"]).by("ann").await;
            assert_eq!(w.outcome_of("post:p1").await, Counts { sent: 2, ..Counts::default() });
            assert_eq!([&bobs, &bobs_tablet, &eves, &anns].map(|phone| w.sent_to(phone).len()), [1, 1, 0, 0]);
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_post_to_more_users_than_a_list_holds_reaches_them_all() {
    world()
        .run(async |w| {
            let phones = Phone::many(1_100);
            w.register_all(&phones).await;
            let users: Vec<_> = phones.iter().map(|phone| format!("owner of {}", phone.0)).collect();
            w.post("p1").to(&users.iter().map(String::as_str).collect::<Vec<_>>()).by("ann").await;
            assert_eq!(w.outcome_of("post:p1").await, Counts { sent: 1_100, ..Counts::default() });
            assert_eq!(w.sandbox.statistics().expo.distinct_tokens, 1_100);
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_post_stops_what_is_not_sent() {
    world()
        .set("expo.rate_per_second", 100)
        .run(async |w| {
            w.register_all(&Phone::many(600)).await;
            w.post("p1").by("ann").await;
            until("the broadcast to be under way", async || {
                (w.sandbox.statistics().expo.taken >= 20).then_some(())
            })
            .await;
            w.produce("posts-created", &json!({"event": "cancelled", "postId": "p1"})).await;

            let outcome = w.outcome_of("post:p1").await;
            w.wait_until_settled().await;
            let taken = w.sandbox.statistics().expo.taken;
            assert!((20..600).contains(&taken), "{taken}");
            assert_eq!(outcome, Counts { sent: taken, ..Counts::default() });
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_post_that_was_cancelled_before_it_came_is_sent_to_no_phone() {
    world()
        .run(async |w| {
            let phone = Phone::expo("bobs");
            w.register("bob", &phone).await;
            w.produce("posts-created", &json!({"event": "cancelled", "postId": "p1"})).await;
            w.wait_until_settled().await;
            w.post("p1").by("ann").await;
            assert_eq!(w.outcome_of("post:p1").await, Counts::default());
            assert_eq!(w.sent_to(&phone), [""; 0]);
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_post_too_large_for_a_push_is_not_sent_and_delays_no_other() {
    world()
        .run(async |w| {
            let phone = Phone::expo("bobs");
            w.register("bob", &phone).await;
            let data = json!({"story": "x".repeat(4_060)});
            let post = json!({
                "postId": "p1", "authorId": "ann", "authorName": "Ann", "title": "long", "data": data,
            });
            w.produce("posts-created", &post).await;
            assert_eq!(w.outcome_of("post:p1").await, Counts::default());
            w.post("p2").by("ann").await;
            w.outcome_of("post:p2").await;
            assert_eq!(w.sent_to(&phone), ["p2"]);
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rate_limit_holds_and_a_reminder_overtakes_the_broadcast_that_uses_it_up() {
    world()
        .set("expo.rate_per_second", 200)
        .run(async |w| {
            let patients = Phone::expo("the-patients");
            let phones = Phone::many(800);
            w.register_all(&phones).await;
            w.register("pat", &patients).await;
            w.post("p1").by("pat").await;
            until("the broadcast to be under way", async || {
                (w.sandbox.statistics().expo.taken >= 50).then_some(())
            })
            .await;
            w.dose_is_due("pat", Timestamp::now()).await;
            w.outcome_of("post:p1").await;

            let tokens: Vec<_> = w.sandbox.messages().into_iter().map(|message| message.token).collect();
            let before = tokens.iter().position(|token| *token == patients.0).expect("the reminder was sent");
            assert!(before < 400, "{before} of 800 were sent before the reminder");
            let peak = w.sandbox.statistics().expo.peak_per_second;
            assert!(peak <= 200, "{peak} in one second");
        })
        .await;
}
