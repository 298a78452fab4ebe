//! Routes, and the ping.

use pushcast::{
    domain::ProviderId,
    store::{RouteRow, RouteState, Store},
};

use super::at;

pub async fn a_route_is_running_until_it_is_set(store: &impl Store) {
    for provider in ProviderId::ALL {
        assert_eq!(store.route(provider).await.unwrap().state, RouteState::Running);
    }
}

pub async fn a_route_is_read_as_it_was_set(store: &impl Store) {
    for (n, state) in (0..).zip(RouteState::ALL) {
        let route =
            RouteRow { state, since: at(n), set_by: format!("operator {n}"), detail: "because".to_owned() };
        store.set_route(ProviderId::Fcm, &route).await.unwrap();
        assert_eq!(store.route(ProviderId::Fcm).await.unwrap(), route);
    }
    assert_eq!(store.route(ProviderId::Expo).await.unwrap().state, RouteState::Running);
}

pub async fn a_ping_succeeds(store: &impl Store) {
    store.ping().await.unwrap();
}
