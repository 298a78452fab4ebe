//! The providers' routes. Operators and brakes set them, a few times a year; the last write wins.

use super::{
    CqlStore,
    errors::{corrupt, row_name},
    execute::{first, micros, timestamp},
};
use crate::{
    domain::{ProviderId, Timestamp},
    store::{RouteRow, RouteState, Routes, StoreResult},
};

impl Routes for CqlStore {
    async fn route(&self, provider: ProviderId) -> StoreResult<RouteRow> {
        const CONTEXT: &str = "read a route";
        let rows = self.inner.rows(CONTEXT, &self.inner.statements.route, (provider.label(),)).await?;
        let row = || row_name("routes", provider);
        match first::<(String, i64, String, String, i64)>(&rows, row)? {
            Some((label, since, set_by, detail, _)) => Ok(RouteRow {
                state: RouteState::from_label(&label)
                    .ok_or_else(|| corrupt(row, format!("the state {label:?} is not known")))?,
                since: timestamp(since, row)?,
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

    async fn set_route(&self, provider: ProviderId, route: &RouteRow) -> StoreResult<()> {
        const CONTEXT: &str = "set a route";
        let store = &self.inner;
        let rows = store.rows(CONTEXT, &store.statements.route, (provider.label(),)).await?;
        let row = || row_name("routes", provider);
        let current = first::<(String, i64, String, String, i64)>(&rows, row)?
            .map(|(_, _, _, _, written_at)| written_at);
        let values = (
            provider.label(),
            route.state.label(),
            micros(route.since),
            route.set_by.as_str(),
            route.detail.as_str(),
            written_at(current, Timestamp::now()),
        );
        store.write(CONTEXT, &store.statements.put_route, values).await
    }
}

/// The timestamp of a write, in microseconds: later than that of the current row, even if that was written by
/// a clock ahead of ours. When an operator reads a route and then closes it, the state that was read must not
/// win.
fn written_at(current: Option<i64>, now: Timestamp) -> i64 {
    current.map_or(0, |current| current + 1).max(micros(now))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_is_written_later_than_the_current_row_whatever_the_clock_says() {
        let now = Timestamp::from_second(1_795_000_000).unwrap();
        assert_eq!(written_at(None, now), micros(now));
        assert_eq!(written_at(Some(micros(now) - 5), now), micros(now));
        for ahead in [0, 1, 24 * 60 * 60 * 1_000_000] {
            assert_eq!(written_at(Some(micros(now) + ahead), now), micros(now) + ahead + 1);
        }
    }
}
