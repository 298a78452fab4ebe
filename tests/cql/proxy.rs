//! A line to the server that can be cut, stopped and slowed down.

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

/// Passes bytes on, to and from the server, until it is dropped.
pub struct Proxy {
    pub address: String,
    switch: Arc<Switch>,
    _tasks: JoinSet<()>,
}

#[derive(Default)]
struct Switch {
    /// Of a thousand answers so many are swallowed, and their connection with them.
    cut_of_thousand: AtomicU32,
    cuts: AtomicU32,
    stopped: AtomicBool,
    /// How long answers are under way.
    delay_ms: AtomicU64,
}

impl Proxy {
    /// A line to `server`.
    pub async fn to(server: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let switch = Arc::new(Switch::default());
        let mut tasks = JoinSet::new();
        tasks.spawn(serve(listener, server, Arc::clone(&switch)));
        Self { address, switch, _tasks: tasks }
    }

    /// From now on the server does what it is asked, and so many of a thousand answers get lost.
    pub fn lose(&self, of_thousand: u32) {
        self.switch.cut_of_thousand.store(of_thousand, Ordering::Relaxed);
    }

    /// How many answers were lost.
    pub fn lost(&self) -> u32 {
        self.switch.cuts.load(Ordering::Relaxed)
    }

    /// Nothing passes as long as this is true.
    pub fn stop(&self, stopped: bool) {
        self.switch.stopped.store(stopped, Ordering::Relaxed);
    }

    /// From now on the server does what it is asked at once, and its answers take that long.
    pub fn delay(&self, delay: Duration) {
        self.switch.delay_ms.store(u64::try_from(delay.as_millis()).unwrap(), Ordering::Relaxed);
    }
}

async fn serve(listener: TcpListener, server: String, switch: Arc<Switch>) {
    let mut lines = JoinSet::new();
    loop {
        let (client, _) = listener.accept().await.unwrap();
        let (server, switch) = (TcpStream::connect(&server).await.unwrap(), Arc::clone(&switch));
        lines.spawn(async move {
            let (mut from_client, mut to_client) = client.into_split();
            let (mut from_server, mut to_server) = server.into_split();
            let asking = async {
                let mut bytes = vec![0; 64 * 1024];
                while let Ok(read @ 1..) = from_client.read(&mut bytes).await {
                    switch.wait().await;
                    if to_server.write_all(&bytes[..read]).await.is_err() {
                        return;
                    }
                }
            };
            let answering = async {
                let mut bytes = vec![0; 64 * 1024];
                while let Ok(read @ 1..) = from_server.read(&mut bytes).await {
                    switch.wait().await;
                    sleep(Duration::from_millis(switch.delay_ms.load(Ordering::Relaxed))).await;
                    if rand::random_range(0..1_000) < switch.cut_of_thousand.load(Ordering::Relaxed) {
                        switch.cuts.fetch_add(1, Ordering::Relaxed);
                        return;
                    }
                    if to_client.write_all(&bytes[..read]).await.is_err() {
                        return;
                    }
                }
            };
            tokio::select! {
                () = asking => {}
                () = answering => {}
            }
        });
    }
}

impl Switch {
    async fn wait(&self) {
        while self.stopped.load(Ordering::Relaxed) {
            sleep(Duration::from_millis(10)).await;
        }
    }
}
