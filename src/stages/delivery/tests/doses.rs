//! Doses: each sends once, and is marked, whatever the store does.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_dose_rings_each_device_once_and_is_marked() {
    let w = World::new();
    let dose = w.devices(&["a", "b"]);
    assert_eq!(w.handle(dose, &CancellationToken::default()).await, Fate::Done);
    assert_eq!(
        (w.service.times_sent("a"), w.service.times_sent("b"), w.mark()),
        (1, 1, Some(DoseOutcome::Sent))
    );
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_away_between_two_claims_rings_nobody_twice() {
    for operation in ["claim", "tokens_of", "mark"] {
        let w = World::new();
        let dose = w.devices(&["a", "b"]);
        // b is busy for longer than the first lease.
        w.service.answers("b", [busy(40)]);
        let away = async {
            sleep(Duration::from_secs(10)).await;
            w.store.state().away.insert(operation, 3);
        };
        let stop = CancellationToken::new();
        let (fate, ()) = tokio::join!(w.handle(dose, &stop), away);
        assert_eq!(fate, Fate::Done);
        assert_eq!(
            (w.service.times_sent("a"), w.service.times_sent("b"), w.mark()),
            (1, 1, Some(DoseOutcome::Sent)),
            "{operation}"
        );
        assert_eq!(w.store.state().away[operation], 0, "it was away");
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_away_between_claim_and_tokens_does_not_leave_the_dose_to_the_end_of_the_lease() {
    let w = World::new();
    let dose = w.devices(&["a"]);
    w.store.state().away.insert("tokens_of", 5);
    let begun = Instant::now();
    assert_eq!(w.handle(dose, &CancellationToken::default()).await, Fate::Done);
    assert_eq!(
        (w.service.times_sent("a"), w.mark(), w.store.state().asked["claim"]),
        (1, Some(DoseOutcome::Sent), 1)
    );
    assert!(begun.elapsed() < Duration::from_secs(6), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_store_that_cannot_say_whose_tokens_does_not_hold_up_a_stop() {
    let w = World::new();
    let dose = w.devices(&["a"]);
    w.store.state().away.insert("tokens_of", usize::MAX);
    let stop = CancellationToken::new();
    let begun = Instant::now();
    let (fate, ()) = tokio::join!(w.handle(dose, &stop), stop_after(Duration::from_secs(1), &stop));
    assert_eq!(
        (fate, w.store.state().asked["claim"]),
        (Fate::Unfinished, 2),
        "the second one ends the lease"
    );
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_route_that_cannot_be_read_keeps_no_dose_from_its_mark_but_for_those_who_look_dead() {
    let w = World::new();
    let dose = w.devices(&["a", "b"]);
    w.service.answers("b", [dead(), dead(), dead()]);
    // It is asked again after 0.1 to 5 seconds.
    w.store.state().away.insert("route", 8);
    let stop = CancellationToken::new();
    assert_eq!(w.handle(dose, &stop).await, Fate::Done);
    assert_eq!(
        (w.service.times_sent("a"), w.service.times_sent("b"), w.mark()),
        (1, 0, Some(DoseOutcome::Sent))
    );
    assert!(w.store.state().asked["claim"] > 1, "the claim is renewed in the meantime");
    assert_eq!(w.published(topics::INVALID_TOKENS).len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_stop_in_the_middle_of_a_dose_rings_nobody_twice() {
    let w = World::new();
    let dose = w.devices(&["a", "b"]);
    w.service.answers("b", [busy(30)]);
    let stop = CancellationToken::new();
    let (_, ()) = tokio::join!(w.handle(dose.clone(), &stop), stop_after(Duration::from_secs(1), &stop));
    assert_eq!(w.handle(dose, &CancellationToken::default()).await, Fate::Done);
    assert_eq!(
        (w.service.times_sent("a"), w.service.times_sent("b"), w.mark()),
        (1, 1, Some(DoseOutcome::Sent))
    );
}

#[tokio::test(start_paused = true)]
async fn a_dose_that_cannot_be_finished_after_a_stop_is_left_in_time() {
    let w = World::new();
    let dose = w.devices(&["a", "b"]);
    w.service.answers("b", [busy(30), busy(30), busy(30)]);
    let stop = CancellationToken::new();
    let begun = Instant::now();
    let (fate, ()) = tokio::join!(w.handle(dose, &stop), stop_after(Duration::from_secs(1), &stop));
    assert_eq!(fate, Fate::Unfinished);
    assert!(begun.elapsed() < Duration::from_secs(6), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_dose_on_a_closed_route_renews_its_claim_and_rings_when_the_route_opens() {
    let w = World::new();
    w.route_sync.follow(Gate::Closed(ClosedBy::Paused));
    let dose = w.devices(&["a"]);
    let reopen = async {
        sleep(Duration::from_secs(100)).await;
        w.route_sync.follow(Gate::Open);
    };
    let stop = CancellationToken::new();
    let (fate, ()) = tokio::join!(w.handle(dose, &stop), reopen);
    assert_eq!((fate, w.service.times_sent("a"), w.mark()), (Fate::Done, 1, Some(DoseOutcome::Sent)));
    assert_eq!(w.store.state().asked["claim"], 4, "a claim is good for 29 seconds");
}

#[tokio::test(start_paused = true)]
async fn a_dose_on_a_closed_route_expires_in_time() {
    let w = World::new();
    w.route_sync.follow(Gate::Closed(ClosedBy::Paused));
    let job = job(w.devices(&["a"]), Timestamp::now() + Duration::from_secs(20));
    let begun = Instant::now();
    assert_eq!(w.handle_job(&job, &CancellationToken::default()).await, Fate::Done);
    assert_eq!((w.mark(), begun.elapsed().as_secs().div_ceil(10)), (Some(DoseOutcome::Expired), 2));
}

#[tokio::test(start_paused = true)]
async fn a_dose_for_tokens_that_look_dead_in_a_flood_rings_when_the_route_is_released() {
    let w = World::new();
    let names: Vec<String> = (0..60).map(|i| format!("t{i}")).collect();
    names.iter().for_each(|name| w.service.answers(name, [dead()]));
    let dose = w.devices(&names.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(w.handle_until_released(dose).await, Fate::Done);
    assert_eq!((w.mark(), w.times_sent(60)), (Some(DoseOutcome::Sent), vec![1; 60]));
    assert_eq!(w.published(topics::INVALID_TOKENS).len(), 0);
}
