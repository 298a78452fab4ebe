//! A server whose answers get lost or come too late, and one that does not answer at all.
//!
//! The callers try again for as long as it takes, like stages.

use std::{
    fmt::Debug,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use futures::future::join_all;
use pushcast::{
    domain::{
        BroadcastId, Counts, Cursor, DoseKey, DoseOutcome, PartId, ProfileId, Progress, ProviderId,
        RegimenId, TokenChange,
    },
    store::{
        Broadcasts, Checkpoint, Claim, DECIDED_WITHIN, DoseMark, Doses, Lease, Marked, Registry, Settings,
        Store, StoreError, cql::CqlStore,
    },
};
use tokio::time::{self, Instant, sleep};

use crate::{
    keyspace::{self, emptied},
    proxy::Proxy,
    suite::{at, expo, user, v},
};

/// A store that reaches the server through a proxy.
async fn through_a_proxy() -> (CqlStore, Proxy, impl Drop) {
    let (_, alone) = emptied().await;
    let mut cluster = keyspace::cluster(&keyspace::name());
    let proxy = Proxy::to(cluster.nodes.remove(0)).await;
    cluster.nodes.push(proxy.address.clone());
    let store = CqlStore::open(&cluster, &Settings::default()).await.unwrap();
    (store, proxy, alone)
}

/// Repeats an operation until it succeeds, like the consumer's runtime.
async fn retry_until_settled<T>(work: impl AsyncFn() -> Result<T, StoreError>) -> T {
    loop {
        match work().await {
            Ok(done) => return done,
            Err(_) => sleep(Duration::from_millis(50)).await,
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn registrations_survive_lost_answers() {
    let (store, proxy, _alone) = through_a_proxy().await;
    proxy.lose(20);
    join_all((0..150).map(|n| {
        let store = &store;
        async move {
            let change = TokenChange::Registered {
                token: expo(&format!("t{n}")),
                user: Some(user(&format!("u{n}"))),
                platform: None,
                device: None,
                device_info: None,
                previous: Some(expo(&format!("old{n}"))),
            };
            retry_until_settled(async || store.apply(&change, v(n)).await).await;
        }
    }))
    .await;
    assert!(proxy.lost() > 0, "no answer was lost");
    proxy.lose(0);
    for n in 0..150 {
        let found = retry_until_settled(async || store.tokens_of(&user(&format!("u{n}"))).await).await;
        assert_eq!(
            found.iter().map(|found| found.token.clone()).collect::<Vec<_>>(),
            [expo(&format!("t{n}"))]
        );
    }
}

/// Owners take a part from each other; a page is recorded once, whichever answers they get.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_are_counted_once_though_answers_get_lost() {
    const PAGES: i64 = 60;
    let (store, proxy, _alone) = through_a_proxy().await;
    let part = PartId { broadcast: BroadcastId::new("post:p1"), provider: ProviderId::Expo, part: 0 };
    proxy.lose(100);
    let kept = join_all((0..3).map(|_| async {
        let mut kept = Vec::new();
        loop {
            let mut mine = retry_until_settled(async || store.take_over(&part).await).await;
            while !mine.done {
                let from = mine.cursor.map_or(0, |Cursor(at)| at);
                let mut next =
                    Progress { cursor: Some(Cursor(from + 1)), done: from + 1 == PAGES, ..mine.clone() };
                next.counts.sent += 1;
                if retry_until_settled(async || store.checkpoint(&part, &next).await).await
                    == Checkpoint::Lost
                {
                    break;
                }
                kept.push(from);
                mine = next;
            }
            if mine.done {
                return kept;
            }
        }
    }))
    .await;
    assert!(proxy.lost() > 0, "no answer was lost");
    proxy.lose(0);
    let mut kept: Vec<i64> = kept.into_iter().flatten().collect();
    let recorded = kept.len();
    kept.sort_unstable();
    kept.dedup();
    assert_eq!(kept.len(), recorded, "a page was recorded by two owners");
    assert_eq!(retry_until_settled(async || store.finish_part(&part).await).await, 1);
    let total = retry_until_settled(async || store.total(&part.broadcast, at(1)).await).await;
    assert_eq!(total.counts, Counts { sent: PAGES.cast_unsigned(), ..Counts::default() });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_claim_wins_and_is_marked_though_answers_get_lost() {
    let (store, proxy, _alone) = through_a_proxy().await;
    proxy.lose(60);
    for round in 0..8 {
        let dose = DoseKey {
            profile: ProfileId::new("pr1"),
            regimen: RegimenId::new("r1"),
            schedule_time: at(round),
            provider: ProviderId::Expo,
        };
        let owners: Vec<String> = (0..4).map(|n| format!("owner {n}")).collect();
        let claims = join_all(owners.iter().map(|owner| {
            retry_until_settled(async || store.claim(&dose, owner, at(round), at(round + 10)).await)
        }))
        .await;
        let won: Vec<Lease> = claims
            .into_iter()
            .filter_map(|claim| match claim {
                Claim::Mine(lease) => Some(lease),
                Claim::Held(_) | Claim::Marked(_) => None,
            })
            .collect();
        assert_eq!(won.len(), 1, "round {round}: {won:?}");
        let mark = DoseMark {
            outcome: DoseOutcome::Sent,
            counts: Counts { sent: 1, ..Counts::default() },
            at: at(round + 1),
        };
        assert_eq!(retry_until_settled(async || store.mark(&dose, &won[0], &mark).await).await, Marked::Kept);
        let later =
            retry_until_settled(async || store.claim(&dose, "later", at(round + 20), at(round + 30)).await)
                .await;
        assert_eq!(later, Claim::Marked(mark));
    }
    assert!(proxy.lost() > 0, "no answer was lost");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_does_not_answer_is_unavailable_until_it_answers_again() {
    let (store, proxy, _alone) = through_a_proxy().await;
    let change = TokenChange::Unregistered(expo("t1"));
    store.apply(&change, v(1)).await.unwrap();
    proxy.stop(true);
    assert!(store.ping().await.is_err());
    assert!(store.tokens_of(&user("ann")).await.is_err());
    assert!(store.apply(&change, v(2)).await.is_err());
    assert!(
        store
            .take_over(&PartId { broadcast: BroadcastId::new("b"), provider: ProviderId::Fcm, part: 0 })
            .await
            .is_err()
    );
    proxy.stop(false);
    retry_until_settled(async || store.apply(&change, v(3)).await).await;
    let row = retry_until_settled(async || store.inspect(&expo("t1")).await).await;
    assert_eq!(row.map(|row| row.version), Some(v(3)));
}

/// Every request is done and yet times out; its answer comes after the timeout.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_server_loses_nothing() {
    const TOO_LATE: Duration = Duration::from_secs(12);
    const TOKENS: i64 = 40;
    let (store, proxy, _alone) = through_a_proxy().await;
    let part = PartId { broadcast: BroadcastId::new("post:p1"), provider: ProviderId::Expo, part: 0 };
    let mine = store.take_over(&part).await.unwrap();
    let page = Progress { cursor: Some(Cursor(5)), counts: Counts { sent: 5, ..Counts::default() }, ..mine };
    let failures = AtomicU32::new(0);
    let counted = |result: Result<(), StoreError>| {
        failures.fetch_add(u32::from(result.is_err()), Ordering::Relaxed);
        result
    };

    proxy.delay(TOO_LATE);
    let registrations = join_all((0..TOKENS).map(|n| {
        let store = &store;
        let counted = &counted;
        async move {
            let token = expo(&format!("t{n}"));
            let change = TokenChange::Registered {
                token,
                user: Some(user("ann")),
                platform: None,
                device: None,
                device_info: None,
                previous: None,
            };
            retry_until_settled(async || counted(store.apply(&change, v(n)).await)).await;
        }
    }));
    let checkpoint = retry_until_settled(async || store.checkpoint(&part, &page).await);
    let recovery = async {
        sleep(TOO_LATE).await;
        proxy.delay(Duration::ZERO);
    };
    let (_, kept, ()) = tokio::join!(registrations, checkpoint, recovery);
    let failures = failures.into_inner();
    println!("{failures} failures of {TOKENS} registrations");
    assert!(failures > 0, "nothing took too long");
    assert_eq!(kept, Checkpoint::Kept, "the owner's checkpoint is kept");
    let found = retry_until_settled(async || store.tokens_of(&user("ann")).await).await;
    assert_eq!(found.len(), usize::try_from(TOKENS).unwrap());
    assert_eq!(
        retry_until_settled(async || store.take_over(&part).await).await,
        Progress { epoch: mine.epoch + 1, ..page }
    );
}

/// Time is paused while the server does not answer: it advances by the store's own timeouts.
#[tokio::test]
async fn operations_of_an_owner_fail_in_time_when_the_server_does_not_answer() {
    let (store, proxy, _alone) = through_a_proxy().await;
    let part = PartId { broadcast: BroadcastId::new("post:p1"), provider: ProviderId::Expo, part: 0 };
    let dose = DoseKey {
        profile: ProfileId::new("pr1"),
        regimen: RegimenId::new("r1"),
        schedule_time: at(1),
        provider: ProviderId::Expo,
    };
    let mine = store.take_over(&part).await.unwrap();
    let Claim::Mine(lease) = store.claim(&dose, "me", at(1), at(60)).await.unwrap() else {
        panic!("there is no other claim")
    };
    let page = Progress { cursor: Some(Cursor(1)), ..mine };
    let mark =
        DoseMark { outcome: DoseOutcome::Sent, counts: Counts { sent: 1, ..Counts::default() }, at: at(2) };

    proxy.stop(true);
    time::pause();
    fails_in_time(store.checkpoint(&part, &page)).await;
    fails_in_time(store.mark(&dose, &lease, &mark)).await;
    fails_in_time(store.claim(&dose, "me", at(3), at(90))).await;
    fails_in_time(store.take_over(&part)).await;
    time::resume();
    proxy.stop(false);

    // The operations that failed were done, or can be: the results are the same either way.
    retry_until_settled(async || store.take_over(&part).await).await;
    assert_eq!(retry_until_settled(async || store.mark(&dose, &lease, &mark).await).await, Marked::Kept);
}

async fn fails_in_time<T: Debug>(operation: impl Future<Output = Result<T, StoreError>>) {
    let begun = Instant::now();
    operation.await.expect_err("the server does not answer");
    let waited = begun.elapsed();
    assert!(waited <= DECIDED_WITHIN + Duration::from_millis(1), "{waited:?}");
}
