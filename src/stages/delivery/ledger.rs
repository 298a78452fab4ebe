//! What follows from a provider's answers, beside the progress of the job: dead tokens are reported, tickets are put by to
//! be asked about, and everything is counted.

use crate::{
    delivery::{Final, Provider},
    domain::{Counts, DeadToken, Lane, Outcome, ProviderId, Registration, Report, Ticket, TicketBatch, Timestamp},
    events::{self, topics},
    store::Store,
    stream::{Message, Publish, Record},
};

use super::{Delivery, insist};

/// The most tickets in one record: what Expo answers in one request.
const TICKETS_MAX: usize = 1_000;

impl<S: Store, Q: Publish, P: Provider> Delivery<S, Q, P> {
    /// Publishes dead tokens and tickets, and returns when Kafka has acknowledged them.
    pub(super) async fn publish_verdicts(&self, decided: &[(&Registration, &Final)], now: Timestamp) {
        let messages = verdicts(self.id(), decided, now);
        if !messages.is_empty() {
            insist(|| self.publish.publish_all(messages.clone())).await;
        }
    }

    /// Publishes what became of a notification.
    pub(super) async fn publish_report(&self, report: &Report) {
        let (Report::Broadcast { notification, .. } | Report::Dose { notification, .. }) = report;
        let message = Message::new(topics::PUSH_OUTCOMES, notification.to_string(), events::push_outcomes::write(report));
        insist(|| self.publish.publish(message.clone())).await;
    }

    /// Counts outcomes, and the time from the record to now for each.
    pub(super) fn count(&self, record: &Record, lane: Lane, decided: &[(&Registration, &Final)], now: Timestamp) {
        let [provider, lane] = [self.id().label(), lane.label()];
        let seconds = now.duration_since(record.timestamp).as_secs_f64().max(0.0);
        let durations = self.metrics.delivery_seconds.with_label_values(&[provider, lane]);
        decided.iter().for_each(|_| durations.observe(seconds));
        let counts = counts(decided);
        for outcome in Outcome::ALL {
            if counts.of(outcome) > 0 {
                self.metrics.notifications_total.with_label_values(&[provider, lane, outcome.label()]).inc_by(counts.of(outcome));
            }
        }
    }
}

/// The messages that tell of dead tokens and of tickets.
fn verdicts(provider: ProviderId, decided: &[(&Registration, &Final)], now: Timestamp) -> Vec<Message> {
    let mut messages = Vec::new();
    let mut tickets = Vec::new();
    for (to, fate) in decided {
        match fate {
            Final::Dead { reason } => messages.push(dead_token(provider, to, reason, now)),
            Final::Sent { ticket: Some(id) } => tickets.push(Ticket { id: id.clone(), token: to.token.clone(), registration: to.version }),
            Final::Sent { ticket: None } | Final::Refused { .. } | Final::Expired => {}
        }
    }
    for tickets in tickets.chunks(TICKETS_MAX) {
        let batch = TicketBatch { tickets: tickets.to_vec(), first_sent_at: None };
        messages.push(Message::new(topics::EXPO_RECEIPTS, None, events::receipts::write(&batch)));
    }
    messages
}

fn dead_token(provider: ProviderId, to: &Registration, reason: &str, now: Timestamp) -> Message {
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
pub(super) fn counts(decided: &[(&Registration, &Final)]) -> Counts {
    let mut counts = Counts::default();
    for (_, fate) in decided {
        counts.add(fate.outcome());
    }
    counts
}
