//! Which [`StoreError`] a failure of the driver or of a server is: a request that is invalid is rejected, a
//! row that can't be decoded is corrupt, and for everything else the cluster is unavailable.

use std::{error::Error, fmt::Display};

use scylla::errors::{DbError, ExecutionError, RequestAttemptError};

use crate::store::StoreError;

/// Classifies the failure of a request.
pub(super) fn request_failed(context: &'static str, err: ExecutionError) -> StoreError {
    if is_rejection(&err) {
        StoreError::rejected(context, err)
    } else {
        StoreError::unavailable(context, err)
    }
}

/// Whether the request itself is at fault, so that it fails each time. A request that was rejected was not
/// done.
pub(super) fn is_rejection(err: &ExecutionError) -> bool {
    match err {
        // Values that can't be serialized, or are too long for a key.
        ExecutionError::BadQuery(_) => true,
        ExecutionError::LastAttemptError(attempt) => matches!(
            attempt,
            RequestAttemptError::SerializationError(_)
                | RequestAttemptError::CqlRequestSerialization(_)
                // What the protocol calls request validation; all but Unprepared, which the driver mends.
                | RequestAttemptError::DbError(
                    DbError::SyntaxError
                        | DbError::Invalid
                        | DbError::ConfigError
                        | DbError::AlreadyExists { .. }
                        | DbError::Unauthorized
                        | DbError::AuthenticationError,
                    _
                )
        ),
        _ => false,
    }
}

/// The row that `row` names can't be decoded, or a cell of it holds what no release wrote.
pub(super) fn corrupt(
    row: impl Fn() -> String,
    source: impl Into<Box<dyn Error + Send + Sync>>,
) -> StoreError {
    StoreError::corrupt(row(), source)
}

/// Names a row by its table and its key.
pub(super) fn row_name(table: &str, key: impl Display) -> String {
    format!("table {table}, key {key}")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use scylla::{
        errors::{BadQuery, WriteType},
        statement::Consistency,
    };

    use super::*;
    use crate::store::cql::{execute::timestamp, tokens::TokenCell};

    fn of_server(err: DbError) -> ExecutionError {
        ExecutionError::LastAttemptError(RequestAttemptError::DbError(err, "the message".to_owned()))
    }

    #[test]
    fn an_invalid_request_is_rejected() {
        let already_exists =
            DbError::AlreadyExists { keyspace: "push".to_owned(), table: "tokens".to_owned() };
        for err in [
            ExecutionError::BadQuery(BadQuery::ValuesTooLongForKey(70_000, 65_535)),
            of_server(DbError::SyntaxError),
            of_server(DbError::Invalid),
            of_server(DbError::ConfigError),
            of_server(already_exists),
            of_server(DbError::Unauthorized),
            of_server(DbError::AuthenticationError),
        ] {
            let text = err.to_string();
            let failure = request_failed("write a token", err);
            assert!(matches!(failure, StoreError::Rejected { .. }), "{text}: {failure:?}");
        }
    }

    #[test]
    fn a_cell_that_no_release_wrote_is_corrupt_and_its_error_names_the_row_but_no_token() {
        const TOKEN: &str = "ExponentPushToken[secret]";
        let state = TokenCell { active: true, ..TokenCell::inactive(2, "expo", "") };
        let unknown = TokenCell { platform: Some("toaster".to_owned()), ..state.clone() };
        let hash = crate::domain::Token::parse(TOKEN).unwrap().hash();
        for (failure, row) in [
            (unknown.registration(TOKEN).unwrap_err(), format!("table tokens, key {hash}")),
            (state.registration("").unwrap_err(), "table tokens, key (no token)".to_owned()),
            (
                timestamp(i64::MAX, || row_name("routes", "fcm")).unwrap_err(),
                "table routes, key fcm".to_owned(),
            ),
        ] {
            assert!(
                matches!(&failure, StoreError::Corrupt { context, .. } if *context == row),
                "{row}: {failure:?}"
            );
            assert!(!format!("{failure} {failure:?}").contains("secret"), "{failure:?}");
        }
    }

    #[test]
    fn a_cluster_that_cannot_answer_now_is_unavailable() {
        let consistency = Consistency::LocalQuorum;
        let unavailable = DbError::Unavailable { consistency, required: 2, alive: 1 };
        let read_timeout = DbError::ReadTimeout { consistency, received: 1, required: 2, data_present: true };
        let write_timeout =
            DbError::WriteTimeout { consistency, received: 1, required: 2, write_type: WriteType::Cas };
        for err in [
            ExecutionError::EmptyPlan,
            ExecutionError::RequestTimeout(Duration::from_secs(5)),
            ExecutionError::LastAttemptError(RequestAttemptError::UnableToAllocStreamId),
            of_server(unavailable),
            of_server(read_timeout),
            of_server(write_timeout),
            of_server(DbError::Overloaded),
            of_server(DbError::IsBootstrapping),
            of_server(DbError::TruncateError),
            of_server(DbError::ServerError),
            of_server(DbError::ProtocolError),
            of_server(DbError::Unprepared { statement_id: Default::default() }),
            of_server(DbError::Other(0x1600)),
        ] {
            let text = err.to_string();
            let failure = request_failed("write a token", err);
            assert!(matches!(failure, StoreError::Unavailable { .. }), "{text}: {failure:?}");
        }
    }
}
