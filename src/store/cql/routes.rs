//! The providers' routes. People and brakes set them, a few times a year; what was set last stands.

use super::{
    CqlStore,
    execute::{first, micros, timestamp, unreadable},
};
use crate::{
    domain::{ProviderId, Timestamp},
    store::{RouteRow, RouteState, Routes, StoreError},
};

impl Routes for CqlStore {
    async fn route(&self, provider: ProviderId) -> Result<RouteRow, StoreError> {
        const CONTEXT: &str = "read a route";
        let rows = self.inner.rows(CONTEXT, &self.inner.statements.route, (provider.label(),)).await?;
        match first::<(String, i64, String, String, i64)>(CONTEXT, &rows)? {
            Some((word, since, set_by, detail, _)) => Ok(RouteRow {
                state: RouteState::from_label(&word)
                    .ok_or_else(|| unreadable(CONTEXT, format!("the state {word:?} is not known")))?,
                since: timestamp(CONTEXT, since)?,
                set_by,
                detail,
            }),
            None => Ok(RouteRow {
                state: RouteState::Running,
                since: Timestamp::UNIX_EPOCH,
                set_by: String::new(),
                detail: String::new(),
            }),
        }
    }

    async fn set_route(&self, provider: ProviderId, route: &RouteRow) -> Result<(), StoreError> {
        const CONTEXT: &str = "set a route";
        let store = &self.inner;
        let rows = store.rows(CONTEXT, &store.statements.route, (provider.label(),)).await?;
        let standing = first::<(String, i64, String, String, i64)>(CONTEXT, &rows)?
            .map(|(_, _, _, _, written_at)| written_at);
        // After whatever stands, even if that was written by a clock ahead of ours: a person who looks and
        // then closes the route must not lose to what he looked at.
        let written_at = standing.map_or(0, |standing| standing + 1).max(micros(Timestamp::now()));
        let values = (
            provider.label(),
            route.state.label(),
            micros(route.since),
            route.set_by.as_str(),
            route.detail.as_str(),
            written_at,
        );
        store.write(CONTEXT, &store.statements.put_route, values).await
    }
}
