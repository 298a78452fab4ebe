#![doc = include_str!("../README.md")]

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

/// Everything that is fixed for the life of a [`Sandbox`]; what can change while it runs is in [`Faults`].
///
/// The default listens on a free port of 127.0.0.1, has no faults but those of the token words
/// ([`TokenRule::words`]), keeps no messages, and has FCM demand an access token.
#[derive(Clone, Debug)]
pub struct Options {
    /// The address to listen on; port 0 takes a free port.
    pub listen: SocketAddr,
    /// The origin in the URLs that the sandbox writes, where clients reach it by another name than the
    /// address that it listens on (`http://sandbox:8085`); none = `http://` and that address.
    pub url: Option<String>,
    /// How many of the latest messages taken are kept whole; 0 = none, as benchmarks need it.
    pub remember: usize,
    /// The faults at the start.
    pub faults: Faults,
    /// The Firebase project. A request to FCM for another one is answered with 404.
    pub project_id: String,
    /// Whether FCM demands an access token that the sandbox has issued.
    pub require_bearer: bool,
    /// The access token that Expo demands, as with enhanced push security on; none = any request is taken.
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
    /// The default, but the latest 100,000 messages are kept: for tests that look at messages.
    pub fn remembering() -> Self {
        Self { remember: 100_000, ..Self::default() }
    }
}

/// Running fake providers. Dropping it closes their connections and frees the port.
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
    /// Listening on [`Options::listen`] failed: the port is in use, or the address is not this machine's.
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

    /// The address that it listens on, with the port that was taken.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its origin: `http://127.0.0.1:4321`.
    pub fn url(&self) -> String {
        self.shared.url.clone()
    }

    /// The full URL for sending through Expo.
    pub fn expo_url(&self) -> String {
        format!("{}/--/api/v2/push/send", self.shared.url)
    }

    /// The origin of FCM: a client appends `/v1/projects/…`.
    pub fn fcm_url(&self) -> String {
        self.shared.url.clone()
    }

    /// The service account that the OAuth endpoint accepts, in the format of Firebase's JSON file. Its RSA
    /// key is generated at the first call, which takes a moment.
    pub fn service_account(&self) -> String {
        self.shared.oauth.service_account(&self.shared.options.project_id, &self.shared.url)
    }

    /// A handle that reads and sets the faults while the sandbox runs.
    pub fn faults(&self) -> FaultsHandle {
        FaultsHandle(self.shared.clone())
    }

    /// What the fakes have counted since the start or the last reset.
    pub fn statistics(&self) -> Statistics {
        self.shared.statistics()
    }

    /// The latest messages taken, oldest first, at most [`Options::remember`].
    pub fn messages(&self) -> Vec<TakenMessage> {
        lock(&self.shared.remembered).iter().cloned().collect()
    }

    /// Removes and returns the kept messages, oldest first. The statistics still count them.
    pub fn drain_messages(&self) -> Vec<TakenMessage> {
        std::mem::take(&mut *lock(&self.shared.remembered)).into()
    }

    /// Clears the statistics and the kept messages; faults and credentials stay.
    pub fn reset(&self) {
        self.shared.reset();
    }

    /// Makes every access token that was issued so far invalid.
    pub fn revoke_credentials(&self) {
        self.shared.oauth.revoke();
    }

    /// Closes all connections, frees the port, and waits until that is done.
    pub async fn stop(mut self) {
        self.stop.cancel();
        while self.tasks.join_next().await.is_some() {}
    }
}

/// The state that all requests share.
#[derive(Debug)]
struct Shared {
    options: Options,
    url: String,
    faults: RwLock<Arc<Faults>>,
    expo: ProviderState,
    fcm: ProviderState,
    receipts_outage: faults::OutageState,
    receipts: Mutex<ReceiptStatistics>,
    oauth: oauth::Oauth,
    oauth_outage: faults::OutageState,
    remembered: Mutex<VecDeque<TakenMessage>>,
    sequence: AtomicU64,
}

/// The state of one fake provider.
#[derive(Debug, Default)]
struct ProviderState {
    counts: counts::MessageCounts,
    outage: faults::OutageState,
    admitted: faults::AdmittedMessages,
}

impl Shared {
    fn new(options: Options, address: SocketAddr) -> Self {
        Self {
            url: options.url.clone().unwrap_or_else(|| format!("http://{address}")),
            options,
            faults: RwLock::default(),
            expo: ProviderState::default(),
            fcm: ProviderState::default(),
            receipts_outage: faults::OutageState::default(),
            receipts: Mutex::default(),
            oauth: oauth::Oauth::default(),
            oauth_outage: faults::OutageState::default(),
            remembered: Mutex::default(),
            sequence: AtomicU64::new(1),
        }
    }

    fn faults(&self) -> Arc<Faults> {
        self.faults.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Reserves that many consecutive numbers, unique in this sandbox, and returns the first.
    fn reserve_numbers(&self, count: u64) -> u64 {
        self.sequence.fetch_add(count, Relaxed)
    }

    /// Keeps a message, and drops the oldest one beyond [`Options::remember`].
    fn remember(&self, message: TakenMessage) {
        let mut remembered = lock(&self.remembered);
        if remembered.len() >= self.options.remember {
            remembered.pop_front();
        }
        remembered.push_back(message);
    }

    fn statistics(&self) -> Statistics {
        Statistics {
            expo: self.expo.counts.statistics(),
            fcm: self.fcm.counts.statistics(),
            receipts: lock(&self.receipts).clone(),
            credentials_issued: self.oauth.issued(),
        }
    }

    fn reset(&self) {
        self.expo.counts.reset();
        self.fcm.counts.reset();
        self.oauth.reset_count();
        *lock(&self.receipts) = ReceiptStatistics::default();
        lock(&self.remembered).clear();
    }
}

/// Locks, poisoned or not: the counters that a panic leaves behind are good enough for a fake.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
