//! Asks Expo what became of messages that it took, and reports the dead tokens.
//!
//! A batch is asked for once it is due. What is not ready then goes to the tail of the topic with the time at
//! which it was first sent, and counts as missing a day after that, when Expo no longer has it. Asking only
//! reads: after a crash the whole batch is simply asked for again.
//!
//! What the answers may close, and what is held, is `quarantine`'s decision. Verdicts that it holds stay
//! unsettled in Kafka until the operator has released the route.

#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    error::Error,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use consumer::{Fate, Handler, HandlerError, Message, OrderingKey, Publish, Record, Rejected};
use jiff::SignedDuration;
use tokio_util::sync::CancellationToken;

use super::quarantine::{self, AnswerCounts, Brake, BrakeThresholds, Decision, ReceiptEvidence};
use crate::{
    dispatch::{self, Receipt},
    domain::{DeadToken, ProviderId, Ticket, TicketBatch, Timestamp},
    events::{invalid_tokens, receipts, topics},
    metrics::Metrics,
    store::{RouteRow, RouteState, Routes},
    telemetry::LogThrottle,
};

/// How long Expo keeps receipts.
const KEPT_FOR: SignedDuration = SignedDuration::from_hours(24);

/// How often the row of a closed route is read again, and what follows from an answer is tried again.
const AGAIN_AFTER: Duration = Duration::from_secs(1);

/// The stage of `expo-receipts`.
#[derive(Debug)]
pub struct Receipts<R, S, P> {
    expo: R,
    routes: S,
    publish: P,
    delay: Duration,
    metrics: Arc<Metrics>,
    brake: Mutex<Brake>,
    log_throttle: LogThrottle,
}

impl<R: dispatch::ReceiptSource, S: Routes, P: Publish> Receipts<R, S, P> {
    /// Asks `expo` when `delay` has passed since a record was written.
    pub fn new(
        expo: R,
        routes: S,
        publish: P,
        delay: Duration,
        thresholds: BrakeThresholds,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            expo,
            routes,
            publish,
            delay,
            metrics,
            brake: Mutex::new(Brake::new(thresholds)),
            log_throttle: LogThrottle::default(),
        }
    }

    /// Does what follows from Expo's answer. The answer is not asked for again because Kafka or the store is
    /// unavailable: only this is tried again, until it succeeds or the drain ends.
    async fn settle(&self, results: &ReceiptResults, sent_at: Timestamp, stop: &CancellationToken) -> Fate {
        let mut evidence = results.evidence(sent_at);
        loop {
            match self.step(results, &mut evidence).await {
                Ok(SettleStep::Settled) => return Fate::Done,
                Ok(SettleStep::Held) => {}
                Err(err) if self.log_throttle.now() => {
                    let error: &dyn Error = &err;
                    tracing::warn!(
                        error,
                        "The effects of receipts are not durable yet; they are retried until they are"
                    );
                }
                Err(_) => {}
            }
            tokio::select! {
                () = stop.cancelled() => return Fate::Unfinished,
                () = tokio::time::sleep(AGAIN_AFTER) => {}
            }
        }
    }

    async fn step(
        &self,
        results: &ReceiptResults,
        evidence: &mut ReceiptEvidence,
    ) -> Result<SettleStep, HandlerError> {
        if results.answers() > 0 {
            let route = self.routes.route(ProviderId::Expo).await?;
            match self.decide(evidence, &route) {
                Decision::Hold | Decision::SendAgain => return Ok(SettleStep::Held),
                Decision::Close(row) => {
                    self.routes.set_route(ProviderId::Expo, &row).await?;
                    evidence.judged();
                    tracing::error!(
                        provider = %ProviderId::Expo,
                        state = row.state.label(),
                        "Receipts close the route of Expo: {}",
                        row.detail
                    );
                    if row.state == RouteState::Braked {
                        return Ok(SettleStep::Held);
                    }
                }
                Decision::Report => {}
            }
        }
        self.publish.publish_all(results.messages()).await?;
        results.count(&self.metrics);
        Ok(SettleStep::Settled)
    }

    fn decide(&self, evidence: &mut ReceiptEvidence, route: &RouteRow) -> Decision {
        let mut brake = self.brake.lock().unwrap_or_else(PoisonError::into_inner);
        quarantine::decide_receipts(evidence, route, &mut brake, Timestamp::now())
    }
}

impl<R: dispatch::ReceiptSource, S: Routes, P: Publish> Handler for Receipts<R, S, P> {
    type Event = TicketBatch;

    fn read(&self, record: &Record) -> Result<TicketBatch, Rejected> {
        Ok(receipts::read(record.key.as_deref(), record.value.as_deref())?)
    }

    fn key(&self, _: &TicketBatch) -> Option<OrderingKey> {
        None
    }

    fn due(&self, record: &Record) -> Option<Timestamp> {
        Some(record.timestamp.saturating_add(self.delay).unwrap_or(Timestamp::MAX))
    }

    async fn handle(
        &self,
        batch: TicketBatch,
        record: &Record,
        stop: &CancellationToken,
    ) -> Result<Fate, HandlerError> {
        if batch.tickets.is_empty() {
            return Ok(Fate::Done);
        }
        let sent_at = batch.first_sent_at.unwrap_or(record.timestamp);
        let ids: Vec<Arc<str>> = batch.tickets.iter().map(|ticket| ticket.id.clone()).collect();
        let answers = self.expo.receipts(&ids).await?;
        let results = results(batch, answers, sent_at, Timestamp::now());
        Ok(self.settle(&results, sent_at, stop).await)
    }
}

enum SettleStep {
    Settled,
    /// The route is braked: nothing is published before the operator has released it.
    Held,
}

/// What follows from the receipts of a batch.
#[derive(Debug, Default, PartialEq)]
struct ReceiptResults {
    dead: Vec<DeadToken>,
    /// To be asked for again.
    waiting: Option<TicketBatch>,
    /// Why Expo refuses our credentials, if it does.
    credentials_refused: Option<String>,
    credentials: u64,
    delivered: u64,
    failed: u64,
    missing: u64,
}

fn results(
    batch: TicketBatch,
    answers: Vec<(String, Receipt)>,
    first_sent_at: Timestamp,
    now: Timestamp,
) -> ReceiptResults {
    let answers: HashMap<String, Receipt> = answers.into_iter().collect();
    let mut results = ReceiptResults::default();
    let mut waiting = Vec::new();
    for ticket in batch.tickets {
        match answers.get(&*ticket.id) {
            Some(Receipt::Delivered) => results.delivered += 1,
            Some(Receipt::Dead { reason }) => results.dead.push(dead(ticket, reason, now)),
            Some(Receipt::CredentialsRefused { why }) => {
                results.credentials += 1;
                results.credentials_refused = Some(why.clone());
            }
            Some(Receipt::Failed { .. }) => results.failed += 1,
            None => waiting.push(ticket),
        }
    }
    if now.duration_since(first_sent_at) < KEPT_FOR {
        results.waiting = (!waiting.is_empty())
            .then_some(TicketBatch { tickets: waiting, first_sent_at: Some(first_sent_at) });
    } else {
        results.missing = waiting.len() as u64;
    }
    results
}

fn dead(ticket: Ticket, reason: &str, now: Timestamp) -> DeadToken {
    DeadToken {
        token: ticket.token,
        provider: Some(ProviderId::Expo),
        reason: reason.to_owned(),
        source: Some("receipt".to_owned()),
        registration: Some(ticket.registration),
        detected_at: Some(now),
    }
}

// === impl ReceiptResults ===

impl ReceiptResults {
    /// These results as evidence for the route.
    fn evidence(&self, sent_at: Timestamp) -> ReceiptEvidence {
        let counts = AnswerCounts { answers: self.answers(), dead: self.dead.len() as u64 };
        ReceiptEvidence::new(counts, self.credentials_refused.clone(), sent_at)
    }

    fn answers(&self) -> u64 {
        self.delivered + self.failed + self.credentials + self.dead.len() as u64
    }

    fn messages(&self) -> Vec<Message> {
        let dead = self.dead.iter().map(|dead| {
            Message::new(topics::INVALID_TOKENS, dead.token.as_str().to_owned(), invalid_tokens::write(dead))
        });
        let waiting = self.waiting.iter().map(|batch| {
            Message::new(topics::EXPO_RECEIPTS, None, receipts::write(&batch.tickets, batch.first_sent_at))
        });
        dead.chain(waiting).collect()
    }

    fn count(&self, metrics: &Metrics) {
        for (result, count) in [
            ("delivered", self.delivered),
            ("dead", self.dead.len() as u64),
            ("failed", self.failed),
            ("credentials", self.credentials),
            ("missing", self.missing),
        ] {
            metrics.receipts_total.with_label_values(&[result]).inc_by(count);
        }
    }
}
