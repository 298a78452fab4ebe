//! The stages: handlers of one topic each, over the ports.

pub mod cleanup;
pub mod delivery;
#[cfg(test)]
mod fakes;
pub mod medication;
pub mod posts;
pub mod quarantine;
pub mod receipts;
pub mod tokens;

use consumer::{Cause, HandlerError, Record, Rejected, Unavailable};
use jiff::SignedDuration;

use crate::{
    dispatch::{BatcherStopped, ProviderUnavailable},
    domain::{Timestamp, Version, limits::AHEAD_MAX_MS},
    events::{Unreadable, topics},
    store::StoreError,
};

/// When and where an event was first written: a replayed dead letter carries its original's timestamp and
/// offset in its headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordOrigin {
    /// The timestamp of the record, or of the original of a replayed one.
    pub timestamp: Timestamp,
    /// The offset of the record in its partition, or of the original.
    pub offset: i64,
}

impl RecordOrigin {
    /// The origin of a record, as of `now`.
    ///
    /// # Errors
    /// It lies more than [`AHEAD_MAX_MS`] ahead of the clock, and would win over everything that is yet to
    /// come; or the headers of a replayed record can't be read.
    pub fn of(record: &Record, now: Timestamp) -> Result<Self, Rejected> {
        let timestamp = match number(record, topics::ORIGIN_TIMESTAMP)? {
            Some(ms) => Timestamp::from_millisecond(ms)
                .map_err(|_| Cause::invalid(format_args!("header {}: no time", topics::ORIGIN_TIMESTAMP)))?,
            None => record.timestamp,
        };
        let ahead = timestamp.duration_since(now);
        if ahead > SignedDuration::from_millis(AHEAD_MAX_MS) {
            return Err(Rejected(Cause::invalid(format_args!(
                "its timestamp, {timestamp}, is {} s ahead of the clock",
                ahead.as_secs()
            ))));
        }
        let offset = number(record, topics::ORIGIN_OFFSET)?.unwrap_or(record.offset);
        Ok(Self { timestamp, offset })
    }

    /// The version of the record's event.
    pub fn version(self) -> Version {
        Version::of_record(self.timestamp, self.offset)
    }
}

impl From<Unreadable> for Rejected {
    fn from(unreadable: Unreadable) -> Self {
        Self(match unreadable {
            Unreadable::Malformed(detail) => Cause::Unreadable(detail),
            Unreadable::Invalid(detail) => Cause::Invalid(detail),
        })
    }
}

/// Whatever the error of a store, the record is tried again: a rejected statement and a corrupt row are
/// retried like an unavailable store.
impl From<StoreError> for HandlerError {
    fn from(error: StoreError) -> Self {
        let text = error.to_string();
        let (context, source) = match error {
            StoreError::Unavailable { context, source } => (context, source),
            StoreError::Rejected { source, .. } | StoreError::Corrupt { source, .. } => (text, Some(source)),
        };
        Unavailable { dependency: "the store", context, source }.into()
    }
}

impl From<ProviderUnavailable> for HandlerError {
    fn from(error: ProviderUnavailable) -> Self {
        Unavailable::new("the provider", error.to_string(), error).into()
    }
}

impl From<BatcherStopped> for HandlerError {
    fn from(error: BatcherStopped) -> Self {
        Unavailable::new("the provider", error.to_string(), error).into()
    }
}

fn number(record: &Record, header: &str) -> Result<Option<i64>, Rejected> {
    let Some(value) = record.header(header) else { return Ok(None) };
    let number = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
    number.map(Some).ok_or_else(|| Cause::invalid(format_args!("header {header}: not a whole number")).into())
}
