//! Requests to FCM.
//!
//! **Invariant:** a message is sent once. Retries are decided by the caller. A message that had to wait for
//! an OAuth token is returned unsent: messages that have waited must not be sent all at once, past the rate
//! limit.

use std::{future::Future, sync::Arc, time::Duration};

use backoff::Backoff;
use bytes::Bytes;
use http::{StatusCode, Uri, header::RETRY_AFTER};
use jiff::Timestamp;
use prometheus::{Histogram, IntCounter};
use reqwest::Url;
use tokio::time::{Instant, timeout_at};

use super::{
    Settings,
    connections::{Connections, FcmNoAnswer, Response, platform_tls},
    credentials::{BadCredentials, Credential, NoCredential, ServiceAccount, TokenSource},
    verdict::{self, FcmAnswer},
    wire::{self, Body},
};
use crate::{
    dispatch::{
        PayloadRefused, Provider, ProviderBackoff, PushMessage, Reply, Verdict,
        answer::{causes, retry_after},
    },
    domain::{Notification, ProviderId, Token},
    metrics::Metrics,
};

/// Google asks for ten seconds and more after a 5xx, and for a minute after a 429 without `Retry-After`.
const BACKOFF: ProviderBackoff = ProviderBackoff {
    first: Duration::from_secs(10),
    urgent_cap: Duration::from_secs(15),
    throttled: Backoff::new(Duration::from_secs(60), Duration::from_secs(60)),
};

/// Firebase Cloud Messaging.
#[derive(Debug)]
pub struct Fcm {
    connections: Connections,
    tokens: TokenSource,
    request_timeout: Duration,
    validate_only: bool,
    /// Two series of `metrics`, looked up once instead of for each message: the duration of requests, and the
    /// count of those with status 200.
    durations: Histogram,
    succeeded: IntCounter,
    metrics: Arc<Metrics>,
}

/// FCM can't be reached with these settings.
#[derive(Debug, thiserror::Error)]
pub enum FcmMisconfigured {
    /// `fcm.url` is not an HTTP URL.
    #[error("fcm.url is not an http:// or https:// URL: {0:?}")]
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
    /// A client for these settings; `None` where they name no credentials, for then FCM is not in use. Starts
    /// to fetch an OAuth token; connects when the first message is sent.
    ///
    /// # Errors
    /// There are credentials, and they or the URL can't be used.
    pub async fn new(settings: &Settings, metrics: Arc<Metrics>) -> Result<Option<Self>, FcmMisconfigured> {
        let Some(account) = ServiceAccount::load(settings).await? else { return Ok(None) };
        let send_url = send_url(&settings.url, &account.project_id)
            .ok_or_else(|| FcmMisconfigured::Url(settings.url.clone()))?;
        let tls = platform_tls().map_err(FcmMisconfigured::Tls)?;
        let provider = ProviderId::Fcm.label();
        Ok(Some(Self {
            connections: Connections::new(settings, send_url, tls),
            tokens: TokenSource::start(account).await?,
            request_timeout: settings.request_timeout,
            validate_only: settings.validate_only,
            durations: metrics.provider_request_duration_seconds.with_label_values(&[provider]),
            succeeded: metrics
                .provider_requests_total
                .with_label_values(&[provider, StatusCode::OK.as_str()]),
            metrics,
        }))
    }

    /// Checks that the credentials get an OAuth token. Waits for the token endpoint's answer, five seconds at
    /// most.
    ///
    /// # Errors
    /// Google refuses them, or has not answered with a token.
    pub async fn authorised(&self) -> Result<(), NoCredential> {
        self.tokens.current().await.map(drop)
    }

    async fn deliver(&self, token: &Token, body: Bytes, deadline: Instant) -> Reply {
        let Some(credential) = self.tokens.latest() else {
            return self.reauthorised(self.tokens.current(), None, deadline).await;
        };
        match self.attempt(token, body, &credential, deadline).await {
            (Some(StatusCode::UNAUTHORIZED), Reply::CredentialsRefused { why }) => {
                self.reauthorised(self.tokens.newer_than(&credential), Some(why), deadline).await
            }
            (_, reply) => reply,
        }
    }

    /// Waits for a new token. `refused` is FCM's reason, where it refused the previous one.
    async fn reauthorised(
        &self,
        token: impl Future<Output = Result<Credential, NoCredential>>,
        refused: Option<String>,
        deadline: Instant,
    ) -> Reply {
        let none = match timeout_at(deadline, token).await {
            Ok(Ok(_)) => return Reply::Reauthorised { refused },
            Ok(Err(none)) => none,
            Err(_) => NoCredential {
                refused: false,
                why: format!("no OAuth token within {:?}", self.request_timeout),
            },
        };
        let why = format!("OAuth: {}", none.why);
        if none.refused {
            Reply::CredentialsRefused { why }
        } else {
            Reply::Down { ambiguous: false, retry_after: None, why }
        }
    }

    /// One request, counted and timed. Returns its HTTP status, if there was an answer, and the reply.
    async fn attempt(
        &self,
        token: &Token,
        body: Bytes,
        credential: &Credential,
        deadline: Instant,
    ) -> (Option<StatusCode>, Reply) {
        let started = Instant::now();
        let answer = self.connections.post(&credential.headers, body, deadline).await;
        self.durations.observe(started.elapsed().as_secs_f64());
        let status = answer.as_ref().ok().map(|answer| answer.status);
        self.count(status);
        let reply = match answer {
            Ok(answer) => verdict::reply(&answer_of(answer), token),
            Err(FcmNoAnswer { ambiguous, why }) => Reply::Down { ambiguous, retry_after: None, why },
        };
        (status, reply)
    }

    fn count(&self, status: Option<StatusCode>) {
        if status == Some(StatusCode::OK) {
            return self.succeeded.inc();
        }
        let status = status.as_ref().map_or("none", StatusCode::as_str);
        self.metrics.provider_requests_total.with_label_values(&[ProviderId::Fcm.label(), status]).inc();
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

    fn backoff(&self) -> ProviderBackoff {
        BACKOFF
    }

    fn body(&self, notification: &Notification) -> Result<Body, PayloadRefused> {
        Body::of(notification, self.validate_only)
    }

    async fn send(&self, messages: &[PushMessage<'_, Body>]) -> Reply {
        let message = match messages {
            [] => return Reply::Each(Vec::new()),
            [message] => message,
            // More than `batch_max`: nothing is sent, and the caller sends each of them alone.
            many => return Reply::Split((0..many.len()).map(|index| vec![index]).collect()),
        };
        let body = Bytes::from(wire::request(message, Timestamp::now()));
        let reply = self.deliver(message.token, body, Instant::now() + self.request_timeout).await;
        self.count_unrecognised(&reply);
        reply
    }
}

fn send_url(origin: &str, project_id: &str) -> Option<Uri> {
    let mut url = Url::parse(origin).ok()?;
    let is_http = matches!(url.scheme(), "http" | "https") && url.has_host();
    url.path_segments_mut().ok()?.pop_if_empty().extend(["v1", "projects", project_id, "messages:send"]);
    if is_http { url.as_str().parse().ok() } else { None }
}

/// The parts of a response that a verdict depends on.
fn answer_of(Response { status, headers, body }: Response) -> FcmAnswer<Bytes> {
    let wait = headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok());
    let retry_after = wait.and_then(|wait| retry_after(Some(wait), Timestamp::now()));
    FcmAnswer { status: status.as_u16(), retry_after, body }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_pause_for_ten_seconds_and_more_and_a_throttled_route_for_a_minute() {
        let throttled = [1, 2, 200].map(|times| BACKOFF.throttled.pause(times, 0.0).as_secs());
        assert_eq!((BACKOFF.first.as_secs(), BACKOFF.urgent_cap.as_secs(), throttled), (10, 15, [60; 3]));
    }
}
