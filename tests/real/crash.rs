//! `kill -9`, three times in the middle of a broadcast.

use std::{collections::BTreeSet, env, time::Duration};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::json;

use crate::world::{World, until};

const TOKENS: u64 = 60_000;
const KILLS: u64 = 3;
const OPEN_PAGES: u64 = 4;
const PAGE_SIZE: u64 = 250;
/// A killed member's partitions stand still until its session is over.
const UNTIL_IT_GOES_ON: Duration = Duration::from_secs(40);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broadcast_survives_three_kills_with_every_token_rung_and_few_doubles() {
    let world = World::empty(&[
        ("EXPO__RATE_PER_SECOND", "10000"),
        ("PUSH__OPEN_PAGES", &OPEN_PAGES.to_string()),
        ("PUSH__PAGE_SIZE", &PAGE_SIZE.to_string()),
        ("KAFKA__SESSION_TIMEOUT", "6s"),
        ("FCM__CREDENTIALS_FILE", ""),
    ])
    .await;
    assert!(world.pushcast(&["init"]).status.success());
    let token = |n| json!({"token": format!("ExponentPushToken[phone-{n}]"), "userId": format!("u{n}")}).to_string();
    world.produce("device-tokens", &(0..TOKENS).map(token).collect::<Vec<_>>());

    let mut running = world.start();
    world.broker.settled(&world.group("tokens"), "device-tokens", Duration::from_secs(60));
    world.produce("posts-created", &[json!({"postId": "p", "title": "On walking"}).to_string()]);

    for at in moments() {
        let taken =
            until("the broadcast goes on", UNTIL_IT_GOES_ON, || Some(world.sandbox.statistics().expo.taken).filter(|taken| *taken >= at));
        running.kill();
        println!("killed after {taken} of {TOKENS}");
        assert_eq!(world.broker.count("push-outcomes"), 0, "killed too late");
        running = world.start();
    }

    let outcomes =
        until("the broadcast has its outcome", UNTIL_IT_GOES_ON, || Some(world.broker.values("push-outcomes")).filter(|it| !it.is_empty()));
    let seen = world.sandbox.statistics().expo;
    let doubles_max = KILLS * OPEN_PAGES * PAGE_SIZE;
    println!("{} doubles; at most {doubles_max} = {KILLS} kills x {OPEN_PAGES} open pages x {PAGE_SIZE} messages", seen.doubles);
    assert_eq!(seen.distinct_tokens, TOKENS, "every token rung");
    assert_eq!(seen.taken, TOKENS + seen.doubles);
    assert!(seen.doubles <= doubles_max, "{} doubles, {doubles_max} are the limit", seen.doubles);
    for outcome in &outcomes {
        assert_eq!((&outcome["notificationId"], &outcome["sent"], &outcome["dead"]), (&json!("post:p"), &json!(TOKENS), &json!(0)));
    }
    assert!(!running.has_ended());
    assert!(running.stop().success());
}

/// After how many messages it is killed: anywhere in the first nine tenths, never twice at once. `REAL_SEED` repeats a
/// run's moments.
fn moments() -> BTreeSet<u64> {
    let seed = env::var("REAL_SEED").map_or_else(|_| rand::random(), |seed| seed.parse().unwrap());
    let mut random = StdRng::seed_from_u64(seed);
    let mut moments = BTreeSet::new();
    while moments.len() < usize::try_from(KILLS).unwrap() {
        let at = random.random_range(1..TOKENS * 9 / 10);
        if moments.iter().all(|other: &u64| other.abs_diff(at) > TOKENS / 20) {
            moments.insert(at);
        }
    }
    println!("REAL_SEED={seed} kills after {moments:?}");
    moments
}
