//! One provider's sender: it alone decides which messages are sent next, and what an answer means for them.
//!
//! Handlers submit pages by a [`BatcherHandle`] and get them back with an outcome for each message. In
//! between the batcher fills requests from the most urgent pages, keeps below the rate limit, reserves some
//! request slots for urgent messages, and sends again what the provider did not accept, until it is accepted,
//! refused or expired. A page exists only here and at its handler, so the permits of the handlers bound how
//! many are open.
//!
//! A provider that fails as a whole is probed with one message at a time (`circuit_breaker`), and the failed
//! messages are sent again when it answers.
//!
//! A page is returned in time, whatever the route does: when it expires or its lease ends, what is not on the
//! wire ends with it. The page of an aborted handler is dropped at once, because another process may be
//! sending it by now.
//!
//! It ends when every handle is dropped and no request is on the wire; there is no other stop signal.

mod answers;
mod handle;

use std::{
    collections::{BTreeMap, BTreeSet},
    panic::AssertUnwindSafe,
    pin::pin,
    sync::Arc,
    time::Duration,
};

use futures::FutureExt;
use tokio::{
    sync::{Notify, mpsc, oneshot, watch},
    task::JoinSet,
    time::{Instant, sleep_until},
};
use tracing::error;

pub use self::handle::BatcherHandle;
use self::handle::{BatcherCommand, Submitted};
use super::{
    Provider, ProviderBackoff, PushMessage, Reply,
    circuit_breaker::{CircuitBreaker, Probe},
    page::{Class, MessageOutcome, Returned, SubmittedPage},
    queue::{Batch, PageId, Queue},
    rate_limiter::{RateLimiter, Share},
    route::{ClosedBy, Gate, Route},
};
use crate::{
    domain::{ProviderId, Recipient},
    metrics::Metrics,
};

/// Commands that wait for the batcher. Few, because it takes them at once, and the handlers bound how many
/// pages it holds.
const INBOX: usize = 64;
/// How often a repeated failure is logged.
const LOG_EVERY: Duration = Duration::from_secs(10);

/// After so many messages of a page were refused in requests of their own, and none was accepted, the
/// notification itself is taken to be refused.
const REFUSED_ALONE_MAX: usize = 20;

/// One provider's sender.
pub struct Batcher<P: Provider> {
    provider: Arc<P>,
    id: ProviderId,
    backoff: ProviderBackoff,
    inbox: mpsc::Receiver<BatcherCommand<P::Body>>,
    inbox_open: bool,
    /// A call of `submit` was dropped before its page was returned.
    abandoned: Arc<Notify>,
    queue: Queue,
    pages: BTreeMap<PageId, OpenPage<P::Body>>,
    /// When each page is returned at the latest.
    deadlines: BTreeSet<(Instant, PageId)>,
    next_page: u64,
    requests: JoinSet<Answered>,
    slots: Slots,
    rate_limiter: RateLimiter,
    share: watch::Receiver<Share>,
    route: Route,
    gate: watch::Receiver<Gate>,
    /// The provider throttles: no request starts before this.
    waiting_until: Option<Instant>,
    /// How often in a row it has throttled us.
    throttled: u8,
    /// When that last halved the rate.
    slowed_down_at: Option<Instant>,
    breaker: CircuitBreaker,
    /// Why the last request failed.
    failure: String,
    /// When a failed request was last logged.
    last_logged: Option<Instant>,
    /// The state that was reported last, and how many probes had failed by then.
    reported: Option<(BatcherState, Option<u8>)>,
    reported_rate: Option<f64>,
    metrics: Arc<Metrics>,
}

/// What holds the batcher's requests back, if anything does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BatcherState {
    Running,
    /// The provider throttles.
    Waiting,
    /// The provider is down, and probed.
    BreakerOpen,
    Closed(ClosedBy),
}

/// A request that has ended.
struct Answered {
    batch: Batch,
    started: Instant,
    /// It was a probe of the circuit breaker.
    is_probe: bool,
    reply: Reply,
}

/// What a request needs of a page, and shares with it, so that a message costs no more than its index.
struct OnWire<B> {
    body: Arc<B>,
    recipients: Arc<[Recipient]>,
    ttl: Duration,
}

/// How many requests may be on the wire, and how many of these only for urgent messages.
#[derive(Clone, Copy, Debug)]
struct Slots {
    all: usize,
    urgent: usize,
}

#[derive(Debug)]
struct OpenPage<B> {
    page: SubmittedPage<B>,
    outcomes: Vec<Option<MessageOutcome>>,
    without_outcome: usize,
    on_wire: usize,
    /// How many were refused in requests of their own, for an unknown reason.
    refused: usize,
    withdrawn: bool,
    submitter: oneshot::Sender<Returned>,
}

// === impl BatcherState ===

impl BatcherState {
    /// The value of the metric's label `state`.
    fn label(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Waiting => "waiting",
            Self::BreakerOpen => "breaker",
            Self::Closed(by) => by.label(),
        }
    }
}

// === impl Batcher ===

impl<P: Provider> Batcher<P> {
    /// A sender to `provider` with at most `requests_in_flight` requests on the wire, and its handle.
    pub fn new(
        provider: Arc<P>,
        requests_in_flight: usize,
        rate_limiter: RateLimiter,
        share: watch::Receiver<Share>,
        route: Route,
        metrics: Arc<Metrics>,
    ) -> (Self, BatcherHandle<P::Body>) {
        let (sender, inbox) = mpsc::channel(INBOX);
        let abandoned = Arc::new(Notify::new());
        let id = provider.id();
        let backoff = provider.backoff();
        let handle = BatcherHandle { inbox: sender, abandoned: Arc::clone(&abandoned), provider: id };
        let gate = route.gate();
        let slots = Slots { all: requests_in_flight.max(2), urgent: (requests_in_flight / 8).max(1) };
        let batcher = Self {
            provider,
            id,
            backoff,
            inbox,
            inbox_open: true,
            abandoned,
            queue: Queue::default(),
            pages: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            next_page: 0,
            requests: JoinSet::new(),
            slots,
            rate_limiter,
            share,
            route,
            gate,
            waiting_until: None,
            throttled: 0,
            slowed_down_at: None,
            breaker: CircuitBreaker::new(backoff),
            failure: String::new(),
            last_logged: None,
            reported: None,
            reported_rate: None,
            metrics,
        };
        (batcher, handle)
    }

    /// Sends until every handle is dropped and every page is returned.
    pub async fn run(mut self) {
        let share = *self.share.borrow_and_update();
        self.rate_limiter.set_share(share, Instant::now());
        let mut share_open = true;
        let abandoned = Arc::clone(&self.abandoned);
        // One timer for all iterations: nearly every one would set a timer of its own to the same time.
        let mut alarm = pin!(sleep_until(Instant::now()));
        let mut alarm_at = None;
        loop {
            let wake = self.start_requests();
            self.report_state();
            if let Some(at) = wake.filter(|_| wake != alarm_at) {
                alarm.as_mut().reset(at);
            }
            alarm_at = wake;
            if !self.inbox_open && self.pages.is_empty() {
                return;
            }
            tokio::select! {
                biased;
                // Before the answers: a reminder must not wait behind many of these. They can't be delayed
                // for long, because a handler submits no other page before its page is returned.
                command = self.inbox.recv(), if self.inbox_open => match command {
                    Some(BatcherCommand::Submit(page, submitted)) => self.submit(page, submitted),
                    Some(BatcherCommand::Withdraw(page)) => self.withdraw(page),
                    None => self.inbox_open = false,
                },
                () = abandoned.notified() => self.withdraw_abandoned(),
                Some(ended) = self.requests.join_next() => match ended {
                    Ok(answered) => self.apply(answered),
                    // The task catches panics; only a runtime that shuts down cancels it, and then no handler
                    // waits.
                    Err(err) => {
                        error!(provider = %self.id, error = %err, "The task of a request was cancelled");
                        return;
                    }
                },
                changed = self.share.changed(), if share_open => {
                    share_open = changed.is_ok();
                    let share = *self.share.borrow_and_update();
                    self.rate_limiter.set_share(share, Instant::now());
                }
                Ok(()) = self.gate.changed() => {}
                () = alarm.as_mut(), if wake.is_some() => alarm_at = None,
            }
        }
    }

    fn submit(&mut self, page: SubmittedPage<P::Body>, submitted: oneshot::Sender<Submitted>) {
        let id = PageId(self.next_page);
        self.next_page += 1;
        let (submitter, returned) = oneshot::channel();
        let len = page.recipients.len();
        self.queue.push(page.class, id, len);
        self.deadlines.insert((page.deadline(), id));
        self.pages.insert(
            id,
            OpenPage {
                page,
                outcomes: vec![None; len],
                without_outcome: len,
                on_wire: 0,
                refused: 0,
                withdrawn: false,
                submitter,
            },
        );
        if submitted.send((id, returned)).is_err() {
            self.withdraw(id); // Its handler was aborted in between.
        }
    }

    /// Sends nothing more of a page, and returns it as soon as none of its requests is on the wire.
    fn withdraw(&mut self, id: PageId) {
        self.queue.withdraw(id);
        if let Some(open) = self.pages.get_mut(&id) {
            open.withdrawn = true;
        }
        self.return_if_finished(id);
    }

    /// Withdraws the pages whose handlers were aborted: the next owner of their records may send them
    /// already.
    fn withdraw_abandoned(&mut self) {
        let abandoned: Vec<PageId> =
            self.pages.iter().filter(|(_, open)| open.submitter.is_closed()).map(|(&id, _)| id).collect();
        for id in abandoned {
            self.withdraw(id);
        }
    }

    /// Withdraws the pages that have expired or whose lease has ended.
    fn withdraw_overdue(&mut self, now: Instant) {
        while let Some(&(at, id)) = self.deadlines.first()
            && at <= now
        {
            self.deadlines.pop_first();
            self.withdraw(id);
        }
    }

    /// Returns a page when all its messages have their outcome, or when it is withdrawn and none of its
    /// requests is on the wire.
    fn return_if_finished(&mut self, id: PageId) {
        if self
            .pages
            .get(&id)
            .is_some_and(|open| open.without_outcome == 0 || (open.withdrawn && open.on_wire == 0))
        {
            self.return_page(id);
        }
    }

    fn return_page(&mut self, id: PageId) {
        if let Some(mut open) = self.pages.remove(&id) {
            self.deadlines.remove(&(open.page.deadline(), id));
            if open.page.expires <= Instant::now() {
                for outcome in &mut open.outcomes {
                    outcome.get_or_insert(MessageOutcome::Expired);
                }
            }
            // Fails if the handler was aborted.
            let _aborted =
                open.submitter.send(Returned { recipients: open.page.recipients, outcomes: open.outcomes });
        }
    }

    /// Starts every request that may start now. Returns when to call this again, if nothing else happens
    /// before.
    fn start_requests(&mut self) -> Option<Instant> {
        let now = Instant::now();
        self.withdraw_overdue(now);
        let wake = self.start_admitted(now);
        let deadline = self.deadlines.first().map(|&(at, _)| at);
        [wake, deadline].into_iter().flatten().min()
    }

    /// Returns when the next request may start, if that is only a matter of time.
    fn start_admitted(&mut self, now: Instant) -> Option<Instant> {
        self.queue.release_due(now);
        let due = self.queue.next_due();
        if *self.gate.borrow_and_update() != Gate::Open {
            return None;
        }
        if let Some(until) = self.waiting_until {
            if now < until {
                return Some(until);
            }
            self.waiting_until = None;
        }
        loop {
            let free = self.slots.all.saturating_sub(self.requests.len());
            if free == 0 {
                return due;
            }
            let probe = self.breaker.probe(|| self.queue.has(Class::Urgent), now);
            let busy = self.slots.busy(self.requests.len());
            let max = self.rate_limiter.batch_max(self.provider.batch_max(), busy, now);
            let next = match probe {
                Some(Probe::OnWire) => return None,
                Some(Probe::At(at)) => return Some(at),
                // One message, because the provider may accept it although the probe fails.
                Some(Probe::Take(classes)) => self.next_batch(1, &classes, now),
                None if free <= self.slots.urgent => self.next_batch(max, &[Class::Urgent], now),
                None => self.next_batch(max, &Class::ALL, now),
            };
            let Some(batch) = next else { return due };
            match self.rate_limiter.admit(batch.messages.len(), now) {
                Ok(()) => self.start(batch, probe.is_some(), now),
                Err(at) => {
                    self.queue.put_back(batch);
                    return [at, due].into_iter().flatten().min();
                }
            }
        }
    }

    /// The next messages that are still worth a request, of the first of these classes that has any.
    fn next_batch(&mut self, max: usize, classes: &[Class], now: Instant) -> Option<Batch> {
        loop {
            let mut batch = self.queue.take(max, classes)?;
            let is_stale =
                |page| self.pages.get(&page).is_none_or(|open| !open.is_begun() && open.page.stale_at <= now);
            let stale: Vec<PageId> =
                batch.by_page().map(|(page, _)| page).filter(|&page| is_stale(page)).collect();
            for page in stale {
                batch.messages.retain(|message| message.page != page);
                self.withdraw(page);
            }
            if !batch.messages.is_empty() {
                return Some(batch);
            }
        }
    }

    fn start(&mut self, batch: Batch, is_probe: bool, now: Instant) {
        if is_probe {
            self.breaker.probe_started();
        }
        let mut pages = Vec::with_capacity(1);
        for (page, run) in batch.by_page() {
            let Some(open) = self.pages.get_mut(&page) else { continue };
            open.on_wire += run.len();
            let ttl = open.page.expires.saturating_duration_since(now);
            pages.push((
                page,
                OnWire {
                    body: Arc::clone(&open.page.body),
                    recipients: Arc::clone(&open.page.recipients),
                    ttl,
                },
            ));
        }
        let provider = Arc::clone(&self.provider);
        self.requests.spawn(async move {
            let messages: Vec<_> = messages(&batch, &pages).collect();
            let reply = AssertUnwindSafe(provider.send(&messages)).catch_unwind().await;
            let panicked =
                |_| Reply::Down { ambiguous: true, retry_after: None, why: "the client panicked".to_owned() };
            Answered { batch, started: now, is_probe, reply: reply.unwrap_or_else(panicked) }
        });
    }

    fn state(&self) -> BatcherState {
        match *self.gate.borrow() {
            Gate::Closed(by) => BatcherState::Closed(by),
            Gate::Open if self.breaker.failed_probes().is_some() => BatcherState::BreakerOpen,
            Gate::Open if self.waiting_until.is_some() => BatcherState::Waiting,
            Gate::Open => BatcherState::Running,
        }
    }

    /// Sets the metric of the route's state, in which one of the states is 1, and the route's local status.
    fn report_state(&mut self) {
        let label = self.id.label();
        let rate = self.rate_limiter.rate();
        if self.reported_rate != Some(rate) {
            self.reported_rate = Some(rate);
            self.metrics.rate_limit.with_label_values(&[label, "instance"]).set(rate);
        }
        let state = self.state();
        let probes = self.breaker.failed_probes();
        if self.reported == Some((state, probes)) {
            return;
        }
        self.route.set_local_status(match (state, probes) {
            (BatcherState::BreakerOpen, Some(probes)) => Some(format!(
                "circuit breaker open: the provider is down ({}), {probes} probes have failed",
                self.failure
            )),
            (BatcherState::Waiting, _) => Some("the provider asked us to wait".to_owned()),
            _ => None,
        });
        if let Some((before, _)) = self.reported.filter(|&(before, _)| before != state) {
            self.metrics.route_state.with_label_values(&[label, before.label()]).set(0);
        }
        self.metrics.route_state.with_label_values(&[label, state.label()]).set(1);
        self.reported = Some((state, probes));
    }
}

/// The messages of a batch, in the batch's order.
fn messages<'a, B>(
    batch: &'a Batch,
    pages: &'a [(PageId, OnWire<B>)],
) -> impl Iterator<Item = PushMessage<'a, B>> {
    let runs =
        batch.by_page().filter_map(|(page, run)| Some((&pages.iter().find(|(id, _)| *id == page)?.1, run)));
    runs.flat_map(|(page, run)| {
        run.iter().map(|message| {
            let recipient = &page.recipients[message.index as usize];
            PushMessage {
                body: &*page.body,
                token: &recipient.token,
                platform: recipient.platform,
                ttl: page.ttl,
            }
        })
    })
}

// === impl Slots ===

impl Slots {
    /// The requests on the wire as a part of the slots that bulk may use: above 1 where urgent messages use
    /// their own slots too.
    #[expect(clippy::cast_precision_loss, reason = "they are thousands at most")]
    fn busy(self, requests: usize) -> f64 {
        requests as f64 / (self.all - self.urgent) as f64
    }
}

// === impl OpenPage ===

impl<B> OpenPage<B> {
    /// Counts a message that was refused in a request of its own. Returns whether the notification is taken
    /// to be refused for all recipients.
    fn refused_once_more(&mut self) -> bool {
        self.refused += 1;
        self.refused >= REFUSED_ALONE_MAX
            && !self.outcomes.iter().any(|outcome| {
                matches!(outcome, Some(MessageOutcome::Sent { .. } | MessageOutcome::Dead { .. }))
            })
    }

    /// Whether a device may have been reached by now. As long as all requests of a page have failed it is not
    /// begun, and may go stale.
    fn is_begun(&self) -> bool {
        self.on_wire > 0 || self.without_outcome < self.outcomes.len()
    }
}

#[cfg(test)]
mod tests;
