//! One listener that speaks HTTP/1.1 and HTTP/2 with prior knowledge.
//!
//! Not `axum::serve`: its connections outlive it, and it can't be told how many streams a connection may
//! carry. A stop cuts every connection at once, as a provider that vanishes would.

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

use super::reply::Reset;

/// What FCM allows on a connection.
const STREAMS_MAX: u32 = 100;

/// Serves until `stop`.
pub(super) async fn serve(listener: TcpListener, router: Router, stop: CancellationToken) {
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            Some(_ended) = connections.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _peer)) => drop(connections.spawn(converse(stream, router.clone()))),
            // Out of file descriptors, most likely: they come back when connections end.
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
    connections.shutdown().await;
}

async fn converse(stream: TcpStream, router: Router) {
    if stream.set_nodelay(true).is_err() {
        return; // gone already
    }
    let reset = Reset::default();
    let mut server = auto::Builder::new(TokioExecutor::new());
    server.http2().max_concurrent_streams(STREAMS_MAX);
    let service = TowerToHyperService::new(router.layer(Extension(reset.clone())));
    let stream = GatheredReads { stream, reset: reset.clone() };
    // A connection that breaks is the client's affair; it knows.
    let _broken = reset.0.run_until_cancelled(server.serve_connection(TokioIo::new(stream), service)).await;
}

/// A stream that gathers small writes. `h2` hands each frame of a vectored stream to the socket as it is
/// made, one system call an answer; to this one it writes what it has once a turn, which makes small answers
/// several times cheaper.
struct GatheredReads {
    stream: TcpStream,
    reset: Reset,
}

impl Drop for GatheredReads {
    fn drop(&mut self) {
        if self.reset.0.is_cancelled() {
            // What is closed without lingering is reset. If that fails the client sees an early end, which is
            // as bad.
            let _closed = self.stream.set_zero_linger();
        }
    }
}

impl AsyncRead for GatheredReads {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for GatheredReads {
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
