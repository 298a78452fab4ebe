//! A request as it is read, an answer as it is written.

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

/// How long a dripping answer waits before each byte.
const DRIP: Duration = Duration::from_secs(1);

/// Resets the connection that a request came on.
#[derive(Clone, Debug, Default)]
pub(super) struct Reset(pub CancellationToken);

/// The most bytes that a body may have, before and after decompression.
const BODY_MAX: usize = 8 << 20;

/// What is known of a request beside its body.
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

    /// The headers to be remembered: all but the credential.
    pub fn remembered_headers(&self) -> BTreeMap<String, String> {
        let shown = self.headers.iter().filter(|(name, _)| **name != header::AUTHORIZATION);
        shown
            .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
            .collect()
    }

    pub fn http_version(&self) -> &'static str {
        version_label(self.version)
    }
}

/// Reads a body, decompressed; the error is the status to answer.
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

/// An answer.
#[derive(Debug)]
pub(super) struct HttpReply {
    pub status: u16,
    pub body: Vec<u8>,
    pub html: bool,
    pub retry_after: Option<Duration>,
    /// The outage that it is of.
    pub outage: Option<FailureMode>,
}

impl HttpReply {
    pub fn json(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { status, body: body.into(), html: false, retry_after: None, outage: None }
    }

    /// What a proxy in front of a provider says.
    pub fn html(status: u16) -> Self {
        let reason =
            StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason()).unwrap_or("Error");
        let body = format!(
            "<html>\r\n<head><title>{status} {reason}</title></head>\r\n<body>\r\n<center><h1>{status} {reason}</h1></center>\r\n\
             <hr><center>nginx</center>\r\n</body>\r\n</html>\r\n"
        );
        Self { html: true, ..Self::json(status, body) }
    }

    pub fn retry_after(mut self, after: Option<Duration>) -> Self {
        self.retry_after = after;
        self
    }

    /// The answer of an outage.
    pub fn of_outage(mut self, manner: FailureMode) -> Self {
        self.outage = Some(manner);
        self
    }

    /// The status that whoever asked gets to see; 0 = none.
    pub fn seen_status(&self) -> u16 {
        if matches!(self.outage, Some(FailureMode::Hang | FailureMode::Reset)) { 0 } else { self.status }
    }

    /// Gives the answer, after the scripted latency and in the outage's manner.
    pub async fn give(self, latency: Duration, reset: &Reset) -> Response {
        if !latency.is_zero() {
            tokio::time::sleep(latency).await;
        }
        match self.outage {
            Some(FailureMode::Hang) => future::pending().await,
            Some(FailureMode::Reset) => {
                reset.0.cancel();
                future::pending().await
            }
            Some(FailureMode::Drip) => self.dripping(),
            Some(FailureMode::Error | FailureMode::Html | FailureMode::Short) | None => self.into_response(),
        }
    }

    fn dripping(mut self) -> Response {
        let bytes = std::mem::take(&mut self.body).into_iter();
        let drops = stream::unfold(bytes, async |mut bytes| {
            tokio::time::sleep(DRIP).await;
            bytes.next().map(|byte| (Ok::<_, Infallible>(Bytes::from(vec![byte])), bytes))
        });
        self.into_response().map(|_empty| Body::from_stream(drops))
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
            // Whole seconds are all that the header can say; never less than what is meant.
            response.headers_mut().insert(
                header::RETRY_AFTER,
                after.as_millis().div_ceil(1000).to_string().parse().unwrap_or(HeaderValue::from_static("1")),
            );
        }
        response
    }
}
