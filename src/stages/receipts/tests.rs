use std::{
    collections::HashSet,
    sync::atomic::{AtomicUsize, Ordering},
};

use consumer::Cause;

use super::*;
use crate::{
    dispatch::ProviderUnavailable,
    domain::{Token, Version},
    stages::fakes::{Topics, handle, record, written_in},
    store::StoreError,
};

const THRESHOLDS: BrakeThresholds =
    BrakeThresholds { dead_min: 50, dead_percent: 30, window: Duration::from_secs(300) };

/// Expo: knows some receipts, and counts how often it is asked.
#[derive(Clone, Default)]
struct Expo(Arc<Mutex<(HashMap<String, Receipt>, usize)>>);

impl dispatch::ReceiptSource for Expo {
    async fn receipts(&self, tickets: &[Arc<str>]) -> Result<Vec<(String, Receipt)>, ProviderUnavailable> {
        let mut inside = self.0.lock().unwrap();
        inside.1 += 1;
        assert!(tickets.len() <= 1000);
        Ok(tickets.iter().filter_map(|id| Some((id.to_string(), inside.0.get(&**id)?.clone()))).collect())
    }
}

/// The route of Expo.
#[derive(Clone)]
struct OneRoute(Arc<Mutex<RouteRow>>, Arc<AtomicUsize>);

impl Routes for OneRoute {
    async fn route(&self, _: ProviderId) -> Result<RouteRow, StoreError> {
        Ok(self.0.lock().unwrap().clone())
    }

    async fn set_route(&self, _: ProviderId, route: &RouteRow) -> Result<(), StoreError> {
        // The number of writes that fail from now on.
        let fails = |left: usize| left.checked_sub(1);
        if self.1.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fails).is_ok() {
            return Err(StoreError::unavailable("writing a route", "away"));
        }
        *self.0.lock().unwrap() = route.clone();
        Ok(())
    }
}

struct World {
    expo: Expo,
    route: OneRoute,
    topics: Topics,
    metrics: Arc<Metrics>,
    stage: Arc<Receipts<Expo, OneRoute, Topics>>,
    stop: CancellationToken,
}

fn world() -> World {
    let expo = Expo::default();
    let topics = Topics::default();
    let metrics = Arc::new(Metrics::new());
    let running = RouteRow {
        state: RouteState::Running,
        since: Timestamp::UNIX_EPOCH,
        set_by: String::new(),
        detail: String::new(),
    };
    let route = OneRoute(Arc::new(Mutex::new(running)), Arc::default());
    let stage = Receipts::new(
        expo.clone(),
        route.clone(),
        topics.clone(),
        Duration::from_secs(900),
        THRESHOLDS,
        metrics.clone(),
    );
    World { expo, route, topics, metrics, stage: Arc::new(stage), stop: CancellationToken::new() }
}

impl World {
    fn answers(&self, id: &str, receipt: Receipt) {
        self.expo.0.lock().unwrap().0.insert(id.to_owned(), receipt);
    }

    async fn handle(&self, record: &Record) -> Fate {
        handle(&*self.stage, record, &self.stop).await.unwrap()
    }

    fn count(&self, result: &str) -> u64 {
        self.metrics.receipts_total.with_label_values(&[result]).get()
    }

    fn state(&self) -> RouteState {
        self.route.0.lock().unwrap().state
    }

    fn release(&self) {
        let mut route = self.route.0.lock().unwrap();
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

/// A world in which every token of a batch is called dead.
fn flood(world: &World) -> Record {
    let ids: Vec<String> = (0..60).map(|n| format!("t{n}")).collect();
    ids.iter().for_each(|id| world.answers(id, unregistered()));
    sent(&ids.iter().map(String::as_str).collect::<Vec<_>>(), 900)
}

#[test]
fn a_batch_is_due_when_expo_may_have_an_answer() {
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
    let messages = world.topics.take();
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
async fn what_is_not_ready_goes_to_the_tail_with_the_time_of_its_first_sending() {
    let world = world();
    world.answers("a", Receipt::Delivered);
    let record = sent(&["a", "b"], 900);
    world.handle(&record).await;
    let messages = world.topics.take();
    let [message] = messages.as_slice() else { panic!("{messages:?}") };
    assert_eq!(message.topic, topics::EXPO_RECEIPTS);
    let expected = TicketBatch { tickets: vec![ticket("b")], first_sent_at: Some(record.timestamp) };
    assert_eq!(receipts::read(None, message.value.as_deref()), Ok(expected));

    // And keeps that time from then on.
    let back = Record { value: message.value.clone(), ..sent(&[], 0) };
    world.handle(&back).await;
    assert_eq!(world.topics.take()[0].value, message.value);
    assert_eq!(world.count("missing"), 0);
}

#[tokio::test]
async fn after_a_day_a_receipt_is_missing() {
    let world = world();
    assert_eq!(world.handle(&sent(&["a", "b"], 24 * 3600)).await, Fate::Done);
    assert_eq!(world.topics.take(), []);
    assert_eq!(world.count("missing"), 2);
}

#[tokio::test(start_paused = true)]
async fn kafka_being_away_does_not_make_us_ask_again() {
    let world = world();
    world.answers("a", unregistered());
    world.topics.refuse(3);
    assert_eq!(world.handle(&sent(&["a"], 900)).await, Fate::Done);
    assert_eq!(world.topics.take().len(), 1);
    assert_eq!((world.expo.0.lock().unwrap().1, world.count("dead")), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_dead_tokens_is_held_until_somebody_has_looked() {
    let world = world();
    let record = flood(&world);
    let stage = world.stage.clone();
    let stop = world.stop.clone();
    let handling = async { handle(&*stage, &record, &stop).await.unwrap() };
    let looking = async {
        tokio::time::sleep(Duration::from_secs(3600)).await;
        assert_eq!(world.state(), RouteState::Braked);
        assert_eq!(world.topics.take(), []);
        world.release();
    };
    let (fate, ()) = tokio::join!(handling, looking);
    assert_eq!(fate, Fate::Done);
    let tokens: HashSet<_> = world.topics.take().into_iter().map(|message| message.key).collect();
    assert_eq!(tokens.len(), 60);
    assert_eq!(world.state(), RouteState::Released, "the held ones don't brake it again");
}

#[tokio::test(start_paused = true)]
async fn a_pause_and_a_resume_do_not_disarm_the_brake() {
    let world = world();
    let record = flood(&world);
    world.route.0.lock().unwrap().since = Timestamp::now();
    let stage = world.stage.clone();
    let stop = world.stop.clone();
    let _held = tokio::time::timeout(Duration::from_secs(60), handle(&*stage, &record, &stop)).await;
    assert_eq!((world.state(), world.topics.take().len()), (RouteState::Braked, 0));
}

#[tokio::test(start_paused = true)]
async fn receipts_are_counted_once_though_the_routes_row_can_not_be_written_at_first() {
    let world = world();
    let record = flood(&world);
    world.route.1.store(5, Ordering::Relaxed);
    let handling = handle(&*world.stage, &record, &world.stop);
    let _held = tokio::time::timeout(Duration::from_secs(60), handling).await;
    let route = world.route.0.lock().unwrap().clone();
    assert_eq!(route.state, RouteState::Braked);
    assert!(route.detail.starts_with("60 of 60 receipts"), "{}", route.detail);
}

#[tokio::test(start_paused = true)]
async fn a_stop_ends_the_wait_and_leaves_the_record_to_its_next_owner() {
    let world = world();
    let record = flood(&world);
    let token = tokio_util::sync::CancellationToken::new();
    let stop = token.clone();
    let stopping = async {
        tokio::time::sleep(Duration::from_secs(10)).await;
        token.cancel();
    };
    let (fate, ()) = tokio::join!(handle(&*world.stage, &record, &stop), stopping);
    assert_eq!(fate.unwrap(), Fate::Unfinished);
    assert_eq!(world.topics.take(), []);
}

#[tokio::test]
async fn refused_credentials_halt_the_route_but_not_once_they_are_mended() {
    let world = world();
    world.answers("a", Receipt::CredentialsRefused { why: "InvalidCredentials".to_owned() });
    world.handle(&sent(&["a"], 900)).await;
    assert_eq!((world.state(), world.count("credentials")), (RouteState::Halted, 1));
    world.release();
    world.handle(&sent(&["a"], 900)).await;
    assert_eq!(world.state(), RouteState::Released);
    assert_eq!(world.topics.take(), [], "no token dies of our credentials");
}

#[tokio::test]
async fn a_batch_that_can_not_be_read_is_a_dead_letter() {
    let world = world();
    assert_eq!(
        world.handle(&record("{}")).await,
        Fate::DeadLetter(Cause::unreadable("missing field `tickets`"))
    );
    assert_eq!(world.handle(&record(r#"{"tickets":[]}"#)).await, Fate::Done);
    assert_eq!(world.expo.0.lock().unwrap().1, 0);
}

#[tokio::test]
async fn a_thousand_tickets_are_one_question() {
    let world = world();
    let ids: Vec<String> = (0..1_000).map(|n| format!("t{n}")).collect();
    ids.iter().skip(1).for_each(|id| world.answers(id, Receipt::Delivered));
    let record = sent(&ids.iter().map(String::as_str).collect::<Vec<_>>(), 900);
    assert_eq!(world.handle(&record).await, Fate::Done);
    assert_eq!((world.expo.0.lock().unwrap().1, world.count("delivered")), (1, 999));
    let [late] = &world.topics.take()[..] else { panic!("the one without a receipt") };
    assert_eq!(receipts::read(None, late.value.as_deref()).unwrap().tickets, [ticket("t0")]);
}
