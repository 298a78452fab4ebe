//! Opening one connection: TCP, TLS where the URL is https, and HTTP/2 up to the peer's first PING answer.

use std::{
    error::Error,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use h2::{Ping, PingPong, client};
use http::Uri;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder, MaybeHttpsStream};
use hyper_util::{
    client::legacy::connect::{Connection as _, HttpConnector},
    rt::TokioIo,
};
use rustls::{ClientConfig, crypto::aws_lc_rs};
use rustls_platform_verifier::BuilderVerifierExt as _;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tower_service::Service as _;

use crate::dispatch::answer::causes;

/// Answers have less than 4 KB, so flow control with this window never delays them.
const WINDOW: u32 = 1 << 20;

/// The most bytes that an answer's headers may have.
const HEADERS_MAX: u32 = 16 << 10;

type Stream = TokioIo<MaybeHttpsStream<TokioIo<TcpStream>>>;

/// Opens connections to one peer.
pub(super) struct Dialer {
    connector: HttpsConnector<HttpConnector>,
    peer: Uri,
}

/// A connection whose peer has sent its SETTINGS.
pub(super) struct OpenedConnection {
    /// Starts requests.
    pub requests: client::SendRequest<Bytes>,
    /// Drives the connection: nothing is sent or received unless this is polled.
    pub connection: client::Connection<GatheredWrites, Bytes>,
    /// Sends PINGs.
    pub pings: PingPong,
    /// Streams that the peer allows at once.
    pub streams_max: usize,
}

/// A stream that gathers small writes. On a stream with vectored writes, `h2` writes each frame at once: one
/// system call a message, and over TLS one record. On this one it gathers the frames of a poll into one
/// write.
pub(super) struct GatheredWrites(Stream);

/// TLS with the certificate verifier of the platform.
pub(in crate::fcm) fn platform_tls() -> Result<ClientConfig, rustls::Error> {
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_platform_verifier()?;
    Ok(config.with_no_client_auth())
}

// === impl Dialer ===

impl Dialer {
    pub(super) fn new(peer: Uri, tls: ClientConfig) -> Self {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_http2()
            .wrap_connector(tcp);
        Self { connector, peer }
    }

    /// Connects, and waits for the answer to a first PING: the peer's SETTINGS come before it, so no request
    /// is sent before the peer's limits are known. A peer without HTTP/2 is detected here, too.
    ///
    /// # Errors
    /// Why there is no connection, as a text for the log.
    pub(super) async fn open(&self) -> Result<OpenedConnection, String> {
        let stream = self
            .connector
            .clone()
            .call(self.peer.clone())
            .await
            .map_err(|error| causes(&*error as &dyn Error))?;
        if self.peer.scheme_str() == Some("https") && !stream.connected().is_negotiated_h2() {
            return Err("the peer does not support HTTP/2".to_owned());
        }
        let (requests, mut connection) = client::Builder::new()
            .enable_push(false)
            .initial_window_size(WINDOW)
            .initial_connection_window_size(WINDOW)
            .max_header_list_size(HEADERS_MAX)
            .handshake(GatheredWrites(TokioIo::new(stream)))
            .await
            .map_err(|error| causes(&error))?;
        let mut pings = connection.ping_pong().ok_or("the connection has no PING handle")?;
        tokio::select! {
            ended = &mut connection => {
                let closed = || "the peer closed the connection".to_owned();
                return Err(ended.err().map_or_else(closed, |error| causes(&error)));
            }
            pong = pings.ping(Ping::opaque()) => pong.map_err(|error| causes(&error))?,
        };
        let streams_max = connection.max_concurrent_send_streams();
        Ok(OpenedConnection { requests, connection, pings, streams_max })
    }
}

// === impl GatheredWrites ===

impl AsyncRead for GatheredWrites {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

/// `is_write_vectored` is left at its default, false.
impl AsyncWrite for GatheredWrites {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
