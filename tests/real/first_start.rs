//! The first start of a deployment, and what follows: registrations, posts, a reminder, and the records that
//! they leave in the topics.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use consumer::Subscription;
use jiff::{Timestamp, ToSpan, Unit, tz::TimeZone};
use pushcast::{events::topics, topology};
use sandbox::{Answer, Provider};
use serde_json::{Value, json};

use crate::{
    broker::{Broker, StoredRecord},
    world::{World, until},
};

const PHONES: usize = 3_500;
/// How many of them are registered through Java's console producer.
const BY_CONSOLE: usize = 100;
const ZONE: &str = "Asia/Bangkok";
const WAIT_MAX: Duration = Duration::from_secs(30);

/// A phone, each with a token of its own.
pub struct Phone {
    token: String,
    user: String,
    provider: Provider,
}

/// Before the first start, on a cluster that another deployment has used.
pub fn before(world: &World) -> Vec<Phone> {
    let phones = phones();
    run_fails_without_topics(world);
    records_of_another_deployment(world, &phones);
    init_sets_offsets_once(world);
    phones
}

/// After the first start: all phones register and are sent two posts, and one user is sent a reminder;
/// `meanwhile` runs before the reminder's minute.
pub fn after(world: &World, phones: &[Phone], meanwhile: impl FnOnce()) {
    world.broker.wait_until_settled(&world.group("tokens"), "device-tokens", WAIT_MAX);
    let minute = next_minute();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| tick_from_outside(world, &stop));
        let _stop = SetWhenDropped(&stop);
        world.produce("medication-regimens", &[regimen(minute)]);

        let garbage = register_all(world, phones);
        garbage_is_dead_lettered(world, garbage);
        dead_tokens_are_sent_one_post_only(world, phones);
        meanwhile();
        a_reminder_is_sent_once_at_its_minute(world, phones, minute);
    });
    nothing_else_is_sent(world);
}

/// How many phones are alive, by provider.
pub fn alive(phones: &[Phone], provider: Provider) -> u64 {
    let alive = |phone: &&Phone| phone.provider == provider && phone.token.contains("alive");
    phones.iter().filter(alive).count() as u64
}

// === The steps ===

fn run_fails_without_topics(world: &World) {
    let ended = world.pushcast(&["run"]);
    let log = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(1), "{log}");
    let line = log.lines().last().unwrap();
    assert!(line.starts_with("error: Kafka has no ") && line.ends_with(": run `pushcast init`"), "{line}");
    for topic in topics::ALL {
        assert!(line.contains(topic), "{topic} is not named: {line}");
    }
}

/// Another deployment has created the topics; they have a post of yesterday and some registrations.
fn records_of_another_deployment(world: &World, phones: &[Phone]) {
    let ended =
        world.pushcast_with("KAFKA__GROUP_PREFIX", &format!("{}-before", world.group_prefix), &["init"]);
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    let all = topology::topics(16)
        .iter()
        .map(|topic| (topic.name.to_owned(), usize::try_from(topic.partitions).unwrap()))
        .collect();
    assert_eq!(world.broker.topics(), all);
    world.produce("posts-created", &[post("yesterday")]);
    world.produce("device-tokens", &phones[..2].iter().map(registration).collect::<Vec<_>>());
}

fn init_sets_offsets_once(world: &World) {
    let subscriptions = topology::subscriptions();
    let committed = |subscription: &Subscription| {
        world.broker.committed(&world.group(subscription.stage), subscription.topic)
    };
    let groups = || subscriptions.iter().map(committed).collect::<Vec<_>>();
    let init_prints = |topic: &str, group: &str| {
        let ended = world.pushcast(&["init"]);
        let printed = String::from_utf8_lossy(&ended.stdout).into_owned();
        assert!(ended.status.success(), "{printed}{}", String::from_utf8_lossy(&ended.stderr));
        assert_eq!(
            printed.lines().filter(|line| line.starts_with("topic") && line.ends_with(topic)).count(),
            topics::ALL.len(),
            "{printed}"
        );
        assert_eq!(
            printed.lines().filter(|line| line.starts_with("group") && line.contains(group)).count(),
            subscriptions.len(),
            "{printed}"
        );
    };
    init_prints("is there, left as it is", "begins at the");
    let first = groups();
    assert!(first.iter().flatten().all(Option::is_some), "{first:?}");
    for (subscription, committed) in subscriptions.iter().zip(&first) {
        let sum: i64 = committed.iter().flatten().sum();
        assert_eq!(
            sum,
            i64::from(subscription.topic == "posts-created"),
            "{}: only yesterday's post is skipped",
            subscription.topic
        );
    }
    init_prints("is there, left as it is", "has its offsets");
    assert_eq!(groups(), first);
}

/// Registers all phones by records without keys, most of them through `pushcast produce`, some through Java's
/// console producer, with garbage in between. Returns the garbage.
fn register_all(world: &World, phones: &[Phone]) -> Vec<String> {
    let garbage = [
        r#"this is no JSON"#,
        r#"{"event":"registered","userId":"u1"}"#,
        r#"{"token":"too short","userId":"u1"}"#,
        r#"["a list"]"#,
    ];
    let mut lines: Vec<_> = phones.iter().map(registration).collect();
    for (at, garbage) in [10, 1_000, 2_000, PHONES - 50].into_iter().zip(garbage) {
        lines.insert(at, garbage.to_owned());
    }
    let (produced, by_console) = lines.split_at(PHONES - BY_CONSOLE);
    world.produce("device-tokens", produced);
    world.broker.write_with_console_producer("device-tokens", &[], by_console);
    world.broker.wait_until_settled(&world.group("tokens"), "device-tokens", WAIT_MAX);
    // The two of the other deployment are there once more.
    assert_eq!(world.broker.count("device-tokens"), i64::try_from(2 + PHONES + garbage.len()).unwrap());
    garbage.map(str::to_owned).to_vec()
}

/// Each garbage record is a dead letter, byte for byte, with its origin and the cause.
fn garbage_is_dead_lettered(world: &World, mut garbage: Vec<String>) {
    let letters = world.broker.records("dead-letters");
    let origins = world.broker.records("device-tokens");
    for StoredRecord { value, headers, .. } in &letters {
        assert_eq!(headers["pushcast.topic"], "device-tokens");
        assert_eq!(headers["pushcast.group"], world.group("tokens"));
        let origin =
            (headers["pushcast.partition"].parse().unwrap(), headers["pushcast.offset"].parse().unwrap());
        let origin = origins
            .iter()
            .find(|record| (record.partition, record.offset) == origin)
            .expect("the record it names");
        assert_eq!(*value, origin.value);
        let cause = headers["pushcast.cause"].as_str();
        let error = headers["pushcast.error"].as_str();
        let text = String::from_utf8_lossy(value);
        match text.as_ref() {
            "this is no JSON" | r#"["a list"]"# => assert_eq!(cause, "unreadable", "{error}"),
            r#"{"token":"too short","userId":"u1"}"# => {
                assert!(error.contains("invalid token format"), "{cause}: {error}")
            }
            _ => assert!(error.contains("token"), "{cause}: {error}"),
        }
    }
    let mut values: Vec<_> =
        letters.iter().map(|letter| String::from_utf8_lossy(&letter.value).into_owned()).collect();
    values.sort();
    garbage.sort();
    assert_eq!(values, garbage);
}

fn dead_tokens_are_sent_one_post_only(world: &World, phones: &[Phone]) {
    let dead = tokens(phones, |phone| phone.token.contains("dead"));
    let ghosts = tokens(phones, |phone| phone.token.contains("ghost"));
    assert!(dead.len() > 50 && ghosts.len() > 20, "{} {}", dead.len(), ghosts.len());

    // The author has a phone too, which is not sent to.
    world.produce("posts-created", &[post("first")]);
    let sent = PHONES - 1 - dead.len();
    assert_eq!(
        outcome(&world.broker, "post:first"),
        json!({"sent": sent, "dead": dead.len(), "refused": 0, "failed": 0, "expired": 0})
    );
    let sent_to = |title: &str| -> Vec<String> {
        let messages =
            world.sandbox.messages().into_iter().filter(|message| message.body.as_deref() == Some(title));
        messages.map(|message| message.token).collect()
    };
    let first = sent_to("first");
    assert_eq!(first.len(), sent);
    assert_eq!(
        BTreeSet::from_iter(first),
        tokens(phones, |phone| phone.user != "author" && !phone.token.contains("dead"))
    );

    // Tickets and responses report dead tokens at once, receipts the `ghost` ones a second later.
    let reported = until("all dead tokens are reported", WAIT_MAX, || {
        let reported = world.broker.values("invalid-tokens");
        (reported.len() >= dead.len() + ghosts.len()).then_some(reported)
    });
    let of = |source: &str| -> BTreeSet<String> {
        reported
            .iter()
            .filter(|report| report["source"] == source)
            .map(|report| report["token"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(&of("ticket") | &of("response"), dead);
    assert_eq!(of("receipt"), ghosts);
    assert!(reported.iter().all(|report| report["registration"].is_i64()), "each names its registration");
    world.broker.wait_until_settled(&world.group("cleanup"), "invalid-tokens", WAIT_MAX);

    world.produce("posts-created", &[post("second")]);
    let sent = sent - ghosts.len();
    assert_eq!(
        outcome(&world.broker, "post:second"),
        json!({"sent": sent, "dead": 0, "refused": 0, "failed": 0, "expired": 0})
    );
    assert_eq!(sent_to("second").len(), sent);
    let seen = world.sandbox.statistics();
    assert_eq!(
        seen.expo.answered(Answer::Dead) + seen.fcm.answered(Answer::Dead),
        dead.len() as u64,
        "each was sent to once"
    );
}

fn a_reminder_is_sent_once_at_its_minute(world: &World, phones: &[Phone], minute: Timestamp) {
    let notification = format!("dose:pr1:r1:{minute}");
    let outcomes = until("the reminder has its outcomes", Duration::from_secs(90), || {
        let mut outcomes = outcomes(&world.broker, &notification);
        outcomes.sort_by_key(|outcome| outcome["provider"].as_str().map(str::to_owned));
        (outcomes.len() >= 2).then_some(outcomes)
    });
    let counts: Vec<_> = outcomes
        .iter()
        .map(|of| (of["provider"].as_str(), of["outcome"].as_str(), of["sent"].as_i64()))
        .collect();
    assert_eq!(counts, [(Some("expo"), Some("sent"), Some(1)), (Some("fcm"), Some("sent"), Some(1))]);

    // More ticks from both sources, all of them settled, with everything that they may have caused.
    let before = world.broker.count("medication-ticks");
    until("more ticks", WAIT_MAX, || {
        (world.broker.count("medication-ticks") > before + 4 * 65).then_some(())
    });
    world.broker.wait_until_settled(&world.group("medication"), "medication-ticks", WAIT_MAX);
    for provider in ["expo", "fcm"] {
        world.broker.wait_until_settled(
            &world.group(&format!("delivery.{provider}.urgent")),
            &format!("push.{provider}.urgent"),
            WAIT_MAX,
        );
    }
    let reminders: Vec<_> = world
        .sandbox
        .messages()
        .into_iter()
        .filter(|message| message.title.as_deref() == Some("Time for Metformin"))
        .collect();
    assert!(
        reminders.iter().all(|message| message.received_at >= minute),
        "not before {minute}: {reminders:?}"
    );
    let sent_to: Vec<_> = reminders.into_iter().map(|message| message.token).collect();
    assert_eq!(sent_to.len(), 2, "{sent_to:?}");
    assert_eq!(BTreeSet::from_iter(sent_to), tokens(phones, |phone| phone.user == "ada"));
}

fn nothing_else_is_sent(world: &World) {
    let notifications: BTreeSet<_> = world
        .broker
        .values("push-outcomes")
        .iter()
        .map(|outcome| outcome["notificationId"].as_str().unwrap()[..5].to_owned())
        .collect();
    assert_eq!(notifications, ["dose:", "post:"].map(str::to_owned).into());
    assert_eq!(
        outcomes(&world.broker, "post:yesterday"),
        Vec::<Value>::new(),
        "a first start sends nothing of yesterday"
    );
    let seen = world.sandbox.statistics();
    assert_eq!((seen.expo.duplicates, seen.fcm.duplicates), (0, 0));
}

// === What they need ===

/// Two of ada's, one of the author's, and one of each of many others; of both providers; some are dead, some
/// dead only by their receipt.
fn phones() -> Vec<Phone> {
    let phone = |n: usize| {
        let provider = if n.is_multiple_of(2) { Provider::Expo } else { Provider::Fcm };
        let user = match n {
            0 | 1 => "ada".to_owned(),
            2 => "author".to_owned(),
            _ => format!("u{n}"),
        };
        let state = match (n % 50, provider) {
            (10 | 11, _) => "dead",
            (20, Provider::Expo) => "ghost",
            _ => "alive",
        };
        let token = match provider {
            Provider::Expo => format!("ExponentPushToken[{state}-{n}]"),
            Provider::Fcm => format!("{state}-{n}:{}", "x".repeat(80)),
        };
        Phone { token, user, provider }
    };
    (0..PHONES).map(phone).collect()
}

fn tokens(phones: &[Phone], which: impl Fn(&Phone) -> bool) -> BTreeSet<String> {
    phones.iter().filter(|phone| which(phone)).map(|phone| phone.token.clone()).collect()
}

fn registration(phone: &Phone) -> String {
    let Phone { token, user, provider } = phone;
    let platform = if *provider == Provider::Expo { "ios" } else { "android" };
    json!({"event": "registered", "token": token, "userId": user, "platform": platform}).to_string()
}

fn post(id: &str) -> String {
    json!({"postId": id, "authorId": "author", "authorName": "Ann", "title": id}).to_string()
}

fn regimen(minute: Timestamp) -> String {
    let local = minute.to_zoned(TimeZone::get(ZONE).unwrap());
    json!({
        "regimenId": "r1",
        "profileId": "pr1",
        "userId": "ada",
        "medicineName": "Metformin",
        "dosage": "500 mg",
        "timezone": ZONE,
        "times": [local.strftime("%H:%M").to_string()],
        "startDate": local.date(),
        "enabled": true,
    })
    .to_string()
}

/// The next full minute that is still in the future when the regimen is written.
fn next_minute() -> Timestamp {
    let soon = Timestamp::now() + 2.seconds();
    soon.round(jiff::TimestampRound::new().smallest(Unit::Minute).mode(jiff::RoundMode::Ceil)).unwrap()
}

/// Ticks as an upstream cron job does, beside those of the instance itself.
fn tick_from_outside(world: &World, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        assert!(world.pushcast(&["tick"]).status.success());
        thread::sleep(Duration::from_secs(2));
    }
}

struct SetWhenDropped<'a>(&'a AtomicBool);

impl Drop for SetWhenDropped<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The counts of a broadcast, once its outcome is published.
fn outcome(broker: &Broker, notification: &str) -> Value {
    let outcome =
        until(&format!("the outcome of {notification}"), WAIT_MAX, || outcomes(broker, notification).pop());
    let counts =
        ["sent", "dead", "refused", "failed", "expired"].map(|name| (name.to_owned(), outcome[name].clone()));
    serde_json::to_value(BTreeMap::from(counts)).unwrap()
}

fn outcomes(broker: &Broker, notification: &str) -> Vec<Value> {
    broker
        .values("push-outcomes")
        .into_iter()
        .filter(|outcome| outcome["notificationId"] == notification)
        .collect()
}
