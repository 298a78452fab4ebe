//! What a provider's answer means for the messages of its request: their outcome, or when they are sent
//! again.

use std::time::Duration;

use tokio::time::Instant;
use tracing::{error, info, warn};

use super::{
    super::{
        Provider, Reply, Verdict,
        page::{Class, MessageOutcome},
        queue::{Batch, MessageRef, PageId, RetryReason},
        retry,
        route::Gate,
    },
    Answered, Batcher, LOG_EVERY, OpenPage,
};

/// Two refusals of our credentials within this time mean that new credentials don't help. Not two that are
/// further apart: an operator may have mended them in between.
const REFUSED_AGAIN_WITHIN: Duration = Duration::from_secs(60);

impl<P: Provider> Batcher<P> {
    /// Applies an answer to the messages of its request, and returns their pages where that finishes them.
    pub(super) fn apply(&mut self, Answered { batch, started, is_probe, reply }: Answered) {
        let pages: Vec<PageId> = batch.by_page().map(|(page, _)| page).collect();
        for (page, run) in batch.by_page() {
            if let Some(open) = self.pages.get_mut(&page) {
                open.on_wire -= run.len();
            }
        }
        self.update_breaker(is_probe, &reply, batch.messages.len());
        self.apply_reply(batch, reply, started);
        for page in pages {
            self.return_if_finished(page);
        }
    }

    /// Whether the reply shows that the provider is down as a whole, or up.
    fn update_breaker(&mut self, is_probe: bool, reply: &Reply, messages: usize) {
        let (why, retry_after) = match reply {
            Reply::Down { why, retry_after, .. } => (why.clone(), *retry_after),
            Reply::Each(verdicts) if verdicts.len() != messages => (uneven(verdicts.len(), messages), None),
            _ => {
                if self.breaker.answered() {
                    info!(
                        provider = %self.id,
                        "Provider {} answers again: the circuit breaker is closed", self.id
                    );
                }
                return;
            }
        };
        self.failure = why;
        if self.breaker.failed(is_probe, retry_after, Instant::now(), rand::random()) {
            warn!(
                provider = %self.id, error = %self.failure,
                "Provider {} is down: the circuit breaker is open, only probes are sent until it answers",
                self.id
            );
            self.queue.release_failed_requests();
        }
    }

    fn apply_reply(&mut self, mut batch: Batch, reply: Reply, started: Instant) {
        if reply == (Reply::Reauthorised { refused: None }) {
            self.rate_limiter.not_sent();
            return self.retry(batch);
        }
        batch.tries = batch.tries.saturating_add(1);
        let reauthorised = batch.reauthorised.take();
        match reply {
            Reply::Each(verdicts) if verdicts.len() == batch.messages.len() => {
                self.throttled = 0;
                self.apply_each(&batch, verdicts);
            }
            Reply::Each(verdicts) => {
                let why = uneven(verdicts.len(), batch.messages.len());
                self.failed(batch, RetryReason::Request, true, None, &why);
            }
            Reply::Throttled { retry_after } => {
                self.slow_down(retry_after, started);
                self.retry(batch);
            }
            Reply::Down { ambiguous, retry_after, why } => {
                self.failed(batch, RetryReason::Request, ambiguous, retry_after, &why)
            }
            Reply::CredentialsRefused { why } => {
                self.halt(&why);
                self.retry(batch);
            }
            Reply::Reauthorised { refused } => {
                self.reauthorised(batch, reauthorised, &refused.unwrap_or_default())
            }
            Reply::Split(groups) => self.split(batch, groups),
            Reply::Refused { why } => self.refused(batch, why),
            Reply::Unrecognised { status, why } => {
                self.failed(
                    batch,
                    RetryReason::Message,
                    false,
                    None,
                    &format!("unknown answer, HTTP {status}: {why}"),
                );
            }
        }
    }

    /// Sends these again with the new credentials, within the rate like all others. If they were refused
    /// `before`, a moment ago, it was not because the credentials were stale: the provider refuses us.
    fn reauthorised(&mut self, batch: Batch, before: Option<Instant>, why: &str) {
        let now = Instant::now();
        if before.is_some_and(|before| now.duration_since(before) < REFUSED_AGAIN_WITHIN) {
            self.halt(why);
            return self.retry(batch);
        }
        self.retry(Batch { reauthorised: Some(now), ..batch });
    }

    /// Too fast for the provider: the route waits, and goes on at half the rate. Of requests that were on the
    /// wire together one counts, because the others started before the rate was halved.
    fn slow_down(&mut self, retry_after: Option<Duration>, started: Instant) {
        let now = Instant::now();
        if self.slowed_down_at.is_none_or(|at| started > at) {
            self.throttled = self.throttled.saturating_add(1);
            self.slowed_down_at = Some(now);
            self.rate_limiter.halve(now);
        }
        let wait = retry::throttled(self.backoff, self.throttled, retry_after);
        info!(
            provider = %self.id, wait_seconds = wait.as_secs(), rate = self.rate_limiter.rate(),
            "Provider {} throttles us: its route waits", self.id
        );
        // Of several answers the one that asks for the longest wait counts.
        self.waiting_until = self.waiting_until.max(Some(now + wait));
    }

    fn apply_each(&mut self, batch: &Batch, verdicts: Vec<Verdict>) {
        for (&message, verdict) in batch.messages.iter().zip(verdicts) {
            let alone = || Batch { messages: vec![message], ..*batch };
            match verdict {
                Verdict::Accepted { ticket } => self.set_outcome(message, MessageOutcome::Sent { ticket }),
                Verdict::Dead { reason } => self.set_outcome(message, MessageOutcome::Dead { reason }),
                Verdict::PayloadRefused { why } => {
                    self.set_outcome(message, MessageOutcome::Refused { why, for_all_recipients: true })
                }
                Verdict::DeviceBusy { retry_after } => self.failed(
                    alone(),
                    RetryReason::Message,
                    false,
                    retry_after,
                    "the device gets too many messages",
                ),
                Verdict::Down { ambiguous, why } => {
                    self.failed(alone(), RetryReason::Message, ambiguous, None, &why)
                }
                Verdict::Unrecognised { why } => {
                    self.failed(alone(), RetryReason::Message, false, None, &why)
                }
                Verdict::CredentialsRefused { why } => {
                    self.halt(&why);
                    self.retry(alone());
                }
            }
        }
    }

    fn set_outcome(&mut self, message: MessageRef, outcome: MessageOutcome) {
        let Some(open) = self.pages.get_mut(&message.page) else { return };
        let slot = &mut open.outcomes[message.index as usize];
        debug_assert!(slot.is_none(), "a message has one outcome");
        if slot.replace(outcome).is_none() {
            open.without_outcome -= 1;
        }
    }

    /// Sends these again as soon as the route allows it.
    fn retry(&mut self, batch: Batch) {
        let batch = self.without_withdrawn(batch);
        self.queue.push_retry(batch);
    }

    /// Sends these again after a pause, or where the breaker is open, when the provider answers again.
    fn failed(
        &mut self,
        batch: Batch,
        reason: RetryReason,
        ambiguous: bool,
        retry_after: Option<Duration>,
        why: &str,
    ) {
        if ambiguous {
            self.metrics
                .ambiguous_sends_total
                .with_label_values(&[self.id.label()])
                .inc_by(batch.messages.len() as u64);
        }
        self.log_failed(why, &batch);
        let batch = self.without_withdrawn(batch);
        if reason == RetryReason::Request && self.breaker.failed_probes().is_some() {
            return self.queue.push_retry_last(batch);
        }
        let pause = retry::pause(self.backoff, batch.class, batch.tries, retry_after, rand::random());
        self.queue.push_later(Instant::now() + pause, batch, reason);
    }

    /// Messages of a withdrawn page are not tried again.
    fn without_withdrawn(&self, mut batch: Batch) -> Batch {
        batch.messages.retain(|message| self.pages.get(&message.page).is_some_and(|open| !open.withdrawn));
        batch
    }

    /// Sends each group in a request of its own, before all others.
    fn split(&mut self, batch: Batch, groups: Vec<Vec<usize>>) {
        let batches: Vec<Batch> = groups
            .into_iter()
            .map(|group| Batch {
                messages: group.into_iter().filter_map(|i| batch.messages.get(i).copied()).collect(),
                ..batch
            })
            .collect();
        let named: usize = batches.iter().map(|group| group.messages.len()).sum();
        if batches.len() < 2 || named != batch.messages.len() {
            return self.refused(batch, "tokens of several projects in one request".to_owned());
        }
        for group in batches {
            self.retry(group);
        }
    }

    /// A request that is refused for an unknown reason is halved until the message at fault is alone. If many
    /// of a page are refused alone and none is accepted, the notification is at fault, and no more of the
    /// page is sent.
    fn refused(&mut self, batch: Batch, why: String) {
        if let [message] = batch.messages[..] {
            warn!(provider = %self.id, error = %why, "Provider {} refused a message", self.id);
            let for_all_recipients = batch.class != Class::Urgent
                && self.pages.get_mut(&message.page).is_some_and(OpenPage::refused_once_more);
            self.set_outcome(message, MessageOutcome::Refused { why, for_all_recipients });
            if for_all_recipients {
                self.withdraw(message.page);
            }
            return;
        }
        let (left, right) = batch.messages.split_at(batch.messages.len() / 2);
        for half in [right, left] {
            self.retry(Batch { messages: half.to_vec(), ..batch });
        }
    }

    fn halt(&mut self, why: &str) {
        if *self.gate.borrow_and_update() == Gate::Open {
            error!(
                provider = %self.id, error = %why,
                "Provider {} refuses our credentials: its route is halted, no message is lost. \
                 Replace them, then run `pushcast resume {}`",
                self.id, self.id
            );
            self.route.halt(why);
        }
    }

    fn log_failed(&mut self, why: &str, batch: &Batch) {
        let now = Instant::now();
        if self.last_logged.is_none_or(|before| now.duration_since(before) >= LOG_EVERY) {
            self.last_logged = Some(now);
            warn!(
                provider = %self.id, messages = batch.messages.len(), tries = batch.tries, error = %why,
                "A request to {} failed and is tried again", self.id
            );
        }
    }
}

/// An answer that does not show which messages were accepted.
fn uneven(verdicts: usize, messages: usize) -> String {
    format!("{verdicts} verdicts for {messages} messages")
}
