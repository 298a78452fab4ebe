//! Which [`StoreError`] a failure of SQLite is: a stored value that can't be converted makes its row corrupt,
//! a request that breaks a constraint or is malformed is rejected, and for everything else the store is
//! unavailable.
//!
//! A damaged database file (`SQLITE_CORRUPT`) counts as unavailable: it is not the fault of the row that was
//! asked for.

use rusqlite::{Error, ErrorCode, ffi};

use crate::store::StoreError;

/// Classifies the failure of an operation.
pub(super) fn failed(context: &'static str, err: Error) -> StoreError {
    match &err {
        Error::FromSqlConversionFailure(..)
        | Error::InvalidColumnType(..)
        | Error::IntegralValueOutOfRange(..)
        | Error::Utf8Error(..) => StoreError::corrupt(context, err),
        // A statement that does not compile, or a value that can't be bound to it.
        Error::SqlInputError { .. } | Error::ToSqlConversionFailure(_) => StoreError::rejected(context, err),
        Error::SqliteFailure(failure, _) if is_rejection(*failure) => StoreError::rejected(context, err),
        _ => StoreError::unavailable(context, err),
    }
}

fn is_rejection(failure: ffi::Error) -> bool {
    match failure.code {
        ErrorCode::ConstraintViolation
        | ErrorCode::TypeMismatch
        | ErrorCode::TooBig
        | ErrorCode::ParameterOutOfRange => true,
        // The plain SQLITE_ERROR is an error in the SQL; its extended codes are not.
        ErrorCode::Unknown => failure.extended_code == ffi::SQLITE_ERROR,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use rusqlite::types::Type;

    use super::*;
    use crate::store::embedded::values::unreadable;

    fn of_sqlite(result_code: i32) -> Error {
        Error::SqliteFailure(ffi::Error::new(result_code), None)
    }

    #[test]
    fn a_stored_value_that_cannot_be_converted_is_corrupt() {
        for err in [
            Error::FromSqlConversionFailure(3, Type::Text, "no such time zone".into()),
            Error::InvalidColumnType(0, "position".to_owned(), Type::Text),
            Error::IntegralValueOutOfRange(2, i64::MAX),
            unreadable(1, "the label is not known"),
        ] {
            let text = err.to_string();
            let failure = failed("read a regimen", err);
            assert!(matches!(failure, StoreError::Corrupt { .. }), "{text}: {failure:?}");
        }
    }

    #[test]
    fn an_invalid_request_is_rejected() {
        let db = rusqlite::Connection::open_in_memory().unwrap();
        let no_table = db.prepare("SELECT 1 FROM nowhere").err();
        let no_statement = db.prepare("SELEKT 1").err();
        for err in [
            of_sqlite(ffi::SQLITE_CONSTRAINT),
            of_sqlite(ffi::SQLITE_CONSTRAINT_PRIMARYKEY),
            of_sqlite(ffi::SQLITE_MISMATCH),
            of_sqlite(ffi::SQLITE_TOOBIG),
            of_sqlite(ffi::SQLITE_RANGE),
            Error::ToSqlConversionFailure("too large".into()),
            no_table.expect("there is no such table"),
            no_statement.expect("there is no such statement"),
        ] {
            let text = err.to_string();
            let failure = failed("write a regimen", err);
            assert!(matches!(failure, StoreError::Rejected { .. }), "{text}: {failure:?}");
        }
    }

    #[test]
    fn a_database_that_cannot_answer_now_is_unavailable() {
        for code in [
            ffi::SQLITE_BUSY,
            ffi::SQLITE_LOCKED,
            ffi::SQLITE_FULL,
            ffi::SQLITE_IOERR,
            ffi::SQLITE_IOERR_FSYNC,
            ffi::SQLITE_NOMEM,
            ffi::SQLITE_READONLY,
            ffi::SQLITE_CANTOPEN,
            ffi::SQLITE_INTERRUPT,
            ffi::SQLITE_CORRUPT,
            ffi::SQLITE_ERROR_RETRY,
        ] {
            let failure = failed("write a regimen", of_sqlite(code));
            assert!(matches!(failure, StoreError::Unavailable { .. }), "{code}: {failure:?}");
        }
    }
}
