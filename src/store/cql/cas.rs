//! Conditional writes: one of many wins.
//!
//! The answer to such a write may get lost, and the write may have been done all the same. So an error here
//! is no error but a third answer, *unknown*, and whoever asked reads the row back with a serial read: it
//! sees what was decided, and ends what was half-way. What that read does not show will not be done any more,
//! as long as we wait longer for an answer than the servers try (`session::DECIDE_WITHIN`); where even that
//! is not enough, conditions only let a row move forward.

use std::{future::Future, time::Duration};

use scylla::{
    errors::ExecutionError, serialize::row::SerializeRow, statement::prepared::PreparedStatement, value::Row,
};
use tokio::time::timeout;

use super::{
    CqlInner,
    execute::{first, pause},
};
use crate::store::{DECIDED_WITHIN, StoreError};

/// What became of a conditional write.
pub(crate) enum CasResult {
    /// It is done.
    Applied,
    /// The condition did not hold.
    Refused,
    /// It may be done or not.
    Unknown(Box<ExecutionError>),
}

/// How long somebody goes on in a crowd at one row before he says that the store is away.
pub(super) struct CasRetry {
    context: &'static str,
    rounds: u32,
    last: Option<Box<ExecutionError>>,
}

/// Ends a decision that has not come to an end in time. What was asked last may be done or not: nothing is
/// lost by asking again.
///
/// # Errors
/// The decision's own, or that its time is over.
pub(super) async fn in_time<T>(
    context: &'static str,
    decision: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    timeout(DECIDED_WITHIN, decision).await.unwrap_or_else(|late| Err(StoreError::unavailable(context, late)))
}

const ROUNDS_MAX: u32 = 20;
const PAUSE_MAX: Duration = Duration::from_millis(640);

impl CqlInner {
    /// Asks once.
    pub(super) async fn decide(
        &self,
        context: &'static str,
        statement: &PreparedStatement,
        values: impl SerializeRow,
    ) -> Result<CasResult, StoreError> {
        let answer = match self.session.execute_unpaged(statement, values).await {
            Ok(answer) => answer,
            Err(err) => return Ok(CasResult::Unknown(Box::new(err))),
        };
        // The row that stands comes along on one server and not on the other; the first column is the same on
        // both.
        let rows = answer.into_rows_result().map_err(|err| StoreError::unavailable(context, err))?;
        let row = first::<Row>(context, &rows)?;
        let applied = row
            .and_then(|row| row.columns.into_iter().next().flatten())
            .and_then(|applied| applied.as_boolean());
        Ok(if applied == Some(true) { CasResult::Applied } else { CasResult::Refused })
    }
}

// === impl CasRetry ===

impl CasRetry {
    pub(super) fn new(context: &'static str) -> Self {
        Self { context, rounds: 0, last: None }
    }

    /// Waits a little before the next round; longer with each.
    ///
    /// # Errors
    /// It was the last one.
    pub(super) async fn next_round(&mut self) -> Result<(), StoreError> {
        self.rounds += 1;
        if self.rounds == ROUNDS_MAX {
            return Err(match self.last.take() {
                Some(err) => StoreError::unavailable(self.context, err),
                None => StoreError::Unavailable {
                    context: format!("{}: too many at once", self.context),
                    source: None,
                },
            });
        }
        pause((Duration::from_millis(5) * 2_u32.pow(self.rounds.min(8))).min(PAUSE_MAX)).await;
        Ok(())
    }

    /// Remembers why an answer is unknown: the last such reason is told in the end.
    pub(super) fn lost(&mut self, err: Box<ExecutionError>) {
        self.last = Some(err);
    }
}
