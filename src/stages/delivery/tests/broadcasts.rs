//! Broadcasts: each token is sent to once, whatever stops a part in the middle, and the total is published.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_broadcast_is_sent_to_every_token_once_and_its_total_is_published() {
    let w = World::new();
    let slice = w.broadcast_to(1_000);
    assert_eq!(w.handle(slice, &CancellationToken::default()).await, Fate::Done);
    assert!(w.times_sent(1_000).iter().all(|&times| times == 1));
    let outcomes = w.published(topics::PUSH_OUTCOMES);
    assert!(outcomes.len() == 1 && outcomes[0].contains(r#""sent":1000"#), "{outcomes:?}");
    assert_eq!(w.store.state().broadcast, Some(BroadcastState::Done));
}

#[tokio::test(start_paused = true)]
async fn an_unavailable_store_at_any_step_sends_nothing_twice() {
    for operation in
        ["broadcast", "take_over", "page_of_slice", "checkpoint", "finish_part", "total", "close"]
    {
        let w = World::new();
        let slice = w.broadcast_to(700);
        w.store.state().unavailable.insert(operation, 2);
        assert_eq!(w.handle(slice, &CancellationToken::default()).await, Fate::Done);
        assert!(w.times_sent(700).iter().all(|&times| times == 1), "{operation}");
        assert_eq!(w.store.state().parts[&0].counts.sent, 700, "{operation}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_stop_in_the_middle_of_a_page_sends_nothing_twice() {
    let w = World::new();
    let slice = w.broadcast_to(700);
    w.provider.answers("t10", [busy(30)]);
    w.provider.answers("t150", [busy(30)]);
    let stop = CancellationToken::new();
    let (fate, ()) = tokio::join!(w.handle(slice.clone(), &stop), stop_after(Duration::from_secs(1), &stop));
    assert_eq!(fate, Fate::Unfinished);
    let open = w.store.state().parts[&0].open.clone();
    assert_eq!(
        open,
        ["t10", "t150"].map(|name| registration(name).token),
        "the busy devices are not sent to before their pause is over"
    );
    assert_eq!(w.handle(slice, &CancellationToken::default()).await, Fate::Done);
    let not_once: Vec<_> =
        w.times_sent(700).into_iter().enumerate().filter(|&(_, times)| times != 1).collect();
    assert_eq!(not_once, []);
    assert_eq!(w.store.state().parts[&0].counts.sent, 700);
}

#[tokio::test(start_paused = true)]
async fn a_device_that_a_stop_left_open_is_sent_to_unless_its_new_user_is_not_in_the_list() {
    // The new user of the device; u2 is behind the cursor, and is reached anyway.
    for (user, sends) in [("u1", 1), ("u2", 1), ("u9", 0)] {
        let w = World::new();
        w.broadcast_to(0);
        let device = |user: &str, name| Registration { user: Some(UserId::new(user)), ..registration(name) };
        w.store
            .state()
            .users
            .insert(UserId::new("u1"), ["a", "b", "c"].map(|name| device("u1", name)).to_vec());
        w.store.state().users.insert(UserId::new("u2"), vec![device("u2", "d")]);
        for name in ["a", "d"] {
            w.provider.answers(name, [busy(30)]);
        }
        let users = ["u0", "u1", "u2"].map(UserId::new).to_vec();
        let list = Work::List(ListJob { broadcast: broadcast(), part: 0, users });
        let stop = CancellationToken::new();
        tokio::join!(w.handle(list.clone(), &stop), stop_after(Duration::from_secs(1), &stop));
        assert_eq!(["a", "b", "c"].map(|name| w.provider.times_sent(name)), [0, 1, 1]);

        w.store.state().users.get_mut(&UserId::new("u1")).unwrap().remove(0);
        w.store.state().users.entry(UserId::new(user)).or_default().insert(0, device(user, "a"));
        assert_eq!(w.handle(list, &CancellationToken::default()).await, Fate::Done);
        assert_eq!(["a", "b", "c", "d"].map(|name| w.provider.times_sent(name)), [sends, 1, 1, 1], "{user}");
        let counts = w.store.state().parts[&0].counts;
        assert_eq!(counts.sent, 3 + sends as u64);
    }
}

#[tokio::test(start_paused = true)]
async fn a_list_skips_users_without_tokens() {
    let w = World::new();
    w.broadcast_to(0);
    w.store.state().users.insert(UserId::new("u3"), vec![registration("a"), registration("b")]);
    let users = (0..8).map(|i| UserId::new(format!("u{i}"))).collect();
    let list = Work::List(ListJob { broadcast: broadcast(), part: 0, users });
    assert_eq!(w.handle(list, &CancellationToken::default()).await, Fate::Done);
    assert_eq!((w.provider.times_sent("a"), w.provider.times_sent("b")), (1, 1));
    assert_eq!(w.store.state().parts[&0].counts.sent, 2);
}

#[tokio::test(start_paused = true)]
async fn a_list_is_sent_in_pages_and_no_user_is_split_between_two() {
    let w = World::new();
    w.broadcast_to(0);
    let mut tokens = (0..).map(|i| registration(&format!("t{i}")));
    for user in 0..300 {
        w.store
            .state()
            .users
            .insert(UserId::new(format!("u{user}")), tokens.by_ref().take(user % 7).collect());
    }
    let all: usize = (0..300).map(|user| user % 7).sum();
    let users = (0..300).map(|i| UserId::new(format!("u{i}"))).collect();
    w.store.state().unavailable.insert("tokens_of", 1);
    let list = Work::List(ListJob { broadcast: broadcast(), part: 0, users });
    assert_eq!(w.handle(list, &CancellationToken::default()).await, Fate::Done);
    assert!(w.times_sent(all).iter().all(|&times| times == 1));
    assert_eq!(w.store.state().parts[&0].counts.sent, all as u64);
    assert!(
        (3..=4).contains(&w.store.state().calls["checkpoint"]),
        "{}",
        w.store.state().calls["checkpoint"]
    );
}

#[tokio::test(start_paused = true)]
async fn a_stop_that_comes_long_after_a_page_was_read_sends_nothing_twice() {
    let w = World::new();
    let slice = w.broadcast_to(300);
    w.provider.answers("t10", [busy(300)]);
    let stop = CancellationToken::new();
    let (_, ()) = tokio::join!(w.handle(slice.clone(), &stop), stop_after(Duration::from_secs(100), &stop));
    assert_eq!(w.handle(slice, &CancellationToken::default()).await, Fate::Done);
    assert!(w.times_sent(300).iter().all(|&times| times == 1));
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_broadcast_ends_with_the_count_of_what_was_sent() {
    let w = World::new();
    let slice = w.broadcast_to(600);
    w.provider.answers("t10", [busy(500)]);
    let cancel = async {
        sleep(Duration::from_secs(5)).await;
        w.store.state().broadcast = Some(BroadcastState::Stopped { reason: StopReason::Cancelled });
    };
    let stop = CancellationToken::new();
    let (fate, ()) = tokio::join!(w.handle(slice, &stop), cancel);
    assert_eq!(fate, Fate::Done);
    let outcomes = w.published(topics::PUSH_OUTCOMES);
    assert!(outcomes[0].contains(r#""sent":299"#), "{outcomes:?}");
}

#[tokio::test(start_paused = true)]
async fn a_total_is_published_by_the_process_that_asks_for_it_first() {
    let w = World::new();
    let slice = w.broadcast_to(100);
    w.store.state().total_at = Some(Timestamp::UNIX_EPOCH);
    let other_process = async {
        while w.store.state().finished.is_empty() {
            sleep(Duration::from_millis(100)).await;
        }
        sleep(Duration::from_secs(1)).await;
        w.store.state().broadcast = Some(BroadcastState::Done);
    };
    let stop = CancellationToken::new();
    let (fate, ()) = tokio::join!(w.handle(slice, &stop), other_process);
    assert_eq!((fate, w.published(topics::PUSH_OUTCOMES).len()), (Fate::Done, 0));
}

#[tokio::test(start_paused = true)]
async fn a_total_is_published_although_the_process_that_asked_first_has_crashed() {
    let w = World::new();
    let slice = w.broadcast_to(100);
    w.store.state().total_at = Some(Timestamp::UNIX_EPOCH);
    assert_eq!(w.handle(slice, &CancellationToken::default()).await, Fate::Done);
    let outcomes = w.published(topics::PUSH_OUTCOMES);
    assert!(outcomes.len() == 1 && outcomes[0].contains(r#""at":"1970-01-01T00:00:00Z""#), "{outcomes:?}");
}

// === Refusals ===

#[tokio::test(start_paused = true)]
async fn a_payload_that_is_refused_stops_the_broadcast_once() {
    let w = World::new();
    let slice = w.broadcast_to(600);
    w.provider.answers("t0", [Verdict::PayloadRefused { why: "MessageTooBig".to_owned() }]);
    assert_eq!(w.handle(slice, &CancellationToken::default()).await, Fate::Done);
    assert_eq!(w.store.state().calls["stop"], 1);
    assert!(w.times_sent(600)[300..].iter().all(|&times| times == 0), "no page is begun after the refusal");
}

#[tokio::test(start_paused = true)]
async fn a_broadcast_whose_requests_are_all_refused_stops_after_a_few() {
    let w = World::new();
    let slice = w.broadcast_to(3_000);
    w.provider.refuses_all();
    assert_eq!(w.handle(slice, &CancellationToken::default()).await, Fate::Done);
    assert_eq!(w.store.state().calls["stop"], 1);
    let refused = w.store.state().parts[&0].counts.refused;
    assert!((20..100).contains(&refused), "{refused}");
}

#[tokio::test(start_paused = true)]
async fn a_payload_that_is_too_large_is_refused_once_a_broadcast() {
    let w = World::new();
    let slice = w.broadcast_to(600);
    let mut job = job(slice, Timestamp::now() + Duration::from_secs(3600));
    job.notification.title = "too large".to_owned();
    w.store.state().plan = Some(Plan { spec: String::new(), parts: 2 });
    for _ in 0..2 {
        assert_eq!(w.handle_job(&job, &CancellationToken::default()).await, Fate::Done);
        // The next part finds the same.
        w.store.state().parts.clear();
    }
    assert_eq!(w.store.state().calls["stop"], 1);
}

#[tokio::test(start_paused = true)]
async fn a_part_that_panics_leaves_no_broadcast_open() {
    let w = World::new();
    let slice = w.broadcast_to(600);
    let mut job = job(slice, Timestamp::now() + Duration::from_secs(3600));
    job.notification.title = "a bug".to_owned();
    let stop = CancellationToken::new();
    let handled = AssertUnwindSafe(w.handle_job(&job, &stop)).catch_unwind().await;
    assert!(handled.is_err(), "the runtime dead-letters the record");
    assert_eq!(w.store.state().broadcast, Some(BroadcastState::Done));
    assert_eq!(w.published(topics::PUSH_OUTCOMES).len(), 1);

    // Once the bug is fixed, a replay sends the rest.
    job.notification.title = "Ping".to_owned();
    assert_eq!(w.handle_job(&job, &stop).await, Fate::Done);
    assert!(w.times_sent(600).iter().all(|&times| times == 1));
}
