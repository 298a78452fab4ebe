//! Requests to FCM.
//!
//! **Invariant:** a message is sent once, with one exception: when FCM refuses our OAuth token it took nothing, so the
//! message is sent again with a new one. Whether to try again otherwise is not decided here.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use jiff::Timestamp;
use reqwest::{
    Url,
    header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER},
    redirect,
};
use tokio::time::{Instant, timeout_at};

use super::{
    Settings,
    credentials::{Account, BadCredentials, Credential, NoCredential, TokenSource},
    verdict::{self, Answer},
    wire::{self, Body},
};
use crate::{
    delivery::{
        Message, PayloadRefused, Provider, Reply, Verdict,
        answer::{causes, retry_after},
    },
    domain::{Notification, ProviderId, Token},
    metrics::Metrics,
};

/// FCM's answers are below 4 KB.
const ANSWER_BYTES_MAX: usize = 1 << 18;

const CONNECT_TIMEOUT_MAX: Duration = Duration::from_secs(5);

/// An idle connection is asked for a sign of life that often, and given up when none comes for as long again as a
/// request may take to connect.
const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(30);

/// Firebase Cloud Messaging.
#[derive(Debug)]
pub struct Fcm {
    /// One connection each: a connection carries about 100 requests at once.
    connections: Vec<reqwest::Client>,
    next: AtomicUsize,
    send_url: Url,
    tokens: TokenSource,
    request_timeout: Duration,
    validate_only: bool,
    metrics: Arc<Metrics>,
}

/// The settings are no way to reach FCM.
#[derive(Debug, thiserror::Error)]
pub enum Misconfigured {
    /// `fcm.url` is no origin of HTTP.
    #[error("fcm.url is no http:// or https:// URL: {0:?}")]
    Url(String),
    /// The service account can't be used.
    #[error(transparent)]
    Credentials(#[from] BadCredentials),
    /// TLS could not be set up.
    #[error("the HTTP client could not be made: {}", causes(.0))]
    Client(#[source] reqwest::Error),
}

/// There was no answer.
struct NoAnswer {
    ambiguous: bool,
    why: String,
}

// === impl Fcm ===

impl Fcm {
    /// A client for these settings; `None` where they name no credentials, for then FCM is not in use. Begins to fetch
    /// an OAuth token; connects when the first message is sent.
    ///
    /// # Errors
    /// There are credentials, and they or the URL can't be used.
    pub async fn new(settings: &Settings, metrics: Arc<Metrics>) -> Result<Option<Self>, Misconfigured> {
        let Some(account) = Account::load(settings).await? else { return Ok(None) };
        let send_url = send_url(&settings.url, &account.project_id).ok_or_else(|| Misconfigured::Url(settings.url.clone()))?;
        let connections: Result<Vec<_>, _> = (0..settings.connections.max(1)).map(|_| connection(settings, &send_url)).collect();
        Ok(Some(Self {
            connections: connections.map_err(Misconfigured::Client)?,
            next: AtomicUsize::new(0),
            send_url,
            tokens: TokenSource::start(account).await?,
            request_timeout: settings.request_timeout,
            validate_only: settings.validate_only,
            metrics,
        }))
    }

    async fn deliver(&self, token: &Token, body: Bytes, deadline: Instant) -> Reply {
        let credential = match timeout_at(deadline, self.tokens.current()).await {
            Ok(Ok(credential)) => credential,
            Ok(Err(none)) => return unsent(none),
            Err(_) => return unsent(self.late("no OAuth token")),
        };
        let first = self.attempt(token, body.clone(), &credential, deadline).await;
        let (401, Reply::CredentialsRefused { .. }) = first else { return first.1 };
        match timeout_at(deadline, self.tokens.after(&credential)).await {
            Ok(Ok(renewed)) => self.attempt(token, body, &renewed, deadline).await.1,
            Ok(Err(none)) => unsent(none),
            Err(_) => unsent(self.late("no new OAuth token")),
        }
    }

    /// One request, counted and timed: its HTTP status (0 = no answer) and what it means.
    async fn attempt(&self, token: &Token, body: Bytes, credential: &Credential, deadline: Instant) -> (u16, Reply) {
        let started = Instant::now();
        let answer = match timeout_at(deadline, self.exchange(body, credential)).await {
            Ok(answer) => answer,
            Err(_) => Err(NoAnswer { ambiguous: true, why: self.late("no answer").why }),
        };
        let provider = ProviderId::Fcm.label();
        self.metrics.provider_request_duration_seconds.with_label_values(&[provider]).observe(started.elapsed().as_secs_f64());
        let status = answer.as_ref().map_or_else(|_| "none".to_owned(), |answer| answer.status.to_string());
        self.metrics.provider_requests_total.with_label_values(&[provider, status.as_str()]).inc();
        match answer {
            Ok(answer) => (answer.status, verdict::reply(&answer, token)),
            Err(NoAnswer { ambiguous, why }) => (0, Reply::Down { ambiguous, retry_after: None, why }),
        }
    }

    async fn exchange(&self, body: Bytes, credential: &Credential) -> Result<Answer<Bytes>, NoAnswer> {
        let turn = self.next.fetch_add(1, Ordering::Relaxed) % self.connections.len();
        let post = self.connections[turn].post(self.send_url.clone()).header(AUTHORIZATION, credential.bearer.clone()).body(body);
        let mut response = post.send().await.map_err(NoAnswer::of)?;
        let status = response.status().as_u16();
        let retry_after = retry_after(response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()), Timestamp::now());
        let mut body = BytesMut::new();
        while let Some(chunk) = response.chunk().await.map_err(NoAnswer::of)? {
            if body.len() + chunk.len() > ANSWER_BYTES_MAX {
                return Err(NoAnswer { ambiguous: true, why: format!("HTTP {status} with more than {ANSWER_BYTES_MAX} bytes") });
            }
            body.extend_from_slice(&chunk);
        }
        Ok(Answer { status, retry_after, body: body.freeze() })
    }

    fn late(&self, what: &str) -> NoCredential {
        NoCredential { refused: false, why: format!("{what} within {:?}", self.request_timeout) }
    }

    fn count_unrecognised(&self, reply: &Reply) {
        let unrecognised = match reply {
            Reply::Unrecognised { .. } => true,
            Reply::Each(verdicts) => matches!(verdicts[..], [Verdict::Unrecognised { .. }]),
            _ => false,
        };
        if unrecognised {
            self.metrics.unrecognised_answers_total.with_label_values(&[ProviderId::Fcm.label()]).inc();
        }
    }
}

impl Provider for Fcm {
    type Body = Body;

    fn id(&self) -> ProviderId {
        ProviderId::Fcm
    }

    fn batch_max(&self) -> usize {
        1
    }

    fn body(&self, notification: &Notification) -> Result<Body, PayloadRefused> {
        Body::of(notification, self.validate_only)
    }

    async fn send(&self, messages: &[Message<Body>]) -> Reply {
        let message = match messages {
            [] => return Reply::Each(Vec::new()),
            [message] => message,
            // More than was asked for: nothing is sent, each goes on alone.
            many => return Reply::Split((0..many.len()).map(|index| vec![index]).collect()),
        };
        let body = Bytes::from(wire::request(message, Timestamp::now()));
        let reply = self.deliver(&message.token, body, Instant::now() + self.request_timeout).await;
        self.count_unrecognised(&reply);
        reply
    }
}

/// Nothing was sent, for want of an OAuth token.
fn unsent(none: NoCredential) -> Reply {
    let why = format!("OAuth: {}", none.why);
    if none.refused { Reply::CredentialsRefused { why } } else { Reply::Down { ambiguous: false, retry_after: None, why } }
}

fn send_url(origin: &str, project_id: &str) -> Option<Url> {
    let mut url = Url::parse(origin).ok()?;
    let is_http = matches!(url.scheme(), "http" | "https") && url.has_host();
    url.path_segments_mut().ok()?.pop_if_empty().extend(["v1", "projects", project_id, "messages:send"]);
    is_http.then_some(url)
}

fn connection(settings: &Settings, url: &Url) -> reqwest::Result<reqwest::Client> {
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let mut http = reqwest::Client::builder()
        .default_headers(headers)
        .user_agent(concat!("pushcast/", env!("CARGO_PKG_VERSION")))
        .redirect(redirect::Policy::none())
        .connect_timeout(CONNECT_TIMEOUT_MAX.min(settings.request_timeout / 2))
        // A warm connection stays: a handshake costs more than a message.
        .pool_idle_timeout(None)
        .http2_keep_alive_interval(KEEP_ALIVE_EVERY)
        .http2_keep_alive_timeout(CONNECT_TIMEOUT_MAX)
        .http2_keep_alive_while_idle(true);
    if url.scheme() == "http" {
        http = http.http2_prior_knowledge();
    }
    http.build()
}

// === impl NoAnswer ===

impl NoAnswer {
    /// A connection that was never made carried nothing; after that, nobody knows.
    fn of(error: reqwest::Error) -> Self {
        Self { ambiguous: !error.is_connect(), why: causes(&error.without_url()) }
    }
}
