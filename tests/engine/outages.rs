//! A provider is unreachable, or answers nonsense, for a while: no message is lost, few are sent twice, and
//! sending resumes soon after.

use std::time::Duration;

use pushcast::{
    dispatch::{Class, Provider},
    domain::ProviderId,
};
use sandbox::{FailureMode, Outage, ProviderFaults, ProviderStatistics};
use tokio::time::Instant;

use crate::sender::{LATENCY, Sender, all_sent, expo_sender, fcm_sender, phones, recipients, sandbox};

const OUTAGE: Duration = Duration::from_secs(600);

pub const FAILURE_MODES: [FailureMode; 6] = [
    FailureMode::Error,
    FailureMode::Html,
    FailureMode::Hang,
    FailureMode::Reset,
    FailureMode::Drip,
    FailureMode::Short,
];

/// A provider that is down for ten minutes, in this mode.
fn down(mode: FailureMode, take_anyway: bool) -> ProviderFaults {
    let outage =
        Outage { manner: mode, status: 503, lasting: Some(OUTAGE), take_anyway, ..Outage::default() };
    ProviderFaults { latency: LATENCY, down: Some(outage), ..ProviderFaults::default() }
}

/// A broadcast reaches every phone soon after the outage, and costs the provider few requests during it.
async fn survives<P: Provider>(sender: &Sender<P>, seen: impl Fn() -> ProviderStatistics, what: &str) {
    const PHONES: usize = 5_000;
    let started = Instant::now();
    let requests_in_outage = async {
        tokio::time::sleep(OUTAGE).await;
        seen().requests
    };
    let (outcomes, requests_in_outage) =
        tokio::join!(sender.broadcast(phones(sender.provider.id(), PHONES)), requests_in_outage);
    let took = started.elapsed();
    let seen = seen();
    assert_eq!((outcomes.len(), all_sent(&outcomes)), (PHONES, true), "{what}");
    assert_eq!(seen.distinct_tokens, PHONES as u64, "{what}: {seen:?}");
    // The longest pause of a probe, half as long again by its jitter, and a request that still hangs.
    assert!((OUTAGE..OUTAGE + Duration::from_secs(45 + 16)).contains(&took), "{what}: {took:?}");
    assert!(requests_in_outage < 500, "{what}: {requests_in_outage} requests during the outage");
}

#[tokio::test(start_paused = true)]
async fn expo_down_for_ten_minutes_in_any_failure_mode_loses_no_message() {
    for mode in FAILURE_MODES {
        let sandbox = sandbox(|faults| faults.expo = down(mode, false)).await;
        let sender = expo_sender(&sandbox, 0);
        survives(&sender, || sandbox.statistics().expo, &format!("{mode:?}")).await;
        let seen = sandbox.statistics().expo;
        assert_eq!(seen.duplicates, 0, "{mode:?}: {seen:?}");
        assert!(seen.outages[&mode] >= 10, "{mode:?}: {seen:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn fcm_down_for_ten_minutes_in_any_failure_mode_loses_no_message() {
    for mode in FAILURE_MODES {
        let sandbox = sandbox(|faults| faults.fcm = down(mode, false)).await;
        let sender = fcm_sender(&sandbox, 0).await;
        survives(&sender, || sandbox.statistics().fcm, &format!("{mode:?}")).await;
        assert_eq!(sandbox.statistics().fcm.duplicates, 0, "{mode:?}");
    }
}

/// The worst kind of outage: the provider takes messages and answers with an error. Duplicates are what was
/// on the wire before any failure could be known, and a probe now and then.
#[tokio::test(start_paused = true)]
async fn an_outage_that_takes_what_it_refuses_duplicates_few_messages() {
    for mode in FAILURE_MODES {
        let sandbox = sandbox(|faults| faults.expo = down(mode, true)).await;
        let sender = expo_sender(&sandbox, 0);
        survives(&sender, || sandbox.statistics().expo, &format!("{mode:?}")).await;
        let seen = sandbox.statistics().expo;
        // Ten failures open the breaker, eight requests are on the wire by then; a probe is one message.
        let bound = (10 + 8) * 100 + 100;
        assert!((1..=bound).contains(&seen.duplicates), "{mode:?}: {} duplicates", seen.duplicates);
        assert!(seen.duplicates <= sender.ambiguous(), "{mode:?}: each of them was counted as ambiguous");
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_is_reset_fails_only_what_it_carried() {
    let sandbox = sandbox(|faults| faults.fcm.latency = Duration::from_secs(1)).await;
    let sender = fcm_sender(&sandbox, 0).await;
    // The connections are open, and full.
    sender.broadcast(phones(ProviderId::Fcm, 1_000)).await;
    let reset = async {
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        sandbox.faults().change(|faults| {
            faults.fcm.down =
                Some(Outage { manner: FailureMode::Reset, requests: Some(1), ..Outage::default() });
        });
    };
    let others = recipients(ProviderId::Fcm, (0..4_000).map(|number| format!("other-{number}")));
    let (outcomes, ()) = tokio::join!(sender.broadcast(others), reset);
    assert!(all_sent(&outcomes));
    let seen = sandbox.statistics().fcm;
    assert_eq!((seen.distinct_tokens, seen.outages.get(&FailureMode::Reset)), (5_000, Some(&1)));
    // A connection carries a hundred.
    assert!((1..=100).contains(&sender.ambiguous()), "{} were on the connection", sender.ambiguous());
    assert!(seen.duplicates <= sender.ambiguous(), "{} duplicates", seen.duplicates);
}

/// With a broadcast, of which the first failures open the breaker, and without one.
#[tokio::test(start_paused = true)]
async fn reminders_are_sent_within_two_seconds_of_the_end_of_a_short_outage() {
    const SHORT: Duration = Duration::from_secs(4);
    for bulk in [0, 5_000].repeat(15) {
        let sandbox = sandbox(|_| {}).await;
        let sender = expo_sender(&sandbox, 600);
        let reminders = async {
            tokio::time::sleep(Duration::from_secs(2)).await;
            let outage_ends = Instant::now() + SHORT;
            sandbox.faults().change(|faults| {
                faults.expo.down = Some(Outage {
                    manner: FailureMode::Error,
                    status: 503,
                    lasting: Some(SHORT),
                    ..Outage::default()
                });
            });
            // One each tenth of a second, and each waits for its own answer.
            let reminder = async |number: u32| {
                tokio::time::sleep(Duration::from_millis(100) * number).await;
                let patient = recipients(ProviderId::Expo, [format!("patient-{number}")]);
                sender.send(Class::Urgent, patient).await;
                Instant::now().saturating_duration_since(outage_ends)
            };
            futures::future::join_all((0..40).map(reminder)).await
        };
        let (outcomes, delays) = tokio::join!(sender.broadcast(phones(ProviderId::Expo, bulk)), reminders);
        assert_eq!(
            (outcomes.len(), all_sent(&outcomes), sandbox.statistics().expo.duplicates),
            (bulk, true, 0)
        );
        let first = delays.iter().min().unwrap();
        let last = delays.iter().max().unwrap();
        assert!(
            *last < Duration::from_secs(2),
            "beside a broadcast to {bulk}: the first after {first:?}, the last after {last:?}"
        );
    }
}
