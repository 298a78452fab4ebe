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
        let values = (
            provider.label(),
            route.state.label(),
            micros(route.since),
            route.set_by.as_str(),
            route.detail.as_str(),
            written_at(standing, Timestamp::now()),
        );
        store.write(CONTEXT, &store.statements.put_route, values).await
    }
}

/// The timestamp of a write, in microseconds: after that of the row that stands, even if that was written by a
/// clock ahead of ours. An operator who reads a route and then closes it must not lose to what was read.
fn written_at(standing: Option<i64>, now: Timestamp) -> i64 {
    standing.map_or(0, |standing| standing + 1).max(micros(now))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_is_written_after_what_stands_whatever_the_clock_says() {
        let now = Timestamp::from_second(1_795_000_000).unwrap();
        assert_eq!(written_at(None, now), micros(now));
        assert_eq!(written_at(Some(micros(now) - 5), now), micros(now));
        for ahead in [0, 1, 24 * 60 * 60 * 1_000_000] {
            assert_eq!(written_at(Some(micros(now) + ahead), now), micros(now) + ahead + 1);
        }
    }
}
