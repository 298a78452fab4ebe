//! Records that can't be handled: what becomes of them, and when their partition stops.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_panicking_handler_costs_its_record_and_no_other() {
    let mut world = World::new();
    world.write(Some("a"), "panic").await;
    world.write(Some("a"), "panic in key").await;
    world.write(Some("a"), "panic in read").await;
    world.write(Some("a"), "next of the key").await;
    world.committable(4).await;
    let dead_letters = world.publisher.published.lock().unwrap().clone();
    let mut causes: Vec<_> = dead_letters
        .iter()
        .map(|message| {
            let header = |name: &str| {
                message.headers.iter().find(|header| header.name == name).unwrap().value.clone().unwrap()
            };
            let text = |name| String::from_utf8(header(name)).unwrap();
            (text("app.offset"), text("app.cause"), text("app.error"))
        })
        .collect();
    causes.sort();
    let panicked = |offset: &str, error: &str| (offset.to_owned(), "panicked".to_owned(), error.to_owned());
    assert_eq!(
        causes,
        [panicked("0", "as scripted"), panicked("1", "no key for this"), panicked("2", "not to be read")]
    );
    assert!(
        dead_letters
            .iter()
            .all(|message| message.topic == "dead-letters" && message.key.as_deref() == Some(b"a"))
    );
    assert_eq!(world.handler.log().last().unwrap(), "3 next of the key");
}

#[tokio::test(start_paused = true)]
async fn a_dead_letter_settles_its_record_only_when_kafka_has_acknowledged_it() {
    let mut world = World::new();
    world.publisher.errors.lock().unwrap().extend((0..5).map(|_| unavailable()));
    world.write(None, "reject").await;
    world.write(None, "done").await;
    sleep(Duration::from_millis(50)).await;
    assert_eq!(world.position(), Some(0));
    world.committable(2).await;
    assert_eq!(world.publisher.published.lock().unwrap()[0].value.as_deref(), Some(&b"reject"[..]));
}

#[tokio::test(start_paused = true)]
async fn a_dead_letter_that_is_too_large_is_written_without_its_value() {
    let mut world = World::new();
    world.publisher.errors.lock().unwrap().push(too_large());
    world.write(None, "reject").await;
    world.committable(1).await;
    let message = world.publisher.published.lock().unwrap()[0].clone();
    assert_eq!(message.value, None);
    assert!(message.headers.iter().any(|header| header.name == "app.value-sha256"));
}

#[tokio::test(start_paused = true)]
async fn a_record_that_causes_a_message_too_large_for_kafka_is_dead_lettered_and_not_retried() {
    let mut world = World::new();
    world.write(Some("a"), "cause a message too large").await;
    world.write(Some("a"), "next of the key").await;
    world.committable(2).await;
    let message = world.publisher.published.lock().unwrap()[0].clone();
    assert!(
        message
            .headers
            .iter()
            .any(|header| header.name == "app.cause" && header.value.as_deref() == Some(b"refused"))
    );
    assert_eq!(world.handler.tries(0), 1);
}

#[tokio::test(start_paused = true)]
async fn a_topic_full_of_unreadable_records_goes_to_the_dead_letters_to_its_end() {
    let mut world = World::new();
    for _ in 0..300 {
        world.write(None, "reject").await;
    }
    world.committable(300).await;
    assert_eq!(world.publisher.published.lock().unwrap().len(), 300);
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_panics_on_everything_stops_its_partition_instead_of_filling_the_dead_letters() {
    let mut world = World::with(LIMITS, 1);
    for _ in 0..300 {
        world.write(None, "panic").await;
    }
    sleep(Duration::from_secs(60)).await;
    assert_eq!((world.publisher.published.lock().unwrap().len(), world.position()), (99, Some(99)));
    world.signals.stop.cancel();
    world.ended().await;
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_only_causes_what_kafka_refuses_stops_its_partition_too() {
    let mut world = World::with(LIMITS, 1);
    for _ in 0..300 {
        world.write(None, "cause a message too large").await;
    }
    sleep(Duration::from_secs(60)).await;
    assert_eq!((world.publisher.published.lock().unwrap().len(), world.position()), (99, Some(99)));
}
