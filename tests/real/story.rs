//! The first days of a deployment, in a minute: first start, registrations, posts, a reminder, and what is
//! left in the topics.

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
    broker::{Broker, Stored},
    world::{World, until},
};

const PHONES: usize = 3_500;
/// So many of them are registered by way of Java's console producer.
const TYPED: usize = 100;
const ZONE: &str = "Asia/Bangkok";
const SOON: Duration = Duration::from_secs(30);

/// A device of the story, every one with a token of its own.
pub struct Phone {
    token: String,
    user: String,
    provider: Provider,
}

/// The first start, on a cluster that another deployment has used.
pub fn begins(world: &World) -> Vec<Phone> {
    let phones = phones();
    without_topics_it_refuses_to_run(world);
    what_was_there_before(world, &phones);
    init_begins_and_then_changes_nothing(world);
    phones
}

/// Everybody registers, hears of two posts, and one is reminded; `meanwhile` happens before the reminder's
/// minute comes.
pub fn goes_on(world: &World, phones: &[Phone], meanwhile: impl FnOnce()) {
    world.broker.settled(&world.group("tokens"), "device-tokens", SOON);
    let minute = next_minute();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| tick_from_outside(world, &over));
        let _over = SetWhenDropped(&over);
        world.produce("medication-regimens", &[regimen(minute)]);

        let garbage = everybody_registers(world, phones);
        letters_tell_of(world, garbage);
        the_dead_hear_of_one_post_only(world, phones);
        meanwhile();
        a_dose_rings_once_at_its_minute(world, phones, minute);
    });
    nothing_else_was_rung(world);
}

/// How many phones are alive, by provider.
pub fn alive(phones: &[Phone], provider: Provider) -> u64 {
    let alive = |phone: &&Phone| phone.provider == provider && phone.token.contains("alive");
    phones.iter().filter(alive).count() as u64
}

// === What happens ===

fn without_topics_it_refuses_to_run(world: &World) {
    let ended = world.pushcast(&["run"]);
    let said = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(1), "{said}");
    let line = said.lines().last().unwrap();
    assert!(line.starts_with("error: Kafka has no ") && line.ends_with(": run `pushcast init`"), "{line}");
    for topic in topics::ALL {
        assert!(line.contains(topic), "{topic} is not named: {line}");
    }
}

/// Another deployment has made the topics; a post of yesterday and some phones stand in them.
fn what_was_there_before(world: &World, phones: &[Phone]) {
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

fn init_begins_and_then_changes_nothing(world: &World) {
    let subscriptions = topology::subscriptions();
    let committed = |reads: &Subscription| world.broker.committed(&world.group(reads.stage), reads.topic);
    let groups = || subscriptions.iter().map(committed).collect::<Vec<_>>();
    let said = |topic: &str, group: &str| {
        let ended = world.pushcast(&["init"]);
        let said = String::from_utf8_lossy(&ended.stdout).into_owned();
        assert!(ended.status.success(), "{said}{}", String::from_utf8_lossy(&ended.stderr));
        assert_eq!(
            said.lines().filter(|line| line.starts_with("topic") && line.ends_with(topic)).count(),
            topics::ALL.len(),
            "{said}"
        );
        assert_eq!(
            said.lines().filter(|line| line.starts_with("group") && line.contains(group)).count(),
            subscriptions.len(),
            "{said}"
        );
    };
    said("is there, left as it is", "begins at the");
    let first = groups();
    assert!(first.iter().flatten().all(Option::is_some), "{first:?}");
    for (reads, committed) in subscriptions.iter().zip(&first) {
        let sum: i64 = committed.iter().flatten().sum();
        assert_eq!(
            sum,
            i64::from(reads.topic == "posts-created"),
            "{}: only yesterday's post is passed over",
            reads.topic
        );
    }
    said("is there, left as it is", "has its offsets");
    assert_eq!(groups(), first);
}

/// Registers everybody with lines without keys, most of them by `pushcast produce`, some by Java's console
/// producer, and puts garbage in between. Gives the garbage back.
fn everybody_registers(world: &World, phones: &[Phone]) -> Vec<String> {
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
    let (produced, typed) = lines.split_at(PHONES - TYPED);
    world.produce("device-tokens", produced);
    world.broker.type_into_console_producer("device-tokens", &[], typed);
    world.broker.settled(&world.group("tokens"), "device-tokens", SOON);
    // The two of the time before are in there once more.
    assert_eq!(world.broker.count("device-tokens"), i64::try_from(2 + PHONES + garbage.len()).unwrap());
    garbage.map(str::to_owned).to_vec()
}

/// Each piece of garbage is a dead letter, byte by byte, that says where it came from and why.
fn letters_tell_of(world: &World, mut garbage: Vec<String>) {
    let letters = world.broker.records("dead-letters");
    let origins = world.broker.records("device-tokens");
    for Stored { value, headers, .. } in &letters {
        assert_eq!(headers["pushcast.topic"], "device-tokens");
        assert_eq!(headers["pushcast.group"], world.group("tokens"));
        let origin =
            (headers["pushcast.partition"].parse().unwrap(), headers["pushcast.offset"].parse().unwrap());
        let origin = origins
            .iter()
            .find(|record| (record.partition, record.offset) == origin)
            .expect("the record it names");
        assert_eq!(*value, origin.value);
        let why = (headers["pushcast.cause"].as_str(), headers["pushcast.error"].as_str());
        let text = String::from_utf8_lossy(value);
        match text.as_ref() {
            "this is no JSON" | r#"["a list"]"# => assert_eq!(why.0, "unreadable", "{why:?}"),
            r#"{"token":"too short","userId":"u1"}"# => {
                assert!(why.1.contains("invalid token format"), "{why:?}")
            }
            _ => assert!(why.1.contains("token"), "{why:?}"),
        }
    }
    let mut told: Vec<_> =
        letters.iter().map(|letter| String::from_utf8_lossy(&letter.value).into_owned()).collect();
    told.sort();
    garbage.sort();
    assert_eq!(told, garbage);
}

fn the_dead_hear_of_one_post_only(world: &World, phones: &[Phone]) {
    let dead = tokens(phones, |phone| phone.token.contains("dead"));
    let ghosts = tokens(phones, |phone| phone.token.contains("ghost"));
    assert!(dead.len() > 50 && ghosts.len() > 20, "{} {}", dead.len(), ghosts.len());

    // The author is a phone too, and not told.
    world.produce("posts-created", &[post("first")]);
    let sent = PHONES - 1 - dead.len();
    assert_eq!(
        outcome(&world.broker, "post:first"),
        json!({"sent": sent, "dead": dead.len(), "refused": 0, "failed": 0, "expired": 0})
    );
    let rung = |title: &str| -> Vec<String> {
        let messages =
            world.sandbox.messages().into_iter().filter(|message| message.body.as_deref() == Some(title));
        messages.map(|message| message.token).collect()
    };
    let first = rung("first");
    assert_eq!(first.len(), sent);
    assert_eq!(
        BTreeSet::from_iter(first),
        tokens(phones, |phone| phone.user != "author" && !phone.token.contains("dead"))
    );

    // Tickets and responses name the dead at once, receipts the ghosts a second later.
    let gone = until("all dead tokens are reported", SOON, || {
        let reported = world.broker.values("invalid-tokens");
        (reported.len() >= dead.len() + ghosts.len()).then_some(reported)
    });
    let of = |source: &str| -> BTreeSet<String> {
        gone.iter()
            .filter(|it| it["source"] == source)
            .map(|it| it["token"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(&of("ticket") | &of("response"), dead);
    assert_eq!(of("receipt"), ghosts);
    assert!(
        gone.iter().all(|it| it["registration"].is_i64()),
        "each names the registration that it is about"
    );
    world.broker.settled(&world.group("cleanup"), "invalid-tokens", SOON);

    world.produce("posts-created", &[post("second")]);
    let sent = sent - ghosts.len();
    assert_eq!(
        outcome(&world.broker, "post:second"),
        json!({"sent": sent, "dead": 0, "refused": 0, "failed": 0, "expired": 0})
    );
    assert_eq!(rung("second").len(), sent);
    let seen = world.sandbox.statistics();
    assert_eq!(
        seen.expo.answered(Answer::Dead) + seen.fcm.answered(Answer::Dead),
        dead.len() as u64,
        "each was asked for once"
    );
}

fn a_dose_rings_once_at_its_minute(world: &World, phones: &[Phone], minute: Timestamp) {
    let notification = format!("dose:pr1:r1:{minute}");
    let outcomes = until("the dose has its outcomes", Duration::from_secs(90), || {
        let mut outcomes = outcomes(&world.broker, &notification);
        outcomes.sort_by_key(|outcome| outcome["provider"].as_str().map(str::to_owned));
        (outcomes.len() >= 2).then_some(outcomes)
    });
    let told: Vec<_> = outcomes
        .iter()
        .map(|it| (it["provider"].as_str(), it["outcome"].as_str(), it["sent"].as_i64()))
        .collect();
    assert_eq!(told, [(Some("expo"), Some("sent"), Some(1)), (Some("fcm"), Some("sent"), Some(1))]);

    // More ticks of both sides, all of them to their end, and what they may have caused too.
    let before = world.broker.count("medication-ticks");
    until("more ticks", SOON, || (world.broker.count("medication-ticks") > before + 4 * 65).then_some(()));
    world.broker.settled(&world.group("medication"), "medication-ticks", SOON);
    for provider in ["expo", "fcm"] {
        world.broker.settled(
            &world.group(&format!("delivery.{provider}.urgent")),
            &format!("push.{provider}.urgent"),
            SOON,
        );
    }
    let rung: Vec<_> = world
        .sandbox
        .messages()
        .into_iter()
        .filter(|it| it.title.as_deref() == Some("Time for Metformin"))
        .collect();
    assert!(rung.iter().all(|message| message.received_at >= minute), "not before {minute}: {rung:?}");
    let rung: Vec<_> = rung.into_iter().map(|message| message.token).collect();
    assert_eq!(rung.len(), 2, "{rung:?}");
    assert_eq!(BTreeSet::from_iter(rung), tokens(phones, |phone| phone.user == "ada"));
}

fn nothing_else_was_rung(world: &World) {
    let notifications: BTreeSet<_> = world
        .broker
        .values("push-outcomes")
        .iter()
        .map(|it| it["notificationId"].as_str().unwrap()[..5].to_owned())
        .collect();
    assert_eq!(notifications, ["dose:", "post:"].map(str::to_owned).into());
    assert_eq!(
        outcomes(&world.broker, "post:yesterday"),
        Vec::<Value>::new(),
        "a first start rings nothing of yesterday"
    );
    let seen = world.sandbox.statistics();
    assert_eq!((seen.expo.doubles, seen.fcm.doubles), (0, 0));
}

// === Who and what ===

/// Two of ada's, one of the author's, and one each of many others; of both providers; some dead, some dead
/// without telling.
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
        "regimenId": "r1", "profileId": "pr1", "userId": "ada", "medicineName": "Metformin", "dosage": "500 mg",
        "timezone": ZONE, "times": [local.strftime("%H:%M").to_string()], "startDate": local.date(), "enabled": true,
    })
    .to_string()
}

/// The first full minute that is surely to come when the regimen is written.
fn next_minute() -> Timestamp {
    let soon = Timestamp::now() + 2.seconds();
    soon.round(jiff::TimestampRound::new().smallest(Unit::Minute).mode(jiff::RoundMode::Ceil)).unwrap()
}

/// What an upstream cron job does, beside the ticks of the instance itself.
fn tick_from_outside(world: &World, over: &AtomicBool) {
    while !over.load(Ordering::Relaxed) {
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

/// The numbers of a broadcast, once they are told.
fn outcome(broker: &Broker, notification: &str) -> Value {
    let outcome =
        until(&format!("the outcome of {notification}"), SOON, || outcomes(broker, notification).pop());
    let numbers =
        ["sent", "dead", "refused", "failed", "expired"].map(|name| (name.to_owned(), outcome[name].clone()));
    serde_json::to_value(BTreeMap::from(numbers)).unwrap()
}

fn outcomes(broker: &Broker, notification: &str) -> Vec<Value> {
    broker
        .values("push-outcomes")
        .into_iter()
        .filter(|outcome| outcome["notificationId"] == notification)
        .collect()
}
