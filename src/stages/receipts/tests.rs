use std::{
    collections::HashSet,
    sync::atomic::{AtomicUsize, Ordering},
};

use consumer::Cause;

use super::*;
use crate::{
    dispatch::ProviderUnavailable,
    domain::{Token, Version},
    stages::fakes::{FakeProducer, handle, record, written_in},
    store::StoreError,
};

const THRESHOLDS: BrakeThresholds =
    BrakeThresholds { dead_min: 50, dead_percent: 30, window: Duration::from_secs(300) };

/// Expo's receipts: has some, and counts the requests for them.
#[derive(Clone, Default)]
struct FakeReceiptSource(Arc<Mutex<KnownReceipts>>);

#[derive(Default)]
struct KnownReceipts {
    receipts: HashMap<String, Receipt>,
    requests: usize,
}

impl dispatch::ReceiptSource for FakeReceiptSource {
    async fn receipts(&self, tickets: &[Arc<str>]) -> Result<Vec<(String, Receipt)>, ProviderUnavailable> {
        let mut known = self.0.lock().unwrap();
        known.requests += 1;
        assert!(tickets.len() <= 1000);
        Ok(tickets
            .iter()
            .filter_map(|id| Some((id.to_string(), known.receipts.get(&**id)?.clone())))
            .collect())
    }
}

/// The row of Expo's route.
#[derive(Clone)]
struct FakeRoutes {
    row: Arc<Mutex<RouteRow>>,
    /// How many of the next writes fail.
    failures: Arc<AtomicUsize>,
}

impl Routes for FakeRoutes {
    async fn route(&self, _: ProviderId) -> Result<RouteRow, StoreError> {
        Ok(self.row.lock().unwrap().clone())
    }

    async fn set_route(&self, _: ProviderId, route: &RouteRow) -> Result<(), StoreError> {
        let fails = |left: usize| left.checked_sub(1);
        if self.failures.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fails).is_ok() {
            return Err(StoreError::unavailable("writing a route", "the test makes it fail"));
        }
        *self.row.lock().unwrap() = route.clone();
        Ok(())
    }
}

struct World {
    expo: FakeReceiptSource,
    routes: FakeRoutes,
    producer: FakeProducer,
    metrics: Arc<Metrics>,
    stage: Arc<Receipts<FakeReceiptSource, FakeRoutes, FakeProducer>>,
    stop: CancellationToken,
}

fn world() -> World {
    let expo = FakeReceiptSource::default();
    let producer = FakeProducer::default();
    let metrics = Arc::new(Metrics::new());
    let running = RouteRow {
        state: RouteState::Running,
        since: Timestamp::UNIX_EPOCH,
        set_by: String::new(),
        detail: String::new(),
    };
    let routes = FakeRoutes { row: Arc::new(Mutex::new(running)), failures: Arc::default() };
    let stage = Receipts::new(
        expo.clone(),
        routes.clone(),
        producer.clone(),
        Duration::from_secs(900),
        THRESHOLDS,
        metrics.clone(),
    );
    World { expo, routes, producer, metrics, stage: Arc::new(stage), stop: CancellationToken::new() }
}

impl World {
    fn answers(&self, id: &str, receipt: Receipt) {
        self.expo.0.lock().unwrap().receipts.insert(id.to_owned(), receipt);
    }

    async fn handle(&self, record: &Record) -> Fate {
        handle(&*self.stage, record, &self.stop).await.unwrap()
    }

    fn count(&self, result: &str) -> u64 {
        self.metrics.receipts_total.with_label_values(&[result]).get()
    }

    fn state(&self) -> RouteState {
        self.routes.row.lock().unwrap().state
    }

    fn release(&self) {
        let mut route = self.routes.row.lock().unwrap();
        route.state = RouteState::Released;
        route.since = Timestamp::now();
    }
}

fn ticket(id: &str) -> Ticket {
    let token = Token::parse(&format!("ExponentPushToken[{id}]")).unwrap();
    Ticket { id: id.into(), token, registration: Version::from_i64(42) }
}

/// A record of these tickets, sent that many seconds ago.
fn sent(ids: &[&str], seconds_ago: i64) -> Record {
    let batch = TicketBatch { tickets: ids.iter().map(|id| ticket(id)).collect(), first_sent_at: None };
    written_in(
        record(&String::from_utf8(receipts::write(&batch.tickets, batch.first_sent_at)).unwrap()),
        -seconds_ago,
    )
}

fn unregistered() -> Receipt {
    Receipt::Dead { reason: "DeviceNotRegistered".to_owned() }
}

/// A record of more tickets than the brake allows dead, all of which Expo calls dead.
fn too_many_dead(world: &World) -> Record {
    let ids: Vec<String> = (0..60).map(|n| format!("t{n}")).collect();
    ids.iter().for_each(|id| world.answers(id, unregistered()));
    sent(&ids.iter().map(String::as_str).collect::<Vec<_>>(), 900)
}

#[test]
fn a_batch_is_due_after_the_receipt_delay() {
    let record = record("{}");
    assert_eq!(world().stage.due(&record).unwrap().to_string(), "2026-11-20T01:15:00Z");
}

#[tokio::test]
async fn a_dead_token_is_published_with_the_registration_that_was_sent_to() {
    let world = world();
    world.answers("a", Receipt::Delivered);
    world.answers("b", unregistered());
    world.answers("c", Receipt::Failed { why: "MessageTooBig".to_owned() });
    assert_eq!(world.handle(&sent(&["a", "b", "c"], 900)).await, Fate::Done);
    let messages = world.producer.take();
    let [message] = messages.as_slice() else { panic!("{messages:?}") };
    assert_eq!(
        (message.topic.as_str(), message.key.as_deref()),
        ("invalid-tokens", Some(b"ExponentPushToken[b]".as_slice()))
    );
    let dead = invalid_tokens::read(None, message.value.as_deref()).unwrap();
    assert_eq!((dead.token, dead.registration), (ticket("b").token, Some(Version::from_i64(42))));
    assert_eq!((dead.reason.as_str(), dead.source.as_deref()), ("DeviceNotRegistered", Some("receipt")));
    assert_eq!((world.count("delivered"), world.count("dead"), world.count("failed")), (1, 1, 1));
}

#[tokio::test]
async fn what_is_not_ready_goes_to_the_tail_of_the_topic_with_the_time_at_which_it_was_first_sent() {
    let world = world();
    world.answers("a", Receipt::Delivered);
    let record = sent(&["a", "b"], 900);
    world.handle(&record).await;
    let messages = world.producer.take();
    let [message] = messages.as_slice() else { panic!("{messages:?}") };
    assert_eq!(message.topic, topics::EXPO_RECEIPTS);
    let expected = TicketBatch { tickets: vec![ticket("b")], first_sent_at: Some(record.timestamp) };
    assert_eq!(receipts::read(None, message.value.as_deref()), Ok(expected));

    // It keeps that time when it is not ready again.
    let back = Record { value: message.value.clone(), ..sent(&[], 0) };
    world.handle(&back).await;
    assert_eq!(world.producer.take()[0].value, message.value);
    assert_eq!(world.count("missing"), 0);
}

#[tokio::test]
async fn after_a_day_a_receipt_is_missing() {
    let world = world();
    assert_eq!(world.handle(&sent(&["a", "b"], 24 * 3600)).await, Fate::Done);
    assert_eq!(world.producer.take(), []);
    assert_eq!(world.count("missing"), 2);
}

#[tokio::test(start_paused = true)]
async fn an_unavailable_kafka_causes_no_second_request() {
    let world = world();
    world.answers("a", unregistered());
    world.producer.refuse(3);
    assert_eq!(world.handle(&sent(&["a"], 900)).await, Fate::Done);
    assert_eq!(world.producer.take().len(), 1);
    assert_eq!((world.expo.0.lock().unwrap().requests, world.count("dead")), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn too_many_dead_tokens_are_held_until_a_release() {
    let world = world();
    let record = too_many_dead(&world);
    let stage = world.stage.clone();
    let stop = world.stop.clone();
    let handling = async { handle(&*stage, &record, &stop).await.unwrap() };
    let operator = async {
        tokio::time::sleep(Duration::from_secs(3600)).await;
        assert_eq!(world.state(), RouteState::Braked);
        assert_eq!(world.producer.take(), []);
        world.release();
    };
    let (fate, ()) = tokio::join!(handling, operator);
    assert_eq!(fate, Fate::Done);
    let tokens: HashSet<_> = world.producer.take().into_iter().map(|message| message.key).collect();
    assert_eq!(tokens.len(), 60);
    assert_eq!(world.state(), RouteState::Released, "the held receipts don't brake it again");
}

#[tokio::test(start_paused = true)]
async fn a_resume_does_not_let_dead_tokens_pass() {
    let world = world();
    let record = too_many_dead(&world);
    world.routes.row.lock().unwrap().since = Timestamp::now();
    let stage = world.stage.clone();
    let stop = world.stop.clone();
    let _held = tokio::time::timeout(Duration::from_secs(60), handle(&*stage, &record, &stop)).await;
    assert_eq!((world.state(), world.producer.take().len()), (RouteState::Braked, 0));
}

#[tokio::test(start_paused = true)]
async fn receipts_are_counted_once_although_the_routes_row_can_not_be_written_at_first() {
    let world = world();
    let record = too_many_dead(&world);
    world.routes.failures.store(5, Ordering::Relaxed);
    let handling = handle(&*world.stage, &record, &world.stop);
    let _held = tokio::time::timeout(Duration::from_secs(60), handling).await;
    let route = world.routes.row.lock().unwrap().clone();
    assert_eq!(route.state, RouteState::Braked);
    assert!(route.detail.starts_with("60 of 60 receipts"), "{}", route.detail);
}

#[tokio::test(start_paused = true)]
async fn a_stop_ends_the_wait_and_leaves_the_record_to_its_next_owner() {
    let world = world();
    let record = too_many_dead(&world);
    let token = tokio_util::sync::CancellationToken::new();
    let stop = token.clone();
    let stopping = async {
        tokio::time::sleep(Duration::from_secs(10)).await;
        token.cancel();
    };
    let (fate, ()) = tokio::join!(handle(&*world.stage, &record, &stop), stopping);
    assert_eq!(fate.unwrap(), Fate::Unfinished);
    assert_eq!(world.producer.take(), []);
}

#[tokio::test]
async fn refused_credentials_halt_the_route_unless_it_was_opened_after_the_messages() {
    let world = world();
    world.answers("a", Receipt::CredentialsRefused { why: "InvalidCredentials".to_owned() });
    world.handle(&sent(&["a"], 900)).await;
    assert_eq!((world.state(), world.count("credentials")), (RouteState::Halted, 1));
    world.release();
    world.handle(&sent(&["a"], 900)).await;
    assert_eq!(world.state(), RouteState::Released);
    assert_eq!(world.producer.take(), [], "refused credentials say nothing about tokens");
}

#[tokio::test]
async fn a_batch_that_can_not_be_read_is_a_dead_letter() {
    let world = world();
    assert_eq!(
        world.handle(&record("{}")).await,
        Fate::DeadLetter(Cause::unreadable("missing field `tickets`"))
    );
    assert_eq!(world.handle(&record(r#"{"tickets":[]}"#)).await, Fate::Done);
    assert_eq!(world.expo.0.lock().unwrap().requests, 0);
}

#[tokio::test]
async fn a_thousand_tickets_are_one_request() {
    let world = world();
    let ids: Vec<String> = (0..1_000).map(|n| format!("t{n}")).collect();
    ids.iter().skip(1).for_each(|id| world.answers(id, Receipt::Delivered));
    let record = sent(&ids.iter().map(String::as_str).collect::<Vec<_>>(), 900);
    assert_eq!(world.handle(&record).await, Fate::Done);
    assert_eq!((world.expo.0.lock().unwrap().requests, world.count("delivered")), (1, 999));
    let [late] = &world.producer.take()[..] else { panic!("the one without a receipt") };
    assert_eq!(receipts::read(None, late.value.as_deref()).unwrap().tickets, [ticket("t0")]);
}
