//! The connections against peers that a test drives frame by frame, over real sockets. So the clock is the
//! real one: a paused clock would advance while the kernel still delivers. Where a test needs time to pass,
//! it pauses the clock while no data is in flight ([`pass`]).

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicUsize, Ordering},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::{Buf as _, BytesMut};
use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, copy_bidirectional},
    net::{TcpListener, TcpStream},
    time::{pause, resume},
};
use tokio_rustls::TlsAcceptor;

use super::*;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RESET: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;

const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;

const REFUSED_STREAM: u32 = 7;

/// A self-signed certificate of 127.0.0.1, valid for a hundred years, and its key. Made for this test.
const CERTIFICATE: &str = concat!(
    "MIIBlDCCATugAwIBAgIUGc95hOjj+WGOFRfbim6dZ+C/QRAwCgYIKoZIzj0EAwIwGDEWMBQGA1UEAwwNZmNtIG9mIGEgdGVz",
    "dDAgFw0yNjExMjExMTMyMzJaGA8yMTI2MTAyODExMzIzMlowGDEWMBQGA1UEAwwNZmNtIG9mIGEgdGVzdDBZMBMGByqGSM49",
    "AgEGCCqGSM49AwEHA0IABKZD0tB6AVb9qOY4fWtva+8J7T82FgeP8SodgOphJGKRPH0f1y6QKmDYS/3lRdP24udwbQNyXvCr",
    "kbzcmIC1mIOjYTBfMB0GA1UdDgQWBBTrz/zCpH79HmaFeEbZDfyAfWwEqTAfBgNVHSMEGDAWgBTrz/zCpH79HmaFeEbZDfyA",
    "fWwEqTAPBgNVHREECDAGhwR/AAABMAwGA1UdEwEB/wQCMAAwCgYIKoZIzj0EAwIDRwAwRAIgX10LMMTlx2lQcrIorh121O5B",
    "wQqZ5SVDrrPKRpnHA40CIAs2I++ZGjJ1U7TB9AuRBl3OV4RAT8niN1Gnxs6wLyYN",
);
const KEY: &str = concat!(
    "MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgg/qyBsW33c80wGSfK56FILhOk4TJ4BKLBuK08hDdihOhRANC",
    "AASmQ9LQegFW/ajmOH1rb2vvCe0/NhYHj/EqHYDqYSRikTx9H9cukCpg2Ev95UXT9uLncG0Dcl7wq5G83JiAtZiD",
);

/// The peer's end of a connection.
struct Wire<S = TcpStream> {
    stream: S,
    read: BytesMut,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    async fn accept(mut stream: S, streams_max: u32) -> Self {
        let mut preface = [0; 24];
        stream.read_exact(&mut preface).await.unwrap();
        assert_eq!(&preface, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        let mut wire = Self { stream, read: BytesMut::new() };
        let settings = [&[0, 3][..], &streams_max.to_be_bytes()].concat();
        wire.write(SETTINGS, 0, 0, &settings).await;
        // A window that no test exhausts.
        wire.write(WINDOW_UPDATE, 0, 0, &(1_u32 << 30).to_be_bytes()).await;
        wire
    }

    async fn write(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let frame = [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat();
        // Fails where the client has closed the connection.
        let _closed = self.stream.write_all(&frame).await;
    }

    /// Kind, flags, stream and payload; `None` at the end of the connection. Cancel-safe.
    async fn frame(&mut self) -> Option<(u8, u8, u32, Bytes)> {
        loop {
            if let Some(head) = self.read.first_chunk::<9>().copied() {
                let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
                if self.read.len() >= 9 + length {
                    self.read.advance(9);
                    let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
                    return Some((head[3], head[4], stream, self.read.split_to(length).freeze()));
                }
            }
            if self.stream.read_buf(&mut self.read).await.unwrap_or(0) == 0 {
                return None;
            }
        }
    }

    /// Waits for a whole request and returns its stream; `None` at the end of the connection.
    async fn request(&mut self) -> Option<u32> {
        loop {
            match self.frame().await? {
                (DATA, flags, stream, _) if flags & END_STREAM != 0 => return Some(stream),
                (SETTINGS, flags, ..) if flags & ACK == 0 => self.write(SETTINGS, ACK, 0, &[]).await,
                (PING, flags, _, payload) if flags & ACK == 0 => self.write(PING, ACK, 0, &payload).await,
                _ => {}
            }
        }
    }

    async fn requests(&mut self, count: usize) -> Vec<u32> {
        let mut streams = Vec::new();
        for _ in 0..count {
            streams.push(self.request().await.expect("a request"));
        }
        streams
    }

    /// Answers with status 200 and a body in two pieces.
    async fn answer(&mut self, stream: u32) {
        self.write(HEADERS, END_HEADERS, stream, &[0x88]).await;
        self.write(DATA, 0, stream, b"ta").await;
        self.write(DATA, END_STREAM, stream, b"ken").await;
    }

    /// Answers all requests, to the end of the connection.
    async fn serve(mut self) {
        while let Some(stream) = self.request().await {
            self.answer(stream).await;
        }
    }
}

async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// Lets paused time pass until a future is ready that waits for nothing but time.
async fn pass<T>(until: impl Future<Output = T>) -> T {
    pause();
    let output = until.await;
    resume();
    output
}

/// Without Nagle's algorithm, which would delay small frames until the other side's ACK.
async fn connected(listener: &TcpListener) -> TcpStream {
    let (stream, _) = listener.accept().await.unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

async fn accept(listener: &TcpListener, streams_max: u32) -> Wire {
    Wire::accept(connected(listener).await, streams_max).await
}

fn trusting_no_roots() -> ClientConfig {
    trusting(RootCertStore::empty())
}

fn trusting(roots: RootCertStore) -> ClientConfig {
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()));
    config.with_safe_default_protocol_versions().unwrap().with_root_certificates(roots).with_no_client_auth()
}

fn settings(connections: usize) -> Settings {
    Settings { connections, request_timeout: Duration::from_secs(15), ..Settings::empty() }
}

fn connections(count: usize, address: SocketAddr) -> Arc<Connections> {
    let url = format!("http://{address}/send").parse().unwrap();
    Arc::new(Connections::new(&settings(count), url, trusting_no_roots()))
}

async fn post(connections: &Connections) -> Result<Response, FcmNoAnswer> {
    let headers = HeaderMap::from_iter([(CONTENT_LENGTH, HeaderValue::from_static("0"))]);
    // More than one piece, so that a request can be sent in part.
    connections.post(&headers, "m".repeat(PIECE + 1).into(), Instant::now() + Duration::from_secs(15)).await
}

/// Opens all connections: with more requests at once than all of them but one can carry.
async fn all_open<const N: usize>(connections: &Arc<Connections>, listener: &TcpListener) -> [Wire; N] {
    let count = N * 100 - 60;
    let first = posts(connections, count);
    let mut wires = Vec::new();
    for _ in 0..N {
        wires.push(accept(listener, 100).await);
    }
    let arrived = AtomicUsize::new(0);
    let all = Notify::new();
    let hold = async |wire: &mut Wire| {
        let mut streams = Vec::new();
        while arrived.load(Ordering::Relaxed) < count {
            tokio::select! {
                () = all.notified() => {}
                stream = wire.request() => {
                    streams.push(stream.unwrap());
                    if arrived.fetch_add(1, Ordering::Relaxed) == count - 1 {
                        all.notify_waiters();
                    }
                }
            }
        }
        streams
    };
    let held = futures::future::join_all(wires.iter_mut().map(hold)).await;
    for (wire, streams) in wires.iter_mut().zip(held) {
        for stream in streams {
            wire.answer(stream).await;
        }
    }
    assert_eq!(counted(first).await, [count, 0, 0]);
    wires.try_into().ok().unwrap()
}

type Posts = JoinSet<Result<Response, FcmNoAnswer>>;

fn posts(connections: &Arc<Connections>, count: usize) -> Posts {
    let mut posts = JoinSet::new();
    for _ in 0..count {
        let connections = connections.clone();
        posts.spawn(async move { post(&connections).await });
    }
    posts
}

/// How many were answered, how many may have been, and how many were not.
async fn counted(posts: Posts) -> [usize; 3] {
    let mut counted = [0; 3];
    for reply in posts.join_all().await {
        match reply {
            Ok(response) => {
                assert_eq!((response.status, &*response.body), (StatusCode::OK, &b"taken"[..]));
                counted[0] += 1;
            }
            Err(FcmNoAnswer { ambiguous: true, .. }) => counted[1] += 1,
            Err(FcmNoAnswer { ambiguous: false, .. }) => counted[2] += 1,
        }
    }
    counted
}

#[tokio::test]
async fn requests_are_spread_over_all_connections() {
    let (listener, address) = listen().await;
    let connections = connections(3, address);
    let mut wires = all_open::<3>(&connections, &listener).await;

    let posts = posts(&connections, 30);
    for wire in &mut wires {
        for stream in wire.requests(10).await {
            wire.answer(stream).await;
        }
    }
    assert_eq!(counted(posts).await, [30, 0, 0]);
}

#[tokio::test]
async fn a_peer_never_gets_more_streams_than_it_allows_and_all_requests_are_served() {
    let (listener, address) = listen().await;
    let posts = posts(&connections(1, address), 35);
    let mut wire = accept(&listener, 10).await;
    let mut open = wire.requests(10).await;
    for _ in 0..25 {
        assert!(timeout(Duration::from_millis(1), wire.request()).await.is_err(), "an eleventh request");
        wire.answer(open.remove(0)).await;
        open.extend(wire.requests(1).await);
    }
    for stream in open {
        wire.answer(stream).await;
    }
    assert_eq!(counted(posts).await, [35, 0, 0]);
}

#[tokio::test]
async fn a_request_waits_for_a_permit_until_its_deadline_and_is_not_sent_then() {
    let (listener, address) = listen().await;
    let posts = posts(&connections(1, address), 3);
    let mut wire = accept(&listener, 2).await;
    wire.requests(2).await;
    tokio::select! {
        biased;
        counted = pass(counted(posts)) => assert_eq!(counted, [0, 2, 1]),
        third = wire.request() => panic!("{third:?}"),
    }
}

#[tokio::test]
async fn a_cut_connection_fails_its_requests_only_and_is_replaced() {
    let (listener, address) = listen().await;
    let connections = connections(2, address);
    let [mut cut, mut whole] = all_open(&connections, &listener).await;
    let first = posts(&connections, 100);
    let (to_cut, to_whole) = tokio::join!(cut.requests(50), whole.requests(50));
    for stream in &to_cut[..20] {
        cut.answer(*stream).await;
    }
    drop(cut);
    for stream in to_whole {
        whole.answer(stream).await;
    }
    assert_eq!(counted(first).await, [70, 30, 0]);

    let again = posts(&connections, 30);
    let serve = async { tokio::join!(accept(&listener, 100).await.serve(), whole.serve()) };
    tokio::select! {
        biased;
        counted = counted(again) => assert_eq!(counted, [30, 0, 0]),
        _ = serve => panic!("a connection ended"),
    }
}

/// Forwards both ways until `silent` is notified, and then nothing; the sockets stay open.
async fn proxied(mut client: TcpStream, peer: SocketAddr, silent: Arc<Notify>) {
    let mut server = TcpStream::connect(peer).await.unwrap();
    server.set_nodelay(true).unwrap();
    tokio::select! {
        ended = copy_bidirectional(&mut client, &mut server) => drop(ended),
        () = silent.notified() => std::future::pending().await,
    }
}

/// A peer that answers everything, behind a proxy. Each notification of `silent` makes the open connections
/// forward nothing more.
fn peer_behind_a_proxy(peer: TcpListener, proxy: TcpListener, silent: &Arc<Notify>) -> JoinSet<()> {
    let peers_address = peer.local_addr().unwrap();
    let silent = silent.clone();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut wires = JoinSet::new();
        loop {
            let wire = accept(&peer, 100).await;
            wires.spawn(wire.serve());
        }
    });
    tasks.spawn(async move {
        let mut forwards = JoinSet::new();
        loop {
            let client = connected(&proxy).await;
            forwards.spawn(proxied(client, peers_address, silent.clone()));
        }
    });
    tasks
}

#[tokio::test]
async fn an_idle_connection_that_goes_silent_is_replaced_before_the_next_request() {
    let (peer, _) = listen().await;
    let (proxy, address) = listen().await;
    let silent = Arc::new(Notify::new());
    let _peer = peer_behind_a_proxy(peer, proxy, &silent);
    let connections = connections(1, address);
    post(&connections).await.unwrap();
    silent.notify_waiters();
    pass(sleep(PING_EVERY + PONG_TIMEOUT + Duration::from_secs(1))).await;
    post(&connections).await.unwrap();
}

#[tokio::test]
async fn an_unanswered_request_makes_its_connection_send_a_ping_at_once() {
    let (peer, _) = listen().await;
    let (proxy, address) = listen().await;
    let silent = Arc::new(Notify::new());
    let _peer = peer_behind_a_proxy(peer, proxy, &silent);
    let connections = connections(1, address);
    post(&connections).await.unwrap();
    // Right after a PING, so that the next one is far away. The answer to the request that follows it shows
    // that the PING was answered.
    pass(sleep(PING_EVERY + Duration::from_secs(1))).await;
    post(&connections).await.unwrap();
    silent.notify_waiters();
    let silent_since = Instant::now();
    let lost = pass(post(&connections)).await.unwrap_err();
    assert!(lost.ambiguous && lost.why == "no answer within 15s", "{lost:?}");
    // The PING has not timed out yet: the next request fails too.
    let lost = pass(post(&connections)).await.unwrap_err();
    assert!(lost.ambiguous, "{lost:?}");
    assert!(silent_since.elapsed() < Duration::from_secs(21), "{:?}", silent_since.elapsed());
    post(&connections).await.unwrap();
}

#[tokio::test]
async fn a_slow_peer_that_answers_pings_keeps_its_connection() {
    let (listener, address) = listen().await;
    let connections = connections(1, address);
    let slow = posts(&connections, 1);
    let mut wire = accept(&listener, 100).await;
    wire.requests(1).await;
    assert_eq!(pass(counted(slow)).await, [0, 1, 0]);
    let serving = async {
        for _ in 0..2 {
            let next = wire.request().await.expect("a request");
            wire.answer(next).await;
        }
        wire.request().await
    };
    let posting = async {
        // The answer to the request that follows the PING shows that the PING was answered.
        post(&connections).await.unwrap();
        pass(sleep(2 * PONG_TIMEOUT)).await;
        post(&connections).await.unwrap();
    };
    tokio::select! {
        biased;
        next = serving => panic!("{next:?}"),
        () = posting => {}
    }
}

#[tokio::test]
async fn after_a_goaway_unprocessed_requests_are_not_ambiguous_and_the_others_are_answered() {
    let (listener, address) = listen().await;
    let connections = connections(1, address);
    let mut first = posts(&connections, 10);
    let mut leaving = accept(&listener, 100).await;
    let streams = leaving.requests(10).await;
    let last = streams[5];
    leaving.write(GOAWAY, 0, 0, &[last.to_be_bytes(), 0_u32.to_be_bytes()].concat()).await;
    for _ in 0..4 {
        let lost = first.join_next().await.unwrap().unwrap().unwrap_err();
        assert!(!lost.ambiguous, "{lost:?}");
    }

    // The successor is opened while the first connection still has open streams.
    let second = posts(&connections, 5);
    let mut successor = accept(&listener, 100).await;
    for stream in successor.requests(5).await {
        successor.answer(stream).await;
    }
    assert_eq!(counted(second).await, [5, 0, 0]);
    for stream in &streams[..6] {
        leaving.answer(*stream).await;
    }
    assert_eq!(counted(first).await, [6, 0, 0]);
    assert_eq!(leaving.request().await, None, "it is closed in the end");
}

#[tokio::test]
async fn a_refused_stream_is_not_ambiguous_and_a_reset_one_is() {
    let (listener, address) = listen().await;
    let first = posts(&connections(1, address), 3);
    let mut wire = accept(&listener, 100).await;
    let streams = wire.requests(3).await;
    wire.write(RESET, 0, streams[0], &REFUSED_STREAM.to_be_bytes()).await;
    wire.write(RESET, 0, streams[1], &2_u32.to_be_bytes()).await;
    wire.answer(streams[2]).await;
    assert_eq!(counted(first).await, [1, 1, 1]);
}

#[tokio::test]
async fn when_no_connection_can_be_opened_all_requests_fail_after_one_attempt_a_slot() {
    let (listener, address) = listen().await;
    let posts = posts(&connections(3, address), 500);
    let mut attempts = 0;
    let hanging_up = async {
        loop {
            drop(listener.accept().await.unwrap());
            attempts += 1;
        }
    };
    tokio::select! {
        counted = counted(posts) => assert_eq!(counted, [0, 0, 500]),
        () = hanging_up => {}
    }
    assert_eq!(attempts, 3);
}

#[tokio::test(start_paused = true)]
async fn connecting_to_a_silent_peer_times_out_and_nothing_is_sent() {
    let (_listener, address) = listen().await;
    let lost = post(&connections(2, address)).await.unwrap_err();
    assert_eq!((lost.ambiguous, lost.why.as_str()), (false, "no connection within 5s"));
}

#[tokio::test]
async fn a_slot_whose_connections_fail_gets_no_requests_and_cools_down_between_attempts() {
    let (listener, address) = listen().await;
    let connections = connections(2, address);
    let mut attempts = 0;
    let peer = async {
        let mut wires = JoinSet::new();
        loop {
            let stream = connected(&listener).await;
            attempts += 1;
            if attempts == 1 {
                wires.spawn(async move { Wire::accept(stream, 100).await.serve().await });
            }
        }
    };
    let posting = async {
        for _ in 0..200 {
            post(&connections).await.unwrap();
        }
        pass(sleep(COOLDOWN)).await;
        post(&connections).await.unwrap();
        // Until the peer has closed the next attempt's connection too.
        pass(sleep(COOLDOWN)).await;
    };
    tokio::select! {
        () = peer => {}
        () = posting => {}
    }
    assert_eq!(attempts, 3, "one that succeeds, one that fails, and one more after the cooldown");
}

/// Serves one connection over TLS to a client that trusts these roots.
async fn over_tls(roots: RootCertStore, protocols: &[&[u8]]) -> Result<Response, FcmNoAnswer> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let key = PrivateKeyDer::try_from(STANDARD.decode(KEY).unwrap()).unwrap();
    let mut config = config.with_no_client_auth().with_single_cert(vec![certificate()], key).unwrap();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();

    let (listener, address) = listen().await;
    let mut server = JoinSet::new();
    server.spawn(async move {
        let stream = connected(&listener).await;
        if let Ok(stream) = TlsAcceptor::from(Arc::new(config)).accept(stream).await
            && stream.get_ref().1.alpn_protocol() == Some(b"h2")
        {
            Wire::accept(stream, 100).await.serve().await;
        }
    });
    let url = format!("https://{address}/send").parse().unwrap();
    post(&Connections::new(&settings(1), url, trusting(roots))).await
}

fn certificate() -> CertificateDer<'static> {
    STANDARD.decode(CERTIFICATE).unwrap().into()
}

#[tokio::test]
async fn https_requires_a_trusted_certificate_and_http_2() {
    let mut roots = RootCertStore::empty();
    roots.add(certificate()).unwrap();
    let response = over_tls(roots.clone(), &[b"h2"]).await.unwrap();
    assert_eq!(response.status, StatusCode::OK);

    let lost = over_tls(RootCertStore::empty(), &[b"h2"]).await.unwrap_err();
    assert!(!lost.ambiguous && lost.why.contains("certificate"), "{lost:?}");
    let lost = over_tls(roots, &[]).await.unwrap_err();
    assert!(!lost.ambiguous && lost.why.contains("HTTP/2"), "{lost:?}");
}
