//! The HTTP side of every fake: what is known of a request, and how an answer is written.

use std::{collections::BTreeMap, convert::Infallible, future, io::Read as _, time::Duration};

use axum::{
    body::{Body, Bytes, to_bytes},
    http::{HeaderMap, HeaderValue, StatusCode, Version, header, request::Parts},
    response::{IntoResponse, Response},
};
use flate2::read::GzDecoder;
use futures::stream;
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use super::{FailureMode, counts::version_label};

/// The pause before each byte of a [`FailureMode::Drip`].
const DRIP: Duration = Duration::from_secs(1);

/// Cancelled, it resets the connection that a request came on.
#[derive(Clone, Debug, Default)]
pub(super) struct ConnectionReset(pub CancellationToken);

/// Bytes that a body may have, before and after decompression.
const BODY_MAX: usize = 8 << 20;

/// A request without its body.
#[derive(Debug)]
pub(super) struct RequestArrival {
    pub version: Version,
    pub headers: HeaderMap,
    pub at: Timestamp,
}

impl RequestArrival {
    pub fn new(parts: Parts) -> Self {
        Self { version: parts.version, headers: parts.headers, at: Timestamp::now() }
    }

    /// The credential of `Authorization: Bearer …`.
    pub fn bearer(&self) -> Option<&str> {
        self.headers.get(header::AUTHORIZATION)?.to_str().ok()?.strip_prefix("Bearer ")
    }

    /// All headers but the credential.
    pub fn remembered_headers(&self) -> BTreeMap<String, String> {
        let harmless = self.headers.iter().filter(|(name, _)| **name != header::AUTHORIZATION);
        harmless
            .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
            .collect()
    }

    pub fn http_version(&self) -> &'static str {
        version_label(self.version)
    }
}

/// Reads and decompresses a body; the error is the status to answer with.
pub(super) async fn read(headers: &HeaderMap, body: Body) -> Result<Bytes, StatusCode> {
    let body = to_bytes(body, BODY_MAX).await.map_err(|_| StatusCode::PAYLOAD_TOO_LARGE)?;
    match headers.get(header::CONTENT_ENCODING).map(HeaderValue::as_bytes) {
        None | Some(b"identity") => Ok(body),
        Some(b"gzip") => {
            let mut plain = Vec::with_capacity(body.len() * 8);
            let read = GzDecoder::new(&body[..]).take(BODY_MAX as u64).read_to_end(&mut plain);
            read.map(|_| plain.into()).map_err(|_| StatusCode::BAD_REQUEST)
        }
        Some(_) => Err(StatusCode::UNSUPPORTED_MEDIA_TYPE),
    }
}

/// An answer that is not sent yet.
#[derive(Debug)]
pub(super) struct HttpReply {
    pub status: u16,
    pub body: Vec<u8>,
    pub html: bool,
    pub retry_after: Option<Duration>,
    /// How it fails; none = as it stands.
    pub failure_mode: Option<FailureMode>,
}

impl HttpReply {
    pub fn json(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { status, body: body.into(), html: false, retry_after: None, failure_mode: None }
    }

    /// The error page of a proxy in front of a provider.
    pub fn html(status: u16) -> Self {
        let reason =
            StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason()).unwrap_or("Error");
        let body = format!(
            "<html>\r\n<head><title>{status} {reason}</title></head>\r\n<body>\r\n\
             <center><h1>{status} {reason}</h1></center>\r\n\
             <hr><center>nginx</center>\r\n</body>\r\n</html>\r\n"
        );
        Self { html: true, ..Self::json(status, body) }
    }

    pub fn retry_after(mut self, after: Option<Duration>) -> Self {
        self.retry_after = after;
        self
    }

    pub fn with_failure_mode(mut self, mode: FailureMode) -> Self {
        self.failure_mode = Some(mode);
        self
    }

    /// The status that the client receives; 0 = no answer at all.
    pub fn seen_status(&self) -> u16 {
        if matches!(self.failure_mode, Some(FailureMode::Hang | FailureMode::Reset)) {
            0
        } else {
            self.status
        }
    }

    /// The response, after `latency`, failing as [`Self::failure_mode`] says.
    pub async fn send(self, latency: Duration, reset: &ConnectionReset) -> Response {
        if !latency.is_zero() {
            tokio::time::sleep(latency).await;
        }
        match self.failure_mode {
            Some(FailureMode::Hang) => future::pending().await,
            Some(FailureMode::Reset) => {
                reset.0.cancel();
                future::pending().await
            }
            Some(FailureMode::Drip) => self.into_slow_response(),
            Some(FailureMode::Error | FailureMode::Html | FailureMode::Short) | None => self.into_response(),
        }
    }

    fn into_slow_response(mut self) -> Response {
        let bytes = std::mem::take(&mut self.body).into_iter();
        let chunks = stream::unfold(bytes, async |mut bytes| {
            tokio::time::sleep(DRIP).await;
            bytes.next().map(|byte| (Ok::<_, Infallible>(Bytes::from(vec![byte])), bytes))
        });
        self.into_response().map(|_empty| Body::from_stream(chunks))
    }
}

impl IntoResponse for HttpReply {
    fn into_response(self) -> Response {
        let mut response = Response::new(Body::from(self.body));
        *response.status_mut() =
            StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let content_type =
            if self.html { "text/html; charset=UTF-8" } else { "application/json; charset=utf-8" };
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        if let Some(after) = self.retry_after {
            // The header has whole seconds: rounded up, so that a client never comes back too early.
            response.headers_mut().insert(
                header::RETRY_AFTER,
                after.as_millis().div_ceil(1000).to_string().parse().unwrap_or(HeaderValue::from_static("1")),
            );
        }
        response
    }
}
