//! The HTTP/2 connections that carry requests to FCM: a few, warm, each with as many streams as both sides
//! allow.
//!
//! This is not reqwest, because there a message costs several times more CPU (ARCHITECTURE.md has the
//! figures): `h2` is spoken directly, over a stream that gathers small writes (`dial`), and what all requests
//! have in common is made once.
//!
//! One task a connection opens it, carries it and takes it off its place in the [`Pool`] when it ends. A
//! request takes a seat on a connection that is open, and waits only while there is none. So a place whose
//! connections fail draws no requests, one attempt a place is under way at a time, and if all fail, whoever
//! waited is told; when to try again is then the engine's affair.
//!
//! A connection ends when the peer closes it or when a PING stays without answer. It is asked now and then,
//! and as soon as a request had no answer in time. What it carried may have been taken; what waited for a
//! seat was not, nor what the peer says it did not touch (GOAWAY, `REFUSED_STREAM`). After a GOAWAY a
//! connection finishes what it carries beside its successor.
//!
//! Whoever waits for a seat may be overtaken. His deadline bounds it.

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

pub(super) use self::dial::tls_of_the_platform;
use self::dial::{Dialer, OpenedConnection};
use super::Settings;
use crate::dispatch::answer::causes;

const CONNECT_WITHIN_MAX: Duration = Duration::from_secs(5);

/// FCM's answers are below 4 KB.
const ANSWER_BYTES_MAX: usize = 1 << 18;

/// More streams on one connection make FCM close it, whatever its SETTINGS say.
const STREAMS_MAX: usize = 100;

/// A connection is asked for a sign of life that often, and whenever a request had no answer in time.
const PING_EVERY: Duration = Duration::from_secs(30);

/// A connection is given up that gives no sign of life for so long.
const PONG_WITHIN: Duration = Duration::from_secs(5);

/// While others carry requests, a place rests so long after an attempt that failed.
const REST: Duration = Duration::from_secs(1);

/// `h2` gathers frames below 1 KiB and hands each bigger one to the socket alone. So bodies go in pieces of
/// that size.
const PIECE: usize = 1_000;

/// The connections to one peer.
pub(super) struct Connections {
    pool: Arc<Pool>,
    dialer: Arc<Dialer>,
    url: Uri,
    connect_within: Duration,
    request_timeout: Duration,
    /// One for each connection that is being opened or is open.
    tasks: Mutex<JoinSet<()>>,
}

/// What the peer answered.
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

/// The places for connections, and those who wait for one.
struct Pool {
    state: Mutex<PoolState>,
    /// There may be a free seat, or there is none to be hoped for any more.
    changed: Notify,
}

struct PoolState {
    places: Vec<StreamSlot>,
    /// Counts the attempts to connect. The latest one of a place owns it.
    attempts: u64,
    /// How many of these failed, and why the last one did.
    failures: u64,
    failure: String,
}

struct StreamSlot {
    attempt: u64,
    line: SlotState,
}

enum SlotState {
    Closed { rests_until: Instant },
    Opening,
    Open { connection: Arc<Connection>, carried: usize },
}

struct Connection {
    requests: SendRequest<Bytes>,
    streams_max: usize,
    /// A request had no answer in time.
    doubted: Arc<Notify>,
}

/// The right to one stream. Going back is all it does when it is dropped.
struct StreamPermit<'a> {
    pool: &'a Pool,
    place: usize,
    attempt: u64,
    connection: Arc<Connection>,
}

/// A place of the pool in the hands of the task that serves it. Closed when it is dropped, if no other has
/// taken it over.
struct SlotGuard {
    pool: Arc<Pool>,
    place: usize,
    attempt: u64,
    /// Why there never was a connection; `None` once there is one.
    failure: Option<String>,
}

// === impl Connections ===

impl Connections {
    /// Connects when the first request is made.
    pub(super) fn new(settings: &Settings, url: Uri, tls: ClientConfig) -> Self {
        let Settings { connections, request_timeout, .. } = *settings;
        let closed = || StreamSlot { attempt: 0, line: SlotState::Closed { rests_until: Instant::now() } };
        let places = (0..connections.max(1)).map(|_| closed()).collect();
        let state = PoolState { places, attempts: 0, failures: 0, failure: String::new() };
        Self {
            pool: Arc::new(Pool { state: Mutex::new(state), changed: Notify::new() }),
            dialer: Arc::new(Dialer::new(url.clone(), tls)),
            url,
            connect_within: CONNECT_WITHIN_MAX.min(request_timeout / 2),
            request_timeout,
            tasks: Mutex::new(JoinSet::new()),
        }
    }

    /// One POST. `headers` have a Content-Length, whatever it says; the rest goes as it is.
    ///
    /// # Errors
    /// There was no answer by the deadline.
    pub(super) async fn post(
        &self,
        headers: &HeaderMap,
        body: Bytes,
        deadline: Instant,
    ) -> Result<Response, FcmNoAnswer> {
        let (seat, response) = self.begin(headers, &body, deadline).await?;
        let answered = timeout_at(deadline, read(response)).await;
        answered.unwrap_or_else(|_late| {
            seat.connection.doubted.notify_one();
            Err(FcmNoAnswer { ambiguous: true, why: format!("no answer within {:?}", self.request_timeout) })
        })
    }

    async fn begin(
        &self,
        headers: &HeaderMap,
        body: &Bytes,
        deadline: Instant,
    ) -> Result<(StreamPermit<'_>, ResponseFuture), FcmNoAnswer> {
        let mut why = String::new();
        // A connection that is going away takes nothing. Who meets two of these had better come back later.
        for _ in 0..2 {
            let seat = match self.seat() {
                Some(seat) => seat,
                None => match timeout_at(deadline, self.wait()).await {
                    Ok(Ok(seat)) => seat,
                    Ok(Err(why)) => return Err(FcmNoAnswer::untouched(why)),
                    Err(_late) => {
                        return Err(FcmNoAnswer::untouched(format!(
                            "no free connection within {:?}",
                            self.request_timeout
                        )));
                    }
                },
            };
            match start(&seat.connection, self.request(headers, body.len()), body.clone()) {
                Ok(response) => return Ok((seat, response)),
                Err(error) => why = causes(&error),
            }
            self.pool.retire(&seat);
        }
        Err(FcmNoAnswer::untouched(why))
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

    /// Waits for a seat.
    ///
    /// # Errors
    /// Says why there is no connection.
    async fn wait(&self) -> Result<StreamPermit<'_>, String> {
        let known = self.pool.lock().failures;
        loop {
            let mut changed = pin!(self.pool.changed.notified());
            // From here on no change is missed.
            changed.as_mut().enable();
            if let Some(why) = self.pool.lock().hopeless_since(known) {
                return Err(why);
            }
            if let Some(seat) = self.seat() {
                return Ok(seat);
            }
            changed.await;
        }
    }

    /// A seat, if one is free. Opens the connections that are closed.
    fn seat(&self) -> Option<StreamPermit<'_>> {
        let mut state = self.pool.lock();
        if state.places.iter().any(|place| matches!(place.line, SlotState::Closed { .. })) {
            self.open(&mut state);
        }
        let place = state.roomiest()?;
        let StreamSlot { attempt, line: SlotState::Open { connection, carried } } = &mut state.places[place]
        else {
            return None;
        };
        *carried += 1;
        Some(StreamPermit { pool: &self.pool, place, attempt: *attempt, connection: Arc::clone(connection) })
    }

    fn open(&self, state: &mut PoolState) {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        while tasks.try_join_next().is_some() {}
        for (place, attempt) in state.due(Instant::now()) {
            let failure = Some("its task has ended".to_owned());
            let tenure = SlotGuard { pool: Arc::clone(&self.pool), place, attempt, failure };
            tasks.spawn(carry(tenure, Arc::clone(&self.dialer), self.connect_within));
        }
    }
}

/// Opens a connection and carries it until it ends.
async fn carry(mut tenure: SlotGuard, dialer: Arc<Dialer>, connect_within: Duration) {
    let opened = timeout(connect_within, dialer.open()).await;
    let OpenedConnection { requests, connection, pings, streams_max } = match opened {
        Ok(Ok(opened)) => opened,
        Ok(Err(why)) => return tenure.failure = Some(why),
        Err(_late) => return tenure.failure = Some(format!("no connection within {connect_within:?}")),
    };
    let doubted = Arc::new(Notify::new());
    tenure.begin(Connection {
        requests,
        streams_max: streams_max.clamp(1, STREAMS_MAX),
        doubted: Arc::clone(&doubted),
    });
    tokio::select! {
        biased;
        ended = connection => debug!(error = ?ended.err(), "A connection to FCM has ended"),
        () = silence(pings, &doubted) => warn!("A connection to FCM gave no sign of life within {PONG_WITHIN:?} and is given up"),
    }
}

/// Ends when the peer does.
async fn silence(mut pings: PingPong, doubted: &Notify) {
    loop {
        tokio::select! {
            () = sleep(PING_EVERY) => {}
            () = doubted.notified() => {}
        }
        match timeout(PONG_WITHIN, pings.ping(Ping::opaque())).await {
            Ok(Ok(_pong)) => {}
            // The connection itself ends in a moment, and says why.
            Ok(Err(_)) => std::future::pending().await,
            Err(_late) => return,
        }
    }
}

/// Hands a request to its connection. Where that fails nothing that could be acted on has left.
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
        // It only fails if we give back more than we got.
        let _given_back = stream.flow_control().release_capacity(piece.len());
        if body.len() + piece.len() > ANSWER_BYTES_MAX {
            let why = format!("HTTP {} with more than {ANSWER_BYTES_MAX} bytes", head.status.as_u16());
            return Err(FcmNoAnswer { ambiguous: true, why });
        }
        // Nearly always there is but one.
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
    fn untouched(why: String) -> Self {
        Self { ambiguous: false, why }
    }

    fn of(error: h2::Error) -> Self {
        // Of streams beyond the last one that it names in a GOAWAY, and of those that it refuses, a peer took
        // nothing.
        let untouched =
            error.is_remote() && (error.is_go_away() || error.reason() == Some(Reason::REFUSED_STREAM));
        Self { ambiguous: !untouched, why: causes(&error) }
    }
}

// === impl Pool ===

impl Pool {
    fn lock(&self) -> MutexGuard<'_, PoolState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection that takes nothing any more makes room for another one, and finishes what it carries
    /// beside it.
    fn retire(&self, seat: &StreamPermit<'_>) {
        let place = &mut self.lock().places[seat.place];
        if place.attempt == seat.attempt {
            place.line = SlotState::Closed { rests_until: Instant::now() };
        }
    }
}

// === impl PoolState ===

impl PoolState {
    /// The open connection that carries least, if it has a free stream.
    fn roomiest(&self) -> Option<usize> {
        let room = |place: &StreamSlot| match &place.line {
            SlotState::Open { connection, carried } => connection.streams_max.saturating_sub(*carried),
            SlotState::Closed { .. } | SlotState::Opening => 0,
        };
        let (place, room) = self.places.iter().map(room).enumerate().max_by_key(|&(_, room)| room)?;
        (room > 0).then_some(place)
    }

    /// The places that are to connect now, each with the number of its attempt. After a failure a place rests
    /// while there are others.
    fn due(&mut self, now: Instant) -> Vec<(usize, u64)> {
        let alone = self.is_hopeless();
        let mut opening = Vec::new();
        for (index, place) in self.places.iter_mut().enumerate() {
            if let SlotState::Closed { rests_until } = place.line
                && (alone || rests_until <= now)
            {
                self.attempts += 1;
                *place = StreamSlot { attempt: self.attempts, line: SlotState::Opening };
                opening.push((index, self.attempts));
            }
        }
        opening
    }

    /// Why an attempt failed since there had been that many failures, if nothing is open or being opened.
    fn hopeless_since(&self, known: u64) -> Option<String> {
        (self.failures > known && self.is_hopeless()).then(|| self.failure.clone())
    }

    fn is_hopeless(&self) -> bool {
        self.places.iter().all(|place| matches!(place.line, SlotState::Closed { .. }))
    }
}

// === impl StreamPermit ===

impl Drop for StreamPermit<'_> {
    fn drop(&mut self) {
        let place = &mut self.pool.lock().places[self.place];
        if place.attempt == self.attempt
            && let SlotState::Open { carried, .. } = &mut place.line
        {
            *carried -= 1;
        }
        self.pool.changed.notify_one();
    }
}

// === impl SlotGuard ===

impl SlotGuard {
    fn begin(&mut self, connection: Connection) {
        self.failure = None;
        let place = &mut self.pool.lock().places[self.place];
        if place.attempt == self.attempt {
            place.line = SlotState::Open { connection: Arc::new(connection), carried: 0 };
        }
        self.pool.changed.notify_waiters();
    }
}

impl Drop for SlotGuard {
    fn drop(&mut self) {
        let mut state = self.pool.lock();
        let mut rests_until = Instant::now();
        if let Some(failure) = self.failure.take() {
            rests_until += REST;
            state.failures += 1;
            state.failure = failure;
        }
        let place = &mut state.places[self.place];
        if place.attempt == self.attempt {
            place.line = SlotState::Closed { rests_until };
        }
        drop(state);
        self.pool.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests;
