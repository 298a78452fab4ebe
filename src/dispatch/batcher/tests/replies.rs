//! What the provider answers decides what is sent again, and when.

use super::*;

#[tokio::test(start_paused = true)]
async fn what_the_provider_did_not_accept_is_sent_again_and_nothing_else_is() {
    let w = World::new(0, |number, tokens| {
        if number < 3 {
            Reply::Down { ambiguous: false, retry_after: None, why: "HTTP 503".into() }
        } else {
            accept_all(number, tokens)
        }
    });
    let returned = w.handle.submit(page(Class::Slice, "a", 500), pending()).await.unwrap();
    assert!(returned.is_complete());
    assert!(w.sent().values().sum::<usize>() == 800, "three requests of a hundred went twice");
}

#[tokio::test(start_paused = true)]
async fn refused_credentials_halt_the_route_and_lose_nothing() {
    let mut w = World::new(0, |number, tokens| {
        if number < 5 {
            Reply::CredentialsRefused { why: "UNAUTHORIZED".into() }
        } else {
            accept_all(number, tokens)
        }
    });
    let page = w.handle.submit(page(Class::Slice, "a", 500), pending());
    let operator = async {
        assert_eq!(w.route_sync.halted().await.as_deref(), Some("UNAUTHORIZED"));
        let before = w.provider.requests.lock().unwrap().len();
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(w.provider.requests.lock().unwrap().len(), before, "a halted route sends nothing");
        w.route_sync.follow(Gate::Open);
    };
    let (returned, ()) = tokio::join!(page, operator);
    assert!(returned.unwrap().is_complete());
}

/// Once means that an OAuth token was stale. Any other reply in between ends the row.
#[tokio::test(start_paused = true)]
async fn credentials_that_are_refused_twice_in_a_row_halt_the_route_and_once_do_not() {
    let stale = || Reply::Reauthorised { refused: Some("UNAUTHENTICATED".into()) };
    let none_yet = || Reply::Reauthorised { refused: None };
    let down = || Reply::Down { ambiguous: false, retry_after: None, why: "HTTP 503".into() };
    for (replies, halts) in [
        (vec![stale()], false),
        (vec![none_yet(), stale()], false),
        (vec![none_yet(), none_yet(), stale()], false),
        (vec![stale(), down(), stale()], false),
        (vec![stale(), stale()], true),
        (vec![none_yet(), stale(), stale()], true),
    ] {
        let shown = format!("{replies:?}");
        let mut w = World::new(0, move |number, tokens| {
            replies.get(number).cloned().unwrap_or_else(|| accept_all(number, tokens))
        });
        let page = w.handle.submit(page(Class::Slice, "a", 1), pending());
        let operator = async {
            let halted = tokio::time::timeout(Duration::from_secs(60), w.route_sync.halted()).await;
            assert_eq!(halted.ok().flatten().is_some(), halts, "{shown}");
            w.route_sync.follow(Gate::Open);
        };
        let (returned, ()) = tokio::join!(page, operator);
        assert!(returned.unwrap().is_complete(), "{shown}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_throttled_route_waits_for_retry_after() {
    let w = World::new(0, |number, tokens| {
        if number == 0 {
            Reply::Throttled { retry_after: Some(Duration::from_secs(7)) }
        } else {
            accept_all(number, tokens)
        }
    });
    let begun = Instant::now();
    let returned = w.handle.submit(page(Class::Urgent, "a", 1), pending()).await.unwrap();
    assert!(returned.is_complete());
    assert!(begun.elapsed() >= Duration::from_secs(7));
}

#[tokio::test(start_paused = true)]
async fn pauses_of_a_throttled_route_do_not_grow_when_an_answer_lies_between_them() {
    let w = World::new(0, |number, tokens| {
        if number.is_multiple_of(2) {
            Reply::Throttled { retry_after: None }
        } else {
            accept_all(number, tokens)
        }
    });
    tokio::time::sleep(Duration::from_secs(1)).await;
    for number in 0..5 {
        let begun = Instant::now();
        w.handle.submit(page(Class::Slice, &format!("p{number}-"), 1), pending()).await.unwrap();
        assert!((2..3).contains(&begun.elapsed().as_secs()), "{number}: {:?}", begun.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn of_two_waits_the_longer_one_counts() {
    let w = World::new(0, |number, tokens| match number {
        0 => Reply::Throttled { retry_after: Some(Duration::from_secs(300)) },
        1 => Reply::Throttled { retry_after: None },
        _ => accept_all(number, tokens),
    });
    let begun = Instant::now();
    assert!(w.handle.submit(page(Class::Slice, "a", 200), pending()).await.unwrap().is_complete());
    assert!(begun.elapsed() >= Duration::from_secs(300), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn the_message_for_which_a_request_is_refused_is_found_and_the_others_are_sent() {
    let w = World::new(0, |number, tokens| {
        if tokens.iter().any(|token| token.contains("[a33]")) {
            Reply::Refused { why: "HTTP 400".into() }
        } else {
            accept_all(number, tokens)
        }
    });
    let returned = w.handle.submit(page(Class::Slice, "a", 100), pending()).await.unwrap();
    let refused: Vec<usize> =
        (0..100).filter(|&i| returned.outcomes[i].as_ref().unwrap().outcome().label() == "refused").collect();
    assert_eq!(refused, [33]);
}

#[tokio::test(start_paused = true)]
async fn a_notification_that_is_refused_for_all_recipients_is_recognised_by_a_few_messages() {
    let w = World::new(0, |_, _| Reply::Refused { why: "HTTP 400".into() });
    let returned = w.handle.submit(page(Class::Slice, "a", 500), pending()).await.unwrap();
    let is_refused_for_all = |outcome: &Option<MessageOutcome>| {
        matches!(outcome, Some(MessageOutcome::Refused { for_all_recipients: true, .. }))
    };
    assert!(returned.outcomes.iter().any(is_refused_for_all) && !returned.is_complete());
    assert!(w.requests().len() < 250, "{} requests", w.requests().len());
}

#[tokio::test(start_paused = true)]
async fn many_refused_messages_do_not_refuse_the_notification_if_others_are_accepted() {
    let w = World::new(0, |number, tokens| {
        if tokens.iter().any(|token| token.ends_with("3]")) {
            Reply::Refused { why: "HTTP 400".into() }
        } else {
            accept_all(number, tokens)
        }
    });
    let returned = w.handle.submit(page(Class::Slice, "a", 500), pending()).await.unwrap();
    let refused = outcomes(&returned).iter().filter(|outcome| **outcome == "refused").count();
    assert!(returned.is_complete());
    assert_eq!(refused, 50);
}

#[tokio::test(start_paused = true)]
async fn tokens_of_two_projects_are_sent_in_requests_of_their_own() {
    let w = World::new(0, |number, tokens| {
        let foreign: Vec<usize> = (0..tokens.len()).filter(|&i| tokens[i].contains("7]")).collect();
        let own: Vec<usize> = (0..tokens.len()).filter(|&i| !tokens[i].contains("7]")).collect();
        if foreign.is_empty() || own.is_empty() {
            accept_all(number, tokens)
        } else {
            Reply::Split(vec![own, foreign])
        }
    });
    let returned = w.handle.submit(page(Class::Slice, "a", 100), pending()).await.unwrap();
    assert!(returned.outcomes.iter().all(|outcome| matches!(outcome, Some(MessageOutcome::Sent { .. }))));
    assert_eq!(w.requests().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_split_by_projects_is_kept_after_an_outage() {
    let w = World::new(0, |number, tokens| match number {
        0 => Reply::Split(vec![vec![0, 2], vec![1, 3]]),
        1..=3 => Reply::Down { ambiguous: false, retry_after: None, why: "HTTP 503".into() },
        _ => accept_all(number, tokens),
    });
    assert!(w.handle.submit(page(Class::Slice, "t", 4), pending()).await.unwrap().is_complete());
    let projects = w.requests().into_iter().skip(1).map(|tokens| tokens.len());
    assert!(projects.eq([2, 2, 2, 2, 2]), "{:?}", w.requests());
}

#[tokio::test(start_paused = true)]
async fn a_message_with_an_unknown_answer_is_sent_again_until_it_expires() {
    let known_from = Instant::now() + Duration::from_secs(100);
    let w = World::new(0, move |number, tokens| match tokens {
        [token] if token.contains("odd") => Reply::Unrecognised { status: 418, why: "?".into() },
        [token] if token.contains("new") && Instant::now() < known_from => {
            Reply::Each(vec![Verdict::Unrecognised { why: "?".into() }])
        }
        _ => accept_all(number, tokens),
    });
    let mut odd = page(Class::List, "odd", 1);
    odd.expires = Instant::now() + Duration::from_secs(600);
    let odd = w.handle.submit(odd, pending()).await.unwrap();
    assert_eq!(outcomes(&odd), ["expired"], "never dead");
    assert!((3..20).contains(&w.requests().len()), "{} requests in ten minutes", w.requests().len());
    let new = w.handle.submit(page(Class::List, "new", 1), pending()).await.unwrap();
    assert_eq!(outcomes(&new), ["sent"]);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_panics_loses_no_message() {
    let w = World::new(
        0,
        |number, tokens| if number == 0 { panic!("a bug") } else { accept_all(number, tokens) },
    );
    assert!(w.handle.submit(page(Class::Slice, "a", 3), pending()).await.unwrap().is_complete());
}
