//! Removes old rows, a few at a time, so that no operation waits long for it.
//!
//! A step follows a write. Where nothing is written nothing grows, so no timer is needed.

use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior};

use super::values::micros;
use crate::domain::{Timestamp, limits};

/// The most rows that a step removes from each table.
const STEP_ROWS: u32 = 500;

const SECOND_US: i64 = 1_000_000;

/// A table whose rows are removed when the time in their `age` column is `kept` ago. The column has an index.
struct Aging {
    table: &'static str,
    key: &'static str,
    age: &'static str,
    kept: Duration,
}

const AGING: [Aging; 5] = [
    Aging {
        table: "tokens",
        key: "position, push_token",
        age: "inactive_since",
        kept: limits::INACTIVE_TOKENS_KEPT,
    },
    Aging { table: "broadcasts", key: "broadcast_id", age: "created_at", kept: limits::BROADCASTS_KEPT },
    Aging {
        table: "broadcast_parts",
        key: "broadcast_id, provider, part",
        age: "created_at",
        kept: limits::BROADCASTS_KEPT,
    },
    Aging {
        table: "regimen_due",
        key: "shard, due_at, regimen_id, payload",
        age: "due_at",
        kept: limits::DUE_ROWS_KEPT,
    },
    Aging {
        table: "dose_log",
        key: "profile_id, regimen_id, schedule_time, provider",
        age: "created_at",
        kept: limits::DOSES_KEPT,
    },
];

/// When the next step is due, and where it begins.
#[derive(Default)]
pub(super) struct Purge {
    /// Microseconds since 1970.
    due_at: i64,
    /// The key of the device where the next step begins: devices have no index by age and are read in order.
    device: (String, String),
}

impl Purge {
    /// Removes rows if a minute has passed, or a second if the last step left some.
    pub(super) fn step_if_due(&mut self, db: &Connection, now: Timestamp) -> rusqlite::Result<()> {
        if micros(now) < self.due_at {
            return Ok(());
        }
        self.due_at = micros(now) + 60 * SECOND_US;
        let transaction = Transaction::new_unchecked(db, TransactionBehavior::Immediate)?;
        let more = self.remove(&transaction, now)?;
        transaction.commit()?;
        if more {
            self.due_at = micros(now) + SECOND_US;
        }
        Ok(())
    }

    /// Removes a few rows of each table; returns whether there may be more.
    pub(super) fn remove(&mut self, db: &Connection, now: Timestamp) -> rusqlite::Result<bool> {
        let mut more = false;
        for Aging { table, key, age, kept } in &AGING {
            let removed = db
                .prepare_cached(&format!(
                    "DELETE FROM {table}
                     WHERE ({key}) IN (SELECT {key} FROM {table} WHERE {age} < ?1 LIMIT {STEP_ROWS})"
                ))?
                .execute([before(now, *kept)])?;
            more |= removed == STEP_ROWS as usize;
        }
        self.remove_devices(db, before(now, limits::INACTIVE_TOKENS_KEPT))?;
        Ok(more)
    }

    /// Reads the next few devices and removes those whose holder is not an active token any more.
    fn remove_devices(&mut self, db: &Connection, before: i64) -> rusqlite::Result<()> {
        let end: Option<(String, String)> = db
            .prepare_cached(
                "SELECT device_id, kind FROM devices WHERE (device_id, kind) > (?1, ?2)
                 ORDER BY device_id, kind LIMIT 1 OFFSET ?3",
            )?
            .query_row((&self.device.0, &self.device.1, STEP_ROWS), |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        let (until_device, until_kind) = end.clone().unzip();
        db.prepare_cached(
            "DELETE FROM devices
             WHERE (device_id, kind) > (?1, ?2) AND (?3 IS NULL OR (device_id, kind) <= (?3, ?4))
               AND version < ?5
               AND NOT EXISTS (
                   SELECT 1 FROM tokens
                   WHERE tokens.position = devices.position AND tokens.push_token = devices.push_token
                     AND tokens.device_id = devices.device_id)",
        )?
        .execute((&self.device.0, &self.device.1, until_device, until_kind, before))?;
        self.device = end.unwrap_or_default();
        Ok(())
    }
}

/// The time before which rows that are kept that long are old, in microseconds since 1970.
fn before(now: Timestamp, kept: Duration) -> i64 {
    micros(now) - kept.as_secs().cast_signed() * SECOND_US
}
