//! Broadcasts and their parts.
//!
//! The plan and the progress of a part are written by compare-and-set; the state of a broadcast and the set
//! of its finished parts only grow, and need no condition.

pub(crate) mod part;

use std::fmt::Display;

use futures::future::try_join_all;
use scylla::response::query_result::QueryRowsResult;

use super::{
    CqlInner, CqlStore,
    cas::{CasResult, CasRetry, in_time},
    errors::{corrupt, row_name},
    execute::{all, columns, counts, first, micros, timestamp},
};
use crate::{
    domain::{
        BroadcastId, BroadcastState, Counts, Cursor, PartId, Plan, Progress, StopReason, Timestamp, Token,
        limits,
    },
    store::{Broadcasts, Checkpoint, StoreError, StoreResult, Total},
};

const PLANNED: &str = "planned";
const STOPPED: &str = "stopped";
const DONE: &str = "done";

/// The state's timestamps: fixed, so that a repeat changes nothing and no state returns to an earlier one.
const PLANNED_AT: i64 = 1;
const STOPPED_AT: i64 = 2;
const DONE_AT: i64 = 3;

/// The TTL of the rows of a broadcast.
const KEPT_SECONDS: i32 = limits::BROADCASTS_KEPT.as_secs() as i32;

/// The cursor of a part that has sent nothing yet: no token has this position.
const NOTHING_DONE: i64 = i64::MIN;

/// Parts whose rows are read at once.
const PARTS_AT_ONCE: usize = 32;

impl Broadcasts for CqlStore {
    async fn plan(&self, broadcast: &BroadcastId, plan: &Plan, now: Timestamp) -> StoreResult<Plan> {
        let stored = self.inner.insert_plan(broadcast, plan, now).await?;
        let values = (PLANNED_AT, KEPT_SECONDS, PLANNED, broadcast.as_str());
        self.inner.write("plan a broadcast", &self.inner.statements.put_state, values).await?;
        Ok(stored)
    }

    async fn broadcast(
        &self,
        broadcast: &BroadcastId,
    ) -> StoreResult<(Option<Plan>, Option<BroadcastState>)> {
        const CONTEXT: &str = "read a broadcast";
        let store = &self.inner;
        let key = (broadcast.as_str(),);
        let (plan, state) = futures::future::try_join(
            store.rows(CONTEXT, &store.statements.plan, key),
            store.rows(CONTEXT, &store.statements.broadcast, key),
        )
        .await?;
        let plan = stored_plan(broadcast, &plan)?;
        let row = || row_name("broadcasts", broadcast);
        let state = match first::<(String, Option<String>)>(&state, row)? {
            Some((label, reason)) => Some(match label.as_str() {
                PLANNED => BroadcastState::Planned,
                STOPPED => {
                    BroadcastState::Stopped { reason: StopReason::from_label(&reason.unwrap_or_default()) }
                }
                DONE => BroadcastState::Done,
                _ => return Err(corrupt(row, format!("the state {label:?} is not known"))),
            }),
            // The process that planned it ended before it wrote the state.
            None => plan.as_ref().map(|_| BroadcastState::Planned),
        };
        Ok((plan, state))
    }

    async fn stop(&self, broadcast: &BroadcastId, reason: &StopReason) -> StoreResult<()> {
        let values = (STOPPED_AT, KEPT_SECONDS, STOPPED, reason.label(), broadcast.as_str());
        self.inner.write("stop a broadcast", &self.inner.statements.put_state_and_reason, values).await
    }

    async fn close(&self, broadcast: &BroadcastId) -> StoreResult<()> {
        let values = (DONE_AT, KEPT_SECONDS, DONE, broadcast.as_str());
        self.inner.write("close a broadcast", &self.inner.statements.put_state, values).await
    }

    async fn take_over(&self, part: &PartId) -> StoreResult<Progress> {
        const CONTEXT: &str = "take a part over";
        let row = PartRow { store: &self.inner, part, context: CONTEXT };
        in_time(CONTEXT, part::take_over(&row, CONTEXT)).await
    }

    async fn checkpoint(&self, part: &PartId, progress: &Progress) -> StoreResult<Checkpoint> {
        const CONTEXT: &str = "record a part's progress";
        let row = PartRow { store: &self.inner, part, context: CONTEXT };
        in_time(CONTEXT, part::checkpoint(&row, progress, CONTEXT)).await
    }

    async fn finish_part(&self, part: &PartId) -> StoreResult<u32> {
        const CONTEXT: &str = "finish a part";
        let store = &self.inner;
        let (broadcast, provider, number) = key(part);
        store
            .write(CONTEXT, &store.statements.put_finished, (broadcast, provider, number, KEPT_SECONDS))
            .await?;
        let rows = store.rows(CONTEXT, &store.statements.count_finished, (broadcast,)).await?;
        let name = || row_name("broadcast_done", broadcast);
        let (finished,) = first::<(i64,)>(&rows, name)?.unwrap_or_default();
        u32::try_from(finished).map_err(|err| corrupt(name, err))
    }

    async fn progress(&self, part: &PartId) -> StoreResult<Option<Progress>> {
        part::PartCells::now(&PartRow { store: &self.inner, part, context: "read a part's progress" }).await
    }

    async fn total(&self, broadcast: &BroadcastId, now: Timestamp) -> StoreResult<Total> {
        let mut sum = Counts::default();
        for counts in self.inner.finished(broadcast).await? {
            sum += counts;
        }
        Ok(Total { counts: sum, at: self.inner.first_total_at(broadcast, now).await? })
    }
}

/// The row of a part on the server.
struct PartRow<'a> {
    store: &'a CqlInner,
    part: &'a PartId,
    /// The operation that it is read or written for.
    context: &'static str,
}

/// A row of `broadcast_parts`: epoch, cursor, open tokens, done, counts.
type PartColumns = (i32, i64, Option<Vec<String>>, bool, i64, i64, i64, i64, i64);

impl part::PartCells for PartRow<'_> {
    async fn now(&self) -> StoreResult<Option<Progress>> {
        let rows = self.store.rows(self.context, &self.store.statements.part_now, key(self.part)).await?;
        let row = || part_row(&self.part.broadcast, self.part.provider.label(), self.part.part);
        let Some((epoch, cursor, open, done, sent, dead, refused, failed, expired)) =
            first::<PartColumns>(&rows, row)?
        else {
            return Ok(None);
        };
        let open = open.iter().flatten().map(|text| Token::parse(text)).collect::<Result<_, _>>();
        Ok(Some(Progress {
            epoch,
            cursor: Some(Cursor(cursor)).filter(|_| cursor != NOTHING_DONE),
            open: open.map_err(|err| corrupt(row, err))?,
            done,
            counts: counts([sent, dead, refused, failed, expired]),
        }))
    }

    async fn begin(&self) -> StoreResult<CasResult> {
        let (broadcast, provider, number) = key(self.part);
        let values = (broadcast, provider, number, NOTHING_DONE, KEPT_SECONDS);
        self.store.compare_and_set(self.context, &self.store.statements.insert_part, values).await
    }

    async fn raise(&self, found: &Progress) -> StoreResult<CasResult> {
        let (broadcast, provider, number) = key(self.part);
        let [sent, dead, refused, failed, expired] = columns(&found.counts);
        let epoch = found.epoch;
        let cursor = cursor(found);
        let values = (
            KEPT_SECONDS,
            epoch + 1,
            broadcast,
            provider,
            number,
            epoch,
            cursor,
            sent,
            dead,
            refused,
            failed,
            expired,
        );
        self.store.compare_and_set(self.context, &self.store.statements.take_over, values).await
    }

    async fn record(&self, progress: &Progress) -> StoreResult<CasResult> {
        let (broadcast, provider, number) = key(self.part);
        let [sent, dead, refused, failed, expired] = columns(&progress.counts);
        let cursor = cursor(progress);
        let open: Vec<&str> = progress.open.iter().map(Token::as_str).collect();
        let values = (
            KEPT_SECONDS,
            cursor,
            open,
            progress.done,
            sent,
            dead,
            refused,
            failed,
            expired,
            broadcast,
            provider,
            number,
            progress.epoch,
            cursor,
            sent,
            dead,
        );
        self.store.compare_and_set(self.context, &self.store.statements.checkpoint, values).await
    }
}

impl CqlInner {
    /// Writes the plan if there is none; returns the one that is stored then.
    async fn insert_plan(&self, broadcast: &BroadcastId, plan: &Plan, now: Timestamp) -> StoreResult<Plan> {
        const CONTEXT: &str = "plan a broadcast";
        let mut cas_retry = CasRetry::new(CONTEXT);
        loop {
            let values =
                (broadcast.as_str(), &plan.spec, plan.parts.cast_signed(), micros(now), KEPT_SECONDS);
            match self.compare_and_set(CONTEXT, &self.statements.insert_plan, values).await? {
                CasResult::Applied => return Ok(plan.clone()),
                CasResult::Refused => {}
                CasResult::Unknown(err) => cas_retry.lost(err),
            }
            let rows = self.rows(CONTEXT, &self.statements.plan_now, (broadcast.as_str(),)).await?;
            if let Some(plan) = stored_plan(broadcast, &rows)? {
                return Ok(plan);
            }
            cas_retry.next_round().await?;
        }
    }

    /// The counts of all finished parts. These do not change any more, so a plain read is enough.
    async fn finished(&self, broadcast: &BroadcastId) -> StoreResult<Vec<Counts>> {
        const CONTEXT: &str = "sum a broadcast's parts";
        let mut all_counts = Vec::new();
        let mut from = None;
        loop {
            let (rows, next) =
                self.page(CONTEXT, &self.statements.finished, (broadcast.as_str(),), from).await?;
            let finished = all::<(String, i32)>(&rows, || row_name("broadcast_done", broadcast))?;
            for parts in finished.chunks(PARTS_AT_ONCE) {
                let read = parts.iter().map(|(provider, number)| async move {
                    let rows = self
                        .rows(CONTEXT, &self.statements.part, (broadcast.as_str(), provider, number))
                        .await?;
                    let row = || part_row(broadcast, provider, number);
                    let found = first::<(i64, i64, i64, i64, i64)>(&rows, row)?;
                    Ok::<_, StoreError>(found.map(|(sent, dead, refused, failed, expired)| {
                        counts([sent, dead, refused, failed, expired])
                    }))
                });
                all_counts.extend(try_join_all(read).await?.into_iter().flatten());
            }
            if next.is_none() {
                return Ok(all_counts);
            }
            from = next;
        }
    }

    /// When the total was first asked for; `now`, if this is the first time.
    async fn first_total_at(&self, broadcast: &BroadcastId, now: Timestamp) -> StoreResult<Timestamp> {
        const CONTEXT: &str = "record when a broadcast was summed up";
        let row = || row_name("broadcast_totals", broadcast);
        let mut cas_retry = CasRetry::new(CONTEXT);
        loop {
            let values = (broadcast.as_str(), micros(now), KEPT_SECONDS);
            match self.compare_and_set(CONTEXT, &self.statements.insert_total, values).await? {
                CasResult::Applied => return timestamp(micros(now), row),
                CasResult::Refused => {}
                CasResult::Unknown(err) => cas_retry.lost(err),
            }
            let rows = self.rows(CONTEXT, &self.statements.total_now, (broadcast.as_str(),)).await?;
            if let Some((at,)) = first::<(i64,)>(&rows, row)? {
                return timestamp(at, row);
            }
            cas_retry.next_round().await?;
        }
    }
}

fn stored_plan(broadcast: &BroadcastId, rows: &QueryRowsResult) -> StoreResult<Option<Plan>> {
    let found = first::<(String, i32)>(rows, || row_name("broadcast_plans", broadcast))?;
    Ok(found.map(|(spec, parts)| Plan { spec, parts: parts.cast_unsigned() }))
}

fn part_row(broadcast: &BroadcastId, provider: &str, number: impl Display) -> String {
    row_name("broadcast_parts", format_args!("{broadcast} {provider} {number}"))
}

fn key(part: &PartId) -> (&str, &'static str, i32) {
    (part.broadcast.as_str(), part.provider.label(), part.part.cast_signed())
}

fn cursor(progress: &Progress) -> i64 {
    progress.cursor.map_or(NOTHING_DONE, |Cursor(at)| at)
}
