//! A store in memory that several processes share, with the steps of `store::cql` over its own rows: a
//! process that asks for a conditional write may never learn its result. And the defects that it can have,
//! one at a time.

mod ports;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use rand::prelude::*;
use scylla::errors::ExecutionError;
use tokio::time::{Instant, sleep};

use crate::{
    domain::{BroadcastState, Cursor, Progress, Registration, Timestamp},
    store::{
        Claimed, DoseMark, Lease, RouteRow, RouteState, StoreError,
        cql::{CasResult, claim, part},
    },
};

type StoreResult<T> = Result<T, StoreError>;

/// A defect of the protocol. Each is the right code over a store that does something else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Defect {
    None,
    /// A checkpoint does not ask for its epoch.
    EpochIgnored,
    /// As if the checkpoint came before the page is sent.
    CheckpointBeforePage,
    /// Pages end between two tokens of one position.
    PositionSplit,
    /// A checkpoint with an unknown result counts as kept.
    UnknownCheckpointIsKept,
    /// A checkpoint keeps the cursor, but not what is open before it.
    OpenTokensDropped,
    /// The process that loses the part settles its record.
    LostPartIsSettled,
    /// As if the finished parts were read before the part's own number is added.
    FinishedReadFirst,
    /// As if the broadcast were closed before its total is published.
    ClosedBeforeTotal,
    /// Counts are kept beside the checkpoint.
    CountsBesideCheckpoint,
    /// The owner of a claim is the process, not the handling.
    OwnerIsTheProcess,
    /// Requests start whatever the lease says.
    NoDeadline,
    /// Requests start until the lease can just outlast them.
    NoMargin,
    /// A claim with an unknown result counts as won.
    UnknownClaimIsWon,
    /// The lease of another handling counts as over.
    LeaseNotAwaited,
    /// A mark with an unknown result counts as kept.
    MarkTriedOnce,
}

/// The state that all processes share.
pub struct Cluster {
    pub rng: StdRng,
    /// The probability that a conditional write is not answered.
    unanswered: f64,
    started_at: Instant,
    /// The tokens of each part, by position.
    pub audiences: Vec<Vec<(Cursor, Registration)>>,
    pub devices: Vec<Registration>,
    parts: BTreeMap<u32, CasRow<Progress>>,
    finished: BTreeSet<u32>,
    pub state: BroadcastState,
    total_at: Option<Timestamp>,
    /// What [`Defect::CountsBesideCheckpoint`] counts.
    counted_beside: u64,
    dose: CasRow<Claimed>,
    pub route: RouteRow,
    /// The probability that the route's row can't be read or written, which the process learns only after a
    /// while.
    route_unavailable: f64,
    /// The probability that Kafka takes nothing, which the process learns only after a while.
    kafka_unavailable: f64,
    /// How many marks took longer than the margin of a lease allows.
    pub slow_marks: usize,
    outcomes: Vec<String>,
}

/// The cluster as one process sees it: its store and its producer.
#[derive(Clone)]
pub struct ClusterClient {
    pub cluster: Arc<Mutex<Cluster>>,
    pub defect: Defect,
    pub process: usize,
    /// How far the clock of this process is ahead.
    pub clock_ahead: Duration,
    /// The parts that this process has lost.
    pub lost: Arc<Mutex<BTreeSet<u32>>>,
}

/// A row that only conditional writes change. A write that is not answered has been applied, or never will
/// be, or is pending: the next read applies it or discards it.
struct CasRow<T> {
    value: Option<T>,
    pending: Option<T>,
}

// === impl Cluster ===

impl Cluster {
    pub fn new(mut rng: StdRng) -> Self {
        let unanswered = *[0.0, 0.05, 0.2].choose(&mut rng).unwrap();
        let route_unavailable = *[0.0, 0.0, 0.3, 0.8].choose(&mut rng).unwrap();
        let kafka_unavailable = *[0.0, 0.3].choose(&mut rng).unwrap();
        let running = RouteRow {
            state: RouteState::Running,
            since: Timestamp::UNIX_EPOCH,
            set_by: String::new(),
            detail: String::new(),
        };
        Self {
            rng,
            unanswered,
            route: running,
            route_unavailable,
            kafka_unavailable,
            started_at: Instant::now(),
            audiences: Vec::new(),
            devices: Vec::new(),
            parts: BTreeMap::new(),
            finished: BTreeSet::new(),
            state: BroadcastState::Planned,
            total_at: None,
            counted_beside: 0,
            dose: CasRow::default(),
            slow_marks: 0,
            outcomes: Vec::new(),
        }
    }

    /// The progress row of a part.
    pub fn progress(&mut self, part: u32) -> Option<Progress> {
        self.parts.get_mut(&part)?.read(&mut self.rng)
    }

    /// The mark of the dose.
    pub fn mark(&mut self) -> Option<DoseMark> {
        self.dose.read(&mut self.rng)?.mark
    }

    /// The values that were published to `push-outcomes`.
    pub fn outcomes(&self) -> &[String] {
        &self.outcomes
    }
}

// === impl CasRow ===

impl<T> Default for CasRow<T> {
    fn default() -> Self {
        Self { value: None, pending: None }
    }
}

impl<T: Clone> CasRow<T> {
    fn read(&mut self, rng: &mut StdRng) -> Option<T> {
        if let Some(pending) = self.pending.take()
            && rng.random_bool(0.7)
        {
            self.value = Some(pending);
        }
        self.value.clone()
    }

    fn write_if(
        &mut self,
        rng: &mut StdRng,
        unanswered: f64,
        condition: impl FnOnce(Option<&T>) -> bool,
        new: T,
    ) -> CasResult {
        let current = self.read(rng);
        let is_unanswered = rng.random_bool(unanswered);
        if condition(current.as_ref()) {
            match rng.random_range(0..3) {
                _ if !is_unanswered => self.value = Some(new),
                0 => self.value = Some(new),
                1 => self.pending = Some(new),
                _ => {}
            }
            if is_unanswered { unknown() } else { CasResult::Applied }
        } else if is_unanswered {
            unknown()
        } else {
            CasResult::Refused
        }
    }
}

fn unknown() -> CasResult {
    CasResult::Unknown(Box::new(ExecutionError::RequestTimeout(Duration::from_secs(5))))
}

// === impl ClusterClient ===

impl ClusterClient {
    fn cluster(&self) -> MutexGuard<'_, Cluster> {
        self.cluster.lock().unwrap()
    }

    /// Runs `operation` on the cluster; the request and the answer take some time each.
    async fn call<T>(&self, operation: impl FnOnce(&mut Cluster) -> T) -> T {
        let (request_takes, answer_takes) = self.latency();
        sleep(request_takes).await;
        let answer = operation(&mut self.cluster());
        sleep(answer_takes).await;
        answer
    }

    fn latency(&self) -> (Duration, Duration) {
        let rng = &mut self.cluster().rng;
        let takes =
            if rng.random_bool(0.8) { rng.random_range(0.01..1.0) } else { rng.random_range(1.0..2.2) };
        let request_takes = rng.random_range(0.0..takes);
        (Duration::from_secs_f64(request_takes), Duration::from_secs_f64(takes - request_takes))
    }

    /// Fails with that probability, after a while.
    async fn may_fail(&self, probability: impl FnOnce(&Cluster) -> f64) -> StoreResult<()> {
        let silence = {
            let mut cluster = self.cluster();
            let probability = probability(&cluster);
            cluster
                .rng
                .random_bool(probability)
                .then(|| Duration::from_secs_f64(cluster.rng.random_range(1.0..30.0)))
        };
        let Some(silence) = silence else { return Ok(()) };
        sleep(silence).await;
        Err(StoreError::unavailable("call the cluster", "no answer"))
    }

    /// What the clock of this process shows.
    fn now(&self) -> Timestamp {
        Timestamp::UNIX_EPOCH + self.cluster().started_at.elapsed() + self.clock_ahead
    }

    /// What the clock of the machine that runs the tests shows when the clock of this process shows `at`.
    fn on_the_test_clock(&self, at: Timestamp) -> Timestamp {
        Timestamp::now() + at.duration_since(self.now())
    }

    fn lost(&self) -> MutexGuard<'_, BTreeSet<u32>> {
        self.lost.lock().unwrap()
    }

    fn has(&self, defect: Defect) -> bool {
        self.defect == defect
    }
}

/// The row of one part.
struct PartRow<'a>(&'a ClusterClient, u32);

impl PartRow<'_> {
    async fn write_if(&self, condition: impl FnOnce(Option<&Progress>) -> bool, new: Progress) -> CasResult {
        let write = |cluster: &mut Cluster| {
            let row = cluster.parts.entry(self.1).or_default();
            row.write_if(&mut cluster.rng, cluster.unanswered, condition, new)
        };
        self.0.call(write).await
    }
}

impl part::PartCells for PartRow<'_> {
    async fn now(&self) -> StoreResult<Option<Progress>> {
        Ok(self.0.call(|cluster| cluster.progress(self.1)).await)
    }

    async fn begin(&self) -> StoreResult<CasResult> {
        Ok(self.write_if(|row| row.is_none(), Progress { epoch: 1, ..Progress::default() }).await)
    }

    async fn raise(&self, found: &Progress) -> StoreResult<CasResult> {
        let raised = Progress { epoch: found.epoch + 1, ..found.clone() };
        Ok(self.write_if(|row| row == Some(found), raised).await)
    }

    async fn record(&self, progress: &Progress) -> StoreResult<CasResult> {
        let mut new = progress.clone();
        let any_epoch = self.0.has(Defect::EpochIgnored);
        if self.0.has(Defect::OpenTokensDropped) {
            new.open.clear();
        }
        let before = self
            .0
            .cluster()
            .parts
            .get(&self.1)
            .and_then(|row| row.value.as_ref())
            .map_or(0, |row| row.counts.total());
        self.0.cluster().counted_beside += new.counts.total().saturating_sub(before);
        let condition = |row: Option<&Progress>| {
            row.is_some_and(|row| {
                let epoch = if any_epoch { progress.epoch } else { row.epoch };
                part::follows(&Progress { epoch, ..row.clone() }, progress)
            })
        };
        Ok(match self.write_if(condition, new).await {
            CasResult::Unknown(_) if self.0.has(Defect::UnknownCheckpointIsKept) => CasResult::Applied,
            result => result,
        })
    }
}

/// The row of the dose.
struct DoseRow<'a>(&'a ClusterClient);

impl DoseRow<'_> {
    async fn write_if(&self, condition: impl FnOnce(Option<&Claimed>) -> bool, new: Claimed) -> CasResult {
        let write = |cluster: &mut Cluster| {
            cluster.dose.write_if(&mut cluster.rng, cluster.unanswered, condition, new)
        };
        self.0.call(write).await
    }

    fn claim_result(&self, result: CasResult) -> CasResult {
        match result {
            CasResult::Unknown(_) if self.0.has(Defect::UnknownClaimIsWon) => CasResult::Applied,
            result => result,
        }
    }
}

/// The condition that this lease is the current one, and the dose is not marked.
fn holds(lease: &Lease) -> impl FnOnce(Option<&Claimed>) -> bool {
    let owner = lease.owner.clone();
    let attempt = lease.attempt;
    move |row| {
        row.is_some_and(|row| {
            row.mark.is_none() && (&row.lease.owner, row.lease.attempt) == (&owner, attempt)
        })
    }
}

impl claim::DoseCells for DoseRow<'_> {
    async fn now(&self) -> StoreResult<Option<Claimed>> {
        Ok(self.0.call(|cluster| cluster.dose.read(&mut cluster.rng)).await)
    }

    async fn begin(&self, lease: &Lease, _: Timestamp) -> StoreResult<CasResult> {
        let result = self.write_if(|row| row.is_none(), Claimed { lease: lease.clone(), mark: None }).await;
        Ok(self.claim_result(result))
    }

    async fn take(&self, was: &Lease, lease: &Lease) -> StoreResult<CasResult> {
        let result = self.write_if(holds(was), Claimed { lease: lease.clone(), mark: None }).await;
        Ok(self.claim_result(result))
    }

    async fn mark(&self, lease: &Lease, mark: &DoseMark) -> StoreResult<CasResult> {
        let marked = Claimed { lease: lease.clone(), mark: Some(mark.clone()) };
        Ok(match self.write_if(holds(lease), marked).await {
            CasResult::Unknown(_) if self.0.has(Defect::MarkTriedOnce) => CasResult::Applied,
            result => result,
        })
    }
}
