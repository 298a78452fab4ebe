use std::sync::Mutex;

use consumer::Cause;

use super::*;
use crate::{
    domain::{Judged, Registration, TokenHash, UserId, Version},
    stages::fakes::{handle, key_of, record, replayed, written_in},
    store::{Census, StoreError, TokenRow},
};

/// Records which changes are applied, with their versions.
#[derive(Clone, Default)]
struct FakeRegistry(Arc<Mutex<Vec<(TokenChange, Version)>>>);

impl Registry for FakeRegistry {
    async fn apply(&self, change: &TokenChange, version: Version) -> Result<(), StoreError> {
        self.0.lock().unwrap().push((change.clone(), version));
        Ok(())
    }

    async fn tokens_of(&self, _: &UserId) -> Result<Vec<Registration>, StoreError> {
        unreachable!("this stage only writes")
    }

    async fn revoke(&self, _: &Token, _: Judged, _: &str) -> Result<bool, StoreError> {
        unreachable!("this stage only applies events")
    }

    async fn inspect(&self, _: &Token) -> Result<Option<TokenRow>, StoreError> {
        unreachable!("this stage only writes")
    }

    async fn inspect_hash(&self, _: TokenHash) -> Result<Option<TokenRow>, StoreError> {
        unreachable!("this stage only writes")
    }

    async fn census(&self) -> Result<Vec<Census>, StoreError> {
        unreachable!("this stage only writes")
    }
}

const SEEN: &str = r#"{"event":"seen","token":"ExponentPushToken[AAA]"}"#;

struct World {
    registry: FakeRegistry,
    metrics: Arc<Metrics>,
    stage: Tokens<FakeRegistry>,
}

fn world() -> World {
    let registry = FakeRegistry::default();
    let metrics = Arc::new(Metrics::new());
    World { stage: Tokens::new(registry.clone(), metrics.clone()), registry, metrics }
}

impl World {
    async fn handle(&self, record: &Record) -> Fate {
        handle(&self.stage, record, &CancellationToken::default()).await.unwrap()
    }

    fn versions(&self) -> Vec<Version> {
        self.registry.0.lock().unwrap().iter().map(|(_, version)| *version).collect()
    }
}

#[tokio::test]
async fn an_event_is_applied_with_the_version_of_its_record() {
    let world = world();
    let record = record(SEEN);
    assert_eq!(world.handle(&record).await, Fate::Done);
    let expected = (
        TokenChange::Seen(Token::parse("ExponentPushToken[AAA]").unwrap()),
        Version::of_record(record.timestamp, 7),
    );
    assert_eq!(*world.registry.0.lock().unwrap(), [expected]);
    assert_eq!(world.metrics.token_changes_total.with_label_values(&["seen"]).get(), 1);
}

#[tokio::test]
async fn a_replayed_dead_letter_has_the_version_of_its_original() {
    let world = world();
    let original = record(SEEN);
    let replay = replayed(written_in(record(SEEN), 0), &original.timestamp.as_millisecond().to_string(), "7");
    world.handle(&original).await;
    world.handle(&replay).await;
    let versions = world.versions();
    assert_eq!(versions[0], versions[1]);
}

#[tokio::test]
async fn a_record_from_the_future_is_a_dead_letter() {
    let world = world();
    assert_eq!(world.handle(&written_in(record(SEEN), 200)).await, Fate::Done);
    let late = written_in(record(SEEN), 400);
    let Fate::DeadLetter(Cause::Invalid(_)) = world.handle(&late).await else { panic!() };
    // The header of a replay is checked likewise.
    let header = replayed(record(SEEN), &late.timestamp.as_millisecond().to_string(), "7");
    let Fate::DeadLetter(Cause::Invalid(_)) = world.handle(&header).await else { panic!() };
    let Fate::DeadLetter(cause) = world.handle(&replayed(record(SEEN), "yesterday", "7")).await else {
        panic!()
    };
    assert_eq!(cause, Cause::invalid("header pushcast.origin.timestamp: not a whole number"));
    assert_eq!(world.versions().len(), 1);
}

#[tokio::test]
async fn a_line_that_can_not_be_read_is_a_dead_letter() {
    let world = world();
    assert_eq!(
        world.handle(&record("{}")).await,
        Fate::DeadLetter(Cause::unreadable("missing field `token`"))
    );
    assert_eq!(
        world.handle(&record(r#"{"token":"AAA"}"#)).await,
        Fate::DeadLetter(Cause::invalid("`token`: invalid token format"))
    );
    assert_eq!(world.versions(), []);
}

#[test]
fn the_events_of_one_token_are_kept_in_order_whatever_their_records_key() {
    let stage = world().stage;
    let key = |value| key_of(&stage, &record(value));
    assert_eq!(key(SEEN), Some(OrderingKey::of("ExponentPushToken[AAA]")));
    assert_eq!(key(r#"{"push_token":"ExponentPushToken[AAA]","userId":"u1"}"#), key(SEEN));
    let erased = Record { key: Some(b"ExponentPushToken[AAA]".to_vec()), value: None, ..record("") };
    assert_eq!(key_of(&stage, &erased), key(SEEN));
    assert_eq!(key(r#"{"event":"userDeleted","userId":"u1"}"#), Some(OrderingKey::of("u1")));
    assert_eq!(key("junk"), None);
}
