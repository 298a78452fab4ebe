//! The queue of due rows.
//!
//! A due row means: check this regimen at that time. Each regimen has one row ahead, and the process that
//! dispatches a row inserts the next one, so the chain of rows must not break: nothing would ever look at
//! that regimen again (but for the sweep). Two watermarks a shard hold it together. *Read*: a tick has
//! started to read up to here. *Dispatched*: every row up to here is dispatched, and its next row is
//! inserted.
//!
//! - A tick raises *read* before it reads rows; a process that inserts a row reads *read* after it has
//!   inserted. So either the tick's read finds the row, or its inserter finds that a tick may have missed it
//!   and dispatches it itself.
//! - A tick raises *dispatched* after its work. If it crashes before, the next tick reads the same rows
//!   again.
//! - No tick goes beyond the clock: rows behind its watermark would have to be dispatched before their time.
//!
//! The order of these steps is the protocol; a random test (`tests/schedules.rs`) runs it with crashes
//! between any two.
//!
//! Two things are accepted. An edit that is applied between a dose's time and its tick takes the place of the
//! old definition, so a dose that was due seconds before the edit may be dropped. And a definition that is
//! applied late may dispatch a dose that a later edit, not applied yet, takes away.

use std::time::Duration;

use consumer::{Fate, HandlerError, Publish};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use jiff::ToSpan as _;
use tokio_util::sync::CancellationToken;

use super::{
    Medication,
    dose::{Dose, earlier},
};
use crate::{
    domain::{DueRow, Regimen, RegimenId, Tick, Timestamp, UpstreamDose},
    events,
    stages::RecordOrigin,
    store::{Doses, Registry, Shard, Watermark},
};

/// Rows read at once.
const PAGE: usize = 500;
/// Rows of a page in work at once.
const ROWS_AT_ONCE: usize = 32;
/// No two clocks of the deployment differ by more.
const CLOCKS_AGREE_WITHIN: Duration = Duration::from_secs(5 * 60);

/// What a tick is reading. Without it a tick that catches up after a long outage would walk the rest of the
/// chain from every row of it.
struct DueReading {
    /// The rows in work, in order.
    page: Vec<DueRow>,
    /// How far the pages after this one go.
    until: Timestamp,
}

impl<S: Doses + Registry, P: Publish> Medication<S, P> {
    /// A regimen as it now is. The definition holds for the occurrences after its record.
    pub(super) async fn define(
        &self,
        id: &RegimenId,
        regimen: &Regimen,
        origin: RecordOrigin,
    ) -> Result<(), HandlerError> {
        self.store.put_regimen(id, Some(regimen), origin.version()).await?;
        // A dose that would be missed needs no row.
        let from = origin.timestamp.max(earlier(self.now(), self.settings.max_lateness));
        self.insert_next(id, regimen.next_after(from)).await
    }

    /// A dose that upstream found itself: now if it is time, else as a due row that carries it.
    pub(super) async fn upstream_dose(&self, dose: UpstreamDose) -> Result<(), HandlerError> {
        if dose.schedule_time <= self.now() {
            return self.dispatch_upstream(dose).await;
        }
        let due_at = dose.schedule_time;
        let regimen = dose.regimen.clone();
        let payload =
            String::from_utf8_lossy(&events::medication_ticks::write(&Tick::Dose(dose))).into_owned();
        self.insert(DueRow { due_at, regimen, payload: Some(payload) }, None).await
    }

    /// Reads what is due in a shard, dispatches it, inserts what comes next.
    pub(super) async fn shard_tick(
        &self,
        shard: Shard,
        at: Timestamp,
        stop: &CancellationToken,
    ) -> Result<Fate, HandlerError> {
        let until = at.min(self.now());
        self.store.raise(shard, Watermark::Read, until).await?;
        let dispatched = self.store.marks(shard).await?.dispatched;
        if dispatched >= until {
            return Ok(Fate::Done);
        }
        let mut past: Option<DueRow> = None;
        loop {
            let page = self.store.due_rows(shard, dispatched, until, past.as_ref(), PAGE).await?;
            let Some(last) = page.last().cloned() else { break };
            self.dispatch_page(&DueReading { page, until }).await?;
            // Other rows of the last one's time may be on the next page.
            self.store.raise(shard, Watermark::Dispatched, last.due_at - 1.millisecond()).await?;
            if stop.is_cancelled() {
                return Ok(Fate::Unfinished);
            }
            past = Some(last);
        }
        self.store.raise(shard, Watermark::Dispatched, until).await?;
        Ok(Fate::Done)
    }

    async fn dispatch_page(&self, reading: &DueReading) -> Result<(), HandlerError> {
        let dispatch = async |row: DueRow| match self.dispatch_row(&row).await? {
            Some(next) => self.insert(next, Some(reading)).await,
            None => Ok(()),
        };
        stream::iter(reading.page.clone()).map(Ok).try_for_each_concurrent(ROWS_AT_ONCE, dispatch).await
    }

    /// Inserts the regimen's next due row, if it has one.
    async fn insert_next(&self, id: &RegimenId, due_at: Option<Timestamp>) -> Result<(), HandlerError> {
        match due_at {
            Some(due_at) => self.insert(DueRow { due_at, regimen: id.clone(), payload: None }, None).await,
            None => Ok(()),
        }
    }

    /// Inserts a due row; dispatches it, and the rows after it, where a tick may have read past it already. A
    /// row that the inserting tick will read itself is left to it.
    async fn insert(&self, row: DueRow, reading: Option<&DueReading>) -> Result<(), HandlerError> {
        let mut next = Some(row);
        while let Some(row) = next {
            if reading.is_some_and(|reading| reading.holds(&row)) {
                return Ok(());
            }
            let shard = Shard::of(&row.regimen);
            self.store.insert_due(shard, &row).await?;
            if reading.is_some_and(|reading| reading.will_read(&row)) {
                return Ok(());
            }
            // The read watermark never lies ahead of a clock, so it need not be read for what lies ahead of
            // all clocks.
            if earlier(row.due_at, CLOCKS_AGREE_WITHIN) > self.now()
                || row.due_at > self.store.marks(shard).await?.read
            {
                return Ok(());
            }
            next = self.dispatch_row(&row).await?;
        }
        Ok(())
    }

    /// Dispatches the dose of a due row, if there is one; returns the row that comes next.
    async fn dispatch_row(&self, row: &DueRow) -> Result<Option<DueRow>, HandlerError> {
        let regimen = self.store.regimen(&row.regimen).await?;
        let own = regimen.as_ref().is_some_and(|regimen| regimen.is_occurrence(row.due_at));
        match (&row.payload, &regimen) {
            (Some(payload), _) => match events::medication_ticks::read(None, Some(payload.as_bytes())) {
                Ok(Tick::Dose(dose)) => self.dispatch(&Dose::of_upstream(dose, regimen.as_ref())).await?,
                Ok(_) | Err(_) => {
                    tracing::error!(
                        regimen.id = %row.regimen,
                        due_at = %row.due_at,
                        "The due row of {} at {} carries no dose",
                        row.regimen,
                        row.due_at
                    );
                }
            },
            (None, Some(regimen)) if own => {
                self.dispatch(&Dose::of_regimen(&row.regimen, regimen, row.due_at)).await?
            }
            (None, _) => {}
        }
        // A regimen has one row per time. Upstream's dose may have taken the place of the regimen's own row,
        // and then the chain continues from it.
        let continues = row.payload.is_none() || own;
        let next = regimen.filter(|_| continues).and_then(|regimen| regimen.next_after(row.due_at));
        Ok(next.map(|due_at| DueRow { due_at, regimen: row.regimen.clone(), payload: None }))
    }

    async fn dispatch_upstream(&self, dose: UpstreamDose) -> Result<(), HandlerError> {
        let regimen = match dose.timezone {
            Some(_) => None,
            None => self.store.regimen(&dose.regimen).await?,
        };
        self.dispatch(&Dose::of_upstream(dose, regimen.as_ref())).await
    }

    /// Inserts each regimen's next due row, in case it is missing (a restored backup, an expired row). Run it
    /// at the start and daily; returns the number of regimens.
    ///
    /// # Errors
    /// The store or Kafka was unavailable; what was done stays done, and all of it may be done again.
    pub async fn sweep(&self) -> Result<u64, HandlerError> {
        let mut regimens = 0;
        let mut after: Option<RegimenId> = None;
        loop {
            let page = self.store.regimens(after.as_ref(), PAGE).await?;
            let Some((last, _)) = page.last() else { return Ok(regimens) };
            after = Some(last.clone());
            regimens += page.len() as u64;
            // Only what is to come: since when the definition holds is not known here.
            let restore = async |(id, regimen): (RegimenId, Regimen)| {
                self.insert_next(&id, regimen.next_after(self.now())).await
            };
            stream::iter(page).map(Ok).try_for_each_concurrent(ROWS_AT_ONCE, restore).await?;
        }
    }
}

// === impl DueReading ===

impl DueReading {
    fn holds(&self, row: &DueRow) -> bool {
        self.page.binary_search(row).is_ok()
    }

    /// Whether a later page finds the row once it is inserted.
    fn will_read(&self, row: &DueRow) -> bool {
        row.due_at <= self.until && self.page.last().is_some_and(|last| last < row)
    }
}
