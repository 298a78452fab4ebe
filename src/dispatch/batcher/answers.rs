//! What a provider's answer means for the messages of its request: their last outcome, or when they go again.

use std::time::Duration;

use tokio::time::Instant;
use tracing::{error, info, warn};

use super::{
    super::{
        Provider, Reply, Verdict,
        page::{Class, MessageOutcome},
        queue::{Batch, PageId, Ref, Why},
        retry,
        route::Gate,
    },
    Answered, Batcher, COMPLAIN_EVERY, OpenPage,
};

/// Two refusals of our credentials mean that we are refused, if no more than that lies between them: not
/// those before and after somebody has mended them.
const BELIEVED_WITHIN: Duration = Duration::from_secs(60);

impl<P: Provider> Batcher<P> {
    /// What an answer means for the messages of its request.
    pub(super) fn apply(&mut self, Answered { batch, started, is_probe, reply }: Answered) {
        let pages: Vec<PageId> = batch.by_page().map(|(page, _)| page).collect();
        for (page, run) in batch.by_page() {
            if let Some(open) = self.pages.get_mut(&page) {
                open.on_wire -= run.len();
            }
        }
        self.hear(is_probe, &reply, batch.messages.len());
        self.apply_reply(batch, reply, started);
        for page in pages {
            self.give_back_if_over(page);
        }
    }

    /// What a reply says of the provider as a whole.
    fn hear(&mut self, is_probe: bool, reply: &Reply, messages: usize) {
        let (why, asked) = match reply {
            Reply::Down { why, retry_after, .. } => (why.clone(), *retry_after),
            Reply::Each(verdicts) if verdicts.len() != messages => (uneven(verdicts.len(), messages), None),
            _ => {
                if self.breaker.answered() {
                    info!(provider = %self.id, "{} answers again: everything goes on", self.id);
                }
                return;
            }
        };
        self.failure = why;
        if self.breaker.failed(is_probe, asked, Instant::now(), rand::random()) {
            warn!(provider = %self.id, error = %self.failure, "{} is down: nothing goes but a probe now and then, until it answers", self.id);
            self.queue.wake_failed();
        }
    }

    fn apply_reply(&mut self, mut batch: Batch, reply: Reply, started: Instant) {
        if reply == (Reply::Reauthorised { refused: None }) {
            self.pace.unsent();
            return self.again(batch);
        }
        batch.tries = batch.tries.saturating_add(1);
        let reauthorised = batch.reauthorised.take();
        match reply {
            Reply::Each(verdicts) if verdicts.len() == batch.messages.len() => {
                self.throttled.0 = 0;
                self.apply_each(&batch, verdicts);
            }
            Reply::Each(verdicts) => {
                let why = uneven(verdicts.len(), batch.messages.len());
                self.failed(batch, Why::Request, true, None, &why);
            }
            Reply::Throttled { retry_after } => {
                self.slow_down(retry_after, started);
                self.again(batch);
            }
            Reply::Down { ambiguous, retry_after, why } => {
                self.failed(batch, Why::Request, ambiguous, retry_after, &why)
            }
            Reply::CredentialsRefused { why } => {
                self.halt(&why);
                self.again(batch);
            }
            Reply::Reauthorised { refused } => {
                self.reauthorised(batch, reauthorised, &refused.unwrap_or_default())
            }
            Reply::Split(groups) => self.split(batch, groups),
            Reply::Refused { why } => self.refused(batch, why),
            Reply::Unrecognised { status, why } => {
                self.failed(batch, Why::Own, false, None, &format!("unknown answer, HTTP {status}: {why}"));
            }
        }
    }

    /// These go with the new credentials, at the rate like everything else. Refused a moment after they were
    /// refused `before`, it is not the credentials that were stale: the provider won't have us.
    fn reauthorised(&mut self, batch: Batch, before: Option<Instant>, why: &str) {
        let now = Instant::now();
        if before.is_some_and(|before| now.duration_since(before) < BELIEVED_WITHIN) {
            self.halt(why);
            return self.again(batch);
        }
        self.again(Batch { reauthorised: Some(now), ..batch });
    }

    /// Too fast for the provider: waits, and goes on at half the rate. Of requests that were on the wire
    /// together one counts, because the others left before anything was learned from it.
    fn slow_down(&mut self, asked: Option<Duration>, started: Instant) {
        let now = Instant::now();
        let (times, learned) = self.throttled;
        if learned.is_none_or(|at| started > at) {
            self.throttled = (times.saturating_add(1), Some(now));
            self.pace.cut(now);
        }
        let wait = retry::throttled(self.id, self.throttled.0, asked);
        info!(provider = %self.id, wait_seconds = wait.as_secs(), rate = self.pace.rate(), "The provider asks us to wait");
        // Of several answers the one that asks for most counts.
        self.waiting_until = self.waiting_until.max(Some(now + wait));
    }

    fn apply_each(&mut self, batch: &Batch, verdicts: Vec<Verdict>) {
        for (&message, verdict) in batch.messages.iter().zip(verdicts) {
            let alone = || Batch { messages: vec![message], ..*batch };
            match verdict {
                Verdict::Accepted { ticket } => self.decide(message, MessageOutcome::Sent { ticket }),
                Verdict::Dead { reason } => self.decide(message, MessageOutcome::Dead { reason }),
                Verdict::PayloadRefused { why } => {
                    self.decide(message, MessageOutcome::Refused { why, whoever: true })
                }
                Verdict::DeviceBusy { retry_after } => {
                    self.failed(alone(), Why::Own, false, retry_after, "the device gets too many messages")
                }
                Verdict::Down { ambiguous, why } => self.failed(alone(), Why::Own, ambiguous, None, &why),
                Verdict::Unrecognised { why } => self.failed(alone(), Why::Own, false, None, &why),
                Verdict::CredentialsRefused { why } => {
                    self.halt(&why);
                    self.again(alone());
                }
            }
        }
    }

    fn decide(&mut self, message: Ref, fate: MessageOutcome) {
        let Some(open) = self.pages.get_mut(&message.page) else { return };
        let slot = &mut open.outcomes[message.index as usize];
        debug_assert!(slot.is_none(), "a message is decided once");
        if slot.replace(fate).is_none() {
            open.undecided -= 1;
        }
    }

    /// These go again as soon as the route lets them.
    fn again(&mut self, batch: Batch) {
        let batch = self.without_withdrawn(batch);
        self.queue.push_again(batch);
    }

    fn failed(
        &mut self,
        batch: Batch,
        reason: Why,
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
        self.log_unavailable(why, &batch);
        let batch = self.without_withdrawn(batch);
        if reason == Why::Request && self.breaker.failed_probes().is_some() {
            return self.queue.push_again_last(batch);
        }
        let pause = retry::pause(self.id, batch.class, batch.tries, retry_after, rand::random());
        self.queue.push_later(Instant::now() + pause, batch, reason);
    }

    /// Messages of a withdrawn page are not tried again.
    fn without_withdrawn(&self, mut batch: Batch) -> Batch {
        batch.messages.retain(|message| self.pages.get(&message.page).is_some_and(|open| !open.withdrawn));
        batch
    }

    /// Each group goes on alone, before anything else.
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
            self.again(group);
        }
    }

    /// A request that is refused for an unknown reason is halved until the message at fault stands alone. If
    /// many of a page are refused alone and none is taken, the fault is the notification's: nothing more of
    /// the page is asked about.
    fn refused(&mut self, batch: Batch, why: String) {
        if let [message] = batch.messages[..] {
            warn!(provider = %self.id, error = %why, "The provider refuses a message");
            let whoever = batch.class != Class::Urgent
                && self.pages.get_mut(&message.page).is_some_and(OpenPage::refused_once_more);
            self.decide(message, MessageOutcome::Refused { why, whoever });
            if whoever {
                self.withdraw(message.page);
            }
            return;
        }
        let (left, right) = batch.messages.split_at(batch.messages.len() / 2);
        for half in [right, left] {
            self.again(Batch { messages: half.to_vec(), ..batch });
        }
    }

    fn halt(&mut self, why: &str) {
        if *self.gate.borrow_and_update() == Gate::Open {
            error!(
                provider = %self.id, error = %why,
                "{} refuses our credentials: its route is halted, nothing is lost; mend them, then `pushcast resume {}`", self.id, self.id
            );
            self.route.halt(why);
        }
    }

    fn log_unavailable(&mut self, why: &str, batch: &Batch) {
        let now = Instant::now();
        if self.complained.is_none_or(|before| now.duration_since(before) >= COMPLAIN_EVERY) {
            self.complained = Some(now);
            warn!(provider = %self.id, messages = batch.messages.len(), tries = batch.tries, error = %why, "A request failed and is tried again");
        }
    }
}

/// An answer that leaves it open which message was taken.
fn uneven(verdicts: usize, messages: usize) -> String {
    format!("{verdicts} verdicts for {messages} messages")
}
