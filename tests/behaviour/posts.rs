//! Broadcasts: whom they reach, how often, what stops them.

use pushcast::domain::Counts;
use serde_json::json;

use crate::world::{Phone, story, until};

#[tokio::test(flavor = "multi_thread")]
async fn a_post_rings_everybody_but_its_author() {
    story()
        .with_fcm()
        .tell(async |w| {
            let (anns, anns_tablet, bobs, cids) =
                (Phone::expo("anns"), Phone::fcm("anns-tablet"), Phone::expo("bobs"), Phone::fcm("cids"));
            for (user, phone) in [("ann", &anns), ("ann", &anns_tablet), ("bob", &bobs), ("cid", &cids)] {
                w.registers(user, phone).await;
            }
            w.posts("p1").by("ann").await;
            assert_eq!(w.outcome_of("post:p1").await, Counts { sent: 2, ..Counts::default() });
            assert_eq!([&anns, &anns_tablet, &bobs, &cids].map(|phone| w.rung(phone).len()), [0, 0, 1, 1]);
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_post_twice_is_one_broadcast_and_rings_once() {
    story()
        .tell(async |w| {
            let phones = Phone::many(50);
            w.all_register(&phones).await;
            w.posts("p1").by("ann").await;
            w.posts("p1").by("ann").await;
            w.outcome_of("post:p1").await;
            w.posts("p1").by("ann").await;
            w.settles().await;

            let outcomes = w.outcomes_of("post:p1");
            assert!(phones.iter().all(|phone| w.rung(phone) == ["p1"]));
            let first = w.outcome_of("post:p1").await;
            assert_eq!(first, Counts { sent: 50, ..Counts::default() });
            assert!(
                outcomes.iter().all(|outcome| matches!(outcome, pushcast::domain::Report::Broadcast { counts, .. } if *counts == first))
            );
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_post_to_named_users_rings_all_their_phones_once_and_nobody_elses() {
    story()
        .with_fcm()
        .tell(async |w| {
            let (bobs, bobs_tablet, eves, anns) =
                (Phone::expo("bobs"), Phone::fcm("bobs-tablet"), Phone::expo("eves"), Phone::expo("anns"));
            for (user, phone) in [("bob", &bobs), ("bob", &bobs_tablet), ("eve", &eves), ("ann", &anns)] {
                w.registers(user, phone).await;
            }
            w.posts("p1").to(&["bob", "nobody", "ann", "bob"]).by("ann").await;
            assert_eq!(w.outcome_of("post:p1").await, Counts { sent: 2, ..Counts::default() });
            assert_eq!([&bobs, &bobs_tablet, &eves, &anns].map(|phone| w.rung(phone).len()), [1, 1, 0, 0]);
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_post_to_more_users_than_a_list_holds_reaches_them_all() {
    story()
        .tell(async |w| {
            let phones = Phone::many(1_100);
            w.all_register(&phones).await;
            let users: Vec<_> = phones.iter().map(|phone| format!("owner of {}", phone.0)).collect();
            w.posts("p1").to(&users.iter().map(String::as_str).collect::<Vec<_>>()).by("ann").await;
            assert_eq!(w.outcome_of("post:p1").await, Counts { sent: 1_100, ..Counts::default() });
            assert_eq!(w.sandbox.statistics().expo.distinct_tokens, 1_100);
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_post_stops_what_is_not_sent() {
    story()
        .set("expo.rate_per_second", 100)
        .tell(async |w| {
            w.all_register(&Phone::many(600)).await;
            w.posts("p1").by("ann").await;
            until("the broadcast to be under way", async || {
                (w.sandbox.statistics().expo.taken >= 20).then_some(())
            })
            .await;
            w.says("posts-created", &json!({"event": "cancelled", "postId": "p1"})).await;

            let outcome = w.outcome_of("post:p1").await;
            w.settles().await;
            let taken = w.sandbox.statistics().expo.taken;
            assert!((20..600).contains(&taken), "{taken}");
            assert_eq!(outcome, Counts { sent: taken, ..Counts::default() });
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_post_that_was_cancelled_before_it_came_rings_nobody() {
    story()
        .tell(async |w| {
            let phone = Phone::expo("bobs");
            w.registers("bob", &phone).await;
            w.says("posts-created", &json!({"event": "cancelled", "postId": "p1"})).await;
            w.settles().await;
            w.posts("p1").by("ann").await;
            assert_eq!(w.outcome_of("post:p1").await, Counts::default());
            assert_eq!(w.rung(&phone), [""; 0]);
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_post_too_large_for_a_push_rings_nobody_and_holds_nobody_up() {
    story()
        .tell(async |w| {
            let phone = Phone::expo("bobs");
            w.registers("bob", &phone).await;
            let data = json!({"story": "x".repeat(4_060)});
            w.says("posts-created", &json!({"postId": "p1", "authorId": "ann", "authorName": "Ann", "title": "long", "data": data})).await;
            assert_eq!(w.outcome_of("post:p1").await, Counts::default());
            w.posts("p2").by("ann").await;
            w.outcome_of("post:p2").await;
            assert_eq!(w.rung(&phone), ["p2"]);
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rate_is_kept_and_a_dose_overtakes_the_broadcast_that_uses_it_up() {
    story()
        .set("expo.rate_per_second", 200)
        .tell(async |w| {
            let patients = Phone::expo("the-patients");
            let phones = Phone::many(800);
            w.all_register(&phones).await;
            w.registers("pat", &patients).await;
            w.posts("p1").by("pat").await;
            until("the broadcast to be under way", async || {
                (w.sandbox.statistics().expo.taken >= 50).then_some(())
            })
            .await;
            w.dose_is_due("pat", pushcast::domain::Timestamp::now()).await;
            w.outcome_of("post:p1").await;

            let rung: Vec<_> = w.sandbox.messages().into_iter().map(|message| message.token).collect();
            let before = rung.iter().position(|token| *token == patients.0).expect("the dose rang");
            assert!(before < 400, "{before} of 800 went before the dose");
            let peak = w.sandbox.statistics().expo.peak_per_second;
            assert!(peak <= 200, "{peak} in one second");
        })
        .await;
}
