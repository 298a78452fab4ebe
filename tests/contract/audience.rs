//! The token ring, read slice by slice.

use std::collections::BTreeSet;

use futures::future::join_all;
use pushcast::{
    domain::{Cursor, Judged, Listeners, ProviderId, Slice, TokenChange},
    store::{Audience, Page, Store},
};
use rand::prelude::*;

use super::{expo, fcm, login, login_with, user, v};

/// 300 tokens of Expo and 100 of FCM; every tenth of Expo's is revoked, every tenth but one unregistered.
async fn populated(store: &impl Store) -> BTreeSet<String> {
    join_all((0..300).map(|n| login(&format!("t{n}")).by("ann").at(1).apply(store))).await;
    join_all((0..100).map(|n| login_with(fcm(&format!("t{n}"))).at(1).apply(store))).await;
    for n in (0..300).step_by(10) {
        assert!(store.revoke(&expo(&format!("t{n}")), Judged::Registration(v(1)), "dead").await.unwrap());
        store.apply(&TokenChange::Unregistered(expo(&format!("t{}", n + 1))), v(2)).await.unwrap();
        store.apply(&TokenChange::Seen(expo(&format!("only-seen-{n}"))), v(2)).await.unwrap();
    }
    (0..300).filter(|n| n % 10 > 1).map(|n| expo(&format!("t{n}")).as_str().to_owned()).collect()
}

fn tokens(page: &Page) -> impl Iterator<Item = String> {
    page.recipients.iter().map(|recipient| recipient.token.as_str().to_owned())
}

/// All tokens after the cursor, in order, and the cursors between the pages.
async fn rest(
    store: &impl Audience,
    slice: Slice,
    mut after: Option<Cursor>,
    limit: usize,
) -> (Vec<String>, Vec<Cursor>) {
    let mut all = Vec::new();
    let mut cursors = Vec::new();
    loop {
        let page = store.page_of_slice(ProviderId::Expo, slice, &Listeners::ALL, after, limit).await.unwrap();
        assert!(page.recipients.len() <= limit, "no two of these tokens share a position");
        assert!(after.is_none_or(|after| after < page.end || page.last), "every page advances the cursor");
        assert_eq!(page.positions.len(), page.recipients.len());
        assert!(
            page.positions.is_sorted()
                && page.positions.iter().all(|at| after.is_none_or(|after| after < *at) && *at <= page.end)
        );
        all.extend(tokens(&page));
        cursors.push(page.end);
        if page.last {
            return (all, cursors);
        }
        after = Some(page.end);
    }
}

pub async fn the_slices_contain_every_active_token_once(store: &impl Store) {
    let expected = populated(store).await;
    for (of, limit) in [(1, 1000), (1, 7), (4, 50), (64, 3)] {
        let mut found = Vec::new();
        for index in 0..of {
            found.extend(rest(store, Slice { index, of }, None, limit).await.0);
        }
        assert_eq!(found.len(), expected.len(), "{of} slices by {limit}");
        assert_eq!(found.into_iter().collect::<BTreeSet<_>>(), expected, "{of} slices by {limit}");
    }
    let fcm_page = store
        .page_of_slice(ProviderId::Fcm, Slice { index: 0, of: 1 }, &Listeners::ALL, None, 1000)
        .await
        .unwrap();
    let native: BTreeSet<String> = (0..100).map(|n| fcm(&format!("t{n}")).as_str().to_owned()).collect();
    assert_eq!(tokens(&fcm_page).collect::<BTreeSet<_>>(), native);
    assert!(fcm_page.recipients.iter().all(|native| native.version == v(1)));
}

pub async fn a_page_resumes_where_the_one_before_ended(store: &impl Store) {
    populated(store).await;
    let slice = Slice { index: 1, of: 2 };
    let (whole, cursors) = rest(store, slice, None, 10).await;
    for (pages_done, cursor) in cursors.iter().enumerate() {
        for limit in [1, 10, 33] {
            let (tail, _) = rest(store, slice, Some(*cursor), limit).await;
            assert!(whole.ends_with(&tail), "after page {pages_done} by {limit}");
            assert_eq!(
                whole.len() - tail.len(),
                whole.len().min((pages_done + 1) * 10),
                "after page {pages_done} by {limit}"
            );
        }
    }
}

pub async fn a_page_leaves_out_the_author_and_on_request_tokens_without_a_user(store: &impl Store) {
    for n in 0..12 {
        let login = login(&format!("t{n}")).at(1);
        match n % 3 {
            0 => login.by("ann").apply(store).await,
            1 => login.by("ben").apply(store).await,
            _ => login.apply(store).await,
        }
    }
    for (exclude, include_anonymous, listeners) in [
        (None, true, "012"),
        (None, false, "01"),
        (Some("ann"), true, "12"),
        (Some("ann"), false, "1"),
        (Some("cy"), true, "012"),
    ] {
        let to = Listeners { exclude: exclude.map(user), include_anonymous };
        let mut found = BTreeSet::new();
        let mut after = None;
        loop {
            let page = store
                .page_of_slice(ProviderId::Expo, Slice { index: 0, of: 1 }, &to, after, 2)
                .await
                .unwrap();
            assert_eq!(page.positions.len(), page.recipients.len());
            found.extend(tokens(&page));
            if page.last {
                break;
            }
            after = Some(page.end);
        }
        let expected = (0..12_u32).filter(|n| listeners.contains(&(n % 3).to_string()));
        assert_eq!(found, expected.map(|n| expo(&format!("t{n}")).as_str().to_owned()).collect(), "{to:?}");
    }
}

pub async fn any_cursor_splits_a_slice_in_two(store: &impl Store) {
    populated(store).await;
    let mut random = StdRng::seed_from_u64(11);
    let slice = Slice { index: 0, of: 1 };
    let (whole, ends) = rest(store, slice, None, 1).await;
    for _ in 0..30 {
        // Anywhere, or right at a token's position and beside it.
        let end = *ends.choose(&mut random).unwrap();
        let cursor = match random.random_range(0..4) {
            0 => Cursor(random.random_range(i64::MIN + 1..i64::MAX)),
            1 => Cursor(end.0.saturating_sub(1)),
            2 => Cursor(end.0.saturating_add(1)),
            _ => end,
        };
        let (tail, _) = rest(store, slice, Some(cursor), 50).await;
        // Every page's end but the last one's is a token's position.
        let before = ends[..whole.len() - 1].iter().filter(|end| **end <= cursor).count();
        if before < whole.len() - 1 {
            assert_eq!(tail, whole[before..], "after {cursor:?}");
        } else {
            assert!(whole[before..].ends_with(&tail), "after {cursor:?}");
        }
    }
}

pub async fn an_empty_slice_has_one_empty_page(store: &impl Store) {
    let slice = Slice { index: 3, of: 64 };
    let (none, cursors) = rest(store, slice, None, 10).await;
    assert!(none.is_empty());
    let (none, _) = rest(store, slice, cursors.last().copied(), 10).await;
    assert!(none.is_empty());
}
