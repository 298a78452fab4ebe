//! A proxy in front of the server that can cut connections, stop and delay answers.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::{Duration, sleep},
};

/// Forwards bytes to and from the server until it is dropped.
pub struct Proxy {
    pub address: String,
    faults: Arc<ProxyFaults>,
    _tasks: JoinSet<()>,
}

#[derive(Default)]
struct ProxyFaults {
    /// How many of a thousand answers are dropped, and their connection with them.
    cut_of_thousand: AtomicU32,
    cuts: AtomicU32,
    stopped: AtomicBool,
    /// How long answers are delayed.
    delay_ms: AtomicU64,
}

impl Proxy {
    /// Starts a proxy for `server`.
    pub async fn to(server: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let faults = Arc::new(ProxyFaults::default());
        let mut tasks = JoinSet::new();
        tasks.spawn(serve(listener, server, Arc::clone(&faults)));
        Self { address, faults, _tasks: tasks }
    }

    /// From now on requests are done, and so many of a thousand answers get lost.
    pub fn lose(&self, of_thousand: u32) {
        self.faults.cut_of_thousand.store(of_thousand, Ordering::Relaxed);
    }

    /// How many answers were lost.
    pub fn lost(&self) -> u32 {
        self.faults.cuts.load(Ordering::Relaxed)
    }

    /// While this is true no byte is forwarded.
    pub fn stop(&self, stopped: bool) {
        self.faults.stopped.store(stopped, Ordering::Relaxed);
    }

    /// From now on requests are done at once, and answers are delayed by that long.
    pub fn delay(&self, delay: Duration) {
        self.faults.delay_ms.store(u64::try_from(delay.as_millis()).unwrap(), Ordering::Relaxed);
    }
}

async fn serve(listener: TcpListener, server: String, faults: Arc<ProxyFaults>) {
    let mut connections = JoinSet::new();
    loop {
        let (client, _) = listener.accept().await.unwrap();
        let server = TcpStream::connect(&server).await.unwrap();
        let faults = Arc::clone(&faults);
        connections.spawn(async move {
            let (mut from_client, mut to_client) = client.into_split();
            let (mut from_server, mut to_server) = server.into_split();
            let requests = async {
                let mut bytes = vec![0; 64 * 1024];
                while let Ok(read @ 1..) = from_client.read(&mut bytes).await {
                    faults.wait().await;
                    if to_server.write_all(&bytes[..read]).await.is_err() {
                        return;
                    }
                }
            };
            let answers = async {
                let mut bytes = vec![0; 64 * 1024];
                while let Ok(read @ 1..) = from_server.read(&mut bytes).await {
                    faults.wait().await;
                    sleep(Duration::from_millis(faults.delay_ms.load(Ordering::Relaxed))).await;
                    if rand::random_range(0..1_000) < faults.cut_of_thousand.load(Ordering::Relaxed) {
                        faults.cuts.fetch_add(1, Ordering::Relaxed);
                        return;
                    }
                    if to_client.write_all(&bytes[..read]).await.is_err() {
                        return;
                    }
                }
            };
            tokio::select! {
                () = requests => {}
                () = answers => {}
            }
        });
    }
}

impl ProxyFaults {
    async fn wait(&self) {
        while self.stopped.load(Ordering::Relaxed) {
            sleep(Duration::from_millis(10)).await;
        }
    }
}
