//! Broadcasts and their parts.

use rusqlite::{Connection, OptionalExtension, Row};

use super::{
    EmbeddedStore,
    values::{columns, counts, micros, timestamp, unreadable},
    writer::Durability,
};
use crate::{
    domain::{
        BroadcastId, BroadcastState, Counts, Cursor, PartId, Plan, Progress, StopReason, Timestamp, Token,
    },
    store::{Broadcasts, Checkpoint, StoreResult, Total},
};

const PLANNED: &str = "planned";
const STOPPED: &str = "stopped";
const DONE: &str = "done";

impl Broadcasts for EmbeddedStore {
    async fn plan(&self, broadcast: &BroadcastId, plan: &Plan, now: Timestamp) -> StoreResult<Plan> {
        let broadcast = broadcast.clone();
        let plan = plan.clone();
        self.write("plan a broadcast", move |db, _| {
            // The broadcast may have been stopped first: the state stays, and the plan is still written.
            db.prepare_cached(
                "INSERT INTO broadcasts (broadcast_id, spec, parts, state, created_at)
                 VALUES (?1, ?2, ?3, ?4, ?5)
                 ON CONFLICT DO UPDATE SET spec = excluded.spec, parts = excluded.parts WHERE spec IS NULL",
            )?
            .execute((broadcast.as_str(), &plan.spec, plan.parts, PLANNED, micros(now)))?;
            Ok(read(db, &broadcast)?.and_then(|(stored, _)| stored).unwrap_or_else(|| plan.clone()))
        })
        .await
    }

    async fn broadcast(
        &self,
        broadcast: &BroadcastId,
    ) -> StoreResult<(Option<Plan>, Option<BroadcastState>)> {
        let broadcast = broadcast.clone();
        self.read("read a broadcast", move |db| {
            Ok(read(db, &broadcast)?.map_or((None, None), |(plan, state)| (plan, Some(state))))
        })
        .await
    }

    async fn stop(&self, broadcast: &BroadcastId, reason: &StopReason) -> StoreResult<()> {
        let broadcast = broadcast.clone();
        let reason = reason.clone();
        self.write("stop a broadcast", move |db, now| {
            db.prepare_cached(
                "INSERT INTO broadcasts (broadcast_id, state, reason, created_at) VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT DO UPDATE SET state = excluded.state, reason = excluded.reason WHERE state = ?5",
            )?
            .execute((broadcast.as_str(), STOPPED, reason.label(), micros(now), PLANNED))
            .map(drop)
        })
        .await
    }

    async fn close(&self, broadcast: &BroadcastId) -> StoreResult<()> {
        let broadcast = broadcast.clone();
        self.write("close a broadcast", move |db, now| {
            db.prepare_cached(
                "INSERT INTO broadcasts (broadcast_id, state, created_at) VALUES (?1, ?2, ?3)
                 ON CONFLICT DO UPDATE SET state = excluded.state",
            )?
            .execute((broadcast.as_str(), DONE, micros(now)))
            .map(drop)
        })
        .await
    }

    async fn take_over(&self, part: &PartId) -> StoreResult<Progress> {
        let part = part.clone();
        self.write("take a part over", move |db, now| {
            db.prepare_cached(
                "INSERT INTO broadcast_parts (broadcast_id, provider, part, epoch, done, finished,
                     sent, dead, refused, failed, expired, created_at)
                 VALUES (?1, ?2, ?3, 1, 0, 0, 0, 0, 0, 0, 0, ?4)
                 ON CONFLICT DO UPDATE SET epoch = epoch + 1 WHERE NOT done",
            )?
            .execute((
                part.broadcast.as_str(),
                part.provider.label(),
                part.part,
                micros(now),
            ))?;
            progress_of(db, &part)?.ok_or(rusqlite::Error::QueryReturnedNoRows)
        })
        .await
    }

    async fn checkpoint(&self, part: &PartId, progress: &Progress) -> StoreResult<Checkpoint> {
        let part = part.clone();
        let progress = progress.clone();
        let record = move |db: &Connection, _| {
            let [sent, dead, refused, failed, expired] = columns(&progress.counts);
            let kept = db
                .prepare_cached(
                    "UPDATE broadcast_parts
                     SET cursor = ?5, open_tokens = ?6, done = ?7,
                         sent = ?8, dead = ?9, refused = ?10, failed = ?11, expired = ?12
                     WHERE broadcast_id = ?1 AND provider = ?2 AND part = ?3 AND epoch = ?4 AND NOT done",
                )?
                .execute((
                    part.broadcast.as_str(),
                    part.provider.label(),
                    part.part,
                    progress.epoch,
                    progress.cursor.map(|Cursor(at)| at),
                    to_json(&progress.open),
                    progress.done,
                    sent,
                    dead,
                    refused,
                    failed,
                    expired,
                ))?;
            // The part's end, recorded a second time by an owner that missed the answer, is kept already.
            if kept == 1 || progress_of(db, &part)?.as_ref() == Some(&progress) {
                Ok(Checkpoint::Kept)
            } else {
                Ok(Checkpoint::Lost)
            }
        };
        // Written often, and not urgent: it may wait to share a flush.
        self.inner.writer.run("record a part's progress", Durability::GroupCommit, record).await
    }

    async fn finish_part(&self, part: &PartId) -> StoreResult<u32> {
        let part = part.clone();
        self.write("finish a part", move |db, now| {
            db.prepare_cached(
                "INSERT INTO broadcast_parts (broadcast_id, provider, part, epoch, done, finished,
                     sent, dead, refused, failed, expired, created_at)
                 VALUES (?1, ?2, ?3, 0, 1, 1, 0, 0, 0, 0, 0, ?4)
                 ON CONFLICT DO UPDATE SET finished = 1",
            )?
            .execute((
                part.broadcast.as_str(),
                part.provider.label(),
                part.part,
                micros(now),
            ))?;
            db.prepare_cached("SELECT count(*) FROM broadcast_parts WHERE broadcast_id = ?1 AND finished")?
                .query_row([part.broadcast.as_str()], |row| row.get(0))
        })
        .await
    }

    async fn progress(&self, part: &PartId) -> StoreResult<Option<Progress>> {
        let part = part.clone();
        self.read("read a part's progress", move |db| progress_of(db, &part)).await
    }

    async fn total(&self, broadcast: &BroadcastId, now: Timestamp) -> StoreResult<Total> {
        let broadcast = broadcast.clone();
        self.write("sum a broadcast's parts", move |db, _| {
            let mut sum = Counts::default();
            let mut parts = db.prepare_cached(
                "SELECT sent, dead, refused, failed, expired FROM broadcast_parts WHERE broadcast_id = ?1",
            )?;
            let mut rows = parts.query([broadcast.as_str()])?;
            while let Some(row) = rows.next()? {
                sum += counts(row, 0)?;
            }
            let at = db
                .prepare_cached(
                    "UPDATE broadcasts SET totalled_at = coalesce(totalled_at, ?2) WHERE broadcast_id = ?1
                     RETURNING totalled_at",
                )?
                .query_row((broadcast.as_str(), micros(now)), |row| timestamp(row, 0))
                .optional()?;
            Ok(Total { counts: sum, at: at.unwrap_or(now) })
        })
        .await
    }
}

fn read(
    db: &Connection,
    broadcast: &BroadcastId,
) -> rusqlite::Result<Option<(Option<Plan>, BroadcastState)>> {
    db.prepare_cached("SELECT spec, parts, state, reason FROM broadcasts WHERE broadcast_id = ?1")?
        .query_row([broadcast.as_str()], |row| {
            let plan = match (row.get(0)?, row.get(1)?) {
                (Some(spec), Some(parts)) => Some(Plan { spec, parts }),
                _ => None,
            };
            let reason = row.get_ref(3)?.as_str_or_null()?.unwrap_or_default();
            let state = super::values::label(row, 2, |label| match label {
                PLANNED => Some(BroadcastState::Planned),
                STOPPED => Some(BroadcastState::Stopped { reason: StopReason::from_label(reason) }),
                DONE => Some(BroadcastState::Done),
                _ => None,
            })?;
            Ok((plan, state))
        })
        .optional()
}

fn progress_of(db: &Connection, part: &PartId) -> rusqlite::Result<Option<Progress>> {
    db.prepare_cached(
        "SELECT epoch, cursor, open_tokens, done, sent, dead, refused, failed, expired FROM broadcast_parts
         WHERE broadcast_id = ?1 AND provider = ?2 AND part = ?3",
    )?
    .query_row((part.broadcast.as_str(), part.provider.label(), part.part), |row| {
        let cursor = row.get::<_, Option<i64>>(1)?.map(Cursor);
        Ok(Progress {
            epoch: row.get(0)?,
            cursor,
            open: tokens(row, 2)?,
            done: row.get(3)?,
            counts: counts(row, 4)?,
        })
    })
    .optional()
}

/// Tokens as a JSON array; `None` = there are none, as nearly always.
fn to_json(tokens: &[Token]) -> Option<String> {
    let texts: Vec<_> = tokens.iter().map(Token::as_str).collect();
    (!texts.is_empty()).then(|| serde_json::json!(texts).to_string())
}

fn tokens(row: &Row<'_>, column: usize) -> rusqlite::Result<Vec<Token>> {
    let Some(array) = row.get_ref(column)?.as_str_or_null()? else { return Ok(Vec::new()) };
    let texts: Vec<String> = serde_json::from_str(array).map_err(|error| unreadable(column, error))?;
    texts.iter().map(|text| Token::parse(text).map_err(|error| unreadable(column, error))).collect()
}
