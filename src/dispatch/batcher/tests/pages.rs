//! Pages that are returned before all of their messages have an outcome: withdrawn, stale, expired, out of
//! their lease.

use super::*;

fn dose(name: &str) -> SubmittedPage<&'static str> {
    page(Class::Urgent, name, 1)
}

#[tokio::test(start_paused = true)]
async fn a_withdrawn_page_keeps_the_outcome_of_what_was_on_the_wire() {
    let w = World::new(600, accept_all);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let withdraw = tokio::time::sleep(Duration::from_millis(110));
    let returned = w.handle.submit(page(Class::Slice, "a", 500), withdraw).await.unwrap();
    let sent = w.sent().len();
    assert!(sent > 0 && sent < 500);
    assert_eq!(
        returned.outcomes.iter().flatten().count(),
        sent,
        "each message that was sent has its outcome"
    );
    assert!(!returned.is_complete());
}

#[tokio::test(start_paused = true)]
async fn what_was_withdrawn_while_on_the_wire_is_not_sent_again() {
    let w = World::new(0, |number, tokens| {
        if number < 2 { Reply::Refused { why: "HTTP 400".into() } } else { accept_all(number, tokens) }
    });
    tokio::time::sleep(Duration::from_secs(1)).await;
    let withdrawn = tokio::time::sleep(Duration::from_millis(10));
    let returned = w.handle.submit(page(Class::Slice, "a", 150), withdrawn).await.unwrap();
    assert!(outcomes(&returned).iter().all(|outcome| *outcome == "-"));
    assert_eq!(w.requests().len(), 2, "no half of a refused request, while the other one was on the wire");
}

#[tokio::test(start_paused = true)]
async fn the_page_of_an_aborted_handler_is_not_sent_any_further() {
    let mut w = World::new(600, accept_all);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let handle = w.handle.clone();
    let mut handlers = JoinSet::new();
    handlers.spawn(async move { handle.submit(page(Class::Slice, "a", 500), pending()).await });
    tokio::time::sleep(Duration::from_millis(110)).await;
    handlers.shutdown().await;
    let before = w.sent().len();
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert!(before > 0 && w.sent().len() == before, "{before}, then {}", w.sent().len());
    drop(w.handle);
    w.tasks.join_next().await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_page_of_an_aborted_handler_does_not_keep_a_closed_route_from_ending() {
    let mut w = World::new(0, accept_all);
    w.route_sync.follow(Gate::Closed(ClosedBy::Paused));
    let aborted =
        tokio::time::timeout(Duration::from_secs(5), w.handle.submit(page(Class::Slice, "a", 3), pending()))
            .await;
    assert!(aborted.is_err());
    drop(w.handle);
    tokio::time::timeout(Duration::from_secs(1), w.tasks.join_next())
        .await
        .expect("it ends")
        .unwrap()
        .unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_stale_page_is_returned_unsent() {
    let w = World::new(0, accept_all);
    w.route_sync.follow(Gate::Closed(ClosedBy::Paused));
    let mut old = page(Class::Slice, "a", 3);
    old.stale_at = Instant::now() + Duration::from_secs(60);
    let reopen = async {
        tokio::time::sleep(Duration::from_secs(61)).await;
        w.route_sync.follow(Gate::Open);
    };
    let (returned, ()) = tokio::join!(w.handle.submit(old, pending()), reopen);
    assert_eq!(outcomes(&returned.unwrap()), ["-", "-", "-"]);
    assert!(w.requests().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_page_at_the_head_of_the_queue_goes_stale_like_any_other() {
    let w = World::new(60, accept_all);
    w.share.send_replace(Share::NONE);
    let mut old = page(Class::Slice, "a", 3);
    old.stale_at = Instant::now() + Duration::from_secs(60);
    let come_back = async {
        tokio::time::sleep(Duration::from_secs(61)).await;
        w.share.send_replace(Share::WHOLE);
    };
    let (returned, ()) = tokio::join!(w.handle.submit(old, pending()), come_back);
    assert_eq!(outcomes(&returned.unwrap()), ["-", "-", "-"]);
    assert!(w.requests().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_page_that_has_reached_a_device_does_not_go_stale() {
    let w = World::new(0, |number, tokens| match accept_all(number, tokens) {
        Reply::Each(mut verdicts) if number == 0 => {
            verdicts[1] = Verdict::DeviceBusy { retry_after: Some(Duration::from_secs(90)) };
            Reply::Each(verdicts)
        }
        reply => reply,
    });
    let mut old = page(Class::Slice, "a", 3);
    old.stale_at = Instant::now() + Duration::from_secs(60);
    assert_eq!(
        outcomes(&w.handle.submit(old, pending()).await.unwrap()),
        ["sent"; 3],
        "a page that is read again is sent to them again"
    );
    assert_eq!(w.requests().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn an_expired_page_has_outcomes_and_a_page_whose_lease_has_ended_has_none() {
    let w = World::new(0, |_, _| Reply::Down { ambiguous: false, retry_after: None, why: "HTTP 503".into() });
    let mut short = page(Class::Slice, "a", 2);
    short.expires = Instant::now() + Duration::from_secs(30);
    let mut dose = page(Class::Urgent, "d", 1);
    dose.start_before = Some(Instant::now() + Duration::from_secs(30));
    let (short, dose) = tokio::join!(w.handle.submit(short, pending()), w.handle.submit(dose, pending()));
    assert_eq!(outcomes(&short.unwrap()), ["expired", "expired"]);
    assert_eq!(outcomes(&dose.unwrap()), ["-"]);
}

#[tokio::test(start_paused = true)]
async fn pages_of_a_closed_route_expire_and_lose_their_lease_in_time() {
    let w = World::new(0, accept_all);
    w.route_sync.follow(Gate::Closed(ClosedBy::Paused));
    let begun = Instant::now();
    let mut leased = dose("leased");
    leased.start_before = Some(begun + Duration::from_secs(33));
    let mut old = page(Class::Slice, "old", 3);
    old.expires = begun + Duration::from_secs(90);
    let leased = async { (w.handle.submit(leased, pending()).await.unwrap(), begun.elapsed()) };
    let old = async { (w.handle.submit(old, pending()).await.unwrap(), begun.elapsed()) };
    let ((leased, leased_after), (old, old_after)) = tokio::join!(leased, old);
    assert_eq!((outcomes(&leased), leased_after.as_secs()), (vec!["-"], 33));
    assert_eq!((outcomes(&old), old_after.as_secs()), (vec!["expired", "expired", "expired"], 90));
}

#[tokio::test(start_paused = true)]
async fn a_lease_ends_in_time_while_its_message_waits_for_another_try() {
    let wait = Some(Duration::from_secs(500));
    let w = World::new(0, move |_, tokens| {
        if tokens[0].contains("busy") {
            Reply::Each(vec![Verdict::DeviceBusy { retry_after: wait }])
        } else {
            Reply::Throttled { retry_after: wait }
        }
    });
    let begun = Instant::now();
    for name in ["busy", "throttled"] {
        let mut page = dose(name);
        page.start_before = Some(Instant::now() + Duration::from_secs(33));
        assert_eq!(outcomes(&w.handle.submit(page, pending()).await.unwrap()), ["-"], "{name}");
    }
    assert_eq!(begun.elapsed().as_secs(), 66);
}

#[tokio::test(start_paused = true)]
async fn what_is_on_the_wire_when_a_lease_ends_keeps_its_outcome() {
    let w = World::slow(0, Duration::from_secs(14), accept_all);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let mut page = dose("dose");
    page.start_before = Some(Instant::now() + Duration::from_secs(5));
    page.expires = Instant::now() + Duration::from_secs(6);
    assert_eq!(outcomes(&w.handle.submit(page, pending()).await.unwrap()), ["sent"]);
}
