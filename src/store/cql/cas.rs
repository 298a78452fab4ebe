//! Compare and set: conditional writes, of which one wins.
//!
//! The answer to such a write may get lost although the write was done. So an error here is no failure but a
//! third result, *unknown*, and the caller reads the row back with a serial read, which shows the latest
//! result and completes a write that is half-way. A write that this read does not show will not be done any
//! more, as long as we wait longer for an answer than the servers try (`session::CAS_WITHIN`); where even
//! that is not enough, conditions only let a row move forward.

use std::{future::Future, time::Duration};

use backoff::{Backoff, Jitter};
use scylla::{
    errors::ExecutionError, serialize::row::SerializeRow, statement::prepared::PreparedStatement, value::Row,
};
use tokio::time::{sleep, timeout};

use super::{
    CqlInner,
    errors::{is_rejection, request_failed},
    execute::first,
};
use crate::store::{DECIDED_WITHIN, StoreError, StoreResult};

/// The result of a conditional write.
pub(crate) enum CasResult {
    /// The write was done.
    Applied,
    /// The condition did not hold.
    Refused,
    /// The write was done or not; the answer was lost.
    Unknown(Box<ExecutionError>),
}

/// The rounds of a conditional write that others compete with: how often it is tried, and the pauses between.
pub(super) struct CasRetry {
    context: &'static str,
    rounds: u32,
    last: Option<Box<ExecutionError>>,
}

/// Bounds an operation of several rounds. The last request of one that runs out of time may be done or not:
/// repeating the operation loses nothing.
///
/// # Errors
/// The operation's own, or that its time is over.
pub(super) async fn in_time<T>(
    context: &'static str,
    operation: impl Future<Output = StoreResult<T>>,
) -> StoreResult<T> {
    timeout(DECIDED_WITHIN, operation)
        .await
        .unwrap_or_else(|late| Err(StoreError::unavailable(context, late)))
}

const ROUNDS_MAX: u32 = 20;

/// Long and random pauses: the writers of one row must not meet again in the next round.
const BACKOFF: Backoff =
    Backoff::new(Duration::from_millis(10), Duration::from_millis(640)).with(Jitter::Shorten(0.9));

impl CqlInner {
    /// Sends a conditional write, once.
    ///
    /// # Errors
    /// The server rejects the statement, so it was not done. Any other failure is [`CasResult::Unknown`].
    pub(super) async fn compare_and_set(
        &self,
        context: &'static str,
        statement: &PreparedStatement,
        values: impl SerializeRow,
    ) -> StoreResult<CasResult> {
        let answer = match self.session.execute_unpaged(statement, values).await {
            Ok(answer) => answer,
            Err(err) if is_rejection(&err) => return Err(request_failed(context, err)),
            Err(err) => return Ok(CasResult::Unknown(Box::new(err))),
        };
        // One of the two servers sends the current row along, the other one doesn't; the first column is the
        // same on both.
        let rows = answer.into_rows_result().map_err(|err| StoreError::unavailable(context, err))?;
        let row = first::<Row>(&rows, || format!("the answer to: {context}"))?;
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

    /// Waits before the next round; longer with each.
    ///
    /// # Errors
    /// It was the last one.
    pub(super) async fn next_round(&mut self) -> StoreResult<()> {
        self.rounds += 1;
        if self.rounds == ROUNDS_MAX {
            return Err(match self.last.take() {
                Some(err) => StoreError::unavailable(self.context, err),
                None => StoreError::Unavailable {
                    context: format!("{}: too many writers at once", self.context),
                    source: None,
                },
            });
        }
        sleep(BACKOFF.pause(self.rounds, rand::random())).await;
        Ok(())
    }

    /// Keeps the reason why an answer is unknown: the last one is returned when the rounds are used up.
    pub(super) fn lost(&mut self, err: Box<ExecutionError>) {
        self.last = Some(err);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_from_10_to_640_ms_and_are_shortened_to_a_tenth_at_most() {
        let longest: Vec<_> = (1..=9).map(|round| BACKOFF.pause(round, 0.0).as_millis()).collect();
        assert_eq!(longest, [10, 20, 40, 80, 160, 320, 640, 640, 640]);
        assert_eq!(BACKOFF.pause(1, 1.0), Duration::from_millis(1));
    }

    #[tokio::test(start_paused = true)]
    async fn the_rounds_end_with_the_last_lost_answer() {
        let mut cas_retry = CasRetry::new("claim a dose");
        for _ in 1..ROUNDS_MAX {
            cas_retry.next_round().await.unwrap();
        }
        cas_retry.lost(Box::new(ExecutionError::EmptyPlan));
        let failure = cas_retry.next_round().await.unwrap_err();
        assert!(matches!(&failure, StoreError::Unavailable { source: Some(_), .. }), "{failure:?}");
    }
}
