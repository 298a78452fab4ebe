//! Something is away for a while: nothing is lost by it, and nothing rings twice.

use std::time::Duration;

use pushcast::{
    domain::{Counts, ProviderId, Timestamp},
    store::{RouteRow, RouteState, Routes as _},
};
use sandbox::{Answer, Outage};

use crate::world::{Phone, World, story, until};

fn sent(count: u64) -> Counts {
    Counts { sent: count, ..Counts::default() }
}

async fn under_way(w: &World, taken: u64) {
    until(&format!("{taken} messages"), async || (w.sandbox.statistics().expo.taken >= taken).then_some(()))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_that_answers_503_for_a_while_loses_nobody_and_rings_nobody_twice() {
    story()
        .set("push.page_size", 50)
        .tell(async |w| {
            w.all_register(&Phone::many(300)).await;
            w.faults(|faults| faults.expo.down = Some(Outage { requests: Some(4), ..Outage::default() }));
            w.posts("p1").by("ann").await;
            assert_eq!(w.outcome_of("post:p1").await, sent(300));
            let seen = w.sandbox.statistics().expo;
            assert_eq!((seen.distinct_tokens, seen.doubles, seen.statuses.get(&503)), (300, 0, Some(&4)));
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_that_throttles_is_waited_for() {
    story()
        .tell(async |w| {
            w.all_register(&Phone::many(250)).await;
            w.faults(|faults| {
                faults.expo.rate_limit = Some(200);
                faults.expo.retry_after = Some(Duration::from_secs(1));
            });
            w.posts("p1").by("ann").await;
            assert_eq!(w.outcome_of("post:p1").await, sent(250));
            assert!(w.sandbox.statistics().expo.answered(Answer::Throttled) > 0, "it was throttled");
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_credentials_halt_the_route_and_lose_and_prune_nothing() {
    story()
        .with_fcm()
        .tell(async |w| {
            let (bobs, cids) = (Phone::expo("bobs"), Phone::fcm("cids"));
            w.registers("bob", &bobs).await;
            w.registers("cid", &cids).await;
            w.faults(|faults| faults.expo.credentials_refused = true);

            w.posts("p1").by("ann").await;
            until("the route to be halted", async || {
                (w.route(ProviderId::Expo).await.state == RouteState::Halted).then_some(())
            })
            .await;
            // The other provider goes on, and an operator can see what is wrong.
            w.rings(&cids).await;
            let halted = || w.metrics().route_state.with_label_values(&["expo", "halted"]).get();
            until("the metric of the route", async || (halted() == 1).then_some(())).await;
            assert!(w.health().report().is_ready(), "a restart would not mend it");
            assert_eq!((w.owner(&bobs).await.as_deref(), w.outcomes_of("post:p1").len()), (Some("bob"), 0));

            w.faults(|faults| faults.expo.credentials_refused = false);
            w.store.set_route(ProviderId::Expo, &running()).await.unwrap();
            assert_eq!(w.outcome_of("post:p1").await, sent(2));
            assert_eq!(w.rung(&bobs), ["p1"]);
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn switched_off_it_holds_jobs_in_kafka_and_delivers_them_when_it_is_switched_on() {
    story()
        .set("push.enabled", false)
        .tell(async |w| {
            let phone = Phone::expo("bobs");
            w.registers("bob", &phone).await;
            w.posts("p1").by("ann").await;
            let at = Timestamp::from_second(Timestamp::now().as_second()).unwrap();
            w.dose_is_due("bob", at).await;
            until("both jobs", async || {
                let jobs = w.neighbour.records_in("push.expo.bulk").await
                    + w.neighbour.records_in("push.expo.urgent").await;
                (jobs == 64 + 1).then_some(())
            })
            .await;
            w.stops().await;
            assert_eq!(w.sandbox.statistics().expo.requests, 0);

            w.starts_again_with("push.enabled", "true").await;
            assert_eq!(w.outcome_of("post:p1").await, sent(1));
            w.settles().await;
            assert_eq!(w.rung(&phone).len(), 2, "the post and the dose");
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_in_the_middle_of_a_broadcast_loses_nobody_and_rings_nobody_twice() {
    story()
        .set("expo.rate_per_second", 300)
        .set("push.page_size", 20)
        .tell(async |w| {
            w.all_register(&Phone::many(900)).await;
            w.posts("p1").by("ann").await;
            under_way(w, 200).await;
            w.stops().await;
            assert!(w.sandbox.statistics().expo.taken < 900, "it was in the middle");
            w.starts_again_with("expo.rate_per_second", "0").await;
            assert_eq!(w.outcome_of("post:p1").await, sent(900));
        })
        .await;
}

/// Like the world's, and clients that look again soon.
const IMPATIENT: &str = r#"{"fetch.wait.max.ms":"5","linger.ms":"0","reconnect.backoff.max.ms":"300"}"#;

#[tokio::test(flavor = "multi_thread")]
async fn kafka_away_in_the_middle_of_a_broadcast_is_waited_for_and_shown() {
    story()
        .set("kafka.properties", IMPATIENT)
        .set("kafka.session_timeout", "60s")
        .set("expo.rate_per_second", 300)
        .set("push.page_size", 20)
        .tell(async |w| {
            w.all_register(&Phone::many(900)).await;
            w.posts("p1").by("ann").await;
            under_way(w, 100).await;
            w.broker.take_down().unwrap();
            until("pushcast to say that it is not ready", async || {
                (!w.health().report().is_ready()).then_some(())
            })
            .await;
            w.broker.bring_up().unwrap();
            w.is_ready().await;
            assert_eq!(w.outcome_of("post:p1").await, sent(900));
            assert_eq!(w.sandbox.statistics().expo.distinct_tokens, 900);
        })
        .await;
}

/// The group takes us for dead, and deals us in again when it is back. What the provider has answered
/// meanwhile is not asked of it again.
#[tokio::test(flavor = "multi_thread")]
async fn kafka_away_for_longer_than_a_session_loses_nobody_and_rings_nobody_twice() {
    story()
        .set(
            "kafka.properties",
            IMPATIENT.replace('{', r#"{"session.timeout.ms":"1500","heartbeat.interval.ms":"300","#),
        )
        .set("expo.rate_per_second", 300)
        .set("push.page_size", 10)
        .set("push.open_pages", 4)
        .tell(async |w| {
            w.all_register(&Phone::many(900)).await;
            w.posts("p1").by("ann").await;
            under_way(w, 100).await;
            w.broker.take_down().unwrap();
            // Not a race: a session has to pass, and nothing shows it from outside.
            tokio::time::sleep(Duration::from_millis(2_500)).await;
            w.broker.bring_up().unwrap();
            assert_eq!(w.outcome_of("post:p1").await, sent(900));
            assert_eq!(w.sandbox.statistics().expo.distinct_tokens, 900);
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_dead_tokens_brakes_the_route_and_removes_hardly_any_before_somebody_has_looked() {
    story()
        .tell(async |w| {
            let phones: Vec<_> = (0..300).map(|number| Phone::expo(&format!("dead-{number}"))).collect();
            w.all_register(&phones).await;
            w.posts("p1").by("ann").await;
            until("the route to be braked", async || {
                (w.route(ProviderId::Expo).await.state == RouteState::Braked).then_some(())
            })
            .await;
            let braked = || w.metrics().route_state.with_label_values(&["expo", "braked"]).get();
            until("the gate to be closed", async || (braked() == 1).then_some(())).await;
            let reported = w.neighbour.records_in("invalid-tokens").await;
            assert!(reported < 50, "{reported} of 300 were reported");
            assert_eq!(w.outcomes_of("post:p1").len(), 0, "what is held is not settled");

            // They are asked again, are dead once more, and are believed.
            let released = RouteRow { state: RouteState::Released, ..running() };
            w.store.set_route(ProviderId::Expo, &released).await.unwrap();
            assert_eq!(w.outcome_of("post:p1").await, Counts { dead: 300, ..Counts::default() });
            for phone in &phones {
                w.forgets(phone).await;
            }
        })
        .await;
}

/// What an operator writes who has looked.
fn running() -> RouteRow {
    RouteRow {
        state: RouteState::Running,
        since: Timestamp::now(),
        set_by: "ann".into(),
        detail: String::new(),
    }
}
