//! The HTTP/2 connections that carry requests to FCM: a few, kept open, each with as many streams as both
//! sides allow.
//!
//! This is not reqwest but `h2`, on which reqwest stands. FCM takes one message a request, so what a request
//! costs is what a message costs: with `h2`, over a stream that gathers small writes (`dial`) and with the
//! common part of all requests built once, pushcast sends 1.2 to 1.8 times as many messages per CPU second as
//! a bare loop of reqwest, reading tokens and keeping the rate included
//! (`cargo bench --bench broadcast -- 15 1000000 fcm`). HTTP proxies are not supported.
//!
//! Each connection has a task, which opens it, drives it, and closes its slot of the [`Pool`] when it ends. A
//! request takes a permit for a stream of an open connection, and waits only while none is free. So a slot
//! whose connections fail gets no requests, each slot has one attempt to connect at a time, and if the
//! attempts of all slots fail, the waiting requests fail with the reason; when to try again is decided by the
//! caller.
//!
//! A connection ends when the peer closes it or leaves a PING unanswered. PINGs are sent periodically, and as
//! soon as a request had no answer in time. When a connection ends, the peer may have taken the requests on
//! it, but not those that waited for a permit, nor those that it reports as not processed (GOAWAY,
//! `REFUSED_STREAM`). After a GOAWAY a connection finishes its streams while its successor is in use.
//!
//! Permits are not granted in order: a waiting request may be overtaken. Its deadline bounds the wait.

mod dial;

use std::{
    fmt,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use h2::{
    Ping, PingPong, Reason,
    client::{ResponseFuture, SendRequest},
};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri, header::CONTENT_LENGTH};
use rustls::ClientConfig;
use tokio::{
    sync::Notify,
    task::JoinSet,
    time::{Instant, sleep, timeout, timeout_at},
};
use tracing::{debug, warn};

pub(super) use self::dial::platform_tls;
use self::dial::{Dialer, OpenedConnection};
use super::Settings;
use crate::dispatch::answer::causes;

const CONNECT_TIMEOUT_MAX: Duration = Duration::from_secs(5);

/// FCM's answers are below 4 KB.
const ANSWER_BYTES_MAX: usize = 1 << 18;

/// With more streams on one connection FCM closes it, even if its SETTINGS allow them.
const STREAMS_MAX: usize = 100;

/// A PING is sent that often, and whenever a request had no answer in time.
const PING_EVERY: Duration = Duration::from_secs(30);

/// A connection is closed that leaves a PING unanswered for so long.
const PONG_TIMEOUT: Duration = Duration::from_secs(5);

/// While others are open, a slot cools down for so long after a failed attempt.
const COOLDOWN: Duration = Duration::from_secs(1);

/// `h2` gathers frames below 1 KiB and writes each bigger one to the socket alone. So bodies are sent in
/// pieces below that size.
const PIECE: usize = 1_000;

/// The connections to one peer.
pub(super) struct Connections {
    pool: Arc<Pool>,
    dialer: Arc<Dialer>,
    url: Uri,
    connect_timeout: Duration,
    request_timeout: Duration,
    /// One for each connection that is being opened or is open.
    tasks: Mutex<JoinSet<()>>,
}

/// The peer's answer.
#[derive(Debug)]
pub(super) struct Response {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

/// There was no answer.
#[derive(Debug)]
pub(super) struct FcmNoAnswer {
    /// Whether the peer may have taken the request all the same.
    pub ambiguous: bool,
    /// For the log.
    pub why: String,
}

/// The slots for connections, and the requests that wait for one.
struct Pool {
    state: Mutex<PoolState>,
    /// A stream may be free, or all slots may be closed.
    changed: Notify,
}

struct PoolState {
    slots: Vec<StreamSlot>,
    /// Counts the attempts to connect. The latest one of a slot owns it.
    attempts: u64,
    /// How many of these failed.
    failures: u64,
    /// Why the last one failed.
    failure: String,
}

struct StreamSlot {
    /// The latest attempt, which owns the slot.
    attempt: u64,
    state: SlotState,
}

enum SlotState {
    Closed { cools_down_until: Instant },
    Opening,
    Open { connection: Arc<Connection>, streams: usize },
}

struct Connection {
    requests: SendRequest<Bytes>,
    streams_max: usize,
    /// A request had no answer in time: a PING is to be sent now.
    ping_now: Arc<Notify>,
}

/// The right to one stream, returned when it is dropped.
struct StreamPermit<'a> {
    pool: &'a Pool,
    slot: usize,
    attempt: u64,
    connection: Arc<Connection>,
}

/// One attempt's ownership of a slot. Closes the slot when it is dropped, unless a later attempt owns it.
struct SlotGuard {
    pool: Arc<Pool>,
    slot: usize,
    attempt: u64,
    /// Why there is no connection; `None` once there has been one.
    failure: Option<String>,
}

// === impl Connections ===

impl Connections {
    /// Connects when the first request is made.
    pub(super) fn new(settings: &Settings, url: Uri, tls: ClientConfig) -> Self {
        let Settings { connections, request_timeout, .. } = *settings;
        let closed = || StreamSlot { attempt: 0, state: SlotState::closed() };
        let slots = (0..connections.max(1)).map(|_| closed()).collect();
        let state = PoolState { slots, attempts: 0, failures: 0, failure: String::new() };
        Self {
            pool: Arc::new(Pool { state: Mutex::new(state), changed: Notify::new() }),
            dialer: Arc::new(Dialer::new(url.clone(), tls)),
            url,
            connect_timeout: CONNECT_TIMEOUT_MAX.min(request_timeout / 2),
            request_timeout,
            tasks: Mutex::new(JoinSet::new()),
        }
    }

    /// One POST. `headers` contain a Content-Length, which is overwritten; all others are sent unchanged.
    ///
    /// # Errors
    /// There was no answer by the deadline.
    pub(super) async fn post(
        &self,
        headers: &HeaderMap,
        body: Bytes,
        deadline: Instant,
    ) -> Result<Response, FcmNoAnswer> {
        let (permit, response) = self.send(headers, &body, deadline).await?;
        let answered = timeout_at(deadline, read(response)).await;
        answered.unwrap_or_else(|_late| {
            permit.connection.ping_now.notify_one();
            Err(FcmNoAnswer { ambiguous: true, why: format!("no answer within {:?}", self.request_timeout) })
        })
    }

    async fn send(
        &self,
        headers: &HeaderMap,
        body: &Bytes,
        deadline: Instant,
    ) -> Result<(StreamPermit<'_>, ResponseFuture), FcmNoAnswer> {
        let mut why = String::new();
        // A connection after its GOAWAY takes no request. After two of these the request fails.
        for _ in 0..2 {
            let permit = match self.try_acquire() {
                Some(permit) => permit,
                None => match timeout_at(deadline, self.acquire()).await {
                    Ok(Ok(permit)) => permit,
                    Ok(Err(why)) => return Err(FcmNoAnswer::not_sent(why)),
                    Err(_late) => {
                        return Err(FcmNoAnswer::not_sent(format!(
                            "no free connection within {:?}",
                            self.request_timeout
                        )));
                    }
                },
            };
            match start(&permit.connection, self.request(headers, body.len()), body.clone()) {
                Ok(response) => return Ok((permit, response)),
                Err(error) => why = causes(&error),
            }
            self.pool.retire(&permit);
        }
        Err(FcmNoAnswer::not_sent(why))
    }

    fn request(&self, headers: &HeaderMap, length: usize) -> Request<()> {
        let mut request = Request::new(());
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.url.clone();
        *request.headers_mut() = headers.clone();
        if let Some(header) = request.headers_mut().get_mut(CONTENT_LENGTH) {
            *header = HeaderValue::from(length);
        }
        request
    }

    /// Waits for a permit.
    ///
    /// # Errors
    /// All slots are closed: why the last attempt failed.
    async fn acquire(&self) -> Result<StreamPermit<'_>, String> {
        let known = self.pool.lock().failures;
        loop {
            let mut changed = pin!(self.pool.changed.notified());
            // From here on no notification is missed.
            changed.as_mut().enable();
            if let Some(why) = self.pool.lock().failure_since(known) {
                return Err(why);
            }
            if let Some(permit) = self.try_acquire() {
                return Ok(permit);
            }
            changed.await;
        }
    }

    /// A permit, if a stream is free. Starts to open the connections that are closed.
    fn try_acquire(&self) -> Option<StreamPermit<'_>> {
        let mut state = self.pool.lock();
        if state.slots.iter().any(StreamSlot::is_closed) {
            self.open(&mut state);
        }
        let slot = state.least_loaded()?;
        let StreamSlot { attempt, state: SlotState::Open { connection, streams } } = &mut state.slots[slot]
        else {
            return None;
        };
        *streams += 1;
        Some(StreamPermit { pool: &self.pool, slot, attempt: *attempt, connection: Arc::clone(connection) })
    }

    fn open(&self, state: &mut PoolState) {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        while tasks.try_join_next().is_some() {}
        for (slot, attempt) in state.start_attempts(Instant::now()) {
            let failure = Some("the connection's task has ended".to_owned());
            let guard = SlotGuard { pool: Arc::clone(&self.pool), slot, attempt, failure };
            tasks.spawn(run(guard, Arc::clone(&self.dialer), self.connect_timeout));
        }
    }
}

/// Opens a connection and drives it until it ends.
async fn run(mut guard: SlotGuard, dialer: Arc<Dialer>, connect_timeout: Duration) {
    let opened = timeout(connect_timeout, dialer.open()).await;
    let OpenedConnection { requests, connection, pings, streams_max } = match opened {
        Ok(Ok(opened)) => opened,
        Ok(Err(why)) => return guard.failure = Some(why),
        Err(_late) => return guard.failure = Some(format!("no connection within {connect_timeout:?}")),
    };
    let ping_now = Arc::new(Notify::new());
    guard.opened(Connection {
        requests,
        streams_max: streams_max.clamp(1, STREAMS_MAX),
        ping_now: Arc::clone(&ping_now),
    });
    tokio::select! {
        biased;
        ended = connection => debug!(error = ?ended.err(), "A connection to FCM has ended"),
        () = unanswered_ping(pings, &ping_now) => {
            warn!("FCM did not answer a PING within {PONG_TIMEOUT:?}: closing the connection");
        }
    }
}

/// Sends PINGs; returns when one is left unanswered.
async fn unanswered_ping(mut pings: PingPong, ping_now: &Notify) {
    loop {
        tokio::select! {
            () = sleep(PING_EVERY) => {}
            () = ping_now.notified() => {}
        }
        match timeout(PONG_TIMEOUT, pings.ping(Ping::opaque())).await {
            Ok(Ok(_pong)) => {}
            // The connection itself is about to end with this error.
            Ok(Err(_)) => std::future::pending().await,
            Err(_late) => return,
        }
    }
}

/// Starts a stream. On an error nothing that the peer could act on has been sent.
fn start(
    connection: &Connection,
    request: Request<()>,
    mut body: Bytes,
) -> Result<ResponseFuture, h2::Error> {
    let (response, mut stream) = connection.requests.clone().send_request(request, false)?;
    while body.len() > PIECE {
        stream.send_data(body.split_to(PIECE), false)?;
    }
    stream.send_data(body, true)?;
    Ok(response)
}

async fn read(response: ResponseFuture) -> Result<Response, FcmNoAnswer> {
    let (head, mut stream) = response.await.map_err(FcmNoAnswer::of)?.into_parts();
    let mut body = Bytes::new();
    while let Some(piece) = stream.data().await {
        let piece = piece.map_err(FcmNoAnswer::of)?;
        // It only fails if more is released than was received.
        let _released = stream.flow_control().release_capacity(piece.len());
        if body.len() + piece.len() > ANSWER_BYTES_MAX {
            let why = format!("HTTP {} with more than {ANSWER_BYTES_MAX} bytes", head.status.as_u16());
            return Err(FcmNoAnswer { ambiguous: true, why });
        }
        // Nearly always there is only one.
        body = if body.is_empty() { piece } else { [body, piece].concat().into() };
    }
    Ok(Response { status: head.status, headers: head.headers, body })
}

impl fmt::Debug for Connections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connections").field("url", &self.url).finish_non_exhaustive()
    }
}

// === impl FcmNoAnswer ===

impl FcmNoAnswer {
    fn not_sent(why: String) -> Self {
        Self { ambiguous: false, why }
    }

    fn of(error: h2::Error) -> Self {
        // A peer has not processed streams beyond the last one that it names in a GOAWAY, nor those that it
        // refuses.
        let not_processed =
            error.is_remote() && (error.is_go_away() || error.reason() == Some(Reason::REFUSED_STREAM));
        Self { ambiguous: !not_processed, why: causes(&error) }
    }
}

// === impl Pool ===

impl Pool {
    fn lock(&self) -> MutexGuard<'_, PoolState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Frees the slot of a connection that takes no more requests. It finishes its streams while its
    /// successor is in use.
    fn retire(&self, permit: &StreamPermit<'_>) {
        let slot = &mut self.lock().slots[permit.slot];
        if slot.attempt == permit.attempt {
            slot.state = SlotState::closed();
        }
    }
}

// === impl PoolState ===

impl PoolState {
    /// The slot with the most free streams, if there is a free one.
    fn least_loaded(&self) -> Option<usize> {
        let free = |slot: &StreamSlot| match &slot.state {
            SlotState::Open { connection, streams } => connection.streams_max.saturating_sub(*streams),
            SlotState::Closed { .. } | SlotState::Opening => 0,
        };
        let (slot, free) = self.slots.iter().map(free).enumerate().max_by_key(|&(_, free)| free)?;
        (free > 0).then_some(slot)
    }

    /// Marks the slots that are to connect now as opening, and returns each with the number of its attempt.
    /// After a failure a slot cools down, unless all are closed.
    fn start_attempts(&mut self, now: Instant) -> Vec<(usize, u64)> {
        let all_closed = self.all_closed();
        let mut opening = Vec::new();
        for (index, slot) in self.slots.iter_mut().enumerate() {
            if let SlotState::Closed { cools_down_until } = slot.state
                && (all_closed || cools_down_until <= now)
            {
                self.attempts += 1;
                *slot = StreamSlot { attempt: self.attempts, state: SlotState::Opening };
                opening.push((index, self.attempts));
            }
        }
        opening
    }

    /// Why the last attempt failed, if there were more than `known` failures and all slots are closed.
    fn failure_since(&self, known: u64) -> Option<String> {
        (self.failures > known && self.all_closed()).then(|| self.failure.clone())
    }

    fn all_closed(&self) -> bool {
        self.slots.iter().all(StreamSlot::is_closed)
    }
}

impl StreamSlot {
    fn is_closed(&self) -> bool {
        matches!(self.state, SlotState::Closed { .. })
    }
}

impl SlotState {
    /// Closed, and free for an attempt at once.
    fn closed() -> Self {
        Self::Closed { cools_down_until: Instant::now() }
    }
}

// === impl StreamPermit ===

impl Drop for StreamPermit<'_> {
    fn drop(&mut self) {
        let slot = &mut self.pool.lock().slots[self.slot];
        if slot.attempt == self.attempt
            && let SlotState::Open { streams, .. } = &mut slot.state
        {
            *streams -= 1;
        }
        self.pool.changed.notify_one();
    }
}

// === impl SlotGuard ===

impl SlotGuard {
    fn opened(&mut self, connection: Connection) {
        self.failure = None;
        let slot = &mut self.pool.lock().slots[self.slot];
        if slot.attempt == self.attempt {
            slot.state = SlotState::Open { connection: Arc::new(connection), streams: 0 };
        }
        self.pool.changed.notify_waiters();
    }
}

impl Drop for SlotGuard {
    fn drop(&mut self) {
        let mut state = self.pool.lock();
        let mut cools_down_until = Instant::now();
        if let Some(failure) = self.failure.take() {
            cools_down_until += COOLDOWN;
            state.failures += 1;
            state.failure = failure;
        }
        let slot = &mut state.slots[self.slot];
        if slot.attempt == self.attempt {
            slot.state = SlotState::Closed { cools_down_until };
        }
        drop(state);
        self.pool.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests;
