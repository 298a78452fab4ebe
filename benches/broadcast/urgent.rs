//! Reminders while broadcasts use up the rates of both providers.

use std::time::Duration;

use pushcast::events::topics;
use serde_json::json;
use tokio::time::{Instant, sleep, sleep_until};

use crate::{sender::Sender, world::World};

/// Of each provider. FCM's broadcast lasts 30 s at its default rate, Expo's longer.
const TOKENS: u64 = 300_000;
const DOSES: u64 = 400;
const EVERY: Duration = Duration::from_millis(50);

/// A user has a token of each provider, so that a dose is a message to both.
pub async fn measure(world: &World) {
    let store = format!("embedded:{}", world.path("urgent.db").display());
    // A real broker answers a fetch when there are records; the embedded one only after the whole wait.
    let short_fetch_wait = ("kafka.properties", r#"{"fetch.wait.max.ms":"5","session.timeout.ms":"6000"}"#);
    let settings =
        [("store.url", &*store), ("fcm.ramp_up", "0s"), ("medication.tick_every", "0s"), short_fetch_wait];
    let sender = Sender::run(world, &settings).await;
    sender.register(world, &["expo", "fcm"], TOKENS).await;
    world.reset().await;

    world
        .publish(
            topics::POSTS_CREATED,
            None,
            &json!({ "postId": "large", "authorId": "nobody", "title": "A benchmark" }),
        )
        .await;
    world.until("the broadcast runs", async || world.seen("fcm").await["taken"].as_u64() > Some(5_000)).await;
    let started = Instant::now();
    let mut published = Vec::new();
    for n in 0..DOSES {
        sleep_until(started + EVERY * u32::try_from(n).unwrap()).await;
        let user = format!("user{}", n * 7 + 1);
        let now = jiff::Timestamp::now();
        let at = jiff::Timestamp::from_second(now.as_second()).unwrap();
        let dose = json!({
            "regimenId": format!("{user}s-regimen"),
            "profileId": "pr1",
            "userId": user,
            "scheduleTime": at.to_string(),
            "medicineName": "Metformin",
            "dosage": "500 mg",
        });
        published.push((format!("dose:pr1:{user}s-regimen:{at}"), now));
        world.publish(topics::MEDICATION_TICKS, Some(&user), &json!({ "dose": dose })).await;
    }
    let peaks =
        ["expo", "fcm"].map(async |provider| (provider, world.seen(provider).await["peakPerSecond"].clone()));
    let peaks = futures::future::join_all(peaks).await;
    sleep(Duration::from_secs(2)).await;

    println!(
        "\n{:<30} {:>12} {:>9} {:>9} {:>9} {:>16}",
        "doses in broadcasts", "doses", "p50 ms", "p99 ms", "max ms", "peak per second"
    );
    let outcomes = world.outcomes_so_far().await;
    for (provider, peak) in peaks {
        let mut delays: Vec<f64> = published
            .iter()
            .map(|(id, published)| {
                let outcome = outcomes
                    .iter()
                    .find(|outcome| outcome["notificationId"] == **id && outcome["provider"] == provider);
                let outcome = outcome.unwrap_or_else(|| panic!("{provider}: no outcome of {id}"));
                assert_eq!(outcome["outcome"], "sent");
                let at: jiff::Timestamp = outcome["pushSentAt"].as_str().unwrap().parse().unwrap();
                at.duration_since(*published).as_secs_f64() * 1e3
            })
            .collect();
        delays.sort_by(f64::total_cmp);
        let percentile = |n: usize| delays[(delays.len() * n / 100).min(delays.len() - 1)];
        println!(
            "{provider:<30} {:>12} {:>9.1} {:>9.1} {:>9.1} {:>16}",
            delays.len(),
            percentile(50),
            percentile(99),
            percentile(100),
            peak
        );
    }
    sender.end().await;
}
