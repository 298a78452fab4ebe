//! What is written is read back as the same value; invalid bytes are refused and never panic.

use proptest::prelude::*;
use serde_json::Map;

use super::*;
use crate::domain::{
    BroadcastId, Counts, Data, DataValue, DeadToken, DoseJob, DoseOutcome, Job, ListJob, Listeners,
    Notification, NotificationId, PostEvent, ProfileId, ProviderId, RegimenId, Report, Slice, SliceJob, Tick,
    Ticket, TicketBatch, Timestamp, Token, UpstreamDose, UserId, Version, Work,
};

fn ids() -> impl Strategy<Value = String> {
    "[a-zA-Z0-9:/ü_-]{1,40}"
}

fn texts() -> impl Strategy<Value = String> {
    "[^\\s](.{0,60}[^\\s])?"
}

fn times() -> impl Strategy<Value = Timestamp> {
    (0..4_000_000_000_000_000_i64).prop_map(|microsecond| Timestamp::from_microsecond(microsecond).unwrap())
}

fn tokens() -> impl Strategy<Value = Token> {
    prop_oneof!["ExponentPushToken\\[[a-zA-Z0-9_-]{1,40}\\]", "[a-zA-Z0-9_-]{22}", "[a-zA-Z0-9:_-]{64,200}"]
        .prop_map(|text| Token::parse(&text).unwrap())
}

fn providers() -> impl Strategy<Value = ProviderId> {
    prop::sample::select(ProviderId::ALL.to_vec())
}

fn counts() -> impl Strategy<Value = Counts> {
    any::<[u32; 5]>().prop_map(|[sent, dead, refused, failed, expired]| Counts {
        sent: sent.into(),
        dead: dead.into(),
        refused: refused.into(),
        failed: failed.into(),
        expired: expired.into(),
    })
}

fn notifications() -> impl Strategy<Value = Notification> {
    (ids(), any::<String>(), any::<String>(), any::<i64>(), prop::option::of(texts()), times()).prop_map(
        |(id, title, body, number, sound, expires_at)| Notification {
            id: NotificationId::new(id),
            data: Data::from([
                (format!("a{title}"), DataValue::String(body.clone())),
                (format!("b{title}"), DataValue::Json(format!(r#"[{number},true,{{"deep":null}}]"#))),
            ]),
            title,
            body,
            sound,
            channel: "default".to_owned(),
            expires_at,
        },
    )
}

fn works() -> impl Strategy<Value = Work> {
    prop_oneof![
        (ids(), ids(), ids(), times()).prop_map(|(profile, regimen, user, schedule_time)| Work::Dose(
            DoseJob {
                profile: ProfileId::new(profile),
                regimen: RegimenId::new(regimen),
                user: UserId::new(user),
                schedule_time,
            }
        )),
        (ids(), any::<u32>(), prop::collection::vec(ids(), 0..5)).prop_map(|(broadcast, part, users)| {
            Work::List(ListJob {
                broadcast: BroadcastId::new(broadcast),
                part,
                users: users.into_iter().map(UserId::new).collect(),
            })
        }),
        (ids(), 0..64_u32, prop::option::of(ids()), any::<bool>()).prop_map(
            |(broadcast, index, exclude, include_anonymous)| {
                Work::Slice(SliceJob {
                    broadcast: BroadcastId::new(broadcast),
                    slice: Slice { index, of: 64 },
                    to: Listeners { exclude: exclude.map(UserId::new), include_anonymous },
                })
            }
        ),
    ]
}

fn ticks() -> impl Strategy<Value = Tick> {
    prop_oneof![
        prop::option::of(times()).prop_map(|at| Tick::Clock { at }),
        (any::<u16>(), times()).prop_map(|(shard, at)| Tick::Shard { shard, at }),
        (
            ids(),
            times(),
            texts(),
            prop_oneof![Just(String::new()), texts()],
            prop::option::of(Just("Asia/Bangkok".to_owned()))
        )
            .prop_map(|(id, schedule_time, medicine_name, dosage, timezone)| Tick::Dose(
                UpstreamDose {
                    regimen: RegimenId::new(id.clone()),
                    profile: ProfileId::new(id.clone()),
                    user: UserId::new(id),
                    schedule_time,
                    medicine_name,
                    dosage,
                    timezone,
                }
            )),
    ]
}

proptest! {
    #[test]
    fn a_job_is_read_as_it_was_written(
        provider in providers(),
        notification in notifications(),
        work in works(),
    ) {
        let job = Job { provider, notification, work };
        prop_assert_eq!(jobs::read(None, Some(&jobs::write(&job))), Ok(job));
    }

    #[test]
    fn a_tick_is_read_as_it_was_written(tick in ticks()) {
        prop_assert_eq!(medication_ticks::read(None, Some(&medication_ticks::write(&tick))), Ok(tick));
    }

    #[test]
    fn tickets_are_read_as_they_were_written(
        tickets in prop::collection::vec((ids(), tokens(), any::<i64>()), 0..5),
        first_sent_at in prop::option::of(times()),
    ) {
        let ticket = |(id, token, registration): (String, _, _)| {
            Ticket { id: id.into(), token, registration: Version::from_i64(registration) }
        };
        let batch = TicketBatch { tickets: tickets.into_iter().map(ticket).collect(), first_sent_at };
        let written = receipts::write(&batch.tickets, batch.first_sent_at);
        prop_assert_eq!(receipts::read(None, Some(&written)), Ok(batch));
    }

    #[test]
    fn a_verdict_is_read_as_it_was_written(
        token in tokens(),
        provider in prop::option::of(providers()),
        reason in texts(),
        source in prop::option::of(texts()),
        registration in prop::option::of(any::<i64>()),
        detected_at in prop::option::of(times()),
    ) {
        let registration = registration.map(Version::from_i64);
        let dead = DeadToken { token, provider, reason, source, registration, detected_at };
        prop_assert_eq!(invalid_tokens::read(None, Some(&invalid_tokens::write(&dead))), Ok(dead));
    }

    #[test]
    fn an_outcome_is_read_as_it_was_written(
        id in ids(),
        counts in counts(),
        at in times(),
        provider in prop::option::of(providers()),
        outcome in prop::sample::select(DoseOutcome::ALL.to_vec()),
    ) {
        let notification = NotificationId::new(id);
        for report in [
            Report::Broadcast { notification: notification.clone(), counts, at },
            Report::Dose { notification: notification.clone(), provider, outcome, counts, at },
            Report::Dose { notification, provider, outcome, counts: Counts::default(), at },
        ] {
            prop_assert_eq!(push_outcomes::read(None, Some(&push_outcomes::write(&report))), Ok(report));
        }
    }

    #[test]
    fn a_plan_is_read_as_it_was_written(
        notification in notifications(),
        exclude in prop::option::of(ids()),
        users in prop::collection::vec(ids(), 0..5),
        posted_at in times(),
    ) {
        use broadcast_specs::{Audience, Spec, read, write};
        for audience in [
            Audience::Everybody { slices: 64, exclude: exclude.map(UserId::new), include_anonymous: true },
            Audience::Users(users.into_iter().map(UserId::new).collect()),
        ] {
            let notification = notification.clone();
            let providers = ProviderId::ALL.to_vec();
            let spec = Spec { notification, audience, providers, posted_at };
            prop_assert_eq!(read(&write(&spec)), Ok(spec));
        }
    }

    #[test]
    fn invalid_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        for topic in topics::ALL.into_iter().filter(|topic| *topic != topics::DEAD_LETTERS) {
            prop_assert!(read_of(topic, &bytes).is_err());
        }
        let _ = device_tokens::read(Some(&bytes), None);
        let _ = medication_regimens::read(Some(&bytes), None);
    }

    /// One value of an example, at any depth, is replaced by another.
    #[test]
    fn an_example_with_a_replaced_value_never_panics(
        which in any::<prop::sample::Index>(),
        at in any::<prop::sample::Index>(),
        by in 0..9_usize,
    ) {
        let examples = examples();
        let (name, text) = &examples[which.index(examples.len())];
        let mut value: Value = serde_json::from_str(text).unwrap();
        let pointers = pointers(&value);
        prop_assume!(!pointers.is_empty());
        *value.pointer_mut(&pointers[at.index(pointers.len())]).unwrap() = [
            Value::Null,
            true.into(),
            (-1).into(),
            u64::MAX.into(),
            1e300.into(),
            "".into(),
            "\u{0}🦀".repeat(20_000).into(),
            Value::Array(vec![]),
            Value::Object(Map::new()),
        ][by].clone();
        let _ = read_of(topic_of(name), value.to_string().as_bytes());
    }
}

#[test]
fn the_apps_data_keeps_its_types_and_digits_from_a_post_to_a_job() {
    let line = r#"{"postId":"p1","data":{"n":9007199254740993,"u":18446744073709551615,"f":-0.25,"t":"7\n",
        "o":{"b":[1,{"c":null}], "a":true}}}"#;
    let Ok(PostEvent::Posted(post)) = posts_created::read(None, Some(line.as_bytes())) else { panic!() };
    let notification = Notification {
        id: NotificationId::new("post:p1"),
        title: String::new(),
        body: String::new(),
        data: post.data,
        sound: None,
        channel: String::new(),
        expires_at: Timestamp::UNIX_EPOCH,
    };
    let list = ListJob { broadcast: BroadcastId::new("post:p1"), part: 0, users: Vec::new() };
    let job = Job { provider: ProviderId::Expo, notification, work: Work::List(list) };
    let expected = concat!(
        r#""data":{"f":-0.25,"n":9007199254740993,"o":{"a":true,"b":[1,{"c":null}]},"t":"7\n","#,
        r#""u":18446744073709551615}"#
    );
    let written = String::from_utf8(jobs::write(&job)).unwrap();
    assert!(written.contains(expected), "{written}");
}

/// JSON pointers to every value inside of this one.
fn pointers(value: &Value) -> Vec<String> {
    let children: Vec<(String, &Value)> = match value {
        Value::Object(object) => object.iter().map(|(name, child)| (format!("/{name}"), child)).collect(),
        Value::Array(list) => {
            list.iter().enumerate().map(|(index, child)| (format!("/{index}"), child)).collect()
        }
        _ => Vec::new(),
    };
    children
        .into_iter()
        .flat_map(|(step, child)| {
            let below: Vec<_> =
                pointers(child).into_iter().map(|pointer| format!("{step}{pointer}")).collect();
            std::iter::once(step.clone()).chain(below)
        })
        .collect()
}
