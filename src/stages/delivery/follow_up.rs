//! What follows from a provider's answers, beside the progress of the job: dead tokens are reported, unless
//! the quarantine holds them; tickets are kept for the receipts; and everything is counted.
//!
//! Dead tokens that are held stay with their page until the route is open again, and are then sent to again.
//! A stop does not wait for that: they stay open, and the next owner sends to them again.

use std::{
    sync::{Arc, MutexGuard, PoisonError},
    time::Duration,
};

use consumer::{Message, Publish, Record};
use futures::{StreamExt as _, stream};
use tokio::time::{Instant, sleep};
use tracing::error;

use super::{Delivery, DrainWindow, LOOKUPS_AT_ONCE};
use crate::{
    dispatch::{MessageOutcome, Provider, Returned, SubmittedPage},
    domain::{
        BroadcastId, Counts, DeadToken, Lane, Outcome, ProviderId, Recipient, Report, Ticket, Timestamp,
        limits::BATCH_TICKETS_MAX,
    },
    events::{self, topics},
    stages::quarantine::{self, Brake, DeadTokenEvidence, Decision, is_dead},
    store::Store,
};

/// How often the row of a braked route is read again.
pub(super) const BRAKED_LOOK_EVERY: Duration = Duration::from_secs(1);

impl<S: Store, Q: Publish, P: Provider> Delivery<S, Q, P> {
    /// Returns when Kafka has acknowledged them all.
    pub(super) async fn publish_all(&self, messages: Vec<Message>) {
        if !messages.is_empty() {
            self.retry_until_settled(|| self.publish.publish_all(messages.clone())).await;
        }
    }

    /// Publishes the counts of a broadcast, or the outcome of a dose.
    pub(super) async fn publish_report(&self, report: &Report) {
        let (Report::Broadcast { notification, .. } | Report::Dose { notification, .. }) = report;
        let message = Message::new(
            topics::PUSH_OUTCOMES,
            notification.to_string(),
            events::push_outcomes::write(report),
        );
        self.retry_until_settled(|| self.publish.publish(message.clone())).await;
    }

    /// Counts outcomes, and the time from the record to now for each.
    pub(super) fn count<'a>(
        &self,
        record: &Record,
        lane: Lane,
        outcomes: impl Iterator<Item = &'a MessageOutcome>,
        now: Timestamp,
    ) {
        let provider = self.id().label();
        let lane = lane.label();
        let seconds = now.duration_since(record.timestamp).as_secs_f64().max(0.0);
        // Local: one flush for them all, where each observation would be a handful of atomic operations.
        let durations = self.metrics.delivery_seconds.with_label_values(&[provider, lane]).local();
        let counts = counts(outcomes.inspect(|_| durations.observe(seconds)));
        durations.flush();
        for outcome in Outcome::ALL {
            if counts.of(outcome) > 0 {
                self.metrics
                    .notifications_total
                    .with_label_values(&[provider, lane, outcome.label()])
                    .inc_by(counts.of(outcome));
            }
        }
    }
}

impl<S: Store, Q: Publish, P: Provider> Delivery<S, Q, P> {
    /// What the quarantine decides of these answers, to a record written at `written_at`. A route that they
    /// close is closed when this returns.
    pub(super) async fn judge(&self, written_at: Timestamp, evidence: &mut DeadTokenEvidence) -> Decision {
        if !evidence.names_dead_tokens() {
            evidence.count(&mut self.brake());
            return Decision::Report;
        }
        let route = self.retry_until_settled(|| self.store.route(self.id())).await;
        let now = Timestamp::now();
        let decision = quarantine::decide_answers(evidence, written_at, &route, &mut self.brake(), now);
        let Decision::Close(row) = decision else { return decision };
        let provider = self.id();
        error!(provider = %provider, "The route of {provider} is braked: {}", row.detail);
        self.retry_until_settled(|| self.store.set_route(provider, &row)).await;
        Decision::Hold
    }

    fn brake(&self) -> MutexGuard<'_, Brake> {
        self.brake.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns when the dead tokens of a page may be reported. After a stop they may lose their outcome
    /// instead, and the next owner sends to them again; after a cancel they lose it for good, and are not
    /// counted.
    pub(super) async fn hold_dead_tokens(
        &self,
        record: &Record,
        broadcast: &BroadcastId,
        returned: &mut Returned,
        page_of: &(impl Fn(Arc<[Recipient]>) -> SubmittedPage<P::Body> + Sync),
        drain: &DrainWindow<'_>,
    ) {
        let mut evidence = DeadTokenEvidence::of(returned.outcomes.iter().flatten(), Timestamp::now());
        loop {
            let decided = async {
                loop {
                    match self.judge(record.timestamp, &mut evidence).await {
                        Decision::Report => return Decision::Report,
                        Decision::SendAgain => return Decision::SendAgain,
                        Decision::Hold | Decision::Close(_) => tokio::select! {
                            () = sleep(BRAKED_LOOK_EVERY) => {}
                            () = drain.stopped() => return Decision::Hold,
                        },
                    }
                }
            };
            let decision = tokio::select! {
                biased;
                decision = decided => decision,
                () = drain.over() => Decision::Hold,
                () = self.stopped(broadcast) => Decision::Hold,
            };
            match decision {
                Decision::Report => return,
                Decision::SendAgain => {}
                Decision::Hold | Decision::Close(_) => return leave_dead_open(&mut returned.outcomes),
            }
            let again = self.still_registered(returned).await;
            let recipients = again.iter().map(|&index| returned.recipients[index].clone()).collect();
            let page = SubmittedPage {
                stale_at: Instant::now() + self.limits.page_stale_after,
                ..page_of(recipients)
            };
            let sent_again = self.batcher.submit(page, self.withdrawal(broadcast, drain)).await;
            let mut outcomes = sent_again.map(|returned| returned.outcomes).unwrap_or_default();
            outcomes.resize(again.len(), None);
            let is_complete = outcomes.iter().all(Option::is_some);
            evidence = DeadTokenEvidence::of(outcomes.iter().flatten(), Timestamp::now());
            for (&index, outcome) in again.iter().zip(outcomes) {
                returned.outcomes[index] = outcome;
            }
            let decided = again
                .iter()
                .filter_map(|&index| Some((&returned.recipients[index], returned.outcomes[index].as_ref()?)));
            self.publish_all(tickets(decided)).await;
            if !is_complete {
                return leave_dead_open(&mut returned.outcomes);
            }
        }
    }

    /// The dead tokens of a page whose registration is still the current one: a device may have been
    /// registered for another user while the route was braked.
    async fn still_registered(&self, returned: &Returned) -> Vec<usize> {
        let dead = (0..returned.recipients.len())
            .filter(|&index| returned.outcomes[index].as_ref().is_some_and(is_dead));
        let registered = async |index: usize| {
            let to = &returned.recipients[index];
            let row = self.retry_until_settled(|| self.store.inspect(&to.token)).await;
            let registration = row.and_then(|row| row.registration);
            registration.is_some_and(|now| now.version == to.version).then_some(index)
        };
        stream::iter(dead)
            .map(registered)
            .buffered(LOOKUPS_AT_ONCE)
            .filter_map(async |index| index)
            .collect()
            .await
    }
}

/// Removes the outcome of dead tokens: the next owner of the page sends to them again.
fn leave_dead_open(outcomes: &mut [Option<MessageOutcome>]) {
    for outcome in outcomes {
        outcome.take_if(|outcome| is_dead(outcome));
    }
}

/// The records that keep tickets, for which the receipts will be asked.
pub(super) fn tickets<'a>(
    decided: impl Iterator<Item = (&'a Recipient, &'a MessageOutcome)>,
) -> Vec<Message> {
    let ticket = |(to, outcome): (&Recipient, &MessageOutcome)| match outcome {
        MessageOutcome::Sent { ticket: Some(id) } => {
            Some(Ticket { id: id.clone(), token: to.token.clone(), registration: to.version })
        }
        MessageOutcome::Sent { ticket: None }
        | MessageOutcome::Dead { .. }
        | MessageOutcome::Refused { .. }
        | MessageOutcome::Expired => None,
    };
    let tickets: Vec<Ticket> = decided.filter_map(ticket).collect();
    let batches = tickets.chunks(BATCH_TICKETS_MAX);
    batches
        .map(|tickets| Message::new(topics::EXPO_RECEIPTS, None, events::receipts::write(tickets, None)))
        .collect()
}

/// The records that report dead tokens, which the quarantine has let pass.
pub(super) fn dead_tokens<'a>(
    provider: ProviderId,
    decided: impl Iterator<Item = (&'a Recipient, &'a MessageOutcome)>,
    now: Timestamp,
) -> Vec<Message> {
    let message = |(to, outcome): (&Recipient, &MessageOutcome)| match outcome {
        MessageOutcome::Dead { reason } => Some(dead_token(provider, to, reason, now)),
        MessageOutcome::Sent { .. } | MessageOutcome::Refused { .. } | MessageOutcome::Expired => None,
    };
    decided.filter_map(message).collect()
}

fn dead_token(provider: ProviderId, to: &Recipient, reason: &str, now: Timestamp) -> Message {
    let source = match provider {
        ProviderId::Expo => "ticket",
        ProviderId::Fcm => "response",
    };
    let dead = DeadToken {
        token: to.token.clone(),
        provider: Some(provider),
        reason: reason.to_owned(),
        source: Some(source.to_owned()),
        registration: Some(to.version),
        detected_at: Some(now),
    };
    Message::new(topics::INVALID_TOKENS, to.token.as_str().to_owned(), events::invalid_tokens::write(&dead))
}

/// The outcomes of these messages.
pub(super) fn counts<'a>(outcomes: impl Iterator<Item = &'a MessageOutcome>) -> Counts {
    let mut counts = Counts::default();
    outcomes.for_each(|outcome| counts.add(outcome.outcome()));
    counts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{Token, Version};

    #[test]
    fn tickets_are_kept_in_records_of_a_thousand() {
        let recipient = |n: usize| Recipient {
            token: Token::parse(&format!("ExponentPushToken[t{n}]")).unwrap(),
            version: Version::from_i64(2),
            platform: None,
        };
        let sent: Vec<_> = (0..1_500)
            .map(|n| (recipient(n), MessageOutcome::Sent { ticket: Some(format!("id-{n}").into()) }))
            .collect();
        let batches = tickets(sent.iter().map(|(to, outcome)| (to, outcome)))
            .into_iter()
            .map(|message| events::receipts::read(None, message.value.as_deref()).unwrap().tickets);
        let (sizes, ids): (Vec<_>, Vec<_>) = batches.map(|tickets| (tickets.len(), tickets)).unzip();
        assert_eq!(sizes, [1_000, 500]);
        assert!(
            ids.concat()
                .iter()
                .zip(&sent)
                .all(|(ticket, (to, _))| ticket.token == to.token && ticket.registration == to.version)
        );
    }
}
