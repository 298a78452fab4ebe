//! The providers' routes.

use rusqlite::OptionalExtension;

use super::{
    EmbeddedStore,
    values::{label, micros, timestamp},
};
use crate::{
    domain::{ProviderId, Timestamp},
    store::{RouteRow, RouteState, Routes, StoreResult},
};

impl Routes for EmbeddedStore {
    async fn route(&self, provider: ProviderId) -> StoreResult<RouteRow> {
        let route = self
            .read("read a route", move |db| {
                db.prepare_cached("SELECT state, since, set_by, detail FROM routes WHERE provider = ?1")?
                    .query_row([provider.label()], |row| {
                        Ok(RouteRow {
                            state: label(row, 0, RouteState::from_label)?,
                            since: timestamp(row, 1)?,
                            set_by: row.get(2)?,
                            detail: row.get(3)?,
                        })
                    })
                    .optional()
            })
            .await?;
        Ok(route.unwrap_or_else(|| RouteRow {
            state: RouteState::Running,
            since: Timestamp::UNIX_EPOCH,
            set_by: String::new(),
            detail: String::new(),
        }))
    }

    async fn set_route(&self, provider: ProviderId, route: &RouteRow) -> StoreResult<()> {
        let route = route.clone();
        self.write("set a route", move |db, _| {
            db.prepare_cached(
                "INSERT OR REPLACE INTO routes (provider, state, since, set_by, detail)
                 VALUES (?1, ?2, ?3, ?4, ?5)",
            )?
            .execute((
                provider.label(),
                route.state.label(),
                micros(route.since),
                &route.set_by,
                &route.detail,
            ))
            .map(drop)
        })
        .await
    }
}
