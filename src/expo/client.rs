//! Requests to Expo.
//!
//! **Invariant:** a request is made once. Retries are decided by the caller.

use std::{sync::Arc, time::Duration};

use backoff::Backoff;
use bytes::{Bytes, BytesMut};
use jiff::Timestamp;
use reqwest::{
    Url,
    header::{ACCEPT, AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER},
    redirect,
};
use secrecy::ExposeSecret as _;
use tokio::time::Instant;

use super::{
    Settings,
    verdict::{self, ExpoAnswer, VerdictReader},
    wire::{Body, Request, grouped},
};
use crate::{
    dispatch::{
        PayloadRefused, Provider, ProviderBackoff, ProviderUnavailable, PushMessage, Receipt, ReceiptSource,
        Reply, Verdict,
        answer::{causes, retry_after},
    },
    domain::{Notification, ProviderId, Token},
    metrics::Metrics,
};

/// Messages in one request, at most: Expo's limit.
const BATCH_MAX: usize = 100;

/// Expo's answer to 1,000 receipts is below 200 KB.
const ANSWER_BYTES_MAX: usize = 1 << 20;

const CONNECT_TIMEOUT_MAX: Duration = Duration::from_secs(5);

/// Expo's documentation asks for "a few seconds" after a failure. It counts messages by the second, and takes
/// more as soon as the rate is below its limit again.
const BACKOFF: ProviderBackoff = ProviderBackoff {
    first: Duration::from_secs(1),
    urgent_cap: Duration::from_secs(5),
    throttled: Backoff::new(Duration::from_secs(2), Duration::from_secs(60)),
};

/// Expo's push service.
#[derive(Debug)]
pub struct Expo {
    http: reqwest::Client,
    send_url: Url,
    receipts_url: Url,
    gzip: bool,
    verdicts: VerdictReader,
    metrics: Arc<Metrics>,
}

/// Expo can't be reached with these settings.
#[derive(Debug, thiserror::Error)]
pub enum ExpoMisconfigured {
    /// `expo.url` is not an HTTP URL.
    #[error("expo.url is not an http:// or https:// URL: {0:?}")]
    Url(String),
    /// `expo.access_token` has characters that are not allowed in a header.
    #[error("expo.access_token has characters that are not allowed in a header")]
    AccessToken,
    /// TLS could not be set up.
    #[error("the HTTP client could not be built: {}", causes(.0))]
    Client(#[source] reqwest::Error),
}

/// There was no answer.
struct ExpoNoAnswer {
    ambiguous: bool,
    why: String,
}

// === impl Expo ===

impl Expo {
    /// A client for these settings. Connects when the first request is made.
    ///
    /// # Errors
    /// The URL or the access token can't be used.
    pub fn new(settings: &Settings, metrics: Arc<Metrics>) -> Result<Self, ExpoMisconfigured> {
        let send_url = http_url(&settings.url).ok_or_else(|| ExpoMisconfigured::Url(settings.url.clone()))?;
        let receipts_url =
            send_url.join("getReceipts").map_err(|_| ExpoMisconfigured::Url(settings.url.clone()))?;

        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if !settings.access_token.expose_secret().is_empty() {
            let bearer = format!("Bearer {}", settings.access_token.expose_secret());
            let mut bearer = HeaderValue::try_from(bearer).map_err(|_| ExpoMisconfigured::AccessToken)?;
            bearer.set_sensitive(true);
            headers.insert(AUTHORIZATION, bearer);
        }

        let mut http = reqwest::Client::builder()
            .default_headers(headers)
            .user_agent(concat!("pushcast/", env!("CARGO_PKG_VERSION")))
            // A redirected POST may become a GET. Not followed, a redirect is an unrecognised answer.
            .redirect(redirect::Policy::none())
            .connect_timeout(CONNECT_TIMEOUT_MAX.min(settings.request_timeout / 2))
            .timeout(settings.request_timeout)
            .pool_max_idle_per_host(settings.requests_in_flight);
        if send_url.scheme() == "http" {
            http = http.http1_only();
        }
        Ok(Self {
            http: http.build().map_err(ExpoMisconfigured::Client)?,
            send_url,
            receipts_url,
            gzip: settings.gzip,
            verdicts: VerdictReader { dead: settings.dead_token_errors.clone(), receipts: settings.receipts },
            metrics,
        })
    }

    /// One request, counted and timed.
    async fn request(&self, url: &Url, request: Request) -> Result<ExpoAnswer<Bytes>, ExpoNoAnswer> {
        let started = Instant::now();
        let answer = self.exchange(url, request).await;
        let seconds = started.elapsed().as_secs_f64();
        let provider = ProviderId::Expo.label();
        self.metrics.provider_request_duration_seconds.with_label_values(&[provider]).observe(seconds);
        let status = answer.as_ref().map_or_else(|_| "none".to_owned(), |answer| answer.status.to_string());
        self.metrics.provider_requests_total.with_label_values(&[provider, status.as_str()]).inc();
        answer
    }

    async fn exchange(&self, url: &Url, request: Request) -> Result<ExpoAnswer<Bytes>, ExpoNoAnswer> {
        let mut post = self.http.post(url.clone()).body(request.bytes);
        if request.gzipped {
            post = post.header(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        }
        let mut response = post.send().await.map_err(ExpoNoAnswer::of)?;
        let status = response.status().as_u16();
        let retry_after = retry_after(
            response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()),
            Timestamp::now(),
        );
        let mut body = BytesMut::new();
        while let Some(chunk) = response.chunk().await.map_err(ExpoNoAnswer::of)? {
            if body.len() + chunk.len() > ANSWER_BYTES_MAX {
                return Err(ExpoNoAnswer {
                    ambiguous: true,
                    why: format!("HTTP {status} with more than {ANSWER_BYTES_MAX} bytes"),
                });
            }
            body.extend_from_slice(&chunk);
        }
        Ok(ExpoAnswer { status, retry_after, body: body.freeze() })
    }

    fn count_unrecognised(&self, reply: &Reply) {
        let count = match reply {
            Reply::Unrecognised { .. } => 1,
            Reply::Each(verdicts) => {
                verdicts.iter().filter(|verdict| matches!(verdict, Verdict::Unrecognised { .. })).count()
            }
            _ => 0,
        };
        if count > 0 {
            self.metrics
                .unrecognised_answers_total
                .with_label_values(&[ProviderId::Expo.label()])
                .inc_by(count as u64);
        }
    }
}

impl Provider for Expo {
    type Body = Body;

    fn id(&self) -> ProviderId {
        ProviderId::Expo
    }

    fn batch_max(&self) -> usize {
        BATCH_MAX
    }

    fn backoff(&self) -> ProviderBackoff {
        BACKOFF
    }

    fn body(&self, notification: &Notification) -> Result<Body, PayloadRefused> {
        Body::of(notification)
    }

    async fn send(&self, messages: &[PushMessage<'_, Body>]) -> Reply {
        if messages.is_empty() {
            return Reply::Each(Vec::new());
        }
        let groups = grouped(messages);
        let request = Request::send(messages, &groups, self.gzip);
        let order: Vec<usize> = groups.into_iter().flat_map(|group| group.indices).collect();
        let reply = match self.request(&self.send_url, request).await {
            Ok(answer) => {
                let tokens: Vec<&Token> = order.iter().map(|&index| messages[index].token).collect();
                in_order_of_messages(verdict::reply(&answer, &tokens, &self.verdicts), &order)
            }
            Err(ExpoNoAnswer { ambiguous, why }) => Reply::Down { ambiguous, retry_after: None, why },
        };
        self.count_unrecognised(&reply);
        reply
    }
}

impl ReceiptSource for Expo {
    async fn receipts(&self, tickets: &[Arc<str>]) -> Result<Vec<(String, Receipt)>, ProviderUnavailable> {
        if tickets.is_empty() {
            return Ok(Vec::new());
        }
        let unavailable = |why: String| ProviderUnavailable {
            provider: ProviderId::Expo,
            context: format!("fetching {} receipts from Expo", tickets.len()),
            why,
        };
        let request =
            Request::receipts(tickets, self.gzip).map_err(|error| unavailable(error.to_string()))?;
        let answer = self.request(&self.receipts_url, request).await.map_err(|none| unavailable(none.why))?;
        verdict::receipts(&answer, &self.verdicts.dead).map_err(unavailable)
    }
}

// === impl ExpoNoAnswer ===

impl ExpoNoAnswer {
    /// A connection that was never opened carried nothing; after that, Expo may have taken the messages.
    fn of(error: reqwest::Error) -> Self {
        Self { ambiguous: !error.is_connect(), why: causes(&error.without_url()) }
    }
}

/// A reply to messages that were sent in this `order`, with its indices turned into those of the messages.
fn in_order_of_messages(reply: Reply, order: &[usize]) -> Reply {
    match reply {
        Reply::Each(verdicts) if !order.is_sorted() => {
            let mut verdicts: Vec<Option<Verdict>> = verdicts.into_iter().map(Some).collect();
            let mut sent_as = vec![0; order.len()];
            order.iter().enumerate().for_each(|(sent, &index)| sent_as[index] = sent);
            Reply::Each(sent_as.into_iter().filter_map(|sent| verdicts.get_mut(sent)?.take()).collect())
        }
        Reply::Split(groups) => Reply::Split(
            groups.into_iter().map(|group| group.into_iter().map(|sent| order[sent]).collect()).collect(),
        ),
        reply => reply,
    }
}

fn http_url(text: &str) -> Option<Url> {
    let url = Url::parse(text.trim_end_matches('/')).ok()?;
    (matches!(url.scheme(), "http" | "https") && url.has_host()).then_some(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_pause_for_seconds_and_a_throttled_route_for_two_to_sixty() {
        let throttled = [1, 2, 3, 200].map(|times| BACKOFF.throttled.pause(times, 0.0).as_secs());
        assert_eq!((BACKOFF.first.as_secs(), BACKOFF.urgent_cap.as_secs(), throttled), (1, 5, [2, 4, 8, 60]));
    }
}
