//! Fake Expo and FCM on one port of this machine, with scripted faults, for the demo, tests, benchmarks and
//! `pushcast sandbox`.
//!
//! They answer as the real ones do where that is known (bodies, codes, limits), do wrong what [`Faults`]
//! says, and count what they took ([`Statistics`]): above all doubles, and the most messages in any second.
//! Where the real answer is not known the harder one is given. Imports nothing else of this crate, so that no
//! mistake of ours is mirrored here.
//!
//! | path | what |
//! |---|---|
//! | `POST /--/api/v2/push/send`, `…/getReceipts` | Expo |
//! | `POST /v1/projects/{project}/messages:send` | FCM |
//! | `POST /token` | OAuth, for the service account of `GET /sandbox/service-account` |
//! | `GET`, `PUT /sandbox/faults` | the faults; what a `PUT` leaves out becomes the default |
//! | `GET /sandbox/statistics` | what was seen |
//! | `GET /sandbox/messages?token=` | the messages taken, if they are remembered |
//! | `POST /sandbox/reset` | forgets what was seen and remembered; faults and credentials stay |
//! | `POST /sandbox/revoke-credentials` | FCM no longer knows the access tokens issued so far |
//!
//! Memory: a ticket's receipt is in its id, tokens are counted by hash, remembered messages have a bound.

use std::{
    collections::VecDeque,
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use tokio::{net::TcpListener, task::JoinSet};
use tokio_util::sync::CancellationToken;

mod control;
mod counts;
mod expo;
mod faults;
mod fcm;
mod oauth;
mod reply;
mod server;
mod wire;

pub use self::{
    faults::FaultsHandle,
    wire::{
        Answer, FailureMode, Faults, OauthFaults, Outage, Provider, ProviderFaults, ProviderStatistics,
        ReceiptStatistics, Statistics, TakenMessage, TokenFault, TokenRule, Which,
    },
};

/// How a sandbox is started.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Its origin as others write it, where they reach it by another name than the address that it listens
    /// on.
    pub url: Option<String>,
    /// How many of the latest messages taken are kept whole; 0 = none, which is what benchmarks want.
    pub remember: usize,
    /// Faults from the start.
    pub faults: Faults,
    /// The Firebase project. FCM knows no other.
    pub project_id: String,
    /// Whether FCM wants an access token that the sandbox has issued.
    pub require_bearer: bool,
    /// The access token that Expo wants, as with push security on; none = Expo wants none.
    pub expo_access_token: Option<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            url: None,
            remember: 0,
            faults: Faults::default(),
            project_id: "sandbox".to_owned(),
            require_bearer: true,
            expo_access_token: None,
        }
    }
}

impl Options {
    /// For tests that look at messages: the latest 100,000 are kept.
    pub fn remembering() -> Self {
        Self { remember: 100_000, ..Self::default() }
    }
}

/// Running fake providers. Dropping it cuts their connections and frees the port.
#[derive(Debug)]
pub struct Sandbox {
    address: SocketAddr,
    shared: Arc<Shared>,
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

impl Sandbox {
    /// Starts the fake providers on the current runtime.
    ///
    /// # Errors
    /// The address can't be listened on.
    pub async fn start(options: Options) -> io::Result<Self> {
        let listener = TcpListener::bind(options.listen).await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared::new(options, address));
        FaultsHandle(shared.clone()).set(Faults::clone(&shared.options.faults));
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        tasks.spawn(server::serve(listener, control::router(shared.clone()), stop.clone()));
        Ok(Self { address, shared, stop, tasks })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its origin: `http://127.0.0.1:4321`.
    pub fn url(&self) -> String {
        self.shared.url.clone()
    }

    /// What `expo.url` is to be: the full URL for sending.
    pub fn expo_url(&self) -> String {
        format!("{}/--/api/v2/push/send", self.shared.url)
    }

    /// What `fcm.url` is to be: an origin.
    pub fn fcm_url(&self) -> String {
        self.shared.url.clone()
    }

    /// A service account whose tokens this sandbox issues, as the JSON file that Firebase gives out. Its key
    /// is made at the first call, which takes a moment.
    pub fn service_account(&self) -> String {
        self.shared.oauth.service_account(&self.shared.options.project_id, &self.shared.url)
    }

    /// Sets faults while it runs.
    pub fn faults(&self) -> FaultsHandle {
        FaultsHandle(self.shared.clone())
    }

    /// What it has seen since its start or the last reset.
    pub fn statistics(&self) -> Statistics {
        self.shared.statistics()
    }

    /// The latest messages taken, oldest first: as many as [`Options::remember`] says.
    pub fn messages(&self) -> Vec<TakenMessage> {
        held(&self.shared.remembered).iter().cloned().collect()
    }

    /// The messages taken since the last call, oldest first, as far as they are remembered; they are then
    /// forgotten.
    pub fn drain_messages(&self) -> Vec<TakenMessage> {
        std::mem::take(&mut *held(&self.shared.remembered)).into()
    }

    /// Forgets what it has seen and remembered; faults and credentials stay.
    pub fn reset(&self) {
        self.shared.reset();
    }

    /// FCM no longer knows the access tokens issued so far.
    pub fn revoke_credentials(&self) {
        self.shared.oauth.revoke();
    }

    /// Cuts all connections, frees the port, and waits until that is done.
    pub async fn stop(mut self) {
        self.stop.cancel();
        while self.tasks.join_next().await.is_some() {}
    }
}

/// What all requests share.
#[derive(Debug)]
struct Shared {
    options: Options,
    url: String,
    faults: RwLock<Arc<Faults>>,
    expo: Side,
    fcm: Side,
    receipts_down: faults::Down,
    receipts: Mutex<ReceiptStatistics>,
    oauth: oauth::Oauth,
    oauth_down: faults::Down,
    remembered: Mutex<VecDeque<TakenMessage>>,
    sequence: AtomicU64,
}

/// What a provider keeps.
#[derive(Debug, Default)]
struct Side {
    counts: counts::MessageCounts,
    down: faults::Down,
    admitted: faults::Admitted,
}

impl Shared {
    fn new(options: Options, address: SocketAddr) -> Self {
        Self {
            url: options.url.clone().unwrap_or_else(|| format!("http://{address}")),
            options,
            faults: RwLock::default(),
            expo: Side::default(),
            fcm: Side::default(),
            receipts_down: faults::Down::default(),
            receipts: Mutex::default(),
            oauth: oauth::Oauth::default(),
            oauth_down: faults::Down::default(),
            remembered: Mutex::default(),
            sequence: AtomicU64::new(1),
        }
    }

    fn faults(&self) -> Arc<Faults> {
        self.faults.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The first of so many numbers that nobody else gets.
    fn numbers(&self, count: u64) -> u64 {
        self.sequence.fetch_add(count, Relaxed)
    }

    /// Keeps a message, and drops the oldest beyond the bound.
    fn remember(&self, message: TakenMessage) {
        let mut remembered = held(&self.remembered);
        if remembered.len() >= self.options.remember {
            remembered.pop_front();
        }
        remembered.push_back(message);
    }

    fn statistics(&self) -> Statistics {
        Statistics {
            expo: self.expo.counts.statistics(),
            fcm: self.fcm.counts.statistics(),
            receipts: held(&self.receipts).clone(),
            credentials_issued: self.oauth.issued(),
        }
    }

    fn reset(&self) {
        self.expo.counts.reset();
        self.fcm.counts.reset();
        self.oauth.reset_count();
        *held(&self.receipts) = ReceiptStatistics::default();
        held(&self.remembered).clear();
    }
}

/// Locks; a panic elsewhere while it was locked leaves counters that are good enough for a fake.
fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
