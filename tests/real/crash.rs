//! pushcast is killed three times in the middle of a broadcast.

use std::{collections::BTreeSet, time::Duration};

use rand::RngExt;
use sandbox::Provider;
use serde_json::{Value, json};

use crate::{
    first_start::{self, Phone},
    world::{Running, World, seeded_random, until},
};

/// How many tokens the broadcast goes to, those of `first_start` included.
const TOKENS: u64 = 60_000;
const KILLS: u64 = 3;
/// A killed member's partitions are not read until its session has ended.
const RESUMES_WITHIN: Duration = Duration::from_secs(40);

/// Settings under which a broadcast lasts some seconds, and a crash can repeat little of it.
pub const SETTINGS: [(&str, &str); 4] = [
    ("EXPO__RATE_PER_SECOND", "10000"),
    ("PUSH__OPEN_PAGES", "4"),
    ("PUSH__PAGE_SIZE", "250"),
    ("KAFKA__SESSION_TIMEOUT", "6s"),
];
/// After a crash at most these messages are sent again, to each provider: open pages x page size.
const AGAIN_MAX: u64 = 4 * 250;

/// Registers as many phones more as the broadcast needs.
pub fn register_more(world: &World, phones: &[Phone]) {
    let more =
        TOKENS - first_start::alive(phones, Provider::Expo) - first_start::alive(phones, Provider::Fcm);
    let registration =
        |n| json!({"token": format!("ExponentPushToken[more-{n}]"), "userId": format!("m{n}")}).to_string();
    world.produce("device-tokens", &(0..more).map(registration).collect::<Vec<_>>());
    world.broker.wait_until_settled(&world.group("tokens"), "device-tokens", Duration::from_secs(60));
}

/// Kills `running` and its successors while they broadcast. Returns the last one.
pub fn kills_repeat_little(world: &World, phones: &[Phone], mut running: Running) -> Running {
    let by_fcm = first_start::alive(phones, Provider::Fcm);
    let by_expo = TOKENS - by_fcm;
    world.sandbox.reset();
    world.produce("posts-created", &[json!({"postId": "to-all", "title": "On walking"}).to_string()]);

    for at in kill_at(by_expo) {
        let taken = || Some(world.sandbox.statistics().expo.taken).filter(|taken| *taken >= at);
        let taken = until("the broadcast goes on", RESUMES_WITHIN, taken);
        running.kill();
        println!("killed when Expo had taken {taken} of {by_expo}");
        assert_eq!(outcomes(world), Vec::<Value>::new(), "killed too late");
        running = world.start();
    }
    let outcomes = until("the broadcast has its outcome", RESUMES_WITHIN, || {
        Some(outcomes(world)).filter(|outcomes| !outcomes.is_empty())
    });

    let seen = world.sandbox.statistics();
    let duplicates_max = KILLS * AGAIN_MAX;
    println!(
        "duplicates: Expo {}, FCM {}; at most {duplicates_max} each, {KILLS} kills x 4 open pages x 250",
        seen.expo.duplicates, seen.fcm.duplicates
    );
    for (seen, tokens) in [(&seen.expo, by_expo), (&seen.fcm, by_fcm)] {
        assert_eq!(seen.distinct_tokens, tokens, "every token is sent to");
        assert_eq!(seen.taken, tokens + seen.duplicates);
        assert!(seen.duplicates <= duplicates_max, "{} duplicates", seen.duplicates);
    }
    for outcome in &outcomes {
        assert_eq!(
            (&outcome["sent"], &outcome["dead"], &outcome["failed"]),
            (&json!(TOKENS), &json!(0), &json!(0))
        );
    }
    running
}

fn outcomes(world: &World) -> Vec<Value> {
    world
        .broker
        .values("push-outcomes")
        .into_iter()
        .filter(|outcome| outcome["notificationId"] == "post:to-all")
        .collect()
}

/// After how many messages it is killed: anywhere in the first nine tenths, never twice in short succession.
fn kill_at(messages: u64) -> BTreeSet<u64> {
    let mut random = seeded_random("killing pushcast");
    let mut counts = BTreeSet::new();
    while counts.len() as u64 != KILLS {
        let at = random.random_range(1..messages * 9 / 10);
        if counts.iter().all(|other: &u64| other.abs_diff(at) > messages / 20) {
            counts.insert(at);
        }
    }
    println!("kills after {counts:?} messages");
    counts
}
