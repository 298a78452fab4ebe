//! Reads, and writes that may be repeated. Both are tried a few times.

use std::{future::Future, time::Duration};

use backoff::{Backoff, Jitter};
use scylla::{
    deserialize::row::DeserializeRow,
    errors::{DbError, ExecutionError, RequestAttemptError},
    response::{
        PagingState,
        query_result::{QueryResult, QueryRowsResult},
    },
    serialize::row::SerializeRow,
    statement::prepared::PreparedStatement,
};
use tokio::time::sleep;

use super::{
    CqlInner,
    errors::{corrupt, request_failed},
};
use crate::{
    domain::{Counts, Timestamp},
    store::{StoreError, StoreResult},
};

/// How often a statement that may be repeated is sent.
const TRIES: u32 = 3;
/// The pauses between the tries.
const BACKOFF: Backoff =
    Backoff::new(Duration::from_millis(100), Duration::from_millis(200)).with(Jitter::Shorten(0.9));

/// Rows in a page of hints.
pub(super) const PAGE_OF_HINTS: i32 = 32;

/// Where the next page begins.
pub(super) struct Next(PagingState);

impl CqlInner {
    /// All rows of an answer that has few.
    pub(super) async fn rows(
        &self,
        context: &'static str,
        statement: &PreparedStatement,
        values: impl SerializeRow + Sync,
    ) -> StoreResult<QueryRowsResult> {
        let values = &values;
        let answer = with_retries(context, || self.session.execute_unpaged(statement, values)).await?;
        rows(context, answer)
    }

    /// One page of an answer, and where the next one begins. A page may be short or empty and yet have a next
    /// one.
    pub(super) async fn page(
        &self,
        context: &'static str,
        statement: &PreparedStatement,
        values: impl SerializeRow + Sync,
        from: Option<Next>,
    ) -> StoreResult<(QueryRowsResult, Option<Next>)> {
        let values = &values;
        let from = from.map_or_else(PagingState::start, |Next(state)| state);
        let request = || self.session.execute_single_page(statement, values, from.clone());
        let (answer, state) = with_retries(context, request).await?;
        let next = match state.into_paging_control_flow() {
            std::ops::ControlFlow::Continue(state) => Some(Next(state)),
            std::ops::ControlFlow::Break(()) => None,
        };
        Ok((rows(context, answer)?, next))
    }

    /// A write that carries its own timestamp, so that it may be repeated.
    pub(super) async fn write(
        &self,
        context: &'static str,
        statement: &PreparedStatement,
        values: impl SerializeRow + Sync,
    ) -> StoreResult<()> {
        let values = &values;
        with_retries(context, || self.session.execute_unpaged(statement, values)).await.map(drop)
    }
}

/// Repeats a request that fails transiently, a few times. Never for conditional writes.
async fn with_retries<T, F: Future<Output = Result<T, ExecutionError>>>(
    context: &'static str,
    request: impl Fn() -> F,
) -> StoreResult<T> {
    let mut tries = 1;
    loop {
        match request().await {
            Ok(answer) => return Ok(answer),
            Err(err) if tries < TRIES && is_transient(&err) => {
                sleep(BACKOFF.pause(tries, rand::random())).await;
                tries += 1;
            }
            Err(err) => return Err(request_failed(context, err)),
        }
    }
}

/// Whether the same request may succeed a moment later. When no node can be reached at all, or one used up
/// the whole timeout, the caller's longer pauses are the better ones.
fn is_transient(err: &ExecutionError) -> bool {
    let ExecutionError::LastAttemptError(attempt) = err else { return false };
    matches!(
        attempt,
        RequestAttemptError::BrokenConnectionError(_)
            | RequestAttemptError::DbError(
                DbError::Overloaded
                    | DbError::IsBootstrapping
                    | DbError::Unavailable { .. }
                    | DbError::ReadTimeout { .. }
                    | DbError::WriteTimeout { .. }
                    | DbError::ReadFailure { .. }
                    | DbError::WriteFailure { .. },
                _
            )
    )
}

fn rows(context: &'static str, answer: QueryResult) -> StoreResult<QueryRowsResult> {
    answer.into_rows_result().map_err(|err| StoreError::unavailable(context, err))
}

/// The first row, if there is one. `row` names it, for the error.
pub(super) fn first<'a, R: DeserializeRow<'a, 'a>>(
    rows: &'a QueryRowsResult,
    row: impl Fn() -> String,
) -> StoreResult<Option<R>> {
    rows.maybe_first_row().map_err(|err| corrupt(row, err))
}

/// All rows. `name` names them, for the error.
pub(super) fn all<'a, R: DeserializeRow<'a, 'a>>(
    rows: &'a QueryRowsResult,
    name: impl Fn() -> String,
) -> StoreResult<Vec<R>> {
    let all = rows.rows().map_err(|err| corrupt(&name, err))?;
    all.collect::<Result<_, _>>().map_err(|err| corrupt(&name, err))
}

/// Whole microseconds since 1970; what is finer is cut off.
pub(super) fn micros(at: Timestamp) -> i64 {
    at.as_microsecond()
}

/// The inverse of [`micros`], of a cell of the row that `row` names.
pub(super) fn timestamp(micros: i64, row: impl Fn() -> String) -> StoreResult<Timestamp> {
    Timestamp::from_microsecond(micros).map_err(|err| corrupt(row, err))
}

/// CQL's integers are signed; no count comes near the highest bit.
pub(super) fn columns(counts: &Counts) -> [i64; 5] {
    [counts.sent, counts.dead, counts.refused, counts.failed, counts.expired].map(u64::cast_signed)
}

pub(super) fn counts([sent, dead, refused, failed, expired]: [i64; 5]) -> Counts {
    let [sent, dead, refused, failed, expired] =
        [sent, dead, refused, failed, expired].map(i64::cast_unsigned);
    Counts { sent, dead, refused, failed, expired }
}
