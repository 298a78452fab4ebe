use std::{collections::HashMap, sync::Mutex};

use super::*;
use crate::{
    domain::{BroadcastState, DataValue, PartId, PostId, Progress},
    stages::fakes::{FakeProducer, handle, key_of, record, written_in},
    store::{Checkpoint, StoreError, Total},
};

type BroadcastRow = (Option<Plan>, Option<BroadcastState>);

/// The rows of broadcasts, in memory.
#[derive(Clone, Default)]
struct FakeBroadcasts(Arc<Mutex<HashMap<BroadcastId, BroadcastRow>>>);

impl Broadcasts for FakeBroadcasts {
    async fn plan(&self, broadcast: &BroadcastId, plan: &Plan, _: Timestamp) -> Result<Plan, StoreError> {
        Ok(self
            .0
            .lock()
            .unwrap()
            .entry(broadcast.clone())
            .or_default()
            .0
            .get_or_insert_with(|| plan.clone())
            .clone())
    }

    async fn broadcast(&self, broadcast: &BroadcastId) -> Result<BroadcastRow, StoreError> {
        Ok(self.0.lock().unwrap().get(broadcast).cloned().unwrap_or_default())
    }

    async fn stop(&self, broadcast: &BroadcastId, reason: &StopReason) -> Result<(), StoreError> {
        self.0.lock().unwrap().entry(broadcast.clone()).or_default().1 =
            Some(BroadcastState::Stopped { reason: reason.clone() });
        Ok(())
    }

    async fn close(&self, broadcast: &BroadcastId) -> Result<(), StoreError> {
        self.0.lock().unwrap().entry(broadcast.clone()).or_default().1 = Some(BroadcastState::Done);
        Ok(())
    }

    async fn take_over(&self, _: &PartId) -> Result<Progress, StoreError> {
        unreachable!("this stage only plans")
    }

    async fn checkpoint(&self, _: &PartId, _: &Progress) -> Result<Checkpoint, StoreError> {
        unreachable!("this stage only plans")
    }

    async fn finish_part(&self, _: &PartId) -> Result<u32, StoreError> {
        unreachable!("this stage only plans")
    }

    async fn progress(&self, _: &PartId) -> Result<Option<Progress>, StoreError> {
        unreachable!("this stage only plans")
    }

    async fn total(&self, _: &BroadcastId, _: Timestamp) -> Result<Total, StoreError> {
        unreachable!("this stage only plans")
    }
}

const POST: &str = r#"{"postId":"p1","authorId":"u1","authorName":"Ann","title":"On walking"}"#;

fn rules(providers: &[ProviderId]) -> PlanRules {
    PlanRules {
        settings: Settings {
            slices: 64,
            include_anonymous: true,
            title: "New Reflection from {author_name}".to_owned(),
            body: "{title}".to_owned(),
            screen: "post_detail".to_owned(),
            sound: "default".to_owned(),
            channel: "default".to_owned(),
        },
        providers: providers.to_vec(),
        bulk_life: Duration::from_secs(24 * 3600),
        partitions: 16,
    }
}

struct World {
    broadcasts: FakeBroadcasts,
    producer: FakeProducer,
    stage: Posts<FakeBroadcasts, FakeProducer>,
}

fn world(providers: &[ProviderId]) -> World {
    let broadcasts = FakeBroadcasts::default();
    let producer = FakeProducer::default();
    let stage = Posts::new(broadcasts.clone(), producer.clone(), rules(providers));
    World { broadcasts, producer, stage }
}

impl World {
    async fn handle(&self, record: &Record) -> Result<Fate, HandlerError> {
        handle(&self.stage, record, &CancellationToken::default()).await
    }

    async fn post(&self, line: &str) -> Vec<Message> {
        assert_eq!(self.handle(&record(line)).await.unwrap(), Fate::Done);
        self.producer.take()
    }

    async fn row(&self, post: &str) -> BroadcastRow {
        self.broadcasts.broadcast(&BroadcastId::of_post(&PostId::new(post))).await.unwrap()
    }
}

fn job(message: &Message) -> Job {
    jobs::read(message.key.as_deref(), message.value.as_deref()).unwrap()
}

fn post(line: &str) -> Post {
    let Ok(PostEvent::Posted(post)) = posts_created::read(None, Some(line.as_bytes())) else {
        panic!("no post: {line}")
    };
    post
}

#[tokio::test]
async fn a_post_for_everybody_becomes_slices_that_are_spread_over_the_partitions() {
    let world = world(&ProviderId::ALL);
    let messages = world.post(POST).await;
    assert_eq!(messages.len(), 128);
    assert_eq!(world.row("p1").await.0.unwrap().parts, 128);
    let mut seen = HashSet::new();
    for message in &messages {
        let Job { provider, notification, work: Work::Slice(slice) } = job(message) else { panic!() };
        assert_eq!(message.topic, jobs::topic(provider, crate::domain::Lane::Bulk));
        assert_eq!(message.partition, Some(i32::try_from(slice.slice.index % 16).unwrap()));
        assert_eq!(message.key.as_deref(), Some(format!("post:p1:{}", slice.slice.index).as_bytes()));
        assert_eq!((slice.slice.of, slice.to.include_anonymous), (64, true));
        assert_eq!(slice.to.exclude, Some(UserId::new("u1")));
        assert_eq!(
            (notification.title.as_str(), notification.body.as_str()),
            ("New Reflection from Ann", "On walking")
        );
        assert_eq!(notification.expires_at.to_string(), "2026-11-21T01:00:00Z");
        seen.insert((provider, slice.slice.index));
    }
    assert_eq!(seen.len(), 128);
}

#[tokio::test]
async fn named_users_become_lists_of_at_most_500_without_the_author() {
    let world = world(&[ProviderId::Fcm]);
    let users: Vec<String> = (0..1001).chain([3, 4]).map(|n| format!("\"u{n}\"")).collect();
    let line = format!(r#"{{"postId":"p1","authorId":"u1","audience":{{"users":[{}]}}}}"#, users.join(","));
    let messages = world.post(&line).await;
    let lists: Vec<ListJob> = messages
        .iter()
        .map(|message| match job(message).work {
            Work::List(list) => list,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(
        lists.iter().map(|list| (list.part, list.users.len())).collect::<Vec<_>>(),
        [(0, 500), (1, 500)]
    );
    let listed: HashSet<_> = lists.into_iter().flat_map(|list| list.users).collect();
    assert_eq!(listed.len(), 1000);
    assert!(!listed.contains(&UserId::new("u1")));
    assert_eq!(messages[1].key.as_deref(), Some(b"post:p1:1".as_slice()));
    assert_eq!(world.row("p1").await.0.unwrap().parts, 2);
}

#[tokio::test]
async fn the_first_plan_counts_and_its_parts_are_produced_every_time() {
    let world = world(&[ProviderId::Expo]);
    let first = world.post(POST).await;
    let again = world.post(r#"{"postId":"p1","title":"Another text","audience":{"users":["u9"]}}"#).await;
    assert_eq!(again, first);
}

#[tokio::test]
async fn parts_that_kafka_did_not_take_are_produced_again() {
    let world = world(&[ProviderId::Expo]);
    world.producer.refuse(1);
    world.handle(&record(POST)).await.unwrap_err();
    let before = world.producer.take().len();
    assert!(before < 64);
    assert_eq!(world.post(POST).await.len(), 64);
}

#[tokio::test]
async fn a_broadcast_without_parts_is_done_at_once() {
    let alone = r#"{"postId":"p1","authorId":"u1","audience":{"users":["u1"]}}"#;
    let empty = r#"{"postId":"p1","audience":{"users":[]}}"#;
    for (world, line) in
        [(world(&ProviderId::ALL), alone), (world(&ProviderId::ALL), empty), (world(&[]), POST)]
    {
        let messages = world.post(line).await;
        let [message] = messages.as_slice() else { panic!("{messages:?}") };
        assert_eq!(message.topic, topics::PUSH_OUTCOMES);
        assert_eq!(message.key.as_deref(), Some(b"post:p1".as_slice()));
        let expected = Report::Broadcast {
            notification: BroadcastId::new("post:p1").notification(),
            counts: Counts::default(),
            at: "2026-11-20T01:00:00Z".parse().unwrap(),
        };
        assert_eq!(push_outcomes::read(None, message.value.as_deref()), Ok(expected));
        assert_eq!(world.row("p1").await.1, Some(BroadcastState::Done));
        assert_eq!(world.post(line).await, messages, "the same content each time");
    }
}

#[tokio::test]
async fn a_cancelled_post_is_stopped_even_before_it_arrives() {
    let world = world(&[ProviderId::Expo]);
    assert_eq!(world.post(r#"{"event":"cancelled","postId":"p1"}"#).await, []);
    let cancelled = Some(BroadcastState::Stopped { reason: StopReason::Cancelled });
    assert_eq!(world.row("p1").await, (None, cancelled.clone()));
    world.post(POST).await;
    assert_eq!(world.row("p1").await.1, cancelled);
}

#[tokio::test]
async fn a_post_with_a_future_timestamp_does_not_expire_later() {
    let world = world(&[ProviderId::Expo]);
    world.handle(&written_in(record(POST), 90 * 24 * 3600)).await.unwrap();
    let messages = world.producer.take();
    let tomorrow = Timestamp::now().as_second() + 24 * 3600;
    assert!(job(&messages[0]).notification.expires_at.as_second() <= tomorrow);
}

#[tokio::test]
async fn a_line_that_is_no_post_is_a_dead_letter() {
    let fate = world(&ProviderId::ALL).handle(&record("{}")).await.unwrap();
    assert_eq!(fate, Fate::DeadLetter(Cause::unreadable("missing field `postId`")));
}

#[test]
fn a_post_and_its_cancellation_share_a_key() {
    let stage = world(&[]).stage;
    let cancelled = record(r#"{"event":"cancelled","postId":"p1"}"#);
    assert_eq!(key_of(&stage, &record(POST)), key_of(&stage, &cancelled));
    assert_eq!(key_of(&stage, &record("junk")), None);
}

#[test]
fn a_template_reads_well_without_a_value() {
    let render = |template, line| render(template, &post(line));
    let bare = r#"{"postId":"p1"}"#;
    assert_eq!(render("New Reflection from {author_name}", POST), "New Reflection from Ann");
    assert_eq!(render("New Reflection from {author_name}", bare), "New Reflection");
    assert_eq!(render("{title}", bare), "");
    assert_eq!(render("{title} by {author_name} ({post_id})", bare), "(p1)");
    assert_eq!(render("{title} by {author_name}", r#"{"postId":"p1","title":"On walking"}"#), "On walking");
    assert_eq!(render("{title} by {author_name}", r#"{"postId":"p1","authorName":"Ann"}"#), "by Ann");
}

#[test]
fn a_value_is_never_read_as_a_template() {
    let line = r#"{"postId":"p1","authorName":"{title}","title":"{author_name} {"}"#;
    assert_eq!(render("{author_name}: {title}", &post(line)), "{title}: {author_name} {");
    assert_eq!(render("{x} {", &post(line)), "{x} {");
}

#[test]
fn the_posts_own_data_overrides_what_is_added_for_the_app() {
    let data = data(&post(r#"{"postId":"p1","data":{"screen":"prayer","n":1}}"#), "post_detail");
    let expected = Data::from([
        ("post_id".to_owned(), "p1".into()),
        ("screen".to_owned(), "prayer".into()),
        ("n".to_owned(), DataValue::Json("1".to_owned())),
    ]);
    assert_eq!(data, expected);
}

#[test]
fn a_long_text_is_cut_between_characters() {
    assert_eq!(shortened("short".to_owned(), 10), "short");
    assert_eq!(shortened("ไทย".repeat(10), 11), "ไท…");
}
