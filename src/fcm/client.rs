//! Requests to FCM.
//!
//! **Invariant:** a message is sent once, with one exception: when FCM refuses our OAuth token it took nothing, so the
//! message is sent again with a new one. Whether to try again otherwise is not decided here.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{StatusCode, Uri, header::RETRY_AFTER};
use jiff::Timestamp;
use prometheus::{Histogram, IntCounter};
use reqwest::Url;
use tokio::time::{Instant, timeout_at};

use super::{
    Settings,
    connections::{Connections, NoAnswer, Response, tls_of_the_platform},
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

/// Firebase Cloud Messaging.
#[derive(Debug)]
pub struct Fcm {
    connections: Connections,
    tokens: TokenSource,
    request_timeout: Duration,
    validate_only: bool,
    /// Of `metrics`, so that a message does not have to look for its own: how long requests take, and how many are taken.
    durations: Histogram,
    taken: IntCounter,
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
    #[error("TLS could not be set up: {}", causes(.0))]
    Tls(#[source] rustls::Error),
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
        let tls = tls_of_the_platform().map_err(Misconfigured::Tls)?;
        let provider = ProviderId::Fcm.label();
        Ok(Some(Self {
            connections: Connections::new(settings, send_url, tls),
            tokens: TokenSource::start(account).await?,
            request_timeout: settings.request_timeout,
            validate_only: settings.validate_only,
            durations: metrics.provider_request_duration_seconds.with_label_values(&[provider]),
            taken: metrics.provider_requests_total.with_label_values(&[provider, StatusCode::OK.as_str()]),
            metrics,
        }))
    }

    /// Whether the credentials are good for an OAuth token. Waits for the token endpoint's answer, some seconds at most.
    ///
    /// # Errors
    /// Google refuses them, or does not answer.
    pub async fn authorised(&self) -> Result<(), NoCredential> {
        self.tokens.current().await.map(drop)
    }

    async fn deliver(&self, token: &Token, body: Bytes, deadline: Instant) -> Reply {
        let credential = match self.tokens.latest() {
            Some(credential) => credential,
            None => match timeout_at(deadline, self.tokens.current()).await {
                Ok(Ok(credential)) => credential,
                Ok(Err(none)) => return unsent(none),
                Err(_) => return unsent(self.late("no OAuth token")),
            },
        };
        let first = self.attempt(token, body.clone(), &credential, deadline).await;
        let (Some(StatusCode::UNAUTHORIZED), Reply::CredentialsRefused { .. }) = first else { return first.1 };
        match timeout_at(deadline, self.tokens.after(&credential)).await {
            Ok(Ok(renewed)) => self.attempt(token, body, &renewed, deadline).await.1,
            Ok(Err(none)) => unsent(none),
            Err(_) => unsent(self.late("no new OAuth token")),
        }
    }

    /// One request, counted and timed: its HTTP status, if there was an answer, and what that means.
    async fn attempt(&self, token: &Token, body: Bytes, credential: &Credential, deadline: Instant) -> (Option<StatusCode>, Reply) {
        let started = Instant::now();
        let answer = self.connections.post(&credential.headers, body, deadline).await;
        self.durations.observe(started.elapsed().as_secs_f64());
        let status = answer.as_ref().ok().map(|answer| answer.status);
        self.count(status);
        let reply = match answer {
            Ok(answer) => verdict::reply(&read(answer), token),
            Err(NoAnswer { ambiguous, why }) => Reply::Down { ambiguous, retry_after: None, why },
        };
        (status, reply)
    }

    fn count(&self, status: Option<StatusCode>) {
        if status == Some(StatusCode::OK) {
            return self.taken.inc();
        }
        let status = status.as_ref().map_or("none", StatusCode::as_str);
        self.metrics.provider_requests_total.with_label_values(&[ProviderId::Fcm.label(), status]).inc();
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

    async fn send(&self, messages: &[Message<'_, Body>]) -> Reply {
        let message = match messages {
            [] => return Reply::Each(Vec::new()),
            [message] => message,
            // More than was asked for: nothing is sent, each goes on alone.
            many => return Reply::Split((0..many.len()).map(|index| vec![index]).collect()),
        };
        let body = Bytes::from(wire::request(message, Timestamp::now()));
        let reply = self.deliver(message.token, body, Instant::now() + self.request_timeout).await;
        self.count_unrecognised(&reply);
        reply
    }
}

/// Nothing was sent, for want of an OAuth token.
fn unsent(none: NoCredential) -> Reply {
    let why = format!("OAuth: {}", none.why);
    if none.refused { Reply::CredentialsRefused { why } } else { Reply::Down { ambiguous: false, retry_after: None, why } }
}

fn send_url(origin: &str, project_id: &str) -> Option<Uri> {
    let mut url = Url::parse(origin).ok()?;
    let is_http = matches!(url.scheme(), "http" | "https") && url.has_host();
    url.path_segments_mut().ok()?.pop_if_empty().extend(["v1", "projects", project_id, "messages:send"]);
    if is_http { url.as_str().parse().ok() } else { None }
}

/// An answer as far as its meaning goes.
fn read(Response { status, headers, body }: Response) -> Answer<Bytes> {
    let wait = headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok());
    let retry_after = wait.and_then(|wait| retry_after(Some(wait), Timestamp::now()));
    Answer { status: status.as_u16(), retry_after, body }
}
