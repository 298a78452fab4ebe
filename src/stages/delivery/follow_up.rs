//! What follows from a provider's answers, beside the progress of the job: dead tokens are reported, tickets
//! are put by to be asked about, and everything is counted.

use consumer::{Message, Publish, Record};

use super::Delivery;
use crate::{
    dispatch::{MessageOutcome, Provider},
    domain::{Counts, DeadToken, Lane, Outcome, ProviderId, Recipient, Report, Ticket, Timestamp},
    events::{self, topics},
    store::Store,
};

/// The most tickets in one record: what Expo answers in one request.
const TICKETS_MAX: usize = 1_000;

impl<S: Store, Q: Publish, P: Provider> Delivery<S, Q, P> {
    /// Returns when Kafka has acknowledged them all.
    pub(super) async fn publish_all(&self, messages: Vec<Message>) {
        if !messages.is_empty() {
            self.retry_until_settled(|| self.publish.publish_all(messages.clone())).await;
        }
    }

    /// Publishes what became of a notification.
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
        fates: impl Iterator<Item = &'a MessageOutcome>,
        now: Timestamp,
    ) {
        let [provider, lane] = [self.id().label(), lane.label()];
        let seconds = now.duration_since(record.timestamp).as_secs_f64().max(0.0);
        // Local: one flush for them all, where each observation would be a handful of atomic operations.
        let durations = self.metrics.delivery_seconds.with_label_values(&[provider, lane]).local();
        let counts = counts(fates.inspect(|_| durations.observe(seconds)));
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

/// The messages that put tickets by.
pub(super) fn tickets<'a>(
    decided: impl Iterator<Item = (&'a Recipient, &'a MessageOutcome)>,
) -> Vec<Message> {
    let ticket = |(to, fate): (&Recipient, &MessageOutcome)| match fate {
        MessageOutcome::Sent { ticket: Some(id) } => {
            Some(Ticket { id: id.clone(), token: to.token.clone(), registration: to.version })
        }
        MessageOutcome::Sent { ticket: None }
        | MessageOutcome::Dead { .. }
        | MessageOutcome::Refused { .. }
        | MessageOutcome::Expired => None,
    };
    let tickets: Vec<Ticket> = decided.filter_map(ticket).collect();
    let batches = tickets.chunks(TICKETS_MAX);
    batches
        .map(|tickets| Message::new(topics::EXPO_RECEIPTS, None, events::receipts::write(tickets, None)))
        .collect()
}

/// The messages that tell of dead tokens, which the brake has let pass.
pub(super) fn dead_tokens<'a>(
    provider: ProviderId,
    decided: impl Iterator<Item = (&'a Recipient, &'a MessageOutcome)>,
    now: Timestamp,
) -> Vec<Message> {
    let message = |(to, fate): (&Recipient, &MessageOutcome)| match fate {
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
pub(super) fn counts<'a>(fates: impl Iterator<Item = &'a MessageOutcome>) -> Counts {
    let mut counts = Counts::default();
    fates.for_each(|fate| counts.add(fate.outcome()));
    counts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{Token, Version};

    #[test]
    fn tickets_are_put_by_in_records_of_a_thousand() {
        let recipient = |n: usize| Recipient {
            token: Token::parse(&format!("ExponentPushToken[t{n}]")).unwrap(),
            version: Version::from_i64(2),
            platform: None,
        };
        let sent: Vec<_> = (0..1_500)
            .map(|n| (recipient(n), MessageOutcome::Sent { ticket: Some(format!("id-{n}").into()) }))
            .collect();
        let batches = tickets(sent.iter().map(|(to, fate)| (to, fate)))
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
