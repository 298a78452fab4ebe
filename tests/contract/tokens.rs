//! Tokens: registered, replaced, revoked and deleted.

use pushcast::{
    domain::{DeviceId, Judged, Platform, ProviderId, TokenChange},
    store::{Registry, Store, TokenRow},
};

use super::{at, expo, fcm, login, login_with, user, v};

/// The active tokens of a user, sorted.
async fn active(store: &impl Registry, name: &str) -> Vec<String> {
    let mut tokens: Vec<String> = store
        .tokens_of(&user(name))
        .await
        .unwrap()
        .iter()
        .map(|found| found.token.as_str().to_owned())
        .collect();
    tokens.sort();
    tokens
}

fn names(tokens: &[&str]) -> Vec<String> {
    tokens.iter().map(|name| expo(name).as_str().to_owned()).collect()
}

async fn row(store: &impl Registry, token: &str) -> TokenRow {
    store.inspect(&expo(token)).await.unwrap().expect("the token is known")
}

pub async fn a_registered_token_is_found_by_its_user(store: &impl Store) {
    login("t1").by("ann").on("phone").at(1).apply(store).await;
    let found = store.tokens_of(&user("ann")).await.unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].token, expo("t1"));
    assert_eq!(found[0].version, v(1));
    assert_eq!(found[0].user, Some(user("ann")));
    assert_eq!(found[0].platform, Some(Platform::Ios));
    assert_eq!(found[0].device, Some(DeviceId::new("phone")));
    assert_eq!(found[0].device_info.as_deref(), Some(r#"{"model":"X"}"#));
    assert_eq!(row(store, "t1").await.registration.as_ref(), found.first());
    assert_eq!(store.tokens_of(&user("bob")).await.unwrap(), []);
    assert_eq!(store.inspect(&expo("t2")).await.unwrap(), None);
}

pub async fn the_same_token_twice_is_one_row(store: &impl Store) {
    for n in [1, 2, 2] {
        login("t1").by("ann").at(n).apply(store).await;
    }
    assert_eq!(active(store, "ann").await, names(&["t1"]));
    assert_eq!(row(store, "t1").await.version, v(2));
}

pub async fn a_token_belongs_to_the_user_who_logged_in_last(store: &impl Store) {
    login("t1").by("ann").at(1).apply(store).await;
    login("t1").by("bob").at(2).apply(store).await;
    assert_eq!(active(store, "ann").await, names(&[]));
    assert_eq!(active(store, "bob").await, names(&["t1"]));
    login("t1").at(3).apply(store).await;
    assert_eq!(active(store, "bob").await, names(&[]));
    assert!(row(store, "t1").await.registration.is_some_and(|anonymous| anonymous.user.is_none()));
}

pub async fn an_older_event_changes_nothing(store: &impl Store) {
    login("t1").by("bob").at(5).apply(store).await;
    let before = row(store, "t1").await;
    store.apply(&TokenChange::Unregistered(expo("t1")), v(3)).await.unwrap();
    store.apply(&TokenChange::UserDeleted(user("bob")), v(4)).await.unwrap();
    assert_eq!(row(store, "t1").await, before);
    login("t1").by("ann").at(4).apply(store).await;
    assert_eq!(active(store, "ann").await, names(&[]));
    assert_eq!(active(store, "bob").await, names(&["t1"]));
}

pub async fn a_new_token_replaces_the_one_of_its_kind_on_the_device(store: &impl Store) {
    login("old").by("ann").on("phone").at(1).apply(store).await;
    login_with(fcm("native")).by("ann").on("phone").at(2).apply(store).await;
    login("elsewhere").by("ann").on("tablet").at(3).apply(store).await;
    login("new").by("ann").on("phone").at(4).apply(store).await;
    let mut expected = names(&["elsewhere", "new"]);
    expected.push(fcm("native").as_str().to_owned());
    expected.sort();
    assert_eq!(active(store, "ann").await, expected);
    let old = row(store, "old").await;
    assert_eq!(
        (old.version, old.registration, old.reason.as_deref()),
        (v(1).revocation(), None, Some("replaced"))
    );
}

pub async fn a_late_registration_does_not_take_the_device_back(store: &impl Store) {
    login("new").by("ann").on("phone").at(4).apply(store).await;
    login("old").by("ann").on("phone").at(1).apply(store).await;
    assert_eq!(active(store, "ann").await, names(&["new"]));
    assert_eq!(row(store, "old").await.version, v(1).revocation());
}

pub async fn a_late_newer_registration_replaces_what_is_on_the_device(store: &impl Store) {
    // Equal versions of different tokens: the greater token wins, whichever came first.
    login("a").by("ann").on("phone").at(1).apply(store).await;
    login("b").by("ann").on("phone").at(1).apply(store).await;
    login("d").by("ann").on("tablet").at(1).apply(store).await;
    login("c").by("ann").on("tablet").at(1).apply(store).await;
    assert_eq!(active(store, "ann").await, names(&["b", "d"]));
}

pub async fn a_previous_token_is_deactivated(store: &impl Store) {
    login("old").by("ann").at(1).apply(store).await;
    login("new").by("ann").instead_of("old").at(2).apply(store).await;
    assert_eq!(active(store, "ann").await, names(&["new"]));
    let old = row(store, "old").await;
    assert_eq!((old.version, old.registration, old.reason.as_deref()), (v(2), None, Some("replaced")));
    // Its own registration may arrive after that.
    login("new2").by("bob").instead_of("old2").at(4).apply(store).await;
    login("old2").by("bob").at(3).apply(store).await;
    assert_eq!(active(store, "bob").await, names(&["new2"]));
}

pub async fn a_previous_token_that_is_the_token_itself_stays_active(store: &impl Store) {
    login("t1").by("ann").instead_of("t1").at(1).apply(store).await;
    assert_eq!(active(store, "ann").await, names(&["t1"]));
}

pub async fn an_old_replacement_spares_what_registered_later(store: &impl Store) {
    login("t1").by("ann").at(5).apply(store).await;
    login("t2").by("ann").instead_of("t1").at(3).apply(store).await;
    assert_eq!(active(store, "ann").await, names(&["t1", "t2"]));
}

pub async fn an_unregistered_token_is_inactive(store: &impl Store) {
    login("t1").by("ann").on("phone").at(1).apply(store).await;
    store.apply(&TokenChange::Unregistered(expo("t1")), v(2)).await.unwrap();
    assert_eq!(active(store, "ann").await, names(&[]));
    let found = row(store, "t1").await;
    assert_eq!((found.version, found.registration), (v(2), None));
    login("t1").by("ann").at(3).apply(store).await;
    assert_eq!(active(store, "ann").await, names(&["t1"]));
    assert_eq!(row(store, "t1").await.reason, None);
}

pub async fn a_deleted_user_has_no_tokens_and_gets_none_of_older_events(store: &impl Store) {
    login("t1").by("ann").at(1).apply(store).await;
    login("t2").by("ann").at(2).apply(store).await;
    login("other").by("bob").at(2).apply(store).await;
    store.apply(&TokenChange::UserDeleted(user("ann")), v(4)).await.unwrap();
    login("late").by("ann").at(3).apply(store).await;
    assert_eq!(active(store, "ann").await, names(&[]));
    for (token, n) in [("t1", 1), ("t2", 2), ("late", 3)] {
        let found = row(store, token).await;
        assert_eq!((found.version, found.registration), (v(n).revocation(), None), "{token}");
    }
    assert_eq!(active(store, "bob").await, names(&["other"]));
}

pub async fn a_user_who_registers_after_the_deletion_has_the_token(store: &impl Store) {
    login("t1").by("ann").at(1).apply(store).await;
    store.apply(&TokenChange::UserDeleted(user("ann")), v(5)).await.unwrap();
    // An older deletion that arrives late does not lower the marker's version.
    store.apply(&TokenChange::UserDeleted(user("ann")), v(2)).await.unwrap();
    login("t1").by("ann").at(6).apply(store).await;
    login("t2").by("ann").at(3).apply(store).await;
    assert_eq!(active(store, "ann").await, names(&["t1"]));
}

pub async fn the_deletion_of_a_former_owner_does_not_touch_the_token(store: &impl Store) {
    login("t1").by("ann").at(1).apply(store).await;
    login("t1").by("bob").at(2).apply(store).await;
    store.apply(&TokenChange::UserDeleted(user("ann")), v(3)).await.unwrap();
    assert_eq!(active(store, "bob").await, names(&["t1"]));
}

pub async fn opening_the_app_changes_no_ownership(store: &impl Store) {
    login("t1").by("ann").at(1).apply(store).await;
    let before = row(store, "t1").await;
    assert_eq!(before.seen_at, None);
    for n in [7, 3] {
        store.apply(&TokenChange::Seen(expo("t1")), v(n)).await.unwrap();
    }
    assert_eq!(row(store, "t1").await, TokenRow { seen_at: Some(at(7)), ..before });
    login("t1").by("bob").at(5).apply(store).await;
    assert_eq!(active(store, "bob").await, names(&["t1"]));
    assert_eq!(row(store, "t1").await.seen_at, Some(at(7)));
}

pub async fn opening_the_app_with_an_unknown_token_registers_nothing(store: &impl Store) {
    store.apply(&TokenChange::Seen(expo("t1")), v(4)).await.unwrap();
    assert_eq!(store.inspect(&expo("t1")).await.unwrap(), None);
    assert!(!store.revoke(&expo("t1"), Judged::AsOf(at(9)), "Unregistered").await.unwrap());
    login("t1").by("ann").at(2).apply(store).await;
    assert_eq!(active(store, "ann").await, names(&["t1"]));
    assert_eq!(row(store, "t1").await.seen_at, Some(at(4)));
}

pub async fn a_verdict_revokes_the_registration_that_it_names(store: &impl Store) {
    login("t1").by("ann").on("phone").at(1).apply(store).await;
    assert!(store.revoke(&expo("t1"), Judged::Registration(v(1)), "DeviceNotRegistered").await.unwrap());
    assert!(!store.revoke(&expo("t1"), Judged::Registration(v(1)), "DeviceNotRegistered").await.unwrap());
    assert_eq!(active(store, "ann").await, names(&[]));
    let revoked = row(store, "t1").await;
    assert_eq!(revoked.version, v(1).revocation());
    assert_eq!(revoked.registration, None);
    assert_eq!(revoked.reason.as_deref(), Some("DeviceNotRegistered"));
    assert_eq!(revoked.created_at, Some(at(1)));
    assert!(
        !store.revoke(&expo("unknown"), Judged::Registration(v(1)), "DeviceNotRegistered").await.unwrap()
    );
}

pub async fn a_verdict_on_an_earlier_registration_is_ignored(store: &impl Store) {
    login("t1").by("ann").at(1).apply(store).await;
    login("t1").by("ann").at(2).apply(store).await;
    assert!(!store.revoke(&expo("t1"), Judged::Registration(v(1)), "DeviceNotRegistered").await.unwrap());
    assert_eq!(active(store, "ann").await, names(&["t1"]));
    // And a registration after the verdict reactivates the token.
    assert!(store.revoke(&expo("t1"), Judged::Registration(v(2)), "DeviceNotRegistered").await.unwrap());
    login("t1").by("ann").at(3).apply(store).await;
    assert_eq!(active(store, "ann").await, names(&["t1"]));
}

pub async fn an_outsiders_verdict_spares_what_registered_later(store: &impl Store) {
    login("t1").by("ann").at(5).apply(store).await;
    assert!(!store.revoke(&expo("t1"), Judged::AsOf(at(4)), "bounced").await.unwrap());
    assert_eq!(active(store, "ann").await, names(&["t1"]));
    assert!(store.revoke(&expo("t1"), Judged::AsOf(at(5)), "bounced").await.unwrap());
    assert_eq!(active(store, "ann").await, names(&[]));
}

pub async fn a_replayed_registration_does_not_reactivate_a_revoked_token(store: &impl Store) {
    login("t1").by("ann").at(1).apply(store).await;
    store.revoke(&expo("t1"), Judged::Registration(v(1)), "DeviceNotRegistered").await.unwrap();
    login("t1").by("ann").at(1).apply(store).await;
    assert_eq!(active(store, "ann").await, names(&[]));
}

pub async fn the_time_of_the_first_registration_is_kept(store: &impl Store) {
    login("t1").by("ann").at(1).apply(store).await;
    login("t1").by("bob").at(2).apply(store).await;
    store.apply(&TokenChange::Unregistered(expo("t1")), v(3)).await.unwrap();
    assert_eq!(row(store, "t1").await.created_at, Some(at(1)));
}

pub async fn a_token_is_found_by_its_hash(store: &impl Store) {
    for name in ["t1", "t2", "t3"] {
        login(name).by("ann").at(1).apply(store).await;
    }
    let found = store.inspect_hash(expo("t2").hash()).await.unwrap();
    assert_eq!(found, Some(row(store, "t2").await));
    assert_eq!(store.inspect_hash(expo("t4").hash()).await.unwrap(), None);
}

pub async fn the_census_counts_by_provider(store: &impl Store) {
    for name in ["t1", "t2", "t3"] {
        login(name).by("ann").at(1).apply(store).await;
    }
    login_with(fcm("native")).at(1).apply(store).await;
    store.apply(&TokenChange::Unregistered(expo("t1")), v(2)).await.unwrap();
    store.apply(&TokenChange::Seen(expo("unknown")), v(2)).await.unwrap();
    let census = store.census().await.unwrap();
    let of = |provider| census.iter().find(|of| of.provider == provider).map(|of| (of.active, of.inactive));
    assert_eq!(of(ProviderId::Expo), Some((2, 1)));
    assert_eq!(of(ProviderId::Fcm), Some((1, 0)));
}
