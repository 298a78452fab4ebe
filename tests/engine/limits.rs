//! The providers' limits hold in every second, and are used up.

use std::time::Duration;

use pushcast::{dispatch::Share, domain::ProviderId, expo};
use sandbox::Answer;
use tokio::time::Instant;

use crate::sender::{
    all_sent, defaults, expo_sender, expo_sender_with, fcm_sender, phones, recipients, sandbox,
};

#[tokio::test(start_paused = true)]
async fn three_instances_whose_shares_change_keep_expos_limit_in_every_second() {
    const LIMIT: u32 = 600;
    let sandbox = sandbox(|_| {}).await;
    let instances =
        [expo_sender(&sandbox, LIMIT), expo_sender(&sandbox, LIMIT), expo_sender(&sandbox, LIMIT)];
    let assign = |instance: usize, bulk| {
        let share = Share { bulk, bulk_of: 16, urgent: 5, urgent_of: 16 };
        instances[instance].share.send_replace(share);
    };
    let length = Duration::from_secs(90);
    // More than any of them can send in that time.
    let work = instances.iter().enumerate().map(|(instance, sender)| {
        let names = (0..90 * 600).map(move |number| format!("{instance}-{number}"));
        sender.broadcast(recipients(ProviderId::Expo, names))
    });
    let rebalances = async {
        // (at second, instance, partitions): revoked first, and assigned within a second.
        let mut now = 0;
        for (at, instance, bulk) in [
            (0, 0, 16),
            (0, 1, 0),
            (0, 2, 0),
            (15, 0, 8),
            (16, 1, 8),
            (30, 0, 6),
            (30, 1, 5),
            (31, 2, 5),
            (50, 1, 0),
            (51, 0, 11),
            (70, 0, 0),
            (71, 2, 16),
        ] {
            tokio::time::sleep(Duration::from_secs(at - now)).await;
            now = at;
            assign(instance, bulk);
        }
        tokio::time::sleep(length - Duration::from_secs(now)).await;
    };
    tokio::select! { _ = futures::future::join_all(work) => {}, () = rebalances => {} }
    let seen = sandbox.statistics().expo;
    assert!(seen.peak_per_second <= u64::from(LIMIT), "{} in one second", seen.peak_per_second);
    // A share that moves is unused for up to two seconds, and the first second is empty.
    let lost = 1.0 + 2.0 * (8.0 + 5.0 + 5.0 + 16.0) / 16.0;
    let allowed = f64::from(LIMIT) * (length.as_secs_f64() - lost);
    assert!(seen.taken as f64 >= 0.95 * allowed, "{} of {allowed}", seen.taken);
}

/// A request holds its slot until it is answered: what it carries decides whether the slots suffice for the
/// rate.
#[tokio::test(start_paused = true)]
async fn an_expo_that_takes_long_to_answer_is_sent_all_that_it_allows() {
    let sandbox = sandbox(|faults| faults.expo.latency = Duration::from_millis(800)).await;
    let sender = expo_sender_with(expo::Settings { url: sandbox.expo_url(), ..defaults().expo });
    let started = Instant::now();
    assert!(all_sent(&sender.broadcast(phones(ProviderId::Expo, 30_000)).await));
    let seen = sandbox.statistics().expo;
    assert!(seen.peak_per_second <= 600, "{} in one second", seen.peak_per_second);
    // Without the first second, which is empty, and the time that the last request takes.
    let sending = started.elapsed() - Duration::from_millis(1_800);
    assert!(seen.taken as f64 >= 0.95 * 600.0 * sending.as_secs_f64(), "{} in {sending:?}", seen.taken);
}

#[tokio::test(start_paused = true)]
async fn fcms_limit_holds_in_every_second() {
    let sandbox = sandbox(|_| {}).await;
    let sender = fcm_sender(&sandbox, 400).await;
    let started = Instant::now();
    assert!(all_sent(&sender.broadcast(phones(ProviderId::Fcm, 4_000)).await));
    let seen = sandbox.statistics().fcm;
    assert!(seen.peak_per_second <= 400, "{} in one second", seen.peak_per_second);
    assert!(started.elapsed() < Duration::from_millis(12_100), "{:?}", started.elapsed());
}

#[tokio::test(start_paused = true)]
async fn providers_that_throttle_below_our_limit_are_sent_everything_once() {
    // Half of what we take for our limit.
    let sandbox = sandbox(|faults| {
        faults.expo.rate_limit = Some(300);
        faults.fcm.rate_limit = Some(200);
    })
    .await;
    let expo = expo_sender(&sandbox, 600);
    let fcm = fcm_sender(&sandbox, 400).await;
    let outcomes = tokio::join!(
        expo.broadcast(phones(ProviderId::Expo, 10_000)),
        fcm.broadcast(phones(ProviderId::Fcm, 3_000))
    );
    assert!(all_sent(&outcomes.0) && all_sent(&outcomes.1));
    let seen = sandbox.statistics();
    for (seen, phones, provider) in [(seen.expo, 10_000, "Expo"), (seen.fcm, 3_000, "FCM")] {
        assert_eq!((seen.distinct_tokens, seen.duplicates), (phones, 0), "{provider}");
        let throttled = seen.answered(Answer::Throttled);
        assert!(
            (1..phones / 5).contains(&throttled),
            "{provider}: {throttled} of {} were throttled",
            seen.taken
        );
    }
}
