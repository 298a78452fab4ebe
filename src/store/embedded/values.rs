//! How the domain's values are stored in columns.

use std::error::Error;

use rusqlite::{Row, types::Type};

use crate::domain::{Counts, Timestamp};

/// Whole microseconds since 1970; what is finer is cut off.
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

/// A value that is stored as its label.
pub(super) fn label<T>(
    row: &Row<'_>,
    column: usize,
    from_label: impl Fn(&str) -> Option<T>,
) -> rusqlite::Result<T> {
    parse_label(column, row.get_ref(column)?.as_str()?, from_label)
}

/// The same from the text of a column that was read already.
pub(super) fn parse_label<T>(
    column: usize,
    text: &str,
    from_label: impl Fn(&str) -> Option<T>,
) -> rusqlite::Result<T> {
    from_label(text).ok_or_else(|| unreadable(column, format!("the label {text:?} is not known")))
}

/// The error of a column that holds what no release wrote.
pub(super) fn unreadable(column: usize, cause: impl Into<Box<dyn Error + Send + Sync>>) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, Type::Text, cause.into())
}

/// SQLite's integers are signed; no count comes near the highest bit.
pub(super) fn columns(counts: &Counts) -> [i64; 5] {
    [counts.sent, counts.dead, counts.refused, counts.failed, counts.expired].map(u64::cast_signed)
}

pub(super) fn counts(row: &Row<'_>, first: usize) -> rusqlite::Result<Counts> {
    let count = |offset| row.get(first + offset).map(i64::cast_unsigned);
    Ok(Counts { sent: count(0)?, dead: count(1)?, refused: count(2)?, failed: count(3)?, expired: count(4)? })
}
