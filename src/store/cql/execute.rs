//! Asking the cluster: reads, and writes that may be repeated.

use std::{future::Future, time::Duration};

use scylla::{
    errors::{DbError, ExecutionError, RequestAttemptError},
    response::{
        PagingState,
        query_result::{QueryResult, QueryRowsResult},
    },
    serialize::row::SerializeRow,
    statement::prepared::PreparedStatement,
};
use tokio::time::sleep;

use super::CqlInner;
use crate::{
    domain::{Counts, Timestamp},
    store::StoreError,
};

/// A statement that may be repeated is asked that often.
const TRIES: u32 = 3;
/// The pause before the second try is up to that long, and twice as long before each next one.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// Rows of one page of a partition.
pub(super) const PAGE_OF_HINTS: i32 = 32;

/// A place between two pages.
pub(super) struct Next(PagingState);

impl CqlInner {
    /// All rows of an answer that has few.
    pub(super) async fn rows(
        &self,
        context: &'static str,
        statement: &PreparedStatement,
        values: impl SerializeRow + Sync,
    ) -> Result<QueryRowsResult, StoreError> {
        let values = &values;
        let answer = tried(context, || self.session.execute_unpaged(statement, values)).await?;
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
    ) -> Result<(QueryRowsResult, Option<Next>), StoreError> {
        let (values, from) = (&values, from.map_or_else(PagingState::start, |Next(state)| state));
        let (answer, state) =
            tried(context, || self.session.execute_single_page(statement, values, from.clone())).await?;
        let next = match state.into_paging_control_flow() {
            std::ops::ControlFlow::Continue(state) => Some(Next(state)),
            std::ops::ControlFlow::Break(()) => None,
        };
        Ok((rows(context, answer)?, next))
    }

    /// Writes something that has its timestamp.
    pub(super) async fn write(
        &self,
        context: &'static str,
        statement: &PreparedStatement,
        values: impl SerializeRow + Sync,
    ) -> Result<(), StoreError> {
        let values = &values;
        tried(context, || self.session.execute_unpaged(statement, values)).await.map(drop)
    }
}

/// Asks again what passes by itself, a few times. Never for conditional writes.
async fn tried<T, F: Future<Output = Result<T, ExecutionError>>>(
    context: &'static str,
    ask: impl Fn() -> F,
) -> Result<T, StoreError> {
    let mut tries = 1;
    loop {
        match ask().await {
            Ok(answer) => return Ok(answer),
            Err(err) if tries < TRIES && passes(&err) => {
                pause(FIRST_PAUSE * 2_u32.pow(tries - 1)).await;
                tries += 1;
            }
            Err(err) => return Err(StoreError::unavailable(context, err)),
        }
    }
}

/// Waits up to this long: whoever came together does not come back together.
pub(super) async fn pause(at_most: Duration) {
    sleep(at_most.mul_f64(rand::random_range(0.1..1.0))).await;
}

/// Whether the next moment may bring another answer. When no node is there at all, or one took its whole
/// time, the caller's longer pauses are the better ones.
fn passes(err: &ExecutionError) -> bool {
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

fn rows(context: &'static str, answer: QueryResult) -> Result<QueryRowsResult, StoreError> {
    answer.into_rows_result().map_err(|err| StoreError::unavailable(context, err))
}

/// The first row, if there is one.
pub(super) fn first<'a, R: scylla::deserialize::row::DeserializeRow<'a, 'a>>(
    context: &'static str,
    rows: &'a QueryRowsResult,
) -> Result<Option<R>, StoreError> {
    rows.maybe_first_row().map_err(|err| StoreError::corrupt(context, err))
}

/// All rows.
pub(super) fn all<'a, R: scylla::deserialize::row::DeserializeRow<'a, 'a>>(
    context: &'static str,
    rows: &'a QueryRowsResult,
) -> Result<Vec<R>, StoreError> {
    let all = rows.rows().map_err(|err| StoreError::corrupt(context, err))?;
    all.collect::<Result<_, _>>().map_err(|err| StoreError::corrupt(context, err))
}

/// A cell holds what no release wrote.
pub(super) fn unreadable(
    context: &'static str,
    source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> StoreError {
    StoreError::corrupt(context, source)
}

/// Whole microseconds since 1970; what is finer is cut.
pub(super) fn micros(at: Timestamp) -> i64 {
    at.as_microsecond()
}

pub(super) fn timestamp(context: &'static str, micros: i64) -> Result<Timestamp, StoreError> {
    Timestamp::from_microsecond(micros).map_err(|err| unreadable(context, err))
}

/// CQL's integers have a sign; no audience comes near the last bit.
pub(super) fn columns(counts: &Counts) -> [i64; 5] {
    [counts.sent, counts.dead, counts.refused, counts.failed, counts.expired].map(u64::cast_signed)
}

pub(super) fn counts([sent, dead, refused, failed, expired]: [i64; 5]) -> Counts {
    let [sent, dead, refused, failed, expired] =
        [sent, dead, refused, failed, expired].map(i64::cast_unsigned);
    Counts { sent, dead, refused, failed, expired }
}
