//! Stops, drains and losses of a partition: what still starts, what ends, what settles.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_stop_waits_for_running_handlers_and_starts_nothing_that_was_not_overtaken() {
    let mut world = World::new();
    world.write(Some("a"), "wait").await;
    world.write(Some("b"), "until stopped").await;
    world.write(Some("a"), "behind what is unfinished").await;
    world.write(Some("c"), "wait").await;
    world.write(Some("c"), "behind all that has started").await;
    sleep(Duration::from_secs(1)).await;
    world.signals.stop.cancel();
    sleep(Duration::from_secs(1)).await;
    world.handler.release.add_permits(2);
    assert_eq!(world.ended().await, Duration::ZERO);
    assert_eq!(
        world.position(),
        Some(1),
        "what ended in the drain counts; what did not start, or is unfinished, does not"
    );
    assert_eq!(world.handler.log(), ["0 wait", "1 until stopped", "3 wait"]);
}

#[tokio::test(start_paused = true)]
async fn a_stop_still_starts_waiting_records_that_others_have_overtaken_so_that_nothing_is_repeated() {
    let mut world = World::new();
    world.write(Some("a"), "wait").await;
    world.write(Some("a"), "overtaken").await;
    world.write(Some("b"), "overtakes").await;
    world.write(Some("a"), "not overtaken").await;
    sleep(Duration::from_secs(1)).await;
    world.signals.stop.cancel();
    sleep(Duration::from_secs(1)).await;
    world.handler.release.add_permits(1);
    assert_eq!(world.ended().await, Duration::ZERO);
    assert_eq!(world.position(), Some(3));
    assert_eq!(world.handler.log(), ["0 wait", "2 overtakes", "1 overtaken"]);
}

#[tokio::test(start_paused = true)]
async fn late_in_a_drain_no_record_starts_any_more() {
    let mut world = World::new();
    world.write(Some("a"), "wait").await;
    world.write(Some("a"), "overtaken").await;
    world.write(Some("b"), "overtakes").await;
    sleep(Duration::from_secs(1)).await;
    world.signals.stop.cancel();
    sleep(LIMITS.drain_timeout / 2).await;
    world.handler.release.add_permits(1);
    assert_eq!(world.ended().await, Duration::ZERO);
    assert_eq!((world.position(), world.handler.log().len()), (Some(1), 2));
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_outlasts_the_drain_is_aborted_and_its_record_stays_unsettled() {
    let mut world = World::new();
    world.write(None, "wait").await;
    sleep(Duration::from_secs(1)).await;
    world.signals.stop.cancel();
    assert_eq!(world.ended().await, LIMITS.drain_timeout);
    assert_eq!(world.position(), Some(0));
}

#[tokio::test(start_paused = true)]
async fn a_stop_ends_the_wait_for_an_unavailable_dependency() {
    let mut world = World::new();
    world.publisher.errors.lock().unwrap().extend((0..10_000).map(|_| unavailable()));
    world.write(None, "reject").await;
    sleep(Duration::from_secs(100)).await;
    world.signals.stop.cancel();
    assert_eq!(world.ended().await, Duration::ZERO);
    assert_eq!(world.position(), Some(0));
}

/// A partition that was lost while a handler waited, and its orphaned handlers.
async fn lost() -> (World, OrphanedHandlers) {
    let mut world = World::new();
    let mut orphaned = OrphanedHandlers::new("stage", LIMITS.drain_timeout);
    world.write(Some("a"), "wait").await;
    world.write(Some("a"), "not started").await;
    world.write(Some("b"), "overtakes").await;
    sleep(Duration::from_secs(1)).await;
    world.signals.stop.cancel();
    world.signals.lost.cancel();
    let from = Instant::now();
    orphaned.add(world.exit().await);
    assert_eq!(
        (from.elapsed(), orphaned.is_empty()),
        (Duration::ZERO, false),
        "it ends at once, though a handler runs"
    );
    (world, orphaned)
}

fn is_over(orphaned: &OrphanedHandlers) -> bool {
    orphaned
        .ended_signal(&TopicPartition { topic: "t".into(), partition: 0 })
        .is_none_or(|ended| ended.is_cancelled())
}

#[tokio::test(start_paused = true)]
async fn an_orphaned_handler_runs_to_its_end_but_settles_nothing_and_starts_nothing() {
    let (world, mut orphaned) = lost().await;
    sleep(Duration::from_secs(3_600)).await; // Nothing is reassigned, so there is no other owner.
    assert!(!is_over(&orphaned));
    world.handler.release.add_permits(1);
    orphaned.next().await;
    assert!(is_over(&orphaned) && orphaned.is_empty());
    assert_eq!(
        (world.position(), world.handler.log()),
        (Some(0), vec!["0 wait".to_owned(), "2 overtakes".to_owned()])
    );
    assert_eq!(world.handler.release.available_permits(), 0, "it has run to its end");
}

#[tokio::test(start_paused = true)]
async fn once_there_may_be_another_owner_orphaned_handlers_have_the_drain_timeout_and_no_more() {
    let (world, mut orphaned) = lost().await;
    orphaned.start_deadline();
    let from = Instant::now();
    orphaned.next().await;
    assert_eq!((from.elapsed(), is_over(&orphaned)), (LIMITS.drain_timeout, true));
    world.handler.release.add_permits(1);
    sleep(Duration::from_secs(1)).await;
    assert_eq!(world.handler.release.available_permits(), 1, "it was aborted");
}

#[tokio::test(start_paused = true)]
async fn a_partition_that_comes_back_is_not_read_before_its_orphaned_handlers_have_ended() {
    let ended = CancellationToken::new();
    let mut world = World::after(Some(ended.clone()));
    world.write(None, "done").await;
    sleep(Duration::from_secs(60)).await;
    assert_eq!(world.handler.log(), [""; 0]);
    ended.cancel();
    world.committable(1).await;
}
