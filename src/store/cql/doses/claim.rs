//! The claim of a dose, step by step, over a row that only conditional writes change: the server's, or that
//! of a test in which handlings race, end half-way and lose answers.

use std::future::Future;

use super::super::cas::{CasResult, CasRetry};
use crate::{
    domain::Timestamp,
    store::{Claim, Claimed, DoseMark, Lease, Marked, StoreResult},
};

/// The row of a dose.
pub(crate) trait DoseCells: Sync {
    /// A serial read: its result includes every conditional write that was done.
    fn now(&self) -> impl Future<Output = StoreResult<Option<Claimed>>> + Send;
    /// Writes the first claim, if there is none.
    fn begin(&self, lease: &Lease, now: Timestamp) -> impl Future<Output = StoreResult<CasResult>> + Send;
    /// Replaces the lease `was`, if it is still the current one and the dose is not marked.
    fn take(&self, was: &Lease, lease: &Lease) -> impl Future<Output = StoreResult<CasResult>> + Send;
    /// Marks the dose, if the lease is still the current one and the dose is not marked.
    fn mark(&self, lease: &Lease, mark: &DoseMark) -> impl Future<Output = StoreResult<CasResult>> + Send;
}

/// Claims the dose for `owner`, unless another owner's lease runs or the dose is marked.
pub(crate) async fn claim(
    row: &impl DoseCells,
    owner: &str,
    now: Timestamp,
    until: Timestamp,
    context: &'static str,
) -> StoreResult<Claim> {
    let mut cas_retry = CasRetry::new(context);
    let mut found: Option<Claimed> = None;
    loop {
        let attempt = found.as_ref().map_or(1, |found| found.lease.attempt + 1);
        let mine = Lease { owner: owner.to_owned(), attempt, until };
        let result = match &found {
            None => row.begin(&mine, now).await?,
            Some(Claimed { lease: was, .. }) => row.take(was, &mine).await?,
        };
        let lost = match result {
            CasResult::Applied => return Ok(Claim::Mine(mine)),
            CasResult::Refused => false,
            CasResult::Unknown(err) => {
                cas_retry.lost(err);
                true
            }
        };
        found = row.now().await?;
        match &found {
            Some(Claimed { mark: Some(mark), .. }) => return Ok(Claim::Marked(mark.clone())),
            Some(Claimed { lease, .. }) if lease.owner != owner && now <= lease.until => {
                return Ok(Claim::Held(lease.until));
            }
            // The answer was lost, and the write was done. An earlier claim of this owner ends at another
            // time.
            Some(Claimed { lease, .. }) if lost && lease.owner == owner && lease.until == until => {
                return Ok(Claim::Mine(lease.clone()));
            }
            _ => {}
        }
        cas_retry.next_round().await?;
    }
}

/// Marks the dose with its outcome, unless the claim was taken over.
pub(crate) async fn mark(
    row: &impl DoseCells,
    lease: &Lease,
    mark: &DoseMark,
    context: &'static str,
) -> StoreResult<Marked> {
    let mut cas_retry = CasRetry::new(context);
    loop {
        match row.mark(lease, mark).await? {
            CasResult::Applied => return Ok(Marked::Kept),
            CasResult::Refused => {}
            CasResult::Unknown(err) => cas_retry.lost(err),
        }
        match row.now().await? {
            Some(found) if (&found.lease.owner, found.lease.attempt) != (&lease.owner, lease.attempt) => {
                return Ok(Marked::Lost);
            }
            Some(Claimed { mark: Some(_), .. }) => return Ok(Marked::Kept),
            Some(_) => {}
            None => return Ok(Marked::Lost),
        }
        cas_retry.next_round().await?;
    }
}
