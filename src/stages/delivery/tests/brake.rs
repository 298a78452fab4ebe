//! The brake: too many dead tokens close the route and are held until it is released.

use super::*;

#[tokio::test(start_paused = true)]
async fn too_many_dead_tokens_brake_the_route_and_are_sent_to_again_after_a_release() {
    let w = World::new();
    let slice = w.broadcast_to(300);
    // Half of them were misjudged.
    (0..100).for_each(|i| {
        w.provider.answers(&format!("t{i}"), std::iter::repeat_n(dead(), if i < 50 { 2 } else { 1 }))
    });
    assert_eq!((w.handle_until_released(slice).await, is_braked(&w)), (Fate::Done, false));
    assert_eq!(w.published(topics::INVALID_TOKENS).len(), 50);
    let part = w.store.state().parts[&0].clone();
    assert_eq!((part.counts.sent, part.counts.dead, part.done), (250, 50, true));
    assert!(w.times_sent(300)[50..].iter().all(|&times| times == 1));
}

#[tokio::test(start_paused = true)]
async fn the_dead_tokens_of_a_page_are_looked_up_concurrently_when_the_route_is_open_again() {
    let w = World::new();
    let slice = w.broadcast_to(300);
    (0..100).for_each(|i| w.provider.answers(&format!("t{i}"), [dead()]));
    w.store.state().inspect_takes = Duration::from_millis(100);
    let started_at = Instant::now();
    assert_eq!(w.handle_until_released(slice).await, Fate::Done);
    // One after the other they would take ten seconds.
    assert!(started_at.elapsed() < Duration::from_secs(65), "{:?}", started_at.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_device_that_was_registered_again_while_the_route_was_braked_is_not_sent_to() {
    let w = World::new();
    let slice = w.broadcast_to(300);
    (0..100).for_each(|i| w.provider.answers(&format!("t{i}"), [dead()]));
    let registered_again = async {
        sleep(Duration::from_secs(30)).await;
        w.store.state().audience[7].version = crate::domain::Version::from_i64(4);
        std::future::pending::<()>().await;
    };
    tokio::select! {
        fate = w.handle_until_released(slice) => assert_eq!(fate, Fate::Done),
        () = registered_again => unreachable!("it does not end"),
    }
    let sent = w.times_sent(300);
    assert_eq!((sent[7], sent.iter().sum::<usize>()), (0, 299));
    let reported = w.published(topics::INVALID_TOKENS);
    assert!(
        matches!(&reported[..], [one] if one.contains("t7")),
        "cleanup spares its new registration: {reported:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn after_a_restart_on_a_braked_route_a_page_that_reached_no_device_is_sent_again() {
    let w = World::new();
    let slice = w.broadcast_to(300);
    (0..300).for_each(|i| w.provider.answers(&format!("t{i}"), [dead()]));
    let record = w.record(slice);
    let stop = CancellationToken::new();
    let (fate, ()) =
        tokio::join!(w.handle_record(&record, &stop), stop_after(Duration::from_secs(60), &stop));
    assert_eq!((fate, w.published(topics::INVALID_TOKENS).len()), (Fate::Unfinished, 0));

    w.store.state().route = Some(released());
    assert_eq!(w.handle_record(&record, &CancellationToken::default()).await, Fate::Done);
    assert_eq!((w.times_sent(300), w.store.state().parts[&0].counts.sent), (vec![1; 300], 300));
    assert_eq!(w.published(topics::INVALID_TOKENS).len(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_resume_after_a_halt_does_not_report_the_dead_tokens_that_are_held() {
    let w = World::new();
    let slice = w.broadcast_to(300);
    (0..100).for_each(|i| w.provider.answers(&format!("t{i}"), [dead()]));
    let stop = CancellationToken::new();
    let set = |state| w.store.state().route = Some(RouteRow { state, ..released() });
    let operator = async {
        sleep(Duration::from_secs(60)).await;
        assert!(is_braked(&w));
        set(RouteState::Halted);
        // The answers are far outside the window of the brake by then.
        sleep(Duration::from_secs(3_000)).await;
        assert_eq!(w.published(topics::INVALID_TOKENS).len(), 0);
        set(RouteState::Running);
    };
    let (fate, ()) = tokio::join!(w.handle(slice, &stop), operator);
    assert_eq!((fate, w.published(topics::INVALID_TOKENS).len()), (Fate::Done, 0));
    assert_eq!(w.times_sent(300), vec![1; 300]);
}

#[tokio::test(start_paused = true)]
async fn a_stop_leaves_held_dead_tokens_to_the_next_owner_and_sends_nothing_twice() {
    let w = World::new();
    let slice = w.broadcast_to(300);
    (0..100).for_each(|i| w.provider.answers(&format!("t{i}"), [dead()]));
    let stop = CancellationToken::new();
    let started_at = Instant::now();
    tokio::join!(w.handle(slice.clone(), &stop), stop_after(Duration::from_secs(60), &stop));
    assert!(started_at.elapsed() < Duration::from_secs(66), "{:?}", started_at.elapsed());
    let published: Vec<_> = w.producer.take().into_iter().map(|message| message.topic).collect();
    assert!(published.iter().any(|topic| topic == topics::EXPO_RECEIPTS), "tickets are not held");
    assert!(published.iter().all(|topic| topic != topics::INVALID_TOKENS), "{published:?}");
    let part = w.store.state().parts[&0].clone();
    assert_eq!((part.counts.sent, part.counts.dead, part.open.len(), part.done), (200, 0, 100, false));

    w.store.state().route = Some(released());
    assert_eq!(w.handle(slice, &CancellationToken::default()).await, Fate::Done);
    assert_eq!((w.times_sent(300), w.store.state().parts[&0].counts.sent), (vec![1; 300], 300));
}

#[tokio::test(start_paused = true)]
async fn dead_tokens_of_jobs_written_before_a_release_are_reported_and_a_resume_is_no_release() {
    for (state, is_reported) in [(RouteState::Released, true), (RouteState::Running, false)] {
        let w = World::new();
        let slice = w.broadcast_to(300);
        (0..100).for_each(|i| w.provider.answers(&format!("t{i}"), [dead()]));
        let stop = CancellationToken::new();
        let handle = async {
            // Written before the route was set, handled after.
            let record = w.record(slice);
            let set =
                RouteRow { state, since: Timestamp::now(), set_by: "ann".to_owned(), detail: String::new() };
            w.store.state().route = Some(set);
            w.handle_record(&record, &stop).await
        };
        tokio::join!(handle, stop_after(Duration::from_secs(60), &stop));
        let published = w.published(topics::INVALID_TOKENS).len();
        assert_eq!(
            (is_braked(&w), published),
            (!is_reported, if is_reported { 100 } else { 0 }),
            "{state:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_few_dead_tokens_do_not_brake_the_route() {
    let w = World::new();
    let slice = w.broadcast_to(300);
    (0..49).for_each(|i| w.provider.answers(&format!("t{i}"), [dead()]));
    assert_eq!(w.handle(slice, &CancellationToken::default()).await, Fate::Done);
    assert!(!is_braked(&w));
    assert_eq!(w.published(topics::INVALID_TOKENS).len(), 49);
}
