//! One provider's sender: it alone decides which messages go next, and what an answer means for them.
//!
//! Handlers hand pages in at the [`BatcherHandle`] and get them back with an outcome for each message. In between the
//! batcher fills requests from the most urgent pages, keeps the rate, keeps some request slots for urgent
//! messages, and sends again what the provider did not take, until it is taken, refused or its life is over.
//! A page is held nowhere but here and at its handler, so what is open is bounded by the handlers' seats.
//!
//! A provider that fails as a whole is asked by one message at a time (`breaker`), and what it failed goes on
//! when it answers.
//!
//! A page goes home in time, whatever the route does: when its life or its lease ends, what is not on the
//! wire ends with it. The page of a handler that was broken off is dropped at once, because somebody else may
//! be sending it by now.
//!
//! It ends when every handle is gone and nothing is on the wire; nobody tells it to stop.

mod answers;

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

use super::{
    BatcherStopped, Provider, PushMessage, Reply,
    circuit_breaker::{CircuitBreaker, Probe},
    page::{Class, MessageOutcome, Returned, SubmittedPage},
    queue::{Batch, PageId, Queue},
    rate_limiter::{RateLimiter, Share},
    route::{Gate, Route},
};
use crate::{
    domain::{ProviderId, Recipient},
    metrics::Metrics,
};

/// Commands that wait for the batcher. Small: it takes them at once, and the pages it holds are bounded by
/// the handlers.
const INBOX: usize = 64;
/// How often a repeated failure is logged.
const COMPLAIN_EVERY: Duration = Duration::from_secs(10);

/// So many messages of a page may be refused alone, and none taken, before the notification is held to be at
/// fault.
const REFUSED_ALONE_MAX: usize = 20;

/// Where pages are handed in.
#[derive(Debug)]
pub struct BatcherHandle<B> {
    inbox: mpsc::Sender<BatcherCommand<B>>,
    left: Arc<Notify>,
    provider: ProviderId,
}

/// One provider's sender.
pub struct Batcher<P: Provider> {
    provider: Arc<P>,
    id: ProviderId,
    inbox: mpsc::Receiver<BatcherCommand<P::Body>>,
    inbox_open: bool,
    /// Somebody has left without waiting for his page.
    left: Arc<Notify>,
    queue: Queue,
    pages: BTreeMap<PageId, OpenPage<P::Body>>,
    /// When each page goes home at the latest.
    deadlines: BTreeSet<(Instant, PageId)>,
    next_page: u64,
    requests: JoinSet<Answered>,
    slots: Slots,
    pace: RateLimiter,
    share: watch::Receiver<Share>,
    route: Route,
    gate: watch::Receiver<Gate>,
    waiting_until: Option<Instant>,
    /// How often in a row we were too fast, and when it was last learned from.
    throttled: (u8, Option<Instant>),
    breaker: CircuitBreaker,
    /// Why the last request failed.
    failure: String,
    complained: Option<Instant>,
    /// The state that was told last, and how many probes had failed by then.
    shown: Option<(&'static str, Option<u8>)>,
    shown_rate: Option<f64>,
    metrics: Arc<Metrics>,
}

/// A request that has ended.
struct Answered {
    batch: Batch,
    started: Instant,
    /// It asked whether the provider is back.
    is_probe: bool,
    reply: Reply,
}

/// What a request needs of a page. Shared with it: a message costs nothing but its place.
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
enum BatcherCommand<B> {
    Submit(SubmittedPage<B>, oneshot::Sender<Submitted>),
    Withdraw(PageId),
}

/// The answer to a submitted page: its number, and where it comes back.
type Submitted = (PageId, oneshot::Receiver<Returned>);

#[derive(Debug)]
struct OpenPage<B> {
    page: SubmittedPage<B>,
    outcomes: Vec<Option<MessageOutcome>>,
    undecided: usize,
    on_wire: usize,
    /// So many were refused alone, by a fault that nobody names.
    refused: usize,
    withdrawn: bool,
    back: oneshot::Sender<Returned>,
}

/// Tells the batcher when the one who waits for a page is gone before the page is back.
struct PageWait<'a> {
    left: &'a Notify,
    came_back: bool,
}

// === impl BatcherHandle ===

impl<B> Clone for BatcherHandle<B> {
    fn clone(&self) -> Self {
        Self { inbox: self.inbox.clone(), left: Arc::clone(&self.left), provider: self.provider }
    }
}

impl<B: Send + Sync + 'static> BatcherHandle<B> {
    /// Hands a page in and waits until it comes back. When `withdraw` ends first, what is not on the wire is
    /// taken back, and what is on the wire is waited for. A call that is dropped takes its page back too, and
    /// nobody hears what became of it.
    ///
    /// # Errors
    /// The batcher has ended.
    pub async fn submit(
        &self,
        page: SubmittedPage<B>,
        withdraw: impl Future<Output = ()>,
    ) -> Result<Returned, BatcherStopped> {
        if page.recipients.is_empty() {
            return Ok(Returned { recipients: page.recipients, outcomes: Vec::new() });
        }
        let mut waiting = PageWait { left: &self.left, came_back: false };
        let returned = self.hand_in(page, withdraw).await;
        waiting.came_back = true;
        returned.ok_or(BatcherStopped { provider: self.provider })
    }

    /// `None` = the batcher has ended.
    async fn hand_in(&self, page: SubmittedPage<B>, withdraw: impl Future<Output = ()>) -> Option<Returned> {
        let (submitted, number) = oneshot::channel();
        self.inbox.send(BatcherCommand::Submit(page, submitted)).await.ok()?;
        let (id, mut back) = number.await.ok()?;
        tokio::select! {
            biased;
            returned = &mut back => return returned.ok(),
            () = withdraw => {}
        }
        self.inbox.send(BatcherCommand::Withdraw(id)).await.ok()?;
        back.await.ok()
    }
}

// === impl PageWait ===

impl Drop for PageWait<'_> {
    fn drop(&mut self) {
        if !self.came_back {
            self.left.notify_one();
        }
    }
}

// === impl Batcher ===

impl<P: Provider> Batcher<P> {
    /// A sender through `provider` with at most `requests_in_flight` requests on the wire, and the handle
    /// before it.
    pub fn new(
        provider: Arc<P>,
        requests_in_flight: usize,
        pace: RateLimiter,
        share: watch::Receiver<Share>,
        route: Route,
        metrics: Arc<Metrics>,
    ) -> (Self, BatcherHandle<P::Body>) {
        let (sender, inbox) = mpsc::channel(INBOX);
        let left = Arc::new(Notify::new());
        let handle = BatcherHandle { inbox: sender, left: Arc::clone(&left), provider: provider.id() };
        let id = provider.id();
        let gate = route.gate();
        let slots = Slots { all: requests_in_flight.max(2), urgent: (requests_in_flight / 8).max(1) };
        let batcher = Self {
            provider,
            id,
            inbox,
            inbox_open: true,
            left,
            queue: Queue::default(),
            pages: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            next_page: 0,
            requests: JoinSet::new(),
            slots,
            pace,
            share,
            route,
            gate,
            waiting_until: None,
            throttled: (0, None),
            breaker: CircuitBreaker::new(id),
            failure: String::new(),
            complained: None,
            shown: None,
            shown_rate: None,
            metrics,
        };
        (batcher, handle)
    }

    /// Sends until every handle is gone.
    pub async fn run(mut self) {
        let share = *self.share.borrow_and_update();
        self.pace.share(share, Instant::now());
        let mut share_open = true;
        let left = Arc::clone(&self.left);
        // One timer for all turns: nearly every turn would set the next one to the same time.
        let mut alarm = pin!(sleep_until(Instant::now()));
        let mut alarm_at = None;
        loop {
            let wake = self.start_requests();
            self.show();
            if let Some(at) = wake.filter(|_| wake != alarm_at) {
                alarm.as_mut().reset(at);
            }
            alarm_at = wake;
            if !self.inbox_open && self.pages.is_empty() {
                return;
            }
            tokio::select! {
                biased;
                // Before the answers: a dose must not wait behind a flood of these. It can't hold them up for
                // long, because who has handed in a page hands in no other before he has it back.
                command = self.inbox.recv(), if self.inbox_open => match command {
                    Some(BatcherCommand::Submit(page, submitted)) => self.submit(page, submitted),
                    Some(BatcherCommand::Withdraw(page)) => self.withdraw(page),
                    None => self.inbox_open = false,
                },
                () = left.notified() => self.withdraw_abandoned(),
                Some(ended) = self.requests.join_next() => match ended {
                    Ok(answered) => self.apply(answered),
                    // The task catches panics; only a runtime that shuts down cancels it, and then nobody
                    // waits.
                    Err(err) => { error!(provider = %self.id, error = %err, "A request's task was cancelled"); return }
                },
                changed = self.share.changed(), if share_open => {
                    share_open = changed.is_ok();
                    let share = *self.share.borrow_and_update();
                    self.pace.share(share, Instant::now());
                }
                Ok(()) = self.gate.changed() => {}
                () = alarm.as_mut(), if wake.is_some() => alarm_at = None,
            }
        }
    }

    fn submit(&mut self, page: SubmittedPage<P::Body>, submitted: oneshot::Sender<Submitted>) {
        let id = PageId(self.next_page);
        self.next_page += 1;
        let (back, returned) = oneshot::channel();
        let len = page.recipients.len();
        self.queue.push(page.class, id, len);
        self.deadlines.insert((page.deadline(), id));
        self.pages.insert(
            id,
            OpenPage {
                page,
                outcomes: vec![None; len],
                undecided: len,
                on_wire: 0,
                refused: 0,
                withdrawn: false,
                back,
            },
        );
        if submitted.send((id, returned)).is_err() {
            self.withdraw(id); // Its handler was aborted in between.
        }
    }

    /// Takes back what is not on the wire.
    fn withdraw(&mut self, id: PageId) {
        self.queue.withdraw(id);
        if let Some(open) = self.pages.get_mut(&id) {
            open.withdrawn = true;
        }
        self.give_back_if_over(id);
    }

    /// Takes back the pages that nobody waits for any more: their handlers were broken off, and the next
    /// owner of their records may send them already.
    fn withdraw_abandoned(&mut self) {
        let abandoned: Vec<PageId> =
            self.pages.iter().filter(|(_, open)| open.back.is_closed()).map(|(&id, _)| id).collect();
        for id in abandoned {
            self.withdraw(id);
        }
    }

    /// Takes back the pages whose life or lease is over.
    fn withdraw_overdue(&mut self, now: Instant) {
        while let Some(&(at, id)) = self.deadlines.first()
            && at <= now
        {
            self.deadlines.pop_first();
            self.withdraw(id);
        }
    }

    /// Gives a page back when all its messages are decided, or when it is withdrawn and nothing of it is on
    /// the wire.
    fn give_back_if_over(&mut self, id: PageId) {
        if self
            .pages
            .get(&id)
            .is_some_and(|open| open.undecided == 0 || (open.withdrawn && open.on_wire == 0))
        {
            self.give_back(id);
        }
    }

    fn give_back(&mut self, id: PageId) {
        if let Some(mut open) = self.pages.remove(&id) {
            self.deadlines.remove(&(open.page.deadline(), id));
            if open.page.expires <= Instant::now() {
                for fate in &mut open.outcomes {
                    fate.get_or_insert(MessageOutcome::Expired);
                }
            }
            // Nobody waits for the page of an aborted handler.
            let _aborted =
                open.back.send(Returned { recipients: open.page.recipients, outcomes: open.outcomes });
        }
    }

    /// Starts every request that may start now. Returns when to look again, if nothing else happens before.
    fn start_requests(&mut self) -> Option<Instant> {
        let now = Instant::now();
        self.withdraw_overdue(now);
        let wake = self.start_admitted(now);
        let deadline = self.deadlines.first().map(|&(at, _)| at);
        [wake, deadline].into_iter().flatten().min()
    }

    /// Returns when the next request may start, if that is only a matter of time.
    fn start_admitted(&mut self, now: Instant) -> Option<Instant> {
        self.queue.wake(now);
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
            let max =
                self.pace.batch_max(self.provider.batch_max(), self.slots.busy(self.requests.len()), now);
            let next = match probe {
                Some(Probe::OnWire) => return None,
                Some(Probe::At(at)) => return Some(at),
                // One message, for it may be taken although the probe fails.
                Some(Probe::Take(classes)) => self.next_batch(1, &classes, now),
                None if free <= self.slots.urgent => self.next_batch(max, &[Class::Urgent], now),
                None => self.next_batch(max, &Class::ALL, now),
            };
            let Some(batch) = next else { return due };
            match self.pace.admit(batch.messages.len(), now) {
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
            let is_wanted =
                |page| self.pages.get(&page).is_some_and(|open| open.is_begun() || now < open.page.stale_at);
            let unwanted: Vec<PageId> =
                batch.by_page().map(|(page, _)| page).filter(|&page| !is_wanted(page)).collect();
            for page in unwanted {
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
            self.breaker.probing();
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
            let asked = AssertUnwindSafe(provider.send(&messages)).catch_unwind().await;
            let panicked =
                |_| Reply::Down { ambiguous: true, retry_after: None, why: "the client panicked".to_owned() };
            Answered { batch, started: now, is_probe, reply: asked.unwrap_or_else(panicked) }
        });
    }

    /// The route's state as a metric: one of the states is 1.
    fn show(&mut self) {
        let state = match &*self.gate.borrow() {
            Gate::Closed { state } => state,
            Gate::Open if self.breaker.failed_probes().is_some() => "breaker",
            Gate::Open if self.waiting_until.is_some() => "waiting",
            Gate::Open => "running",
        };
        let label = self.id.label();
        if self.shown_rate != Some(self.pace.rate()) {
            self.shown_rate = Some(self.pace.rate());
            self.metrics.rate_limit.with_label_values(&[label, "instance"]).set(self.pace.rate());
        }
        let shown = (state, self.breaker.failed_probes());
        if self.shown != Some(shown) {
            self.route.tell(match shown {
                ("breaker", Some(probes)) => {
                    Some(format!("open breaker: it is down ({}), {probes} probes have failed", self.failure))
                }
                ("waiting", _) => Some("it asked us to wait".to_owned()),
                _ => None,
            });
            if let Some((before, _)) = self.shown.filter(|&(before, _)| before != state) {
                self.metrics.route_state.with_label_values(&[label, before]).set(0);
            }
            self.metrics.route_state.with_label_values(&[label, state]).set(1);
            self.shown = Some(shown);
        }
    }
}

/// The messages of a batch, in its order.
fn messages<'a, B>(
    batch: &'a Batch,
    pages: &'a [(PageId, OnWire<B>)],
) -> impl Iterator<Item = PushMessage<'a, B>> {
    let runs =
        batch.by_page().filter_map(|(page, run)| Some((&pages.iter().find(|(id, _)| *id == page)?.1, run)));
    runs.flat_map(|(page, run)| {
        run.iter().map(|message| {
            let to = &page.recipients[message.index as usize];
            PushMessage { body: &*page.body, token: &to.token, platform: to.platform, ttl: page.ttl }
        })
    })
}

// === impl Slots ===

impl Slots {
    /// How full the slots are that bulk may use: 1 = full, more where urgent requests have theirs too.
    #[expect(clippy::cast_precision_loss, reason = "they are thousands at most")]
    fn busy(self, requests: usize) -> f64 {
        requests as f64 / (self.all - self.urgent) as f64
    }
}

// === impl OpenPage ===

impl<B> OpenPage<B> {
    /// One more was refused alone. Says whether that is the notification's fault, whoever it is for.
    fn refused_once_more(&mut self) -> bool {
        self.refused += 1;
        self.refused >= REFUSED_ALONE_MAX
            && !self
                .outcomes
                .iter()
                .any(|fate| matches!(fate, Some(MessageOutcome::Sent { .. } | MessageOutcome::Dead { .. })))
    }

    /// Whether somebody may have been reached by now. A page of which all requests have failed is none: it
    /// may go stale.
    fn is_begun(&self) -> bool {
        self.on_wire > 0 || self.undecided < self.outcomes.len()
    }
}

#[cfg(test)]
mod tests;
