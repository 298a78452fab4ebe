//! A provider that is down for a while.

use super::*;

fn down() -> Reply {
    Reply::Down { ambiguous: true, retry_after: None, why: "HTTP 503".into() }
}

/// A provider that fails for this long from now on.
fn down_for(time: Duration) -> World {
    let end = Instant::now() + time;
    World::new(
        0,
        move |number, tokens| if Instant::now() < end { down() } else { accept_all(number, tokens) },
    )
}

impl World {
    /// The requests that started between these times.
    fn requests_between(&self, from: Instant, to: Instant) -> Vec<Vec<String>> {
        self.provider
            .requests
            .lock()
            .unwrap()
            .iter()
            .filter(|(at, _)| (from..to).contains(at))
            .map(|(_, tokens)| tokens.clone())
            .collect()
    }
}

#[tokio::test(start_paused = true)]
async fn a_provider_that_is_down_is_probed_with_single_messages_and_all_are_sent_when_it_answers() {
    let begun = Instant::now();
    let end = begun + Duration::from_secs(600);
    let w = down_for(Duration::from_secs(600));
    let pages = (0..20).map(|i| w.handle.submit(page(Class::Slice, &format!("p{i}-"), 500), pending()));
    let returned = futures::future::join_all(pages).await;
    assert!(returned.into_iter().all(|page| page.unwrap().is_complete()));
    assert!(begun.elapsed() < Duration::from_secs(600 + 46), "{:?}", begun.elapsed());

    let probes = w.requests_between(begun + Duration::from_secs(5), end);
    assert!((10..40).contains(&probes.len()), "{} probes in ten minutes", probes.len());
    assert!(probes.iter().all(|request| request.len() == 1), "a probe risks one message");
    let most = w.sent().into_values().max();
    assert!(most <= Some(4), "no device may have been sent to more often: {most:?}");
}

#[tokio::test(start_paused = true)]
async fn a_reminder_is_sent_within_seconds_of_the_end_of_an_outage() {
    let begun = Instant::now();
    let w = down_for(Duration::from_secs(600));
    let bulk = (0..20).map(|i| w.handle.submit(page(Class::Slice, &format!("p{i}-"), 500), pending()));
    let reminder = async {
        tokio::time::sleep(Duration::from_secs(400)).await;
        assert!(w.handle.submit(page(Class::Urgent, "dose", 3), pending()).await.unwrap().is_complete());
        begun.elapsed()
    };
    let (_, sent_after) = tokio::join!(futures::future::join_all(bulk), reminder);
    assert!((600..606).contains(&sent_after.as_secs()), "{sent_after:?}");
}

#[tokio::test(start_paused = true)]
async fn a_single_reminder_never_waits_for_long() {
    // Too few failures for the circuit breaker: the message's own pauses count.
    let begun = Instant::now();
    let w = down_for(Duration::from_secs(20));
    w.handle.submit(page(Class::Urgent, "dose", 1), pending()).await.unwrap();
    assert!((20..26).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn an_open_breaker_is_reported_until_it_closes() {
    let w = down_for(Duration::from_secs(60));
    let metrics = Arc::clone(&w.metrics);
    let state = |state: &str| metrics.route_state.with_label_values(&["expo", state]).get();
    let bulk = (0..20).map(|i| w.handle.submit(page(Class::Slice, &format!("p{i}-"), 500), pending()));
    let look = async {
        tokio::time::sleep(Duration::from_secs(30)).await;
        assert_eq!((state("breaker"), state("running")), (1, 0));
        let local_status = w.route_sync.local_status().borrow().clone();
        assert!(local_status.as_ref().is_some_and(|text| text.contains("HTTP 503")), "{local_status:?}");
    };
    tokio::join!(futures::future::join_all(bulk), look);
    assert_eq!((state("breaker"), state("running")), (0, 1));
    assert_eq!(*w.route_sync.local_status().borrow(), None);
}

#[tokio::test(start_paused = true)]
async fn a_message_on_which_the_provider_always_fails_does_not_delay_others() {
    let w = World::new(0, |number, tokens| {
        if tokens.iter().any(|token| token.contains("poison")) { down() } else { accept_all(number, tokens) }
    });
    let mut poison = page(Class::Urgent, "poison", 1);
    poison.expires = Instant::now() + Duration::from_secs(300);
    let bulk = async {
        tokio::time::sleep(Duration::from_secs(120)).await;
        let begun = Instant::now();
        assert!(w.handle.submit(page(Class::Slice, "a", 500), pending()).await.unwrap().is_complete());
        begun.elapsed()
    };
    let (poison, took) = tokio::join!(w.handle.submit(poison, pending()), bulk);
    assert_eq!(outcomes(&poison.unwrap()), ["expired"]);
    assert!(took < Duration::from_secs(15), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_page_goes_stale_while_its_provider_is_down() {
    let w = down_for(Duration::from_secs(100));
    let begun = Instant::now();
    let mut old = page(Class::Slice, "a", 500);
    old.stale_at = begun + Duration::from_secs(60);
    let (old, _) = tokio::join!(
        w.handle.submit(old, pending()),
        futures::future::join_all(
            (0..10).map(|i| w.handle.submit(page(Class::Slice, &format!("p{i}-"), 500), pending()))
        )
    );
    assert!(
        outcomes(&old.unwrap()).iter().all(|outcome| *outcome == "-"),
        "no device was reached: the page is read again"
    );
}

#[tokio::test(start_paused = true)]
async fn a_provider_that_allows_less_than_the_configured_rate_is_sent_less() {
    let window = Mutex::new(std::collections::VecDeque::<(Instant, usize)>::new());
    let refused = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&refused);
    let w = World::new(600, move |number, tokens| {
        let mut window = window.lock().unwrap();
        window.push_back((Instant::now(), tokens.len()));
        window.retain(|(at, _)| at.elapsed() < Duration::from_secs(1));
        if window.iter().map(|(_, n)| n).sum::<usize>() > 300 {
            counted.fetch_add(1, Ordering::Relaxed);
            return Reply::Throttled { retry_after: None };
        }
        accept_all(number, tokens)
    });
    tokio::time::sleep(Duration::from_secs(1)).await;
    let begun = Instant::now();
    let pages = (0..40).map(|i| w.handle.submit(page(Class::Slice, &format!("p{i}-"), 500), pending()));
    assert!(futures::future::join_all(pages).await.into_iter().all(|page| page.unwrap().is_complete()));
    let refused = refused.load(Ordering::Relaxed);
    let all = w.requests().len();
    assert!(refused * 50 < all, "{refused} of {all} requests were too many");
    assert!(begun.elapsed() < Duration::from_secs(20_000 / 300 * 2), "{:?}", begun.elapsed());
}
