//! How the domain's values are written in columns.

use std::error::Error;

use rusqlite::{Row, types::Type};

use crate::domain::{Counts, Timestamp};

/// Whole microseconds since 1970; what is finer is cut.
pub(super) fn micros(at: Timestamp) -> i64 {
    at.as_microsecond()
}

pub(super) fn timestamp(row: &Row<'_>, column: usize) -> rusqlite::Result<Timestamp> {
    Timestamp::from_microsecond(row.get(column)?).map_err(|error| unreadable(column, error))
}

pub(super) fn timestamp_if_any(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<Timestamp>> {
    row.get::<_, Option<i64>>(column)?
        .map(|micros| Timestamp::from_microsecond(micros).map_err(|error| unreadable(column, error)))
        .transpose()
}

/// A word out of a closed list.
pub(super) fn label<T>(
    row: &Row<'_>,
    column: usize,
    from_label: impl Fn(&str) -> Option<T>,
) -> rusqlite::Result<T> {
    word_of(column, row.get_ref(column)?.as_str()?, from_label)
}

/// The same of a column that was read already.
pub(super) fn word_of<T>(
    column: usize,
    word: &str,
    from_label: impl Fn(&str) -> Option<T>,
) -> rusqlite::Result<T> {
    from_label(word).ok_or_else(|| unreadable(column, format!("the word {word:?} is not known")))
}

/// The column holds what no release wrote.
pub(super) fn unreadable(column: usize, cause: impl Into<Box<dyn Error + Send + Sync>>) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, Type::Text, cause.into())
}

/// SQLite's integers have a sign; no audience comes near the last bit.
pub(super) fn columns(counts: &Counts) -> [i64; 5] {
    [counts.sent, counts.dead, counts.refused, counts.failed, counts.expired].map(u64::cast_signed)
}

pub(super) fn counts(row: &Row<'_>, first: usize) -> rusqlite::Result<Counts> {
    let count = |offset| row.get(first + offset).map(i64::cast_unsigned);
    Ok(Counts { sent: count(0)?, dead: count(1)?, refused: count(2)?, failed: count(3)?, expired: count(4)? })
}
