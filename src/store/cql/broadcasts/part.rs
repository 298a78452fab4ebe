//! The progress of a part, step by step, over a row that only conditional writes change: the server's, or
//! that of a test in which owners race, end half-way and lose answers.
//!
//! A checkpoint that was sent twice, or whose answer got lost, is recognised by its content: an epoch has one
//! owner, which records its totals one after the other, so a row with the same content was written by it. A
//! checkpoint only lets cursor and counts grow, so that one that a server still held back when the next one
//! was written does not undo it.

use std::future::Future;

use super::super::cas::{CasResult, CasRetry};
use crate::{
    domain::Progress,
    store::{Checkpoint, StoreResult},
};

/// The row of a part.
pub(crate) trait PartCells: Sync {
    /// A serial read: its result includes every conditional write that was done.
    fn now(&self) -> impl Future<Output = StoreResult<Option<Progress>>> + Send;
    /// Writes the first owner's row, if there is none.
    fn begin(&self) -> impl Future<Output = StoreResult<CasResult>> + Send;
    /// Raises the epoch by one, if the row is still the one that was `found`.
    fn raise(&self, found: &Progress) -> impl Future<Output = StoreResult<CasResult>> + Send;
    /// Writes an owner's progress, if it [`follows`] that of the row.
    fn record(&self, progress: &Progress) -> impl Future<Output = StoreResult<CasResult>> + Send;
}

/// Makes the caller the part's owner, unless it is done.
pub(crate) async fn take_over(row: &impl PartCells, context: &'static str) -> StoreResult<Progress> {
    let mut cas_retry = CasRetry::new(context);
    loop {
        let (result, mine) = match row.now().await? {
            Some(found) if found.done => return Ok(found),
            // On condition that nothing of it has changed: the owner may have recorded a page since.
            Some(found) => (row.raise(&found).await?, Progress { epoch: found.epoch + 1, ..found }),
            None => (row.begin().await?, Progress { epoch: 1, ..Progress::default() }),
        };
        match result {
            CasResult::Applied => return Ok(mine),
            CasResult::Refused => {}
            // If it was done, the next round raises the epoch once more, which does no harm.
            CasResult::Unknown(err) => cas_retry.lost(err),
        }
        cas_retry.next_round().await?;
    }
}

/// Records an owner's progress, unless the part has a later owner.
pub(crate) async fn checkpoint(
    row: &impl PartCells,
    progress: &Progress,
    context: &'static str,
) -> StoreResult<Checkpoint> {
    let mut cas_retry = CasRetry::new(context);
    loop {
        match row.record(progress).await? {
            CasResult::Applied => return Ok(Checkpoint::Kept),
            CasResult::Refused => {}
            CasResult::Unknown(err) => cas_retry.lost(err),
        }
        match row.now().await? {
            Some(found) if found == *progress => return Ok(Checkpoint::Kept),
            Some(found) if follows(&found, progress) => {}
            _ => return Ok(Checkpoint::Lost),
        }
        cas_retry.next_round().await?;
    }
}

/// Whether an owner may write this over what it found. Of the counts it is enough to compare those of
/// messages that a provider answered.
pub(crate) fn follows(found: &Progress, next: &Progress) -> bool {
    let is_behind = found.cursor <= next.cursor
        && found.counts.sent <= next.counts.sent
        && found.counts.dead <= next.counts.dead;
    found.epoch == next.epoch && !found.done && is_behind
}
