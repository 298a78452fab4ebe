//! What follows from a provider's answers, beside the progress of the job: dead tokens are reported, tickets are put by to
//! be asked about, and everything is counted.
//!
//! A flood of dead tokens brakes the route before any of them is reported: it looks the same when *we* are the mistake
//! (foreign credentials, another project). Reports are then held until somebody has looked and released the route. A stop
//! gives those that are held up, rather than have their pages sent again: a token that is dead says so again.

use std::{
    sync::{MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::sleep;
use tracing::{error, warn};

use crate::{
    delivery::{Final, Provider},
    domain::{Counts, DeadToken, Lane, Outcome, ProviderId, Registration, Report, Ticket, TicketBatch, Timestamp},
    events::{self, topics},
    stages::brake::{Answers, Brake},
    store::{Route, RouteState, Store},
    stream::{Message, Publish, Record},
};

use super::{Delivery, Stopping, insist};

/// How often a braked route is looked at again.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// The most tickets in one record: what Expo answers in one request.
const TICKETS_MAX: usize = 1_000;

impl<S: Store, Q: Publish, P: Provider> Delivery<S, Q, P> {
    /// Publishes tickets and dead tokens, and returns when Kafka has acknowledged them. The dead wait while the route is
    /// braked.
    pub(super) async fn publish_verdicts(&self, record: &Record, decided: &[(&Registration, &Final)], now: Timestamp, stop: &Stopping<'_>) {
        self.publish_all(tickets(decided)).await;
        let dead = dead_tokens(self.id(), decided, now);
        let answers = decided.iter().filter(|(_, fate)| !matches!(fate, Final::Expired)).count();
        if dead.is_empty() {
            return self.brake().add(now, answers as u64, 0);
        }
        let count = (answers as u64, dead.len() as u64);
        tokio::select! {
            biased;
            () = self.until_released(record.timestamp, count, now) => self.publish_all(dead).await,
            () = stop.last_call() => {
                warn!(provider = %self.id(), tokens = dead.len(), "A stop gives up dead tokens that a braked route holds; their next message finds them again");
            }
        }
    }

    async fn publish_all(&self, messages: Vec<Message>) {
        if !messages.is_empty() {
            insist(|| self.publish.publish_all(messages.clone())).await;
        }
    }

    /// Returns when dead tokens may be reported. Brakes the route if they are a flood.
    async fn until_released(&self, written_at: Timestamp, (answers, dead): (u64, u64), answered_at: Timestamp) {
        let mut counted = false;
        loop {
            let route = insist(|| self.store.route(self.id())).await;
            if route.lets_pass(written_at) {
                return;
            }
            if !std::mem::replace(&mut counted, true) {
                self.brake().add(answered_at, answers, dead);
            }
            let now = Timestamp::now();
            match route.state {
                // Only a release starts the count anew. If the braking did too, a handler that had read the route just before
                // would find no flood, and report its dead.
                RouteState::Running | RouteState::Released => {
                    let Some(flood) = self.flood_since(route.since, now) else { return };
                    let detail = self.brake().tell(flood, "answers");
                    error!(provider = %self.id(), "The route of {} is braked: {detail}", self.id());
                    let braked = Route { state: RouteState::Braked, since: now, set_by: "delivery".to_owned(), detail };
                    insist(|| self.store.set_route(self.id(), &braked)).await;
                }
                RouteState::Braked => sleep(LOOK_EVERY).await,
                RouteState::Paused | RouteState::Halted => return,
            }
        }
    }

    /// The answers that are a flood of dead tokens. Those before the route was opened don't count: somebody has looked.
    fn flood_since(&self, since: Timestamp, now: Timestamp) -> Option<Answers> {
        let mut brake = self.brake();
        brake.forget_before(since);
        brake.flood(now)
    }

    fn brake(&self) -> MutexGuard<'_, Brake> {
        self.brake.lock().unwrap_or_else(PoisonError::into_inner)
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

/// The messages that put tickets by.
fn tickets(decided: &[(&Registration, &Final)]) -> Vec<Message> {
    let ticket = |(to, fate): &(&Registration, &Final)| match fate {
        Final::Sent { ticket: Some(id) } => Some(Ticket { id: id.clone(), token: to.token.clone(), registration: to.version }),
        Final::Sent { ticket: None } | Final::Dead { .. } | Final::Refused { .. } | Final::Expired => None,
    };
    let tickets: Vec<Ticket> = decided.iter().filter_map(ticket).collect();
    let batches = tickets.chunks(TICKETS_MAX).map(|tickets| TicketBatch { tickets: tickets.to_vec(), first_sent_at: None });
    batches.map(|batch| Message::new(topics::EXPO_RECEIPTS, None, events::receipts::write(&batch))).collect()
}

/// The messages that tell of dead tokens.
fn dead_tokens(provider: ProviderId, decided: &[(&Registration, &Final)], now: Timestamp) -> Vec<Message> {
    let message = |(to, fate): &(&Registration, &Final)| match fate {
        Final::Dead { reason } => Some(dead_token(provider, to, reason, now)),
        Final::Sent { .. } | Final::Refused { .. } | Final::Expired => None,
    };
    decided.iter().filter_map(message).collect()
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
