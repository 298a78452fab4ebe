//! A provider that is away for a while.

use super::*;

fn down() -> Reply {
    Reply::Down { ambiguous: true, retry_after: None, why: "HTTP 503".into() }
}

/// A provider that fails for so long from now on.
fn away_for(time: Duration) -> World {
    let back = Instant::now() + time;
    World::new(
        0,
        move |number, tokens| if Instant::now() < back { down() } else { accept_all(number, tokens) },
    )
}

impl World {
    /// The moments of all requests that began in a span from the first one.
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
async fn a_provider_that_is_down_is_asked_by_single_messages_and_everything_goes_on_when_it_answers() {
    let begun = Instant::now();
    let back = begun + Duration::from_secs(600);
    let w = away_for(Duration::from_secs(600));
    let pages = (0..20).map(|i| w.handle.submit(page(Class::Slice, &format!("p{i}-"), 500), pending()));
    let returned = futures::future::join_all(pages).await;
    assert!(returned.into_iter().all(|page| page.unwrap().is_complete()));
    assert!(begun.elapsed() < Duration::from_secs(600 + 46), "{:?}", begun.elapsed());

    let probes = w.requests_between(begun + Duration::from_secs(5), back);
    assert!((10..40).contains(&probes.len()), "{} probes in ten minutes", probes.len());
    assert!(probes.iter().all(|request| request.len() == 1), "a probe risks one message");
    let most = w.sent().into_values().max();
    assert!(most <= Some(4), "no phone may have rung more often than that: {most:?}");
}

#[tokio::test(start_paused = true)]
async fn a_reminder_goes_within_seconds_of_the_providers_return() {
    let begun = Instant::now();
    let w = away_for(Duration::from_secs(600));
    let bulk = (0..20).map(|i| w.handle.submit(page(Class::Slice, &format!("p{i}-"), 500), pending()));
    let reminder = async {
        tokio::time::sleep(Duration::from_secs(400)).await;
        assert!(w.handle.submit(page(Class::Urgent, "dose", 3), pending()).await.unwrap().is_complete());
        begun.elapsed()
    };
    let (_, rung) = tokio::join!(futures::future::join_all(bulk), reminder);
    assert!((600..606).contains(&rung.as_secs()), "{rung:?}");
}

#[tokio::test(start_paused = true)]
async fn a_lone_reminder_never_waits_for_long() {
    // Too few failures for the breaker: the message's own pauses count.
    let begun = Instant::now();
    let w = away_for(Duration::from_secs(20));
    w.handle.submit(page(Class::Urgent, "dose", 1), pending()).await.unwrap();
    assert!((20..26).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn an_open_breaker_shows_and_closes() {
    let w = away_for(Duration::from_secs(60));
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
async fn a_message_that_brings_the_provider_down_by_itself_holds_nobody_up() {
    let w = World::new(0, |number, tokens| {
        if tokens.iter().any(|token| token.contains("evil")) { down() } else { accept_all(number, tokens) }
    });
    let mut evil = page(Class::Urgent, "evil", 1);
    evil.expires = Instant::now() + Duration::from_secs(300);
    let bulk = async {
        tokio::time::sleep(Duration::from_secs(120)).await;
        let begun = Instant::now();
        assert!(w.handle.submit(page(Class::Slice, "a", 500), pending()).await.unwrap().is_complete());
        begun.elapsed()
    };
    let (evil, took) = tokio::join!(w.handle.submit(evil, pending()), bulk);
    assert_eq!(outcomes(&evil.unwrap()), ["expired"]);
    assert!(took < Duration::from_secs(15), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_page_goes_stale_while_its_provider_is_down() {
    let w = away_for(Duration::from_secs(100));
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
        "nobody was reached: the page is read again"
    );
}

#[tokio::test(start_paused = true)]
async fn a_provider_that_allows_less_than_we_think_is_asked_for_less() {
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
    let (refused, all) = (refused.load(Ordering::Relaxed), w.requests().len());
    assert!(refused * 50 < all, "{refused} of {all} requests were too many");
    assert!(begun.elapsed() < Duration::from_secs(20_000 / 300 * 2), "{:?}", begun.elapsed());
}
