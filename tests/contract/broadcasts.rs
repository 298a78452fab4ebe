//! Broadcasts and their parts.

use futures::future::join_all;
use pushcast::{
    domain::{BroadcastId, BroadcastState, Counts, Cursor, PartId, Plan, Progress, ProviderId, StopReason},
    store::{Checkpoint, Store},
};
use rand::prelude::*;

use super::{at, expo};

fn broadcast() -> BroadcastId {
    BroadcastId::new("post:p1")
}

fn plan(spec: &str, parts: u32) -> Plan {
    Plan { spec: spec.to_owned(), parts }
}

fn part(part: u32) -> PartId {
    PartId { broadcast: broadcast(), provider: ProviderId::Expo, part }
}

fn sent(sent: u64) -> Counts {
    Counts { sent, dead: 1, refused: 2, failed: 3, expired: 4 }
}

/// The counts that are stored for part 0.
async fn recorded(store: &impl Store) -> Counts {
    store.finish_part(&part(0)).await.unwrap();
    store.total(&broadcast(), at(9)).await.unwrap().counts
}

fn stopped(reason: StopReason) -> BroadcastState {
    BroadcastState::Stopped { reason }
}

pub async fn the_first_plan_is_kept(store: &impl Store) {
    assert_eq!(store.plan(&broadcast(), &plan("first", 64), at(1)).await.unwrap(), plan("first", 64));
    assert_eq!(store.plan(&broadcast(), &plan("second", 3), at(2)).await.unwrap(), plan("first", 64));
    let stored = store.broadcast(&broadcast()).await.unwrap();
    assert_eq!(stored, (Some(plan("first", 64)), Some(BroadcastState::Planned)));
}

pub async fn an_unknown_broadcast_has_no_plan_and_no_state(store: &impl Store) {
    assert_eq!(store.broadcast(&broadcast()).await.unwrap(), (None, None));
}

pub async fn a_broadcast_may_be_stopped_before_it_is_planned(store: &impl Store) {
    store.stop(&broadcast(), &StopReason::Cancelled).await.unwrap();
    assert_eq!(store.broadcast(&broadcast()).await.unwrap(), (None, Some(stopped(StopReason::Cancelled))));
    assert_eq!(store.plan(&broadcast(), &plan("late", 2), at(1)).await.unwrap(), plan("late", 2));
    assert_eq!(
        store.broadcast(&broadcast()).await.unwrap(),
        (Some(plan("late", 2)), Some(stopped(StopReason::Cancelled)))
    );
}

pub async fn a_broadcast_only_moves_forward(store: &impl Store) {
    let state = async || store.broadcast(&broadcast()).await.unwrap().1;
    store.plan(&broadcast(), &plan("spec", 2), at(1)).await.unwrap();
    store.stop(&broadcast(), &StopReason::Refused).await.unwrap();
    store.plan(&broadcast(), &plan("spec", 2), at(2)).await.unwrap();
    assert_eq!(state().await, Some(stopped(StopReason::Refused)));
    store.close(&broadcast()).await.unwrap();
    assert_eq!(state().await, Some(BroadcastState::Done));
    store.stop(&broadcast(), &StopReason::Cancelled).await.unwrap();
    store.plan(&broadcast(), &plan("spec", 2), at(3)).await.unwrap();
    assert_eq!(state().await, Some(BroadcastState::Done));
}

pub async fn a_new_owner_takes_over_at_the_last_checkpoint(store: &impl Store) {
    let first = store.take_over(&part(0)).await.unwrap();
    assert_eq!(first, Progress { epoch: first.epoch, ..Progress::default() });
    let mut page = Progress { cursor: Some(Cursor(-5)), counts: sent(500), ..first };
    for open in [vec![], vec![expo("a"), expo("b")], vec![expo("b")], vec![]] {
        page.open = open;
        assert_eq!(store.checkpoint(&part(0), &page).await.unwrap(), Checkpoint::Kept);
        let next = store.take_over(&part(0)).await.unwrap();
        assert!(next.epoch > page.epoch);
        assert_eq!(next, Progress { epoch: next.epoch, ..page });
        page = next;
    }
    let other = PartId { provider: ProviderId::Fcm, ..part(0) };
    assert_eq!(
        store.take_over(&other).await.unwrap().cursor,
        None,
        "another provider's part is another part"
    );
}

pub async fn a_former_owner_is_fenced(store: &impl Store) {
    let former = store.take_over(&part(0)).await.unwrap();
    let owner = store.take_over(&part(0)).await.unwrap();
    let page = Progress { cursor: Some(Cursor(7)), counts: sent(9), ..former };
    assert_eq!(store.checkpoint(&part(0), &page).await.unwrap(), Checkpoint::Lost);
    assert_eq!(store.checkpoint(&part(0), &Progress { done: true, ..page }).await.unwrap(), Checkpoint::Lost);
    let own = Progress { cursor: Some(Cursor(3)), counts: sent(1), ..owner };
    assert_eq!(store.checkpoint(&part(0), &own).await.unwrap(), Checkpoint::Kept);
    assert_eq!(recorded(store).await, sent(1));
}

pub async fn a_part_that_is_done_stays_done(store: &impl Store) {
    let owner = store.take_over(&part(0)).await.unwrap();
    let end = Progress { cursor: Some(Cursor(9)), done: true, counts: sent(2), ..owner };
    assert_eq!(store.checkpoint(&part(0), &end).await.unwrap(), Checkpoint::Kept);
    for _ in 0..2 {
        let found = store.take_over(&part(0)).await.unwrap();
        assert_eq!((found.cursor, found.done, found.counts), (end.cursor, true, end.counts));
        let again = Progress { done: false, cursor: Some(Cursor(1)), ..found };
        assert_eq!(store.checkpoint(&part(0), &again).await.unwrap(), Checkpoint::Lost);
    }
    assert_eq!(recorded(store).await, sent(2));
}

pub async fn a_repeated_checkpoint_counts_once(store: &impl Store) {
    let owner = store.take_over(&part(0)).await.unwrap();
    let page = Progress { cursor: Some(Cursor(9)), counts: sent(2), ..owner };
    let end = Progress { cursor: Some(Cursor(12)), done: true, counts: sent(4), ..page.clone() };
    for progress in [&page, &page, &end, &end] {
        assert_eq!(store.checkpoint(&part(0), progress).await.unwrap(), Checkpoint::Kept);
    }
    assert_eq!(recorded(store).await, sent(4));
}

/// Owners take a part from each other; the pages that were answered as kept are those that the part counts.
pub async fn pages_of_many_owners_are_counted_once(store: &impl Store) {
    const OWNERS: u64 = 8;
    const PAGES: i64 = 40;
    let kept = join_all((0..OWNERS).map(|seed| async move {
        let mut random = StdRng::seed_from_u64(seed);
        let mut kept = Vec::new();
        loop {
            let mut mine = store.take_over(&part(0)).await.unwrap();
            if mine.done {
                return kept;
            }
            for _ in 0..random.random_range(1..6) {
                let from = mine.cursor.map_or(0, |Cursor(at)| at);
                let mut next =
                    Progress { cursor: Some(Cursor(from + 1)), done: from + 1 == PAGES, ..mine.clone() };
                next.counts.sent += 1;
                tokio::task::yield_now().await;
                if store.checkpoint(&part(0), &next).await.unwrap() == Checkpoint::Lost {
                    break;
                }
                kept.push(from);
                mine = next;
                if mine.done {
                    return kept;
                }
            }
        }
    }))
    .await;
    let mut kept: Vec<i64> = kept.into_iter().flatten().collect();
    kept.sort_unstable();
    assert_eq!(kept, (0..PAGES).collect::<Vec<_>>(), "each page was recorded by one owner");
    assert_eq!(recorded(store).await.sent, PAGES.cast_unsigned());
}

pub async fn a_part_finishes_once(store: &impl Store) {
    for n in 0..3 {
        store.take_over(&part(n)).await.unwrap();
    }
    assert_eq!(store.finish_part(&part(2)).await.unwrap(), 1);
    assert_eq!(store.finish_part(&part(2)).await.unwrap(), 1);
    assert_eq!(store.finish_part(&part(0)).await.unwrap(), 2);
    let other = PartId { provider: ProviderId::Fcm, ..part(0) };
    assert_eq!(store.finish_part(&other).await.unwrap(), 3, "another provider's part is another part");
    let elsewhere = PartId { broadcast: BroadcastId::new("post:p2"), ..part(1) };
    assert_eq!(store.finish_part(&elsewhere).await.unwrap(), 1);
}

pub async fn one_of_many_callers_sees_the_last_part(store: &impl Store) {
    let parts: Vec<PartId> = (0..32).map(part).collect();
    let seen = join_all(parts.iter().map(|part| async { store.finish_part(part).await.unwrap() })).await;
    assert_eq!(seen.into_iter().max(), Some(32));
}

pub async fn a_total_is_that_of_one_broadcast(store: &impl Store) {
    assert_eq!(store.total(&broadcast(), at(9)).await.unwrap().counts, Counts::default());
    let other = PartId { broadcast: BroadcastId::new("post:p2"), ..part(0) };
    let native = PartId { provider: ProviderId::Fcm, ..part(0) };
    for (part, counts) in [(part(0), sent(10)), (part(1), sent(20)), (native, sent(40)), (other, sent(500))] {
        let owner = store.take_over(&part).await.unwrap();
        store.checkpoint(&part, &Progress { counts, done: true, ..owner }).await.unwrap();
        store.finish_part(&part).await.unwrap();
    }
    let expected = Counts { sent: 70, dead: 3, refused: 6, failed: 9, expired: 12 };
    assert_eq!(store.total(&broadcast(), at(9)).await.unwrap().counts, expected);
}

pub async fn a_total_is_the_same_each_time(store: &impl Store) {
    store.plan(&broadcast(), &plan("first", 1), at(1)).await.unwrap();
    let first = store.total(&broadcast(), at(9)).await.unwrap();
    assert_eq!(first.at, at(9));
    assert_eq!(
        store.total(&broadcast(), at(20)).await.unwrap(),
        first,
        "readers recognise a repeat by its equal content"
    );
}

pub async fn progress_can_be_read_without_owning_the_part(store: &impl Store) {
    assert_eq!(store.progress(&part(0)).await.unwrap(), None);
    let begun = store.take_over(&part(0)).await.unwrap();
    assert_eq!(store.progress(&part(0)).await.unwrap().as_ref(), Some(&begun));
    let half = Progress { cursor: Some(Cursor(-7)), counts: sent(5), ..begun };
    assert_eq!(store.checkpoint(&part(0), &half).await.unwrap(), Checkpoint::Kept);
    assert_eq!(store.progress(&part(0)).await.unwrap().as_ref(), Some(&half));
    assert_eq!(store.progress(&PartId { provider: ProviderId::Fcm, ..part(0) }).await.unwrap(), None);
    // Reading has taken nothing over.
    assert_eq!(store.checkpoint(&part(0), &Progress { done: true, ..half }).await.unwrap(), Checkpoint::Kept);
}
