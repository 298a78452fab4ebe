//! `--keep`: the demo keeps running, and prints the pushes that records from other programs cause.

use std::{convert::Infallible, path::Path, time::Duration};

use jiff::{Timestamp, tz::TimeZone};
use pushcast::{domain::Token, events::topics};
use serde_json::{Value, json};
use tokio::time::sleep;

use super::{watch::Push, world::World};

const POLL_EVERY: Duration = Duration::from_millis(100);
/// Messages printed per poll; a post for all users has thousands.
const SHOWN_MAX: usize = 10;

/// Shell commands that write to and read from each topic.
pub fn lines(world: &World, program: &Path, now: Timestamp) -> String {
    let servers = world.broker.bootstrap_servers();
    let mut text =
        "# Paste a line, with kcat or without it; the pushes that it causes are printed here.\n".to_owned();
    for (topic, value) in examples(now) {
        let echo = format!("echo '{value}'");
        text += &format!("\n# {topic}\n{echo} | kcat -P -b {servers} -t {topic}\n");
        text += &format!(
            "{echo} | PUSHCAST__KAFKA__BOOTSTRAP_SERVERS={servers} {} produce {topic}\n",
            program.display()
        );
    }
    text += "\n# What pushcast publishes, measures and knows\n";
    for topic in [topics::PUSH_OUTCOMES, topics::INVALID_TOKENS, topics::DEAD_LETTERS] {
        text += &format!("kcat -C -b {servers} -t {topic} -o -5 -e -q\n");
    }
    let admin = &world.config.http.admin_listen;
    text +=
        &format!("curl -s http://{admin}/metrics\n{} inspect --admin {admin} user me\n", program.display());
    text
}

/// A record for each topic that other programs may write to. The first one registers the phone for the rest.
fn examples(now: Timestamp) -> Vec<(&'static str, Value)> {
    let soon = now.to_zoned(TimeZone::UTC).datetime().saturating_add(jiff::SignedDuration::from_secs(90));
    let this_second = Timestamp::from_second(now.as_second()).unwrap_or(now);
    let dose = json!({
        "regimenId": "mine", "profileId": "me", "userId": "me", "scheduleTime": this_second.to_string(),
        "medicineName": "Vitamin D", "dosage": "one drop",
    });
    let regimen = json!({
        "regimenId": "mine", "profileId": "me", "userId": "me",
        "medicineName": "Vitamin D", "dosage": "one drop",
        "timezone": "UTC", "times": [soon.strftime("%H:%M").to_string()],
    });
    let post = json!({
        "postId": format!("hello-{}", now.as_second()), "authorId": "you", "authorName": "You",
        "title": "Hello", "audience": { "users": ["me"] },
    });
    vec![
        (
            topics::DEVICE_TOKENS,
            json!({ "token": "ExponentPushToken[hello]", "userId": "me", "platform": "ios" }),
        ),
        (topics::POSTS_CREATED, post),
        (topics::MEDICATION_TICKS, json!({ "dose": dose })),
        (topics::MEDICATION_REGIMENS, regimen),
        (topics::INVALID_TOKENS, json!({ "token": "ExponentPushToken[hello]", "reason": "uninstalled" })),
    ]
}

/// Prints the messages that the sandbox takes; never ends.
pub async fn print_pushes(world: &World) -> Infallible {
    loop {
        let pushes: Vec<Push> = world.sandbox.drain_messages().into_iter().map(Push::from).collect();
        for push in pushes.iter().take(SHOWN_MAX) {
            println!("{}", line_of(push));
        }
        if let Some(more) = pushes.len().checked_sub(SHOWN_MAX).filter(|more| *more > 0) {
            println!("   and {more} more");
        }
        sleep(POLL_EVERY).await;
    }
}

/// A push in one line, with its token's hash, which `inspect` accepts.
fn line_of(push: &Push) -> String {
    let token = Token::parse(&push.token).map(|token| token.hash().to_string()).unwrap_or_default();
    format!("push  {:.0}  {:4} → {token}  {}  [{}]", push.at, push.provider.label(), push.text, push.name)
}

#[cfg(test)]
mod tests {
    use pushcast::events::{
        device_tokens, invalid_tokens, medication_regimens, medication_ticks, posts_created,
    };

    use super::*;

    #[test]
    fn the_example_records_are_valid_and_can_be_single_quoted_in_a_shell() {
        for (topic, value) in examples("2026-11-20T23:59:01Z".parse().unwrap()) {
            let text = value.to_string();
            assert!(!text.contains('\''), "{text}");
            let bytes = Some(text.as_bytes());
            let read = match topic {
                topics::DEVICE_TOKENS => device_tokens::read(None, bytes).err(),
                topics::POSTS_CREATED => posts_created::read(None, bytes).err(),
                topics::MEDICATION_TICKS => medication_ticks::read(None, bytes).err(),
                topics::MEDICATION_REGIMENS => medication_regimens::read(None, bytes).err(),
                topics::INVALID_TOKENS => invalid_tokens::read(None, bytes).err(),
                _ => panic!("{topic}"),
            };
            assert_eq!(read, None, "{topic}");
        }
    }

    #[test]
    fn a_push_is_printed_without_its_token() {
        let push = Push {
            provider: pushcast::domain::ProviderId::Expo,
            token: "ExponentPushToken[hello]".to_owned(),
            name: "post:hello".to_owned(),
            at: "2026-11-20T01:00:00Z".parse().unwrap(),
            text: "New Reflection from You: Hello".to_owned(),
        };
        let line = line_of(&push);
        assert!(
            line.contains("expo")
                && line.contains("New Reflection from You: Hello")
                && !line.contains("ExponentPushToken"),
            "{line}"
        );
    }
}
