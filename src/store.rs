//! What pushcast asks of a store: a trait for each subject. Two stores implement them: `embedded` (SQLite,
//! one process) and `cql` (ScyllaDB, Cassandra), which any number of processes share.
//!
//! The operations are semantic: a whole protocol step each, safe to repeat, so that a handler that ended
//! half-way is simply run again. An operation fails with a [`StoreError`], which says whether the store is
//! unavailable, rejects the request, or holds a row that can't be read; the adapters choose which.

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

/// Returns the current time. An argument, so that a test with dates of its own has a clock of its own.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

pub(crate) type StoreResult<T> = Result<T, StoreError>;

/// The longest that a CQL store takes over `take_over`, `checkpoint`, `claim` and `mark`, until it returns
/// their result or a [`StoreError`]. A lease's safety margin is computed from it.
pub const DECIDED_WITHIN: Duration = Duration::from_secs(8);

/// Device tokens: which user owns each, and whether it is active.
pub trait Registry: Clone + Send + Sync + 'static {
    /// Applies an event. The same events in any order end in the same state; an older event changes nothing.
    fn apply(&self, change: &TokenChange, version: Version) -> impl Future<Output = StoreResult<()>> + Send;

    /// The active tokens of a user.
    fn tokens_of(&self, user: &UserId) -> impl Future<Output = StoreResult<Vec<Registration>>> + Send;

    /// Deactivates a dead token, if the verdict names the registration that is current. Returns whether it
    /// did.
    fn revoke(
        &self,
        token: &Token,
        judged: Judged,
        reason: &str,
    ) -> impl Future<Output = StoreResult<bool>> + Send;

    /// A token's row, active or not; `None` = it was never registered.
    fn inspect(&self, token: &Token) -> impl Future<Output = StoreResult<Option<TokenRow>>> + Send;

    /// The same for a token of which only the hash is known. May read the whole table: for the admin API, not
    /// for stages.
    fn inspect_hash(&self, hash: TokenHash) -> impl Future<Output = StoreResult<Option<TokenRow>>> + Send;

    /// How many tokens are active and how many inactive, by provider. Reads the whole table.
    fn census(&self) -> impl Future<Output = StoreResult<Vec<Census>>> + Send;
}

/// A row of the token table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenRow {
    /// The primary key.
    pub token: Token,
    /// The version of the event that the row shows; odd = revoked.
    pub version: Version,
    /// `None` = the token is inactive.
    pub registration: Option<Registration>,
    /// Why it is inactive.
    pub reason: Option<String>,
    /// When it was first registered.
    pub created_at: Option<Timestamp>,
    /// When the app was last opened, if the app reports that.
    pub seen_at: Option<Timestamp>,
}

/// How many tokens a provider has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Census {
    /// The provider that delivers to them.
    pub provider: ProviderId,
    /// Registered; messages are sent to them.
    pub active: u64,
    /// Revoked, replaced or unregistered.
    pub inactive: u64,
}

/// Reads the token ring: all tokens in the order of their hashes.
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
    /// Active tokens, by position.
    pub recipients: Vec<Recipient>,
    /// The position of each recipient, in the same order; never decreases.
    pub positions: Vec<Cursor>,
    /// The cursor after which the next page begins.
    pub end: Cursor,
    /// Whether it is the slice's last one.
    pub last: bool,
}

/// Broadcasts and the progress of their parts.
pub trait Broadcasts: Clone + Send + Sync + 'static {
    /// Writes the plan if there is none; returns the one that is stored then.
    fn plan(
        &self,
        broadcast: &BroadcastId,
        plan: &Plan,
        now: Timestamp,
    ) -> impl Future<Output = StoreResult<Plan>> + Send;

    /// The plan and the state of a broadcast. It may be stopped before it is planned.
    fn broadcast(
        &self,
        broadcast: &BroadcastId,
    ) -> impl Future<Output = StoreResult<(Option<Plan>, Option<BroadcastState>)>> + Send;

    /// Stops a broadcast, unless it is done.
    fn stop(
        &self,
        broadcast: &BroadcastId,
        reason: &StopReason,
    ) -> impl Future<Output = StoreResult<()>> + Send;

    /// Marks a broadcast as done: every part is finished and the total published.
    fn close(&self, broadcast: &BroadcastId) -> impl Future<Output = StoreResult<()>> + Send;

    /// Takes a part over: raises its epoch, which fences every earlier owner. A part that is done stays as it
    /// is.
    fn take_over(&self, part: &PartId) -> impl Future<Output = StoreResult<Progress>> + Send;

    /// Records a page, or the part's end, as one step. `progress` holds the owner's epoch and the new totals.
    fn checkpoint(
        &self,
        part: &PartId,
        progress: &Progress,
    ) -> impl Future<Output = StoreResult<Checkpoint>> + Send;

    /// Adds the part to the broadcast's finished ones, *then* reads how many there are.
    fn finish_part(&self, part: &PartId) -> impl Future<Output = StoreResult<u32>> + Send;

    /// How far a part is; `None` = it was never taken over. For the admin API: stages own the parts that they
    /// work on.
    fn progress(&self, part: &PartId) -> impl Future<Output = StoreResult<Option<Progress>>> + Send;

    /// The sum over all finished parts, and when it was first asked for: the same answer each time, once
    /// every part is finished.
    fn total(
        &self,
        broadcast: &BroadcastId,
        now: Timestamp,
    ) -> impl Future<Output = StoreResult<Total>> + Send;
}

/// The outcomes of a broadcast's messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Total {
    /// Over all providers and parts.
    pub counts: Counts,
    /// When it was first summed up.
    pub at: Timestamp,
}

/// The result of a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checkpoint {
    /// Written.
    Kept,
    /// Not written: the part has a later owner.
    Lost,
}

/// Regimens, the due queue, and the claims of doses.
pub trait Doses: Clone + Send + Sync + 'static {
    /// Writes a regimen, or its removal, unless a later version is there.
    fn put_regimen(
        &self,
        regimen: &RegimenId,
        definition: Option<&Regimen>,
        version: Version,
    ) -> impl Future<Output = StoreResult<()>> + Send;

    /// The current definition; `None` = unknown or removed.
    fn regimen(&self, regimen: &RegimenId) -> impl Future<Output = StoreResult<Option<Regimen>>> + Send;

    /// Regimens that are not removed, in an order of the store's own, after `after`: for the sweep.
    fn regimens(
        &self,
        after: Option<&RegimenId>,
        limit: usize,
    ) -> impl Future<Output = StoreResult<Vec<(RegimenId, Regimen)>>> + Send;

    /// Inserts a due row; the same row twice is one.
    fn insert_due(&self, shard: Shard, row: &DueRow) -> impl Future<Output = StoreResult<()>> + Send;

    /// Due rows after `after` up to and including `until`, by time and regimen; `past` is the last row of the
    /// previous page, if there was one.
    fn due_rows(
        &self,
        shard: Shard,
        after: Timestamp,
        until: Timestamp,
        past: Option<&DueRow>,
        limit: usize,
    ) -> impl Future<Output = StoreResult<Vec<DueRow>>> + Send;

    /// The watermarks of a shard. `init` writes them; missing ones are an error that names `pushcast init`.
    fn marks(&self, shard: Shard) -> impl Future<Output = StoreResult<Watermarks>> + Send;

    /// Writes both watermarks of every shard that has none.
    fn init_marks(&self, now: Timestamp) -> impl Future<Output = StoreResult<()>> + Send;

    /// Raises a watermark to `to`; one that is higher already stays.
    fn raise(
        &self,
        shard: Shard,
        mark: Watermark,
        to: Timestamp,
    ) -> impl Future<Output = StoreResult<()>> + Send;

    /// Claims a dose for one handling, or takes over a claim whose lease has ended; the owner's own claim is
    /// renewed.
    fn claim(
        &self,
        dose: &DoseKey,
        owner: &str,
        now: Timestamp,
        until: Timestamp,
    ) -> impl Future<Output = StoreResult<Claim>> + Send;

    /// The claim of a dose, and its outcome; `None` = it was never claimed. For the admin API, not for
    /// stages.
    fn claimed(&self, dose: &DoseKey) -> impl Future<Output = StoreResult<Option<Claimed>>> + Send;

    /// Records the outcome of a dose, if the claim is still the current one.
    fn mark(
        &self,
        dose: &DoseKey,
        lease: &Lease,
        mark: &DoseMark,
    ) -> impl Future<Output = StoreResult<Marked>> + Send;
}

/// One of the [`SHARDS`] of the due queue, chosen by a hash of the regimen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Shard(pub u16);

/// How many shards there are. Fixed: it is part of where a due row is stored.
pub const SHARDS: u16 = 64;

/// A shard's watermarks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watermarks {
    /// Some tick has begun to read up to here: a handler that inserts a row behind it dispatches that row
    /// itself.
    pub read: Timestamp,
    /// Every row up to here is dispatched.
    pub dispatched: Timestamp,
}

/// Names a watermark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watermark {
    /// [`Watermarks::read`].
    Read,
    /// [`Watermarks::dispatched`].
    Dispatched,
}

/// The right to send a dose's reminder for a while.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Random, one per handling: a process that freezes must not find its own claim again.
    pub owner: String,
    /// Counts claims and take-overs, from 1.
    pub attempt: i32,
    /// The last moment of the lease, by the owner's clock.
    pub until: Timestamp,
}

/// The result of a claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claim {
    /// Won, with this lease.
    Mine(Lease),
    /// Another owner's, until then.
    Held(Timestamp),
    /// Not claimed: the dose has its outcome already.
    Marked(DoseMark),
}

/// The outcome of a dose, for as long as the dose log is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DoseMark {
    /// Sent, missed, …: over all of its messages.
    pub outcome: DoseOutcome,
    /// The outcomes of its messages.
    pub counts: Counts,
    /// When the provider had answered.
    pub at: Timestamp,
}

/// A dose that was claimed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claimed {
    /// The current claim.
    pub lease: Lease,
    /// `None` = it has no outcome yet.
    pub mark: Option<DoseMark>,
}

/// The result of marking a dose with its outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Marked {
    /// The dose has an outcome.
    Kept,
    /// The claim was taken over before.
    Lost,
}

/// The state of the providers' routes.
pub trait Routes: Clone + Send + Sync + 'static {
    /// The state of a provider's route; running where none was ever written.
    fn route(&self, provider: ProviderId) -> impl Future<Output = StoreResult<RouteRow>> + Send;

    /// Overwrites the state of a provider's route.
    fn set_route(
        &self,
        provider: ProviderId,
        route: &RouteRow,
    ) -> impl Future<Output = StoreResult<()>> + Send;
}

/// The state of a provider's route, the same for every instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteRow {
    /// Whether it sends, and if not, why.
    pub state: RouteState,
    /// When it was set.
    pub since: Timestamp,
    /// The instance or the operator that set it.
    pub set_by: String,
    /// The reason, for the operator.
    pub detail: String,
}

/// Whether a route sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RouteState {
    /// Sends.
    Running,
    /// Sends, after an operator has reviewed a flood of dead tokens and accepted it. Verdicts written before
    /// that do not brake the route again.
    Released,
    /// An operator closed it.
    Paused,
    /// The provider refuses our credentials.
    Halted,
    /// Too many tokens were reported dead.
    Braked,
}

/// A whole store.
pub trait Store: Registry + Audience + Broadcasts + Doses + Routes {
    /// Succeeds if the store answers.
    fn ping(&self) -> impl Future<Output = StoreResult<()>> + Send;

    /// The driver's counters since the start; `None` = the store has no driver that counts.
    fn driver_counts(&self) -> Option<DriverCounts> {
        None
    }
}

/// The counters of a store's driver.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DriverCounts {
    /// Requests since the start.
    pub requests: u64,
    /// Failed requests.
    pub errors: u64,
    /// Attempts on another node after a failed one.
    pub retries: u64,
    /// Requests that exceeded their timeout.
    pub timeouts: u64,
    /// Connections that are open now.
    pub connections: u64,
    /// The 99th percentile of the requests' latency.
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

    /// All shards, ascending.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..SHARDS).map(Self)
    }
}

// === impl RouteRow ===

impl RouteRow {
    /// Whether an operator has accepted the flood of dead tokens that a verdict of this time is part of.
    pub fn lets_pass(&self, written_at: Timestamp) -> bool {
        self.state == RouteState::Released && written_at <= self.since
    }
}

// === impl RouteState ===

impl RouteState {
    /// Every state, in the order of declaration.
    pub const ALL: [Self; 5] = [Self::Running, Self::Released, Self::Paused, Self::Halted, Self::Braked];

    /// The name in the store, in metrics and in commands.
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

    /// The inverse of [`RouteState::label`].
    pub fn from_label(label: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.label() == label)
    }
}
