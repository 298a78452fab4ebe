//! Doses: each is sent once, and is marked, whatever the store does.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_dose_is_sent_to_each_device_once_and_is_marked() {
    let w = World::new();
    let dose = w.dose_for(&["a", "b"]);
    assert_eq!(w.handle(dose, &CancellationToken::default()).await, Fate::Done);
    assert_eq!([w.provider.times_sent("a"), w.provider.times_sent("b")], [1, 1]);
    assert_eq!(w.mark(), Some(DoseOutcome::Sent));
}

#[tokio::test(start_paused = true)]
async fn an_unavailable_store_between_two_claims_sends_nothing_twice() {
    for operation in ["claim", "tokens_of", "mark"] {
        let w = World::new();
        let dose = w.dose_for(&["a", "b"]);
        // b is busy for longer than the first lease.
        w.provider.answers("b", [busy(40)]);
        let outage = async {
            sleep(Duration::from_secs(10)).await;
            w.store.state().unavailable.insert(operation, 3);
        };
        let stop = CancellationToken::new();
        let (fate, ()) = tokio::join!(w.handle(dose, &stop), outage);
        assert_eq!(fate, Fate::Done);
        assert_eq!(
            (w.provider.times_sent("a"), w.provider.times_sent("b"), w.mark()),
            (1, 1, Some(DoseOutcome::Sent)),
            "{operation}"
        );
        assert_eq!(w.store.state().unavailable[operation], 0, "it was called in the outage");
    }
}

#[tokio::test(start_paused = true)]
async fn an_unavailable_store_between_claim_and_tokens_does_not_delay_a_dose_to_the_end_of_its_lease() {
    let w = World::new();
    let dose = w.dose_for(&["a"]);
    w.store.state().unavailable.insert("tokens_of", 5);
    let started_at = Instant::now();
    assert_eq!(w.handle(dose, &CancellationToken::default()).await, Fate::Done);
    assert_eq!(
        (w.provider.times_sent("a"), w.mark(), w.store.state().calls["claim"]),
        (1, Some(DoseOutcome::Sent), 1)
    );
    assert!(started_at.elapsed() < Duration::from_secs(6), "{:?}", started_at.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_store_that_cannot_read_the_users_tokens_does_not_delay_a_stop() {
    let w = World::new();
    let dose = w.dose_for(&["a"]);
    w.store.state().unavailable.insert("tokens_of", usize::MAX);
    let stop = CancellationToken::new();
    let started_at = Instant::now();
    let (fate, ()) = tokio::join!(w.handle(dose, &stop), stop_after(Duration::from_secs(1), &stop));
    assert_eq!(
        (fate, w.store.state().calls["claim"]),
        (Fate::Unfinished, 2),
        "the second claim ends the lease"
    );
    assert!(started_at.elapsed() < Duration::from_secs(2), "{:?}", started_at.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_route_that_cannot_be_read_holds_only_the_dead_tokens_of_a_dose() {
    let w = World::new();
    let dose = w.dose_for(&["a", "b"]);
    w.provider.answers("b", [dead(), dead(), dead()]);
    // Each failed read is retried after 0.1 to 5 seconds.
    w.store.state().unavailable.insert("route", 8);
    let stop = CancellationToken::new();
    assert_eq!(w.handle(dose, &stop).await, Fate::Done);
    assert_eq!([w.provider.times_sent("a"), w.provider.times_sent("b")], [1, 0]);
    assert_eq!(w.mark(), Some(DoseOutcome::Sent));
    assert!(w.store.state().calls["claim"] > 1, "the claim is renewed in the meantime");
    assert_eq!(w.published(topics::INVALID_TOKENS).len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_stop_in_the_middle_of_a_dose_sends_nothing_twice() {
    let w = World::new();
    let dose = w.dose_for(&["a", "b"]);
    w.provider.answers("b", [busy(30)]);
    let stop = CancellationToken::new();
    let (_, ()) = tokio::join!(w.handle(dose.clone(), &stop), stop_after(Duration::from_secs(1), &stop));
    assert_eq!(w.handle(dose, &CancellationToken::default()).await, Fate::Done);
    assert_eq!([w.provider.times_sent("a"), w.provider.times_sent("b")], [1, 1]);
    assert_eq!(w.mark(), Some(DoseOutcome::Sent));
}

#[tokio::test(start_paused = true)]
async fn a_dose_that_cannot_be_finished_after_a_stop_is_left_to_the_next_owner_in_time() {
    let w = World::new();
    let dose = w.dose_for(&["a", "b"]);
    w.provider.answers("b", [busy(30), busy(30), busy(30)]);
    let stop = CancellationToken::new();
    let started_at = Instant::now();
    let (fate, ()) = tokio::join!(w.handle(dose, &stop), stop_after(Duration::from_secs(1), &stop));
    assert_eq!(fate, Fate::Unfinished);
    assert!(started_at.elapsed() < Duration::from_secs(6), "{:?}", started_at.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_dose_on_a_closed_route_renews_its_claim_and_is_sent_when_the_route_opens() {
    let w = World::new();
    w.route_sync.follow(Gate::Closed(ClosedBy::Paused));
    let dose = w.dose_for(&["a"]);
    let reopen = async {
        sleep(Duration::from_secs(100)).await;
        w.route_sync.follow(Gate::Open);
    };
    let stop = CancellationToken::new();
    let (fate, ()) = tokio::join!(w.handle(dose, &stop), reopen);
    assert_eq!((fate, w.provider.times_sent("a"), w.mark()), (Fate::Done, 1, Some(DoseOutcome::Sent)));
    assert_eq!(w.store.state().calls["claim"], 4, "requests may start within 29 seconds of a claim");
}

#[tokio::test(start_paused = true)]
async fn a_dose_on_a_closed_route_expires_in_time() {
    let w = World::new();
    w.route_sync.follow(Gate::Closed(ClosedBy::Paused));
    let job = job(w.dose_for(&["a"]), Timestamp::now() + Duration::from_secs(20));
    let started_at = Instant::now();
    assert_eq!(w.handle_job(&job, &CancellationToken::default()).await, Fate::Done);
    assert_eq!((w.mark(), started_at.elapsed().as_secs().div_ceil(10)), (Some(DoseOutcome::Expired), 2));
}

#[tokio::test(start_paused = true)]
async fn a_dose_whose_tokens_look_dead_on_a_braked_route_is_sent_after_the_release() {
    let w = World::new();
    let names: Vec<String> = (0..60).map(|i| format!("t{i}")).collect();
    names.iter().for_each(|name| w.provider.answers(name, [dead()]));
    let dose = w.dose_for(&names.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(w.handle_until_released(dose).await, Fate::Done);
    assert_eq!((w.mark(), w.times_sent(60)), (Some(DoseOutcome::Sent), vec![1; 60]));
    assert_eq!(w.published(topics::INVALID_TOKENS).len(), 0);
}
