//! A dependency is unavailable for a while, or pushcast is stopped: no message is lost, none is sent twice.

use std::time::Duration;

use pushcast::{
    domain::{Counts, ProviderId, Timestamp},
    store::{RouteRow, RouteState, Routes as _},
};
use sandbox::{Answer, Outage};

use crate::world::{Phone, World, until, world};

fn sent(count: u64) -> Counts {
    Counts { sent: count, ..Counts::default() }
}

async fn wait_until_taken(w: &World, taken: u64) {
    until(&format!("{taken} messages"), async || (w.sandbox.statistics().expo.taken >= taken).then_some(()))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_that_answers_503_for_a_while_loses_and_duplicates_no_message() {
    world()
        .set("push.page_size", 50)
        .run(async |w| {
            w.register_all(&Phone::many(300)).await;
            w.faults(|faults| faults.expo.down = Some(Outage { requests: Some(4), ..Outage::default() }));
            w.post("p1").by("ann").await;
            assert_eq!(w.outcome_of("post:p1").await, sent(300));
            let seen = w.sandbox.statistics().expo;
            assert_eq!((seen.distinct_tokens, seen.duplicates, seen.statuses.get(&503)), (300, 0, Some(&4)));
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_that_throttles_is_waited_for() {
    world()
        .run(async |w| {
            w.register_all(&Phone::many(250)).await;
            w.faults(|faults| {
                faults.expo.rate_limit = Some(200);
                faults.expo.retry_after = Some(Duration::from_secs(1));
            });
            w.post("p1").by("ann").await;
            assert_eq!(w.outcome_of("post:p1").await, sent(250));
            assert!(w.sandbox.statistics().expo.answered(Answer::Throttled) > 0, "it was throttled");
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_credentials_halt_the_route_and_lose_no_message_and_no_token() {
    world()
        .with_fcm()
        .run(async |w| {
            let bobs = Phone::expo("bobs");
            let cids = Phone::fcm("cids");
            w.register("bob", &bobs).await;
            w.register("cid", &cids).await;
            w.faults(|faults| faults.expo.credentials_refused = true);

            w.post("p1").by("ann").await;
            until("the route to be halted", async || {
                (w.route(ProviderId::Expo).await.state == RouteState::Halted).then_some(())
            })
            .await;
            // The other provider is sent to, and an operator can see what is wrong.
            w.wait_until_sent_to(&cids).await;
            let halted = || w.metrics().route_state.with_label_values(&["expo", "halted"]).get();
            until("the metric of the route", async || (halted() == 1).then_some(())).await;
            assert!(w.health().report().is_ready(), "a restart would not help");
            assert_eq!((w.owner(&bobs).await.as_deref(), w.outcomes_of("post:p1").len()), (Some("bob"), 0));

            w.faults(|faults| faults.expo.credentials_refused = false);
            w.store.set_route(ProviderId::Expo, &running()).await.unwrap();
            assert_eq!(w.outcome_of("post:p1").await, sent(2));
            assert_eq!(w.sent_to(&bobs), ["p1"]);
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_push_is_disabled_jobs_wait_in_kafka_and_are_delivered_when_it_is_enabled() {
    world()
        .set("push.enabled", false)
        .run(async |w| {
            let phone = Phone::expo("bobs");
            w.register("bob", &phone).await;
            w.post("p1").by("ann").await;
            let at = Timestamp::from_second(Timestamp::now().as_second()).unwrap();
            w.dose_is_due("bob", at).await;
            until("both jobs", async || {
                let jobs = w.kafka.record_count("push.expo.bulk").await
                    + w.kafka.record_count("push.expo.urgent").await;
                (jobs == 64 + 1).then_some(())
            })
            .await;
            w.stop().await;
            assert_eq!(w.sandbox.statistics().expo.requests, 0);

            w.start_again_with("push.enabled", "true").await;
            assert_eq!(w.outcome_of("post:p1").await, sent(1));
            w.wait_until_settled().await;
            assert_eq!(w.sent_to(&phone).len(), 2, "the post and the reminder");
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_in_the_middle_of_a_broadcast_loses_and_duplicates_no_message() {
    world()
        .set("expo.rate_per_second", 300)
        .set("push.page_size", 20)
        .run(async |w| {
            w.register_all(&Phone::many(900)).await;
            w.post("p1").by("ann").await;
            wait_until_taken(w, 200).await;
            w.stop().await;
            assert!(w.sandbox.statistics().expo.taken < 900, "the stop came too late");
            w.start_again_with("expo.rate_per_second", "0").await;
            assert_eq!(w.outcome_of("post:p1").await, sent(900));
        })
        .await;
}

/// Like the world's, and clients that reconnect soon.
const RECONNECT_SOON: &str = r#"{"fetch.wait.max.ms":"5","linger.ms":"0","reconnect.backoff.max.ms":"300"}"#;

#[tokio::test(flavor = "multi_thread")]
async fn an_unreachable_kafka_in_the_middle_of_a_broadcast_is_waited_for_and_reported() {
    world()
        .set("kafka.properties", RECONNECT_SOON)
        .set("kafka.session_timeout", "60s")
        .set("expo.rate_per_second", 300)
        .set("push.page_size", 20)
        .run(async |w| {
            w.register_all(&Phone::many(900)).await;
            w.post("p1").by("ann").await;
            wait_until_taken(w, 100).await;
            w.broker.take_down().unwrap();
            until("pushcast to report that it is not ready", async || {
                (!w.health().report().is_ready()).then_some(())
            })
            .await;
            w.broker.bring_up().unwrap();
            w.wait_until_ready().await;
            assert_eq!(w.outcome_of("post:p1").await, sent(900));
            assert_eq!(w.sandbox.statistics().expo.distinct_tokens, 900);
        })
        .await;
}

/// The group removes the member, which joins again afterwards. Messages that the provider has answered
/// meanwhile are not sent again.
#[tokio::test(flavor = "multi_thread")]
async fn kafka_unreachable_for_longer_than_a_session_loses_and_duplicates_no_message() {
    world()
        .set(
            "kafka.properties",
            RECONNECT_SOON.replace('{', r#"{"session.timeout.ms":"1500","heartbeat.interval.ms":"300","#),
        )
        .set("expo.rate_per_second", 300)
        .set("push.page_size", 10)
        .set("push.open_pages", 4)
        .run(async |w| {
            w.register_all(&Phone::many(900)).await;
            w.post("p1").by("ann").await;
            wait_until_taken(w, 100).await;
            w.broker.take_down().unwrap();
            // Not a race: the session has to time out, and nothing shows that from outside.
            tokio::time::sleep(Duration::from_millis(2_500)).await;
            w.broker.bring_up().unwrap();
            assert_eq!(w.outcome_of("post:p1").await, sent(900));
            assert_eq!(w.sandbox.statistics().expo.distinct_tokens, 900);
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_dead_tokens_brakes_the_route_and_removes_hardly_any_before_an_operator_releases_it() {
    world()
        .run(async |w| {
            let phones: Vec<_> = (0..300).map(|number| Phone::expo(&format!("dead-{number}"))).collect();
            w.register_all(&phones).await;
            w.post("p1").by("ann").await;
            until("the route to be braked", async || {
                (w.route(ProviderId::Expo).await.state == RouteState::Braked).then_some(())
            })
            .await;
            let braked = || w.metrics().route_state.with_label_values(&["expo", "braked"]).get();
            until("the gate to be closed", async || (braked() == 1).then_some(())).await;
            let reported = w.kafka.record_count("invalid-tokens").await;
            assert!(reported < 50, "{reported} of 300 were reported");
            assert_eq!(w.outcomes_of("post:p1").len(), 0, "what is held is not settled");

            // They are sent to again, are dead once more, and are removed now.
            let released = RouteRow { state: RouteState::Released, ..running() };
            w.store.set_route(ProviderId::Expo, &released).await.unwrap();
            assert_eq!(w.outcome_of("post:p1").await, Counts { dead: 300, ..Counts::default() });
            for phone in &phones {
                w.wait_until_removed(phone).await;
            }
        })
        .await;
}

/// What `pushcast resume` writes.
fn running() -> RouteRow {
    RouteRow {
        state: RouteState::Running,
        since: Timestamp::now(),
        set_by: "ann".into(),
        detail: String::new(),
    }
}
