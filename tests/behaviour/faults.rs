//! Push services in every failure mode, and a wrong configuration that makes tokens look dead: no message is
//! lost, no token is removed.

use std::time::Duration;

use pushcast::{
    domain::{Counts, ProviderId, Timestamp},
    store::{RouteRow, RouteState, Routes as _},
};
use sandbox::{FailureMode, Outage, TokenFault, TokenRule, Which};

use crate::world::{Phone, World, until, world};

fn sent(count: u64) -> Counts {
    Counts { sent: count, ..Counts::default() }
}

fn all(fault: TokenFault) -> Vec<TokenRule> {
    vec![TokenRule { which: Which::Fraction(1.0), fault }]
}

/// Expo only: FCM's first pause alone is ten seconds; `tests/engine.rs` has its outages, in virtual time.
#[tokio::test(flavor = "multi_thread")]
async fn in_any_failure_mode_of_an_outage_each_phone_is_sent_to_once() {
    world()
        .set("expo.request_timeout", "1s")
        .run(async |w| {
            let phones = Phone::many(80);
            w.register_all(&phones).await;
            for mode in [
                FailureMode::Html,
                FailureMode::Hang,
                FailureMode::Reset,
                FailureMode::Drip,
                FailureMode::Short,
            ] {
                w.faults(|faults| {
                    faults.expo.down = Some(Outage { manner: mode, requests: Some(3), ..Outage::default() })
                });
                let post = format!("{mode:?}");
                w.post(&post).by("ann").await;
                assert_eq!(w.outcome_of(&format!("post:{post}")).await, sent(80), "{post}");
                assert_eq!(w.sandbox.statistics().expo.outages[&mode], 3, "{post}");
            }
            assert!(phones.iter().all(|phone| w.sent_to(phone).len() == 5));
        })
        .await;
}

/// What `pushcast release` writes.
async fn release(w: &World, provider: ProviderId) {
    let released = RouteRow {
        state: RouteState::Released,
        since: Timestamp::now(),
        set_by: "ann".into(),
        detail: String::new(),
    };
    w.store.set_route(provider, &released).await.unwrap();
}

async fn wait_until_braked(w: &World, provider: ProviderId) {
    until("the route to be braked", async || {
        (w.route(provider).await.state == RouteState::Braked).then_some(())
    })
    .await;
    let braked = || w.metrics().route_state.with_label_values(&[provider.label(), "braked"]).get();
    until("the gate to be closed", async || (braked() == 1).then_some(())).await;
    assert_eq!(w.kafka.record_count("invalid-tokens").await, 0, "no token is reported");
    assert_eq!(w.outcomes_of("post:p1").len(), 0, "what is held is not settled");
}

async fn no_token_is_removed(w: &World, phones: &[Phone]) {
    assert_eq!(w.kafka.record_count("invalid-tokens").await, 0);
    for phone in phones {
        assert!(w.registration(phone).await.is_some(), "{phone:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_of_another_project_make_every_token_look_dead_and_lose_no_message_and_no_token() {
    world()
        .with_fcm()
        .run(async |w| {
            let phones: Vec<_> = (0..640).map(|number| Phone::fcm(&format!("phone-{number}"))).collect();
            w.register_all(&phones).await;
            let owners: Vec<_> = phones.iter().map(|phone| format!("owner of {}", phone.0)).collect();
            w.faults(|faults| faults.fcm.tokens = all(TokenFault::Foreign));
            w.post("p1").to(&owners.iter().map(String::as_str).collect::<Vec<_>>()).by("ann").await;
            wait_until_braked(w, ProviderId::Fcm).await;

            // New credentials take a restart, and a restart is no release.
            w.faults(|faults| faults.fcm.tokens.clear());
            w.stop().await;
            w.start_again_with("push.enabled", "true").await;
            wait_until_braked(w, ProviderId::Fcm).await;
            release(w, ProviderId::Fcm).await;
            assert_eq!(w.outcome_of("post:p1").await, sent(640));
            assert_eq!(w.sandbox.statistics().fcm.distinct_tokens, 640);
            no_token_is_removed(w, &phones).await;
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mistake_that_is_fixed_without_a_restart_is_forgotten_with_a_release() {
    world()
        // The parts of so small a broadcast are small, and the first one must be a flood.
        .set("push.brake_dead", 1)
        .run(async |w| {
            let phones = Phone::many(300);
            w.register_all(&phones).await;
            w.faults(|faults| faults.expo.tokens = all(TokenFault::Dead));
            w.post("p1").by("ann").await;
            let at = Timestamp::from_second(Timestamp::now().as_second()).unwrap();
            w.dose_is_due(&format!("owner of {}", phones[7].0), at).await;
            wait_until_braked(w, ProviderId::Expo).await;
            w.faults(|faults| faults.expo.tokens.clear());
            release(w, ProviderId::Expo).await;
            assert_eq!(w.outcome_of("post:p1").await, sent(300));
            w.wait_until_settled().await;
            assert_eq!(w.sent_to(&phones[7]).len(), 2, "the post and the reminder");
            no_token_is_removed(w, &phones).await;
        })
        .await;
}

// === Receipts ===

#[tokio::test(flavor = "multi_thread")]
async fn receipts_that_come_late_and_a_restart_in_between_lose_no_dead_token() {
    world()
        .set("expo.receipt_delay", "1s")
        .run(async |w| {
            let ghosts: Vec<_> = (0..30).map(|number| Phone::expo(&format!("ghost-{number}"))).collect();
            let phones = [Phone::many(2_970), ghosts.clone()].concat();
            w.register_all(&phones).await;
            // They come with the second request for them, and not during the outage.
            w.faults(|faults| {
                faults.expo.receipt_delay = Duration::from_secs(2);
                faults.expo.receipts_down =
                    Some(Outage { manner: FailureMode::Reset, requests: Some(3), ..Outage::default() });
            });
            w.post("p1").by("ann").await;
            assert_eq!(w.outcome_of("post:p1").await, sent(3_000));
            w.stop().await;
            w.start_again_with("push.enabled", "true").await;
            for ghost in &ghosts {
                w.wait_until_removed(ghost).await;
            }
            w.wait_until_settled().await;
            let receipts = |result: &str| w.metrics().receipts_total.with_label_values(&[result]).get();
            assert_eq!(receipts("missing"), 0);
            assert!(w.sandbox.statistics().receipts.given >= 3_000, "{:?}", w.sandbox.statistics().receipts);
        })
        .await;
}
