//! What pushcast asks of a store, by noun. Two stores answer: `embedded` (SQLite) and `cql` (ScyllaDB,
//! Cassandra), which any number of processes share.
//!
//! The operations are semantic: a whole protocol step each, safe to repeat, so that a handler that died
//! half-way is simply run again. Every error is [`StoreError`]: a store that is away or slow. What a store
//! could not do by its caller's fault does not exist here; the types keep it out.

pub mod cql;
pub mod embedded;
mod error;
mod url;

use std::{future::Future, sync::Arc, time::Duration};

use serde::Deserialize;

pub use self::error::StoreError;
pub use self::url::{Cluster, InvalidStoreUrl, Login, StoreUrl};
use crate::domain::{
    BroadcastId, BroadcastState, Counts, Cursor, DoseKey, DoseOutcome, DueRow, Judged, Listeners, PartId,
    Plan, Progress, ProviderId, Recipient, Regimen, RegimenId, Registration, Slice, StopReason, Timestamp,
    Token, TokenChange, TokenHash, UserId, Version,
};

/// `[store]` of config/default.toml.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "config/default.toml is the manual")]
pub struct Settings {
    pub url: secrecy::SecretString,
    pub replication_factor: i32,
    pub datacenter: String,
    pub ca_file: String,
    pub certificate_file: String,
    pub key_file: String,
}

/// Tells the time. It is handed in to what runs for long, so that a test with dates of its own has a clock of
/// its own.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

type StoreResult<T> = Result<T, StoreError>;

/// A store of many nodes says within this time who has won a part or a claim, and whether a checkpoint or a
/// mark is kept; or that it is [`StoreError`]. Whoever holds a lease counts on it.
pub const DECIDED_WITHIN: Duration = Duration::from_secs(8);

/// The tokens: who owns them, whether they live.
pub trait Registry: Clone + Send + Sync + 'static {
    /// Applies an event. The same events in any order end in the same state; an older event changes nothing.
    fn apply(&self, change: &TokenChange, version: Version) -> impl Future<Output = StoreResult<()>> + Send;

    /// The active tokens of a user.
    fn tokens_of(&self, user: &UserId) -> impl Future<Output = StoreResult<Vec<Registration>>> + Send;

    /// Takes a dead token out, if the verdict speaks of the registration that is current. Says whether it
    /// did.
    fn revoke(
        &self,
        token: &Token,
        judged: Judged,
        reason: &str,
    ) -> impl Future<Output = StoreResult<bool>> + Send;

    /// Everything known of a token, active or not.
    fn inspect(&self, token: &Token) -> impl Future<Output = StoreResult<Option<TokenRow>>> + Send;

    /// The same for a token of which only the hash is known. Reads the whole table: for people, not for
    /// stages.
    fn inspect_hash(&self, hash: TokenHash) -> impl Future<Output = StoreResult<Option<TokenRow>>> + Send;

    /// How many tokens are active and how many inactive, by provider. Reads the whole table.
    fn census(&self) -> impl Future<Output = StoreResult<Vec<Census>>> + Send;
}

/// A row of the token table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenRow {
    /// The token.
    pub token: Token,
    /// Its version; odd = revoked.
    pub version: Version,
    /// Its registration, while it is active.
    pub registration: Option<Registration>,
    /// Why it is inactive.
    pub reason: Option<String>,
    /// When it was first registered.
    pub created_at: Option<Timestamp>,
    /// When the app was last opened, if it says so.
    pub seen_at: Option<Timestamp>,
}

/// How many tokens there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Census {
    /// Of which provider.
    pub provider: ProviderId,
    /// Ringing.
    pub active: u64,
    /// Revoked, replaced or unregistered.
    pub inactive: u64,
}

/// Reads the ring of tokens.
pub trait Audience: Clone + Send + Sync + 'static {
    /// The next active tokens of this provider and of these listeners in the slice, after `after`, at most
    /// `limit` (unless more than that share one position: a page is cut between positions only).
    fn page_of_slice(
        &self,
        provider: ProviderId,
        slice: Slice,
        to: &Listeners,
        after: Option<Cursor>,
        limit: usize,
    ) -> impl Future<Output = StoreResult<Page>> + Send;
}

/// A page of an audience. An empty page may have a next one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// Whom to send to.
    pub recipients: Vec<Recipient>,
    /// Where each of them stands, in the same order; never falls.
    pub positions: Vec<Cursor>,
    /// Where this page ends.
    pub end: Cursor,
    /// Whether it is the slice's last one.
    pub last: bool,
}

/// Broadcasts and how far their parts are.
pub trait Broadcasts: Clone + Send + Sync + 'static {
    /// Writes the plan if there is none; answers with the one that stands.
    fn plan(
        &self,
        broadcast: &BroadcastId,
        plan: &Plan,
        now: Timestamp,
    ) -> impl Future<Output = StoreResult<Plan>> + Send;

    /// The plan and where the broadcast stands. A broadcast may be stopped before it is planned.
    fn broadcast(
        &self,
        broadcast: &BroadcastId,
    ) -> impl Future<Output = StoreResult<(Option<Plan>, Option<BroadcastState>)>> + Send;

    /// Stops it, unless it is done.
    fn stop(
        &self,
        broadcast: &BroadcastId,
        reason: &StopReason,
    ) -> impl Future<Output = StoreResult<()>> + Send;

    /// Every part is done and the total published.
    fn close(&self, broadcast: &BroadcastId) -> impl Future<Output = StoreResult<()>> + Send;

    /// Takes a part over: raises its epoch, so that every earlier owner loses. A part that is done stays as
    /// it is.
    fn take_over(&self, part: &PartId) -> impl Future<Output = StoreResult<Progress>> + Send;

    /// Records a page, or the part's end, as one step. `progress` holds the owner's epoch and the new totals.
    fn checkpoint(
        &self,
        part: &PartId,
        progress: &Progress,
    ) -> impl Future<Output = StoreResult<Checkpoint>> + Send;

    /// Adds the part to the broadcast's finished ones, *then* reads how many there are.
    fn finish_part(&self, part: &PartId) -> impl Future<Output = StoreResult<u32>> + Send;

    /// How far a part is; `None` = nobody has begun it. For people, not for stages: these own what they ask
    /// about.
    fn progress(&self, part: &PartId) -> impl Future<Output = StoreResult<Option<Progress>>> + Send;

    /// The sum over all finished parts, and when it was first asked for: the same answer each time, once
    /// every part is finished.
    fn total(
        &self,
        broadcast: &BroadcastId,
        now: Timestamp,
    ) -> impl Future<Output = StoreResult<Total>> + Send;
}

/// What a broadcast came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Total {
    /// Over all providers and parts.
    pub counts: Counts,
    /// When it was first summed up.
    pub at: Timestamp,
}

/// What became of a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checkpoint {
    /// Written.
    Kept,
    /// Somebody else owns the part now.
    Lost,
}

/// Regimens, what is due, and who rings it.
pub trait Doses: Clone + Send + Sync + 'static {
    /// Writes a regimen, or its removal, unless a later version is there.
    fn put_regimen(
        &self,
        regimen: &RegimenId,
        definition: Option<&Regimen>,
        version: Version,
    ) -> impl Future<Output = StoreResult<()>> + Send;

    /// The regimen as it now is; `None` = unknown or removed.
    fn regimen(&self, regimen: &RegimenId) -> impl Future<Output = StoreResult<Option<Regimen>>> + Send;

    /// Regimens that are not removed, in an order of the store's own, after `after`: for the sweep.
    fn regimens(
        &self,
        after: Option<&RegimenId>,
        limit: usize,
    ) -> impl Future<Output = StoreResult<Vec<(RegimenId, Regimen)>>> + Send;

    /// Inserts a due row; the same row twice is one.
    fn insert_due(&self, shard: Shard, row: &DueRow) -> impl Future<Output = StoreResult<()>> + Send;

    /// Due rows after `after` up to and including `until`, by time and regimen; past the last row of the page
    /// before, if there was one.
    fn due_rows(
        &self,
        shard: Shard,
        after: Timestamp,
        until: Timestamp,
        past: Option<&DueRow>,
        limit: usize,
    ) -> impl Future<Output = StoreResult<Vec<DueRow>>> + Send;

    /// The marks of a shard. `init` writes them; missing ones are an error that names `pushcast init`.
    fn marks(&self, shard: Shard) -> impl Future<Output = StoreResult<Watermarks>> + Send;

    /// Writes both marks of every shard where there are none.
    fn init_marks(&self, now: Timestamp) -> impl Future<Output = StoreResult<()>> + Send;

    /// Raises a mark; it never sinks.
    fn raise(
        &self,
        shard: Shard,
        mark: Watermark,
        to: Timestamp,
    ) -> impl Future<Output = StoreResult<()>> + Send;

    /// Claims a dose for one handling, or takes over a claim whose lease is over; a claim of one's own is
    /// renewed.
    fn claim(
        &self,
        dose: &DoseKey,
        owner: &str,
        now: Timestamp,
        until: Timestamp,
    ) -> impl Future<Output = StoreResult<Claim>> + Send;

    /// Who has claimed a dose, and what became of it; `None` = nobody has begun with it. For people, not for
    /// stages.
    fn claimed(&self, dose: &DoseKey) -> impl Future<Output = StoreResult<Option<Claimed>>> + Send;

    /// Records that the dose has its outcome, if the claim still stands.
    fn mark(
        &self,
        dose: &DoseKey,
        lease: &Lease,
        mark: &DoseMark,
    ) -> impl Future<Output = StoreResult<Marked>> + Send;
}

/// A piece of the due rows, by a hash of the regimen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Shard(pub u16);

/// How many shards there are. Fixed: rows are found by it.
pub const SHARDS: u16 = 64;

/// A shard's marks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watermarks {
    /// Some tick has begun to read up to here: whoever inserts a row behind it hands it on himself.
    pub read: Timestamp,
    /// Everything up to here is handed on.
    pub dispatched: Timestamp,
}

/// Names a mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watermark {
    /// [`Watermarks::opened`].
    Read,
    /// [`Watermarks::handed`].
    Dispatched,
}

/// The right to ring a dose for a while.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Random, one per handling: a process that freezes must not find its own claim again.
    pub owner: String,
    /// Counts take-overs.
    pub attempt: i32,
    /// By the clock of whoever claimed.
    pub until: Timestamp,
}

/// What a claim gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claim {
    /// Ours.
    Mine(Lease),
    /// Somebody else's, until then.
    Held(Timestamp),
    /// It has its outcome.
    Marked(DoseMark),
}

/// What became of a dose, as long as the log is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DoseMark {
    /// In a word.
    pub outcome: DoseOutcome,
    /// Its messages.
    pub counts: Counts,
    /// When the provider had answered.
    pub at: Timestamp,
}

/// A dose that was claimed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claimed {
    /// By whom.
    pub lease: Lease,
    /// What became of it, if it has its outcome.
    pub mark: Option<DoseMark>,
}

/// What a mark gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Marked {
    /// The dose has its outcome.
    Kept,
    /// The claim was taken over before.
    Lost,
}

/// Whether a provider's route is open.
pub trait Routes: Clone + Send + Sync + 'static {
    /// The state of a provider's route; running where nothing was ever written.
    fn route(&self, provider: ProviderId) -> impl Future<Output = StoreResult<RouteRow>> + Send;

    /// Sets it.
    fn set_route(
        &self,
        provider: ProviderId,
        route: &RouteRow,
    ) -> impl Future<Output = StoreResult<()>> + Send;
}

/// The state of a provider's route, the same for every instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteRow {
    /// Open or not.
    pub state: RouteState,
    /// Since when.
    pub since: Timestamp,
    /// Who set it: an instance or a person.
    pub set_by: String,
    /// Why.
    pub detail: String,
}

/// Whether a route sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RouteState {
    /// Sends.
    Running,
    /// Sends, after somebody has looked at a flood of dead tokens and let it pass. What was written before
    /// counts as looked at: it doesn't brake the route again.
    Released,
    /// An operator closed it.
    Paused,
    /// The provider refuses our credentials.
    Halted,
    /// Too many tokens looked dead.
    Braked,
}

/// All ports and what every store can do beside them.
pub trait Store: Registry + Audience + Broadcasts + Doses + Routes {
    /// Answers if the store does.
    fn ping(&self) -> impl Future<Output = StoreResult<()>> + Send;

    /// What the driver has counted since the start, where there is a driver.
    fn driver_counts(&self) -> Option<DriverCounts> {
        None
    }
}

/// What a store's driver tells of its requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DriverCounts {
    /// Requests.
    pub requests: u64,
    /// Those that failed.
    pub errors: u64,
    /// Those that were tried on another node.
    pub retries: u64,
    /// Those that took too long.
    pub timeouts: u64,
    /// Open connections.
    pub connections: u64,
    /// 99 of 100 requests took no longer.
    pub p99: Duration,
}

// === impl Shard ===

impl Shard {
    /// The shard of a regimen: FNV-1a of its id, so that every instance and every release agrees.
    pub fn of(regimen: &RegimenId) -> Self {
        let hash = regimen.as_str().bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        #[expect(clippy::cast_possible_truncation, reason = "a remainder of SHARDS fits")]
        Self((hash % u64::from(SHARDS)) as u16)
    }

    /// All shards.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..SHARDS).map(Self)
    }
}

// === impl RouteRow ===

impl RouteRow {
    /// Whether the flood that this is part of was looked at, and let pass.
    pub fn lets_pass(&self, written_at: Timestamp) -> bool {
        self.state == RouteState::Released && written_at <= self.since
    }
}

// === impl RouteState ===

impl RouteState {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Running, Self::Released, Self::Paused, Self::Halted, Self::Braked];

    /// The word that the store, metrics and commands use.
    pub fn label(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Released => "released",
            Self::Paused => "paused",
            Self::Halted => "halted",
            Self::Braked => "braked",
        }
    }

    /// Whether requests may start.
    pub fn sends(self) -> bool {
        matches!(self, Self::Running | Self::Released)
    }

    /// The state of that word.
    pub fn from_label(label: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.label() == label)
    }
}
