//! Routes, and whether the store answers at all.

use pushcast::{
    domain::ProviderId,
    store::{RouteRow, RouteState, Store},
};

use super::at;

pub async fn a_route_runs_until_somebody_says_otherwise(store: &impl Store) {
    for provider in ProviderId::ALL {
        assert_eq!(store.route(provider).await.unwrap().state, RouteState::Running);
    }
}

pub async fn a_route_is_read_as_it_was_set(store: &impl Store) {
    for (n, state) in (0..).zip(RouteState::ALL) {
        let route =
            RouteRow { state, since: at(n), set_by: format!("person {n}"), detail: "because".to_owned() };
        store.set_route(ProviderId::Fcm, &route).await.unwrap();
        assert_eq!(store.route(ProviderId::Fcm).await.unwrap(), route);
    }
    assert_eq!(store.route(ProviderId::Expo).await.unwrap().state, RouteState::Running);
}

pub async fn a_store_answers(store: &impl Store) {
    store.ping().await.unwrap();
}
