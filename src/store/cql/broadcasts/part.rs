//! How far a part is, step by step, over a row that only conditional writes change: the server's, or that of
//! a test that lets owners race, die and hear nothing.
//!
//! A checkpoint that was told twice, or whose answer got lost, is found by what it says: of one epoch there
//! is one owner, and he tells his totals one after the other, so a row that says the same was written by him.
//! It lets cursor and counts only grow, so that one that a server still held when its successor was through
//! does not undo it.

use std::future::Future;

use super::super::cas::{CasResult, CasRetry};
use crate::{
    domain::Progress,
    store::{Checkpoint, StoreError},
};

type StoreResult<T> = Result<T, StoreError>;

/// The row of a part.
pub(crate) trait PartCells: Sync {
    /// What it says, everything that was decided included.
    fn now(&self) -> impl Future<Output = StoreResult<Option<Progress>>> + Send;
    /// Writes the first owner's row, if there is none.
    fn begin(&self) -> impl Future<Output = StoreResult<CasResult>> + Send;
    /// Raises the epoch by one, if the row still says this.
    fn raise(&self, found: &Progress) -> impl Future<Output = StoreResult<CasResult>> + Send;
    /// Writes an owner's progress, if it [`follows`] what the row says.
    fn record(&self, progress: &Progress) -> impl Future<Output = StoreResult<CasResult>> + Send;
}

/// Makes the caller the part's owner, unless it is done.
pub(crate) async fn take_over(row: &impl PartCells, context: &'static str) -> StoreResult<Progress> {
    let mut cas_retry = CasRetry::new(context);
    loop {
        let (decided, mine) = match row.now().await? {
            Some(found) if found.done => return Ok(found),
            // All that was read has to stand still: the owner may have got a page further since.
            Some(found) => (row.raise(&found).await?, Progress { epoch: found.epoch + 1, ..found }),
            None => (row.begin().await?, Progress { epoch: 1, ..Progress::default() }),
        };
        match decided {
            CasResult::Applied => return Ok(mine),
            CasResult::Refused => {}
            // If it was done, the next round raises the epoch once more. Nobody minds.
            CasResult::Unknown(err) => cas_retry.lost(err),
        }
        cas_retry.next_round().await?;
    }
}

/// Records an owner's progress, unless he is the owner no more.
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

/// Whether an owner may write this over what he found. Of the counts those of messages that were answered are
/// enough.
pub(crate) fn follows(found: &Progress, next: &Progress) -> bool {
    let is_behind = found.cursor <= next.cursor
        && found.counts.sent <= next.counts.sent
        && found.counts.dead <= next.counts.dead;
    found.epoch == next.epoch && !found.done && is_behind
}
