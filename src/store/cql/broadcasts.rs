//! Broadcasts and their parts.
//!
//! The plan and the progress of a part are decided by one winner; the state of a broadcast and the set of its
//! finished parts only grow, and need no decision.

pub(crate) mod part;

use futures::future::try_join_all;

use super::{
    CqlInner, CqlStore,
    cas::{CasResult, CasRetry, in_time},
    execute::{all, columns, counts, first, micros, timestamp, unreadable},
};
use crate::{
    domain::{
        BroadcastId, BroadcastState, Counts, Cursor, PartId, Plan, Progress, StopReason, Timestamp, Token,
        limits,
    },
    store::{Broadcasts, Checkpoint, StoreError, Total},
};

const PLANNED: &str = "planned";
const STOPPED: &str = "stopped";
const DONE: &str = "done";

/// The state's timestamps: fixed, so that a repeat changes nothing and nothing goes back.
const PLANNED_AT: i64 = 1;
const STOPPED_AT: i64 = 2;
const DONE_AT: i64 = 3;

/// The life of every row here.
const KEPT_SECONDS: i32 = limits::BROADCASTS_KEPT.as_secs() as i32;

/// No token's position: nothing is done yet.
const NOTHING_DONE: i64 = i64::MIN;

/// Parts whose rows are read at once.
const PARTS_AT_ONCE: usize = 32;

impl Broadcasts for CqlStore {
    async fn plan(&self, broadcast: &BroadcastId, plan: &Plan, now: Timestamp) -> Result<Plan, StoreError> {
        let standing = self.inner.standing_plan(broadcast, plan, now).await?;
        let values = (PLANNED_AT, KEPT_SECONDS, PLANNED, broadcast.as_str());
        self.inner.write("plan a broadcast", &self.inner.statements.put_state, values).await?;
        Ok(standing)
    }

    async fn broadcast(
        &self,
        broadcast: &BroadcastId,
    ) -> Result<(Option<Plan>, Option<BroadcastState>), StoreError> {
        const CONTEXT: &str = "read a broadcast";
        let (store, key) = (&self.inner, (broadcast.as_str(),));
        let (plan, state) = futures::future::try_join(
            store.rows(CONTEXT, &store.statements.plan, key),
            store.rows(CONTEXT, &store.statements.broadcast, key),
        )
        .await?;
        let plan = first::<(String, i32)>(CONTEXT, &plan)?
            .map(|(spec, parts)| Plan { spec, parts: parts.cast_unsigned() });
        let state = match first::<(String, Option<String>)>(CONTEXT, &state)? {
            Some((word, reason)) => Some(match word.as_str() {
                PLANNED => BroadcastState::Planned,
                STOPPED => {
                    BroadcastState::Stopped { reason: StopReason::from_label(&reason.unwrap_or_default()) }
                }
                DONE => BroadcastState::Done,
                _ => return Err(unreadable(CONTEXT, format!("the state {word:?} is not known"))),
            }),
            // Whoever planned it died before he said so.
            None => plan.as_ref().map(|_| BroadcastState::Planned),
        };
        Ok((plan, state))
    }

    async fn stop(&self, broadcast: &BroadcastId, reason: &StopReason) -> Result<(), StoreError> {
        let values = (STOPPED_AT, KEPT_SECONDS, STOPPED, reason.label(), broadcast.as_str());
        self.inner.write("stop a broadcast", &self.inner.statements.put_state_and_reason, values).await
    }

    async fn close(&self, broadcast: &BroadcastId) -> Result<(), StoreError> {
        let values = (DONE_AT, KEPT_SECONDS, DONE, broadcast.as_str());
        self.inner.write("close a broadcast", &self.inner.statements.put_state, values).await
    }

    async fn take_over(&self, part: &PartId) -> Result<Progress, StoreError> {
        const CONTEXT: &str = "take a part over";
        in_time(CONTEXT, part::take_over(&PartRow { store: &self.inner, part, context: CONTEXT }, CONTEXT))
            .await
    }

    async fn checkpoint(&self, part: &PartId, progress: &Progress) -> Result<Checkpoint, StoreError> {
        const CONTEXT: &str = "record a part's progress";
        in_time(
            CONTEXT,
            part::checkpoint(&PartRow { store: &self.inner, part, context: CONTEXT }, progress, CONTEXT),
        )
        .await
    }

    async fn finish_part(&self, part: &PartId) -> Result<u32, StoreError> {
        const CONTEXT: &str = "finish a part";
        let store = &self.inner;
        let (broadcast, provider, number) = key(part);
        store
            .write(CONTEXT, &store.statements.put_finished, (broadcast, provider, number, KEPT_SECONDS))
            .await?;
        let rows = store.rows(CONTEXT, &store.statements.count_finished, (broadcast,)).await?;
        let (finished,) = first::<(i64,)>(CONTEXT, &rows)?.unwrap_or_default();
        u32::try_from(finished).map_err(|err| unreadable(CONTEXT, err))
    }

    async fn progress(&self, part: &PartId) -> Result<Option<Progress>, StoreError> {
        part::PartCells::now(&PartRow { store: &self.inner, part, context: "read a part's progress" }).await
    }

    async fn total(&self, broadcast: &BroadcastId, now: Timestamp) -> Result<Total, StoreError> {
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
    /// What it is asked for.
    context: &'static str,
}

impl part::PartCells for PartRow<'_> {
    async fn now(&self) -> Result<Option<Progress>, StoreError> {
        let rows = self.store.rows(self.context, &self.store.statements.part_now, key(self.part)).await?;
        let found =
            first::<(i32, i64, Option<Vec<String>>, bool, i64, i64, i64, i64, i64)>(self.context, &rows)?;
        let Some((epoch, cursor, open, done, sent, dead, refused, failed, expired)) = found else {
            return Ok(None);
        };
        let open = open.iter().flatten().map(|text| Token::parse(text)).collect::<Result<_, _>>();
        Ok(Some(Progress {
            epoch,
            cursor: Some(Cursor(cursor)).filter(|_| cursor != NOTHING_DONE),
            open: open.map_err(|err| unreadable(self.context, err))?,
            done,
            counts: counts([sent, dead, refused, failed, expired]),
        }))
    }

    async fn begin(&self) -> Result<CasResult, StoreError> {
        let (broadcast, provider, number) = key(self.part);
        let values = (broadcast, provider, number, NOTHING_DONE, KEPT_SECONDS);
        self.store.decide(self.context, &self.store.statements.insert_part, values).await
    }

    async fn raise(&self, found: &Progress) -> Result<CasResult, StoreError> {
        let (broadcast, provider, number) = key(self.part);
        let [sent, dead, refused, failed, expired] = columns(&found.counts);
        let (epoch, cursor) = (found.epoch, cursor(found));
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
        self.store.decide(self.context, &self.store.statements.take_over, values).await
    }

    async fn record(&self, progress: &Progress) -> Result<CasResult, StoreError> {
        let (broadcast, provider, number) = key(self.part);
        let [sent, dead, refused, failed, expired] = columns(&progress.counts);
        let (epoch, cursor, done) = (progress.epoch, cursor(progress), progress.done);
        let open: Vec<&str> = progress.open.iter().map(Token::as_str).collect();
        let values = (
            KEPT_SECONDS,
            cursor,
            open,
            done,
            sent,
            dead,
            refused,
            failed,
            expired,
            broadcast,
            provider,
            number,
            epoch,
            cursor,
            sent,
            dead,
        );
        self.store.decide(self.context, &self.store.statements.checkpoint, values).await
    }
}

impl CqlInner {
    /// The plan that stands: this one, unless there was one.
    async fn standing_plan(
        &self,
        broadcast: &BroadcastId,
        plan: &Plan,
        now: Timestamp,
    ) -> Result<Plan, StoreError> {
        const CONTEXT: &str = "plan a broadcast";
        let mut cas_retry = CasRetry::new(CONTEXT);
        loop {
            let values =
                (broadcast.as_str(), &plan.spec, plan.parts.cast_signed(), micros(now), KEPT_SECONDS);
            match self.decide(CONTEXT, &self.statements.insert_plan, values).await? {
                CasResult::Applied => return Ok(plan.clone()),
                CasResult::Refused => {}
                CasResult::Unknown(err) => cas_retry.lost(err),
            }
            let rows = self.rows(CONTEXT, &self.statements.plan_now, (broadcast.as_str(),)).await?;
            if let Some((spec, parts)) = first::<(String, i32)>(CONTEXT, &rows)? {
                return Ok(Plan { spec, parts: parts.cast_unsigned() });
            }
            cas_retry.next_round().await?;
        }
    }

    /// The counts of all finished parts. These do not change any more, so a plain read is enough.
    async fn finished(&self, broadcast: &BroadcastId) -> Result<Vec<Counts>, StoreError> {
        const CONTEXT: &str = "sum a broadcast's parts";
        let (mut all_counts, mut from) = (Vec::new(), None);
        loop {
            let (rows, next) =
                self.page(CONTEXT, &self.statements.finished, (broadcast.as_str(),), from).await?;
            for parts in all::<(String, i32)>(CONTEXT, &rows)?.chunks(PARTS_AT_ONCE) {
                let read = parts.iter().map(|(provider, number)| async move {
                    let rows = self
                        .rows(CONTEXT, &self.statements.part, (broadcast.as_str(), provider, number))
                        .await?;
                    let found = first::<(i64, i64, i64, i64, i64)>(CONTEXT, &rows)?;
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

    /// When the total was first asked for: the first one's time stands.
    async fn first_total_at(&self, broadcast: &BroadcastId, now: Timestamp) -> Result<Timestamp, StoreError> {
        const CONTEXT: &str = "note when a broadcast was summed up";
        let mut cas_retry = CasRetry::new(CONTEXT);
        loop {
            let values = (broadcast.as_str(), micros(now), KEPT_SECONDS);
            match self.decide(CONTEXT, &self.statements.insert_total, values).await? {
                CasResult::Applied => return timestamp(CONTEXT, micros(now)),
                CasResult::Refused => {}
                CasResult::Unknown(err) => cas_retry.lost(err),
            }
            let rows = self.rows(CONTEXT, &self.statements.total_now, (broadcast.as_str(),)).await?;
            if let Some((at,)) = first::<(i64,)>(CONTEXT, &rows)? {
                return timestamp(CONTEXT, at);
            }
            cas_retry.next_round().await?;
        }
    }
}

fn key(part: &PartId) -> (&str, &'static str, i32) {
    (part.broadcast.as_str(), part.provider.label(), part.part.cast_signed())
}

fn cursor(progress: &Progress) -> i64 {
    progress.cursor.map_or(NOTHING_DONE, |Cursor(at)| at)
}
