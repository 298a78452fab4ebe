//! One listener that speaks HTTP/1.1 and HTTP/2 with prior knowledge.
//!
//! Not `axum::serve`: its connections outlive it, and it has no limit of streams per connection. A stop
//! closes every connection at once, as the crash of a provider would.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use axum::{Extension, Router};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use super::reply::ConnectionReset;

/// FCM's `SETTINGS_MAX_CONCURRENT_STREAMS`.
const STREAMS_MAX: u32 = 100;

/// Accepts connections until `stop`, then closes them all.
pub(super) async fn serve(listener: TcpListener, router: Router, stop: CancellationToken) {
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            Some(_ended) = connections.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _peer)) => drop(connections.spawn(serve_connection(stream, router.clone()))),
            // Out of file descriptors, most likely; connections that end free some.
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
    connections.shutdown().await;
}

async fn serve_connection(stream: TcpStream, router: Router) {
    if stream.set_nodelay(true).is_err() {
        return; // closed already
    }
    let reset = ConnectionReset::default();
    let mut server = auto::Builder::new(TokioExecutor::new());
    server.http2().max_concurrent_streams(STREAMS_MAX);
    let service = TowerToHyperService::new(router.layer(Extension(reset.clone())));
    let stream = UnvectoredStream { stream, reset: reset.clone() };
    // The client sees for itself that a connection broke.
    let _broken = reset.0.run_until_cancelled(server.serve_connection(TokioIo::new(stream), service)).await;
}

/// A stream without vectored writes. `h2` writes each frame of a vectored stream to the socket as soon as it
/// is encoded, one system call an answer; without them it buffers, and writes once per poll. That makes small
/// answers several times cheaper.
struct UnvectoredStream {
    stream: TcpStream,
    reset: ConnectionReset,
}

impl Drop for UnvectoredStream {
    fn drop(&mut self) {
        if self.reset.0.is_cancelled() {
            // A socket closed with zero linger sends RST. If that fails, the client sees an early end of the
            // stream, which is as bad.
            let _closed = self.stream.set_zero_linger();
        }
    }
}

impl AsyncRead for UnvectoredStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for UnvectoredStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
