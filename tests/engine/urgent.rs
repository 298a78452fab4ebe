//! Reminders beside a broadcast.

use std::time::Duration;

use pushcast::{dispatch::Class, domain::ProviderId};
use tokio::time::Instant;

use crate::sender::{LATENCY, all_sent, expo_sender, phones, recipients, sandbox};

#[tokio::test(start_paused = true)]
async fn reminders_overtake_a_broadcast_to_two_hundred_thousand() {
    const PHONES: usize = 200_000;
    let sandbox = sandbox(|_| {}).await;
    let sender = expo_sender(&sandbox, 6_000);
    let reminders = async {
        let mut waits = Vec::new();
        for number in 0..30 {
            tokio::time::sleep(Duration::from_millis(971)).await;
            let started = Instant::now();
            let patient = recipients(ProviderId::Expo, [format!("patient-{number}")]);
            let returned = sender.send(Class::Urgent, patient).await;
            assert!(all_sent(&returned.outcomes.into_iter().flatten().collect::<Vec<_>>()));
            waits.push(started.elapsed().saturating_sub(LATENCY));
        }
        waits
    };
    let (outcomes, waits) = tokio::join!(sender.broadcast(phones(ProviderId::Expo, PHONES)), reminders);
    assert_eq!((outcomes.len(), all_sent(&outcomes)), (PHONES, true));
    let longest = waits.iter().max().unwrap();
    assert!(*longest <= Duration::from_millis(50), "a reminder waited {longest:?}");
    let seen = sandbox.statistics().expo;
    assert_eq!((seen.distinct_tokens, seen.duplicates), (PHONES as u64 + 30, 0));
    assert!(seen.peak_per_second <= 6_000, "{} in one second", seen.peak_per_second);
}
