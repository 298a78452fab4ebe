//! Regimens, the due queue, its watermarks, and claims.
//!
//! Due rows are stored in buckets of an hour, so that no partition grows for ever and dispatched rows are not
//! read again; they expire and are not deleted. A watermark is written with its own value as timestamp: the
//! greater one wins, and no repeat or late arrival lowers it. A claim is written by compare-and-set.

pub(crate) mod claim;

use futures::future::try_join_all;
use sha2::{Digest, Sha256};

use super::{
    CqlInner, CqlStore,
    cas::{CasResult, in_time},
    errors::{corrupt, row_name},
    execute::{all, columns, counts, first, micros, timestamp},
    regimens::DefinitionRow,
};
use crate::{
    domain::{DoseKey, DoseOutcome, DueRow, Regimen, RegimenId, Timestamp, Version, limits},
    store::{
        Claim, Claimed, DoseMark, Doses, Lease, Marked, Shard, StoreError, StoreResult, Watermark, Watermarks,
    },
};

const HOUR_US: i64 = 60 * 60 * 1_000_000;
const DUE_KEPT_SECONDS: i64 = limits::DUE_ROWS_KEPT.as_secs().cast_signed();
/// The longest TTL that servers accept.
const TTL_MAX_SECONDS: i64 = 20 * 365 * 24 * 60 * 60;
const DOSE_KEPT_SECONDS: i32 = limits::DOSES_KEPT.as_secs() as i32;

impl Doses for CqlStore {
    async fn put_regimen(
        &self,
        regimen: &RegimenId,
        definition: Option<&Regimen>,
        version: Version,
    ) -> StoreResult<()> {
        let values = (regimen.as_str(), DefinitionRow::of(definition, version), version.as_i64());
        self.inner.write("write a regimen", &self.inner.statements.put_regimen, values).await
    }

    async fn regimen(&self, regimen: &RegimenId) -> StoreResult<Option<Regimen>> {
        const CONTEXT: &str = "read a regimen";
        let rows = self.inner.rows(CONTEXT, &self.inner.statements.regimen, (regimen.as_str(),)).await?;
        match first::<(DefinitionRow,)>(&rows, || row_name("regimens", regimen))? {
            Some((definition,)) => definition.read(regimen.as_str()),
            None => Ok(None),
        }
    }

    async fn regimens(
        &self,
        after: Option<&RegimenId>,
        limit: usize,
    ) -> StoreResult<Vec<(RegimenId, Regimen)>> {
        const CONTEXT: &str = "read regimens";
        let store = &self.inner;
        // The position where the last page ended. Two regimens may share one, and are ordered by their ids
        // there.
        let last_position = match after {
            Some(id) => store
                .statements
                .regimen
                .calculate_token(&(id.as_str(),))
                .map_err(|err| StoreError::rejected(CONTEXT, err))?,
            None => None,
        };
        let mut found = Vec::new();
        let mut from = None;
        loop {
            let (rows, next) = match after {
                Some(id) => {
                    store.page(CONTEXT, &store.statements.regimens_from, (id.as_str(),), from).await?
                }
                None => store.page(CONTEXT, &store.statements.all_regimens, (), from).await?,
            };
            let some_row = || row_name("regimens", "unknown");
            for (position, id, definition) in all::<(i64, &str, DefinitionRow)>(&rows, some_row)? {
                if found.len() == limit {
                    return Ok(found);
                }
                let is_known = last_position.is_some_and(|last| last.value() == position)
                    && after.is_some_and(|after| id <= after.as_str());
                if !is_known && let Some(regimen) = definition.read(id)? {
                    found.push((RegimenId::new(id), regimen));
                }
            }
            if next.is_none() || found.len() == limit {
                return Ok(found);
            }
            from = next;
        }
    }

    async fn insert_due(&self, shard: Shard, row: &DueRow) -> StoreResult<()> {
        let due_at = micros(row.due_at);
        let payload = row.payload.as_deref().unwrap_or_default();
        let values = (
            i32::from(shard.0),
            hour(due_at),
            due_at,
            row.regimen.as_str(),
            payload_hash(payload),
            payload,
            due_ttl(row.due_at, Timestamp::now()),
        );
        self.inner.write("insert a due row", &self.inner.statements.put_due, values).await
    }

    async fn due_rows(
        &self,
        shard: Shard,
        after: Timestamp,
        until: Timestamp,
        past: Option<&DueRow>,
        limit: usize,
    ) -> StoreResult<Vec<DueRow>> {
        const CONTEXT: &str = "read due rows";
        let store = &self.inner;
        let shard = i32::from(shard.0);
        let until = micros(until);
        let start = past.map_or(micros(after), |past| micros(past.due_at).max(micros(after)));
        let mut found = Vec::new();
        let mut bucket = hour(start);
        while bucket <= until && found.len() < limit {
            let rest = i32::try_from(limit - found.len()).unwrap_or(i32::MAX);
            let rows = match past.filter(|past| micros(past.due_at) > micros(after)) {
                Some(past) => {
                    let hash = payload_hash(past.payload.as_deref().unwrap_or_default());
                    let values =
                        (shard, bucket, micros(past.due_at), past.regimen.as_str(), hash, until, rest);
                    store.rows(CONTEXT, &store.statements.due_past, values).await?
                }
                None => {
                    store
                        .rows(
                            CONTEXT,
                            &store.statements.due_after,
                            (shard, bucket, micros(after), until, rest),
                        )
                        .await?
                }
            };
            let name = || row_name("regimen_due", format_args!("{shard} {bucket}"));
            for (due_at, regimen, payload) in all::<(i64, String, Option<String>)>(&rows, name)? {
                let payload = payload.filter(|payload| !payload.is_empty());
                found.push(DueRow {
                    due_at: timestamp(due_at, name)?,
                    regimen: RegimenId::new(regimen),
                    payload,
                });
            }
            bucket += HOUR_US;
        }
        Ok(found)
    }

    async fn marks(&self, shard: Shard) -> StoreResult<Watermarks> {
        match self.inner.watermarks_if_any(shard).await? {
            (Some(read), Some(dispatched)) => Ok(Watermarks { read, dispatched }),
            _ => Err(StoreError::Unavailable {
                context: format!("shard {} of the due queue has no watermarks: run `pushcast init`", shard.0),
                source: None,
            }),
        }
    }

    async fn init_marks(&self, now: Timestamp) -> StoreResult<()> {
        try_join_all(Shard::all().map(async |shard| {
            let (read, dispatched) = self.inner.watermarks_if_any(shard).await?;
            if read.is_none() {
                self.raise(shard, Watermark::Read, now).await?;
            }
            if dispatched.is_none() {
                self.raise(shard, Watermark::Dispatched, now).await?;
            }
            Ok(())
        }))
        .await
        .map(drop)
    }

    async fn raise(&self, shard: Shard, mark: Watermark, to: Timestamp) -> StoreResult<()> {
        let statement = match mark {
            Watermark::Read => &self.inner.statements.put_read,
            Watermark::Dispatched => &self.inner.statements.put_dispatched,
        };
        let values = (micros(to), micros(to), i32::from(shard.0));
        self.inner.write("raise a shard's watermark", statement, values).await
    }

    async fn claim(
        &self,
        dose: &DoseKey,
        owner: &str,
        now: Timestamp,
        until: Timestamp,
    ) -> StoreResult<Claim> {
        const CONTEXT: &str = "claim a dose";
        let row = DoseRow { store: &self.inner, dose, context: CONTEXT };
        // Cut to what the row holds, so that the two can be compared.
        let until = timestamp(micros(until), || row.name())?;
        in_time(CONTEXT, claim::claim(&row, owner, now, until, CONTEXT)).await
    }

    async fn claimed(&self, dose: &DoseKey) -> StoreResult<Option<Claimed>> {
        claim::DoseCells::now(&DoseRow { store: &self.inner, dose, context: "read the claim of a dose" })
            .await
    }

    async fn mark(&self, dose: &DoseKey, lease: &Lease, mark: &DoseMark) -> StoreResult<Marked> {
        const CONTEXT: &str = "mark a dose";
        let row = DoseRow { store: &self.inner, dose, context: CONTEXT };
        in_time(CONTEXT, claim::mark(&row, lease, mark, CONTEXT)).await
    }
}

/// The row of a dose on the server.
struct DoseRow<'a> {
    store: &'a CqlInner,
    dose: &'a DoseKey,
    /// The operation that it is read or written for.
    context: &'static str,
}

/// A row of the dose log: owner, attempt, end of the lease, outcome, when it was marked, counts.
type ClaimedRow = (
    String,
    i32,
    i64,
    Option<String>,
    Option<i64>,
    Option<i64>,
    Option<i64>,
    Option<i64>,
    Option<i64>,
    Option<i64>,
);

impl CqlInner {
    async fn watermarks_if_any(&self, shard: Shard) -> StoreResult<(Option<Timestamp>, Option<Timestamp>)> {
        const CONTEXT: &str = "read a shard's watermarks";
        let rows = self.rows(CONTEXT, &self.statements.watermarks, (i32::from(shard.0),)).await?;
        let row = || row_name("due_marks", shard.0);
        let (read, dispatched) = first::<(Option<i64>, Option<i64>)>(&rows, row)?.unwrap_or_default();
        let time = |micros: Option<i64>| micros.map(|micros| timestamp(micros, row)).transpose();
        Ok((time(read)?, time(dispatched)?))
    }
}

impl DoseRow<'_> {
    fn name(&self) -> String {
        let DoseKey { profile, regimen, schedule_time, provider } = self.dose;
        row_name("dose_log", format_args!("{profile} {regimen} {schedule_time} {provider}"))
    }
}

impl claim::DoseCells for DoseRow<'_> {
    async fn now(&self) -> StoreResult<Option<Claimed>> {
        let rows = self.store.rows(self.context, &self.store.statements.dose_now, key(self.dose)).await?;
        let name = || self.name();
        let Some((owner, attempt, until, outcome, marked_at, sent, dead, refused, failed, expired)) =
            first::<ClaimedRow>(&rows, name)?
        else {
            return Ok(None);
        };
        let mark = match marked_at {
            Some(at) => {
                let label = outcome.unwrap_or_default();
                let outcome = DoseOutcome::from_label(&label)
                    .ok_or_else(|| corrupt(name, format!("the outcome {label:?} is not known")))?;
                let counts = counts([sent, dead, refused, failed, expired].map(Option::unwrap_or_default));
                Some(DoseMark { outcome, counts, at: timestamp(at, name)? })
            }
            None => None,
        };
        Ok(Some(Claimed { lease: Lease { owner, attempt, until: timestamp(until, name)? }, mark }))
    }

    async fn begin(&self, lease: &Lease, now: Timestamp) -> StoreResult<CasResult> {
        let (profile, regimen, time, provider) = key(self.dose);
        let values = (
            profile,
            regimen,
            time,
            provider,
            lease.owner.as_str(),
            micros(lease.until),
            micros(now),
            DOSE_KEPT_SECONDS,
        );
        self.store.compare_and_set(self.context, &self.store.statements.insert_claim, values).await
    }

    async fn take(&self, was: &Lease, lease: &Lease) -> StoreResult<CasResult> {
        let (profile, regimen, time, provider) = key(self.dose);
        let values = (
            DOSE_KEPT_SECONDS,
            lease.owner.as_str(),
            lease.attempt,
            micros(lease.until),
            profile,
            regimen,
            time,
            provider,
            was.owner.as_str(),
            was.attempt,
        );
        self.store.compare_and_set(self.context, &self.store.statements.take_claim, values).await
    }

    async fn mark(&self, lease: &Lease, mark: &DoseMark) -> StoreResult<CasResult> {
        let (profile, regimen, time, provider) = key(self.dose);
        let [sent, dead, refused, failed, expired] = columns(&mark.counts);
        let values = (
            DOSE_KEPT_SECONDS,
            mark.outcome.label(),
            micros(mark.at),
            sent,
            dead,
            refused,
            failed,
            expired,
            profile,
            regimen,
            time,
            provider,
            lease.owner.as_str(),
            lease.attempt,
        );
        self.store.compare_and_set(self.context, &self.store.statements.mark_claim, values).await
    }
}

fn key(dose: &DoseKey) -> (&str, &str, i64, &'static str) {
    (dose.profile.as_str(), dose.regimen.as_str(), micros(dose.schedule_time), dose.provider.label())
}

/// The TTL, in seconds, of a due row that is written now: [`DUE_KEPT_SECONDS`] from its time on, and never
/// less, so that a row whose time has passed is kept as long as one that is due at once.
fn due_ttl(due_at: Timestamp, now: Timestamp) -> i32 {
    let until_due = due_at.as_second().saturating_sub(now.as_second()).max(0);
    i32::try_from((until_due + DUE_KEPT_SECONDS).min(TTL_MAX_SECONDS)).unwrap_or(i32::MAX)
}

/// The first microsecond of the hour.
fn hour(micros: i64) -> i64 {
    micros.div_euclid(HOUR_US) * HOUR_US
}

/// The payload's part of the key: half of its SHA-256 in hexadecimal, and an empty text for none.
fn payload_hash(payload: &str) -> String {
    if payload.is_empty() {
        return String::new();
    }
    base16ct::lower::encode_string(&Sha256::digest(payload)[..16])
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;

    use super::*;

    #[test]
    fn a_due_row_is_kept_a_week_from_its_time_and_never_less() {
        let due_at = Timestamp::from_second(1_795_000_000).unwrap();
        let days = |ttl: i32| ttl / (24 * 60 * 60);
        // Hours that the clock has passed the row's time by, up to twenty years.
        for hours in [0, 1, 24 * 8, 24 * 400, 24 * 365 * 20] {
            let now = due_at + SignedDuration::from_hours(hours);
            assert_eq!(days(due_ttl(due_at, now)), 7, "{hours} h after its time");
        }
        assert_eq!(days(due_ttl(due_at, due_at - SignedDuration::from_hours(24 * 30))), 37);
        let far = due_at - SignedDuration::from_hours(24 * 365 * 40);
        assert_eq!(days(due_ttl(due_at, far)), 20 * 365, "the longest TTL that servers accept");
        assert_eq!(days(due_ttl(Timestamp::MIN, Timestamp::MAX)), 7);
        assert_eq!(days(due_ttl(Timestamp::MAX, Timestamp::MIN)), 20 * 365);
    }
}
