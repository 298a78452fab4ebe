//! Regimens, the due queue, its watermarks, and claims.

use rusqlite::{Connection, OptionalExtension};

use super::{
    EmbeddedStore,
    regimens::{REGIMEN, StoredDefinition},
    values::{columns, counts, label, micros, timestamp, timestamp_if_any},
};
use crate::{
    domain::{DoseKey, DoseOutcome, DueRow, Regimen, RegimenId, Timestamp, Version},
    store::{
        Claim, Claimed, DoseMark, Doses, Lease, Marked, Shard, StoreError, StoreResult, Watermark, Watermarks,
    },
};

impl Doses for EmbeddedStore {
    async fn put_regimen(
        &self,
        regimen: &RegimenId,
        definition: Option<&Regimen>,
        version: Version,
    ) -> StoreResult<()> {
        let new = StoredDefinition::of(definition);
        let regimen = regimen.clone();
        self.write("write a regimen", move |db, _| {
            // Of equal versions the greater definition wins, whichever came first.
            match StoredDefinition::load(db, &regimen)? {
                Some((known, old)) if (version, &new) <= (known, &old) => Ok(()),
                _ => new.save(db, &regimen, version),
            }
        })
        .await
    }

    async fn regimen(&self, regimen: &RegimenId) -> StoreResult<Option<Regimen>> {
        let regimen = regimen.clone();
        self.read("read a regimen", move |db| {
            StoredDefinition::load(db, &regimen)?
                .filter(|(_, definition)| !definition.removed)
                .map(|(_, definition)| definition.read())
                .transpose()
        })
        .await
    }

    async fn regimens(
        &self,
        after: Option<&RegimenId>,
        limit: usize,
    ) -> StoreResult<Vec<(RegimenId, Regimen)>> {
        let after = after.map(|id| id.as_str().to_owned());
        self.read("read regimens", move |db| {
            db.prepare_cached(&format!(
                "SELECT {REGIMEN}, regimen_id FROM regimens
                 WHERE (?1 IS NULL OR regimen_id > ?1) AND NOT removed ORDER BY regimen_id LIMIT ?2"
            ))?
            .query_and_then((&after, rows(limit)), |row| {
                let (_, definition) = StoredDefinition::from_row(row)?;
                Ok((RegimenId::new(row.get::<_, String>(11)?), definition.read()?))
            })?
            .collect()
        })
        .await
    }

    async fn insert_due(&self, shard: Shard, row: &DueRow) -> StoreResult<()> {
        let row = row.clone();
        self.write("insert a due row", move |db, _| {
            let payload = row.payload.as_deref().unwrap_or_default();
            db.prepare_cached(
                "INSERT INTO regimen_due (shard, due_at, regimen_id, payload) VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT DO NOTHING",
            )?
            .execute((shard.0, micros(row.due_at), row.regimen.as_str(), payload))
            .map(drop)
        })
        .await
    }

    async fn due_rows(
        &self,
        shard: Shard,
        after: Timestamp,
        until: Timestamp,
        past: Option<&DueRow>,
        limit: usize,
    ) -> StoreResult<Vec<DueRow>> {
        let (time, regimen, payload) = match past {
            Some(row) => {
                (micros(row.due_at), row.regimen.as_str().to_owned(), row.payload.clone().unwrap_or_default())
            }
            None => (i64::MIN, String::new(), String::new()),
        };
        self.read("read due rows", move |db| {
            db.prepare_cached(
                "SELECT due_at, regimen_id, payload FROM regimen_due
                 WHERE shard = ?1 AND due_at > ?2 AND due_at <= ?3
                   AND (due_at, regimen_id, payload) > (?4, ?5, ?6)
                 ORDER BY due_at, regimen_id, payload LIMIT ?7",
            )?
            .query_and_then(
                (shard.0, micros(after), micros(until), time, &regimen, &payload, rows(limit)),
                |row| {
                    Ok(DueRow {
                        due_at: timestamp(row, 0)?,
                        regimen: RegimenId::new(row.get::<_, String>(1)?),
                        payload: Some(row.get::<_, String>(2)?).filter(|payload| !payload.is_empty()),
                    })
                },
            )?
            .collect()
        })
        .await
    }

    async fn marks(&self, shard: Shard) -> StoreResult<Watermarks> {
        self.read("read a shard's watermarks", move |db| {
            db.prepare_cached("SELECT opened, handed FROM due_marks WHERE shard = ?1")?
                .query_row([shard.0], |row| {
                    Ok(Watermarks { read: timestamp(row, 0)?, dispatched: timestamp(row, 1)? })
                })
                .optional()
        })
        .await?
        .ok_or_else(|| no_watermarks(shard))
    }

    async fn init_marks(&self, now: Timestamp) -> StoreResult<()> {
        self.write("write the first watermarks", move |db, _| {
            let mut insert = db.prepare_cached(
                "INSERT INTO due_marks (shard, opened, handed) VALUES (?1, ?2, ?2) ON CONFLICT DO NOTHING",
            )?;
            Shard::all().try_for_each(|shard| insert.execute((shard.0, micros(now))).map(drop))
        })
        .await
    }

    async fn raise(&self, shard: Shard, mark: Watermark, to: Timestamp) -> StoreResult<()> {
        let raised = self
            .write("raise a shard's watermark", move |db, _| {
                db.prepare_cached(match mark {
                    Watermark::Read => "UPDATE due_marks SET opened = max(opened, ?2) WHERE shard = ?1",
                    Watermark::Dispatched => "UPDATE due_marks SET handed = max(handed, ?2) WHERE shard = ?1",
                })?
                .execute((shard.0, micros(to)))
            })
            .await?;
        if raised == 1 { Ok(()) } else { Err(no_watermarks(shard)) }
    }

    async fn claim(
        &self,
        dose: &DoseKey,
        owner: &str,
        now: Timestamp,
        until: Timestamp,
    ) -> StoreResult<Claim> {
        let dose = dose.clone();
        let owner = owner.to_owned();
        self.write("claim a dose", move |db, _| {
            let attempt = match claimed(db, &dose)? {
                Some(Claimed { mark: Some(mark), .. }) => return Ok(Claim::Marked(mark)),
                Some(Claimed { lease, .. }) if lease.owner != owner && now <= lease.until => {
                    return Ok(Claim::Held(lease.until));
                }
                Some(Claimed { lease, .. }) => lease.attempt + 1,
                None => 1,
            };
            db.prepare_cached(
                "INSERT INTO dose_log
                     (profile_id, regimen_id, schedule_time, provider,
                      owner, attempt, lease_until, created_at)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)
                 ON CONFLICT DO UPDATE SET owner = excluded.owner, attempt = excluded.attempt,
                     lease_until = excluded.lease_until",
            )?
            .execute((
                dose.profile.as_str(),
                dose.regimen.as_str(),
                micros(dose.schedule_time),
                dose.provider.label(),
                &owner,
                attempt,
                micros(until),
                micros(now),
            ))?;
            Ok(Claim::Mine(Lease { owner: owner.clone(), attempt, until }))
        })
        .await
    }

    async fn claimed(&self, dose: &DoseKey) -> StoreResult<Option<Claimed>> {
        let dose = dose.clone();
        self.read("read the claim of a dose", move |db| claimed(db, &dose)).await
    }

    async fn mark(&self, dose: &DoseKey, lease: &Lease, mark: &DoseMark) -> StoreResult<Marked> {
        let dose = dose.clone();
        let lease = lease.clone();
        let mark = mark.clone();
        self.write("mark a dose", move |db, _| {
            let is_own = |other: &Lease| (&other.owner, other.attempt) == (&lease.owner, lease.attempt);
            match claimed(db, &dose)? {
                Some(claimed) if is_own(&claimed.lease) && claimed.mark.is_some() => Ok(Marked::Kept),
                Some(claimed) if is_own(&claimed.lease) => {
                    let [sent, dead, refused, failed, expired] = columns(&mark.counts);
                    db.prepare_cached(
                        "UPDATE dose_log SET outcome = ?5, marked_at = ?6,
                             sent = ?7, dead = ?8, refused = ?9, failed = ?10, expired = ?11
                         WHERE profile_id = ?1 AND regimen_id = ?2 AND schedule_time = ?3 AND provider = ?4",
                    )?
                    .execute((
                        dose.profile.as_str(),
                        dose.regimen.as_str(),
                        micros(dose.schedule_time),
                        dose.provider.label(),
                        mark.outcome.label(),
                        micros(mark.at),
                        sent,
                        dead,
                        refused,
                        failed,
                        expired,
                    ))?;
                    Ok(Marked::Kept)
                }
                _ => Ok(Marked::Lost),
            }
        })
        .await
    }
}

fn claimed(db: &Connection, dose: &DoseKey) -> rusqlite::Result<Option<Claimed>> {
    let key =
        (dose.profile.as_str(), dose.regimen.as_str(), micros(dose.schedule_time), dose.provider.label());
    db.prepare_cached(
        "SELECT owner, attempt, lease_until, outcome, marked_at, sent, dead, refused, failed, expired
         FROM dose_log WHERE profile_id = ?1 AND regimen_id = ?2 AND schedule_time = ?3 AND provider = ?4",
    )?
    .query_row(key, |row| {
        let mark = match timestamp_if_any(row, 4)? {
            Some(at) => {
                let outcome = label(row, 3, DoseOutcome::from_label)?;
                Some(DoseMark { outcome, counts: counts(row, 5)?, at })
            }
            None => None,
        };
        let lease = Lease { owner: row.get(0)?, attempt: row.get(1)?, until: timestamp(row, 2)? };
        Ok(Claimed { lease, mark })
    })
    .optional()
}

fn rows(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

fn no_watermarks(shard: Shard) -> StoreError {
    StoreError::Unavailable {
        context: format!("shard {} of the due queue has no watermarks: run `pushcast init`", shard.0),
        source: None,
    }
}
