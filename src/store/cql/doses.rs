//! Regimens, due rows, marks and claims.
//!
//! Due rows lie in buckets of an hour, so that no partition grows for ever and what is handed on is never met
//! again; they expire, nobody deletes them. The marks are written with their own value as timestamp: the
//! greater one stands, and no repeat or late arrival lowers it. A claim is decided by one winner.

pub(crate) mod claim;

use futures::future::try_join_all;
use sha2::{Digest, Sha256};

use super::{
    CqlInner, CqlStore,
    cas::{CasResult, in_time},
    execute::{all, columns, counts, first, micros, timestamp, unreadable},
    regimens::DefinitionRow,
};
use crate::{
    domain::{DoseKey, DoseOutcome, DueRow, Regimen, RegimenId, Timestamp, Version, limits},
    store::{Claim, Claimed, DoseMark, Doses, Lease, Marked, Shard, StoreError, Watermark, Watermarks},
};

const HOUR_US: i64 = 60 * 60 * 1_000_000;
const DUE_KEPT_SECONDS: i64 = limits::DUE_ROWS_KEPT.as_secs().cast_signed();
/// The longest life that servers accept.
const LIFE_MAX_SECONDS: i64 = 20 * 365 * 24 * 60 * 60;
const DOSE_KEPT_SECONDS: i32 = limits::DOSES_KEPT.as_secs() as i32;

impl Doses for CqlStore {
    async fn put_regimen(
        &self,
        regimen: &RegimenId,
        definition: Option<&Regimen>,
        version: Version,
    ) -> Result<(), StoreError> {
        let values = (regimen.as_str(), DefinitionRow::of(definition, version), version.as_i64());
        self.inner.write("write a regimen", &self.inner.statements.put_regimen, values).await
    }

    async fn regimen(&self, regimen: &RegimenId) -> Result<Option<Regimen>, StoreError> {
        const CONTEXT: &str = "read a regimen";
        let rows = self.inner.rows(CONTEXT, &self.inner.statements.regimen, (regimen.as_str(),)).await?;
        match first::<(DefinitionRow,)>(CONTEXT, &rows)? {
            Some((definition,)) => definition.read(),
            None => Ok(None),
        }
    }

    async fn regimens(
        &self,
        after: Option<&RegimenId>,
        limit: usize,
    ) -> Result<Vec<(RegimenId, Regimen)>, StoreError> {
        const CONTEXT: &str = "read regimens";
        let store = &self.inner;
        // Where the last page ended: two regimens may share a position, and lie there in the order of their
        // ids.
        let place = match after {
            Some(id) => store
                .statements
                .regimen
                .calculate_token(&(id.as_str(),))
                .map_err(|err| unreadable(CONTEXT, err))?,
            None => None,
        };
        let (mut found, mut from) = (Vec::new(), None);
        loop {
            let (rows, next) = match after {
                Some(id) => {
                    store.page(CONTEXT, &store.statements.regimens_from, (id.as_str(),), from).await?
                }
                None => store.page(CONTEXT, &store.statements.all_regimens, (), from).await?,
            };
            for (position, id, definition) in all::<(i64, &str, DefinitionRow)>(CONTEXT, &rows)? {
                if found.len() == limit {
                    return Ok(found);
                }
                let is_known = place.is_some_and(|place| place.value() == position)
                    && after.is_some_and(|after| id <= after.as_str());
                if !is_known && let Some(regimen) = definition.read()? {
                    found.push((RegimenId::new(id), regimen));
                }
            }
            if next.is_none() || found.len() == limit {
                return Ok(found);
            }
            from = next;
        }
    }

    async fn insert_due(&self, shard: Shard, row: &DueRow) -> Result<(), StoreError> {
        let due_at = micros(row.due_at);
        let payload = row.payload.as_deref().unwrap_or_default();
        let values = (
            i32::from(shard.0),
            hour(due_at),
            due_at,
            row.regimen.as_str(),
            payload_hash(payload),
            payload,
            due_life(row.due_at, Timestamp::now()),
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
    ) -> Result<Vec<DueRow>, StoreError> {
        const CONTEXT: &str = "read due rows";
        let (store, shard, until) = (&self.inner, i32::from(shard.0), micros(until));
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
            for (due_at, regimen, payload) in all::<(i64, String, Option<String>)>(CONTEXT, &rows)? {
                let payload = payload.filter(|payload| !payload.is_empty());
                found.push(DueRow {
                    due_at: timestamp(CONTEXT, due_at)?,
                    regimen: RegimenId::new(regimen),
                    payload,
                });
            }
            bucket += HOUR_US;
        }
        Ok(found)
    }

    async fn marks(&self, shard: Shard) -> Result<Watermarks, StoreError> {
        match self.inner.marks_if_any(shard).await? {
            (Some(opened), Some(handed)) => Ok(Watermarks { read: opened, dispatched: handed }),
            _ => Err(StoreError::Unavailable {
                context: format!("shard {} of the due doses has no marks; run `pushcast init`", shard.0),
                source: None,
            }),
        }
    }

    async fn init_marks(&self, now: Timestamp) -> Result<(), StoreError> {
        try_join_all(Shard::all().map(async |shard| {
            let (opened, handed) = self.inner.marks_if_any(shard).await?;
            if opened.is_none() {
                self.raise(shard, Watermark::Read, now).await?;
            }
            if handed.is_none() {
                self.raise(shard, Watermark::Dispatched, now).await?;
            }
            Ok(())
        }))
        .await
        .map(drop)
    }

    async fn raise(&self, shard: Shard, mark: Watermark, to: Timestamp) -> Result<(), StoreError> {
        let statement = match mark {
            Watermark::Read => &self.inner.statements.put_opened,
            Watermark::Dispatched => &self.inner.statements.put_handed,
        };
        self.inner
            .write("raise a shard's mark", statement, (micros(to), micros(to), i32::from(shard.0)))
            .await
    }

    async fn claim(
        &self,
        dose: &DoseKey,
        owner: &str,
        now: Timestamp,
        until: Timestamp,
    ) -> Result<Claim, StoreError> {
        const CONTEXT: &str = "claim a dose";
        // As the row tells it again.
        let until = timestamp(CONTEXT, micros(until))?;
        in_time(
            CONTEXT,
            claim::claim(&DoseRow { store: &self.inner, dose, context: CONTEXT }, owner, now, until, CONTEXT),
        )
        .await
    }

    async fn claimed(&self, dose: &DoseKey) -> Result<Option<Claimed>, StoreError> {
        claim::DoseCells::now(&DoseRow { store: &self.inner, dose, context: "read who claimed a dose" }).await
    }

    async fn mark(&self, dose: &DoseKey, lease: &Lease, mark: &DoseMark) -> Result<Marked, StoreError> {
        const CONTEXT: &str = "mark a dose";
        in_time(
            CONTEXT,
            claim::mark(&DoseRow { store: &self.inner, dose, context: CONTEXT }, lease, mark, CONTEXT),
        )
        .await
    }
}

/// The row of a dose on the server.
struct DoseRow<'a> {
    store: &'a CqlInner,
    dose: &'a DoseKey,
    /// What it is asked for.
    context: &'static str,
}

/// A row of the dose log: owner, attempt, lease, outcome, time of the mark, counts.
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
    async fn marks_if_any(&self, shard: Shard) -> Result<(Option<Timestamp>, Option<Timestamp>), StoreError> {
        const CONTEXT: &str = "read a shard's marks";
        let rows = self.rows(CONTEXT, &self.statements.marks, (i32::from(shard.0),)).await?;
        let (opened, handed) = first::<(Option<i64>, Option<i64>)>(CONTEXT, &rows)?.unwrap_or_default();
        let time = |micros: Option<i64>| micros.map(|micros| timestamp(CONTEXT, micros)).transpose();
        Ok((time(opened)?, time(handed)?))
    }
}

impl claim::DoseCells for DoseRow<'_> {
    async fn now(&self) -> Result<Option<Claimed>, StoreError> {
        let context = self.context;
        let rows = self.store.rows(context, &self.store.statements.dose_now, key(self.dose)).await?;
        let Some((owner, attempt, until, outcome, marked_at, sent, dead, refused, failed, expired)) =
            first::<ClaimedRow>(context, &rows)?
        else {
            return Ok(None);
        };
        let mark = match marked_at {
            Some(at) => {
                let word = outcome.unwrap_or_default();
                let outcome = DoseOutcome::from_label(&word)
                    .ok_or_else(|| unreadable(context, format!("the outcome {word:?} is not known")))?;
                let counts = counts([sent, dead, refused, failed, expired].map(Option::unwrap_or_default));
                Some(DoseMark { outcome, counts, at: timestamp(context, at)? })
            }
            None => None,
        };
        Ok(Some(Claimed { lease: Lease { owner, attempt, until: timestamp(context, until)? }, mark }))
    }

    async fn begin(&self, lease: &Lease, now: Timestamp) -> Result<CasResult, StoreError> {
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
        self.store.decide(self.context, &self.store.statements.insert_claim, values).await
    }

    async fn take(&self, was: &Lease, lease: &Lease) -> Result<CasResult, StoreError> {
        let (profile, regimen, time, provider) = key(self.dose);
        let new = (lease.owner.as_str(), lease.attempt, micros(lease.until));
        let values = (
            DOSE_KEPT_SECONDS,
            new.0,
            new.1,
            new.2,
            profile,
            regimen,
            time,
            provider,
            was.owner.as_str(),
            was.attempt,
        );
        self.store.decide(self.context, &self.store.statements.take_claim, values).await
    }

    async fn mark(&self, lease: &Lease, mark: &DoseMark) -> Result<CasResult, StoreError> {
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
        self.store.decide(self.context, &self.store.statements.mark_claim, values).await
    }
}

fn key(dose: &DoseKey) -> (&str, &str, i64, &'static str) {
    (dose.profile.as_str(), dose.regimen.as_str(), micros(dose.schedule_time), dose.provider.label())
}

/// How many seconds the server keeps a due row that is written now: [`DUE_KEPT_SECONDS`] from its time on, and
/// never less, so that a row whose time has passed is kept as long as one that is due at once.
fn due_life(due_at: Timestamp, now: Timestamp) -> i32 {
    let until_due = due_at.as_second().saturating_sub(now.as_second()).max(0);
    i32::try_from((until_due + DUE_KEPT_SECONDS).min(LIFE_MAX_SECONDS)).unwrap_or(i32::MAX)
}

/// The first microsecond of the hour.
fn hour(micros: i64) -> i64 {
    micros.div_euclid(HOUR_US) * HOUR_US
}

/// What stands for a payload in the key; nothing for none.
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
        let days = |life: i32| life / (24 * 60 * 60);
        // Hours that the clock has passed the row's time by, up to twenty years.
        for hours in [0, 1, 24 * 8, 24 * 400, 24 * 365 * 20] {
            let now = due_at + SignedDuration::from_hours(hours);
            assert_eq!(days(due_life(due_at, now)), 7, "{hours} h after its time");
        }
        assert_eq!(days(due_life(due_at, due_at - SignedDuration::from_hours(24 * 30))), 37);
        let far = due_at - SignedDuration::from_hours(24 * 365 * 40);
        assert_eq!(days(due_life(due_at, far)), 20 * 365, "the longest life that servers accept");
        assert_eq!(days(due_life(Timestamp::MIN, Timestamp::MAX)), 7);
        assert_eq!(days(due_life(Timestamp::MAX, Timestamp::MIN)), 20 * 365);
    }
}
