//! A store in memory that several processes share, with the steps of `store::cql` over rows of its own:
//! whoever asks for a conditional write may never hear what became of it. And what is wrong with it, one
//! thing at a time.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use consumer::{Message, Publish, PublishError, Unavailable};
use rand::prelude::*;
use scylla::errors::ExecutionError;
use tokio::time::{Instant, sleep};

use crate::{
    domain::{
        BroadcastId, BroadcastState, Counts, Cursor, DoseKey, DueRow, Judged, Listeners, PartId, Plan,
        Progress, ProviderId, Regimen, RegimenId, Registration, Slice, StopReason, Timestamp, Token,
        TokenChange, TokenHash, UserId, Version,
    },
    events::topics,
    stages::delivery::reminder,
    store::{
        Audience, Broadcasts, Census, Checkpoint, Claim, Claimed, DoseMark, Doses, Lease, Marked, Page,
        Registry, RouteRow, RouteState, Routes, Shard, Store, StoreError, TokenRow, Total, Watermark,
        Watermarks,
        cql::{CasResult, claim, part},
    },
};

type StoreResult<T> = Result<T, StoreError>;

/// What is wrong with the protocol. Each is the right code over a store that does something else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    Nothing,
    /// A checkpoint asks for no epoch.
    EpochIgnored,
    /// As if the checkpoint came before the page is sent.
    CheckpointFirst,
    /// Pages end between two tokens of one position.
    PositionsCut,
    /// A checkpoint that nobody knows of counts as done.
    UnknownIsKept,
    /// A checkpoint keeps the cursor, and not what is open before it.
    OpenForgotten,
    /// Whoever loses the part settles its record.
    LostIsSettled,
    /// As if the finished parts were read before the own one is added.
    FinishedReadFirst,
    /// As if the broadcast were closed before its total is published.
    ClosedFirst,
    /// Counts are kept beside the checkpoint.
    CountedBeside,
    /// The owner of a claim is the process, not the handling.
    OwnerIsTheProcess,
    /// Requests start whatever the lease says.
    NoDeadline,
    /// Requests start until the lease can just outlast them.
    NoMargin,
    /// A claim that nobody knows of counts as won.
    UnknownIsWon,
    /// A foreign lease counts as over.
    LeaseNotAwaited,
    /// A mark that nobody knows of counts as kept.
    MarkedOnce,
}

/// How long a mark may take, read back and repeated, for the margin of a lease to hold.
const MARK_WITHIN: Duration = Duration::from_secs(9);

/// What all processes see.
pub struct Cluster {
    pub dice: StdRng,
    /// How often a conditional write is not answered.
    unknown: f64,
    begun: Instant,
    /// The tokens of each part, by position.
    pub audiences: Vec<Vec<(Cursor, Registration)>>,
    pub devices: Vec<Registration>,
    parts: BTreeMap<u32, Row<Progress>>,
    finished: BTreeSet<u32>,
    pub state: BroadcastState,
    total_at: Option<Timestamp>,
    counted_beside: u64,
    dose: Row<Claimed>,
    pub route: RouteRow,
    /// How often the row of the route can't be read or written, and nobody says so for a while.
    route_away: f64,
    /// How often Kafka takes nothing, and nobody says so for a while.
    kafka_away: f64,
    /// Watermarks that took longer than the margin allows.
    pub slow_marks: usize,
    outcomes: Vec<String>,
}

/// The cluster as one process sees it.
#[derive(Clone)]
pub struct Seat {
    pub cluster: Arc<Mutex<Cluster>>,
    pub broken: Broken,
    pub process: usize,
    /// How far its clock is ahead.
    pub ahead: Duration,
    /// The parts that it has lost.
    pub lost: Arc<Mutex<BTreeSet<u32>>>,
}

/// A row that conditional writes change. One that is not answered was done, or never will be, or is half-way:
/// the next look does it or undoes it.
struct Row<T> {
    stands: Option<T>,
    half_way: Option<T>,
}

// === impl Cluster ===

impl Cluster {
    pub fn new(mut dice: StdRng) -> Self {
        let unknown = *[0.0, 0.05, 0.2].choose(&mut dice).unwrap();
        let route_away = *[0.0, 0.0, 0.3, 0.8].choose(&mut dice).unwrap();
        let kafka_away = *[0.0, 0.3].choose(&mut dice).unwrap();
        let running = RouteRow {
            state: RouteState::Running,
            since: Timestamp::UNIX_EPOCH,
            set_by: String::new(),
            detail: String::new(),
        };
        Self {
            dice,
            unknown,
            route: running,
            route_away,
            kafka_away,
            begun: Instant::now(),
            audiences: Vec::new(),
            devices: Vec::new(),
            parts: BTreeMap::new(),
            finished: BTreeSet::new(),
            state: BroadcastState::Planned,
            total_at: None,
            counted_beside: 0,
            dose: Row { stands: None, half_way: None },
            slow_marks: 0,
            outcomes: Vec::new(),
        }
    }

    /// What the progress row of a part says in the end.
    pub fn progress(&mut self, part: u32) -> Option<Progress> {
        let row = self.parts.get_mut(&part)?;
        row.now(&mut self.dice)
    }

    /// The mark that the dose has in the end.
    pub fn mark(&mut self) -> Option<DoseMark> {
        self.dose.now(&mut self.dice)?.mark
    }

    /// What was published of the end of things.
    pub fn outcomes(&self) -> &[String] {
        &self.outcomes
    }
}

// === impl Row ===

impl<T: Clone> Row<T> {
    fn now(&mut self, dice: &mut StdRng) -> Option<T> {
        if let Some(half_way) = self.half_way.take()
            && dice.random_bool(0.7)
        {
            self.stands = Some(half_way);
        }
        self.stands.clone()
    }

    fn decide(
        &mut self,
        dice: &mut StdRng,
        unknown: f64,
        condition: impl FnOnce(Option<&T>) -> bool,
        new: T,
    ) -> CasResult {
        let stands = self.now(dice);
        let lost = dice.random_bool(unknown);
        if condition(stands.as_ref()) {
            match dice.random_range(0..3) {
                _ if !lost => self.stands = Some(new),
                0 => self.stands = Some(new),
                1 => self.half_way = Some(new),
                _ => {}
            }
            if lost { unanswered() } else { CasResult::Applied }
        } else if lost {
            unanswered()
        } else {
            CasResult::Refused
        }
    }
}

fn unanswered() -> CasResult {
    CasResult::Unknown(Box::new(ExecutionError::RequestTimeout(Duration::from_secs(5))))
}

// === impl Seat ===

impl Seat {
    pub fn cluster(&self) -> MutexGuard<'_, Cluster> {
        self.cluster.lock().unwrap()
    }

    /// Asks for something, and is answered, after some time each.
    async fn ask<T>(&self, question: impl FnOnce(&mut Cluster) -> T) -> T {
        let (there, back) = {
            let dice = &mut self.cluster().dice;
            let takes = if dice.random_bool(0.8) {
                dice.random_range(0.01..1.0)
            } else {
                dice.random_range(1.0..2.2)
            };
            let there = dice.random_range(0.0..takes);
            (there, takes - there)
        };
        sleep(Duration::from_secs_f64(there)).await;
        let answer = question(&mut self.cluster());
        sleep(Duration::from_secs_f64(back)).await;
        answer
    }

    /// Whether those who are away so often answer this time.
    async fn answers_at_all(&self, away: impl FnOnce(&Cluster) -> f64) -> StoreResult<()> {
        let silence = {
            let mut cluster = self.cluster();
            let away = away(&cluster);
            cluster
                .dice
                .random_bool(away)
                .then(|| Duration::from_secs_f64(cluster.dice.random_range(1.0..30.0)))
        };
        let Some(silence) = silence else { return Ok(()) };
        sleep(silence).await;
        Err(StoreError::unavailable("ask", "no answer"))
    }

    /// Its own clock.
    fn now(&self) -> Timestamp {
        Timestamp::UNIX_EPOCH + self.cluster().begun.elapsed() + self.ahead
    }

    /// What its clock will show then, on the clock of this machine.
    fn on_the_wall(&self, at: Timestamp) -> Timestamp {
        Timestamp::now() + at.duration_since(self.now())
    }

    fn lost(&self) -> MutexGuard<'_, BTreeSet<u32>> {
        self.lost.lock().unwrap()
    }

    fn is(&self, broken: Broken) -> bool {
        self.broken == broken
    }
}

/// The row of one part.
struct PartRow<'a>(&'a Seat, u32);

impl PartRow<'_> {
    async fn decide(&self, condition: impl FnOnce(Option<&Progress>) -> bool, new: Progress) -> CasResult {
        let decide = |cluster: &mut Cluster| {
            let row = cluster.parts.entry(self.1).or_insert(Row { stands: None, half_way: None });
            row.decide(&mut cluster.dice, cluster.unknown, condition, new)
        };
        self.0.ask(decide).await
    }
}

impl part::PartCells for PartRow<'_> {
    async fn now(&self) -> StoreResult<Option<Progress>> {
        let read = |cluster: &mut Cluster| cluster.parts.get_mut(&self.1)?.now(&mut cluster.dice);
        Ok(self.0.ask(read).await)
    }

    async fn begin(&self) -> StoreResult<CasResult> {
        Ok(self.decide(|row| row.is_none(), Progress { epoch: 1, ..Progress::default() }).await)
    }

    async fn raise(&self, found: &Progress) -> StoreResult<CasResult> {
        let raised = Progress { epoch: found.epoch + 1, ..found.clone() };
        Ok(self.decide(|row| row == Some(found), raised).await)
    }

    async fn record(&self, progress: &Progress) -> StoreResult<CasResult> {
        let mut new = progress.clone();
        let any_epoch = self.0.is(Broken::EpochIgnored);
        if self.0.is(Broken::OpenForgotten) {
            new.open.clear();
        }
        let before = self
            .0
            .cluster()
            .parts
            .get(&self.1)
            .and_then(|row| row.stands.as_ref())
            .map_or(0, |row| row.counts.total());
        self.0.cluster().counted_beside += new.counts.total().saturating_sub(before);
        let condition = |row: Option<&Progress>| {
            row.is_some_and(|row| {
                let epoch = if any_epoch { progress.epoch } else { row.epoch };
                part::follows(&Progress { epoch, ..row.clone() }, progress)
            })
        };
        Ok(match self.decide(condition, new).await {
            CasResult::Unknown(_) if self.0.is(Broken::UnknownIsKept) => CasResult::Applied,
            decided => decided,
        })
    }
}

/// The row of the dose.
struct DoseRow<'a>(&'a Seat);

impl DoseRow<'_> {
    async fn decide(&self, condition: impl FnOnce(Option<&Claimed>) -> bool, new: Claimed) -> CasResult {
        self.0.ask(|cluster| cluster.dose.decide(&mut cluster.dice, cluster.unknown, condition, new)).await
    }

    fn claimed(&self, decided: CasResult) -> CasResult {
        match decided {
            CasResult::Unknown(_) if self.0.is(Broken::UnknownIsWon) => CasResult::Applied,
            decided => decided,
        }
    }
}

fn stands(lease: &Lease) -> impl FnOnce(Option<&Claimed>) -> bool {
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
        Ok(self.0.ask(|cluster| cluster.dose.now(&mut cluster.dice)).await)
    }

    async fn begin(&self, lease: &Lease, _: Timestamp) -> StoreResult<CasResult> {
        let decided = self.decide(|row| row.is_none(), Claimed { lease: lease.clone(), mark: None }).await;
        Ok(self.claimed(decided))
    }

    async fn take(&self, was: &Lease, lease: &Lease) -> StoreResult<CasResult> {
        let decided = self.decide(stands(was), Claimed { lease: lease.clone(), mark: None }).await;
        Ok(self.claimed(decided))
    }

    async fn mark(&self, lease: &Lease, mark: &DoseMark) -> StoreResult<CasResult> {
        Ok(
            match self.decide(stands(lease), Claimed { lease: lease.clone(), mark: Some(mark.clone()) }).await
            {
                CasResult::Unknown(_) if self.0.is(Broken::MarkedOnce) => CasResult::Applied,
                decided => decided,
            },
        )
    }
}

impl Broadcasts for Seat {
    async fn plan(&self, _: &BroadcastId, _: &Plan, _: Timestamp) -> StoreResult<Plan> {
        unreachable!("delivery plans nothing")
    }

    async fn broadcast(&self, _: &BroadcastId) -> StoreResult<(Option<Plan>, Option<BroadcastState>)> {
        let read = |cluster: &mut Cluster| {
            let parts = u32::try_from(cluster.audiences.len()).unwrap();
            (Some(Plan { spec: String::new(), parts }), Some(cluster.state.clone()))
        };
        Ok(self.ask(read).await)
    }

    async fn stop(&self, _: &BroadcastId, _: &StopReason) -> StoreResult<()> {
        unreachable!("nobody stops it")
    }

    async fn close(&self, _: &BroadcastId) -> StoreResult<()> {
        self.ask(|cluster| cluster.state = BroadcastState::Done).await;
        Ok(())
    }

    async fn take_over(&self, part: &PartId) -> StoreResult<Progress> {
        if self.lost().contains(&part.part) {
            return Ok(Progress { done: true, ..Progress::default() });
        }
        part::take_over(&PartRow(self, part.part), "take a part over").await
    }

    async fn checkpoint(&self, part: &PartId, progress: &Progress) -> StoreResult<Checkpoint> {
        let checkpoint =
            part::checkpoint(&PartRow(self, part.part), progress, "record a part's progress").await?;
        if checkpoint == Checkpoint::Lost && self.is(Broken::LostIsSettled) {
            self.lost().insert(part.part);
        }
        Ok(checkpoint)
    }

    async fn finish_part(&self, part: &PartId) -> StoreResult<u32> {
        if self.lost().remove(&part.part) {
            return Ok(0);
        }
        let early = self.ask(|cluster| cluster.finished.len()).await;
        self.ask(|cluster| cluster.finished.insert(part.part)).await;
        let finished = self.ask(|cluster| cluster.finished.len()).await;
        Ok(u32::try_from(if self.is(Broken::FinishedReadFirst) { early } else { finished }).unwrap())
    }

    async fn progress(&self, _: &PartId) -> StoreResult<Option<Progress>> {
        unreachable!("delivery does not look")
    }

    async fn total(&self, _: &BroadcastId, now: Timestamp) -> StoreResult<Total> {
        let first_closed = self.is(Broken::ClosedFirst);
        let beside = self.is(Broken::CountedBeside);
        let sum = |cluster: &mut Cluster| {
            if first_closed {
                cluster.state = BroadcastState::Done;
            }
            let mut counts = Counts::default();
            cluster.parts.values().filter_map(|row| row.stands.as_ref()).for_each(|row| counts += row.counts);
            if beside {
                counts = Counts { sent: cluster.counted_beside, ..Counts::default() };
            }
            Total { counts, at: *cluster.total_at.get_or_insert(now) }
        };
        Ok(self.ask(sum).await)
    }
}

impl Audience for Seat {
    async fn page_of_slice(
        &self,
        _: ProviderId,
        slice: Slice,
        _: &Listeners,
        after: Option<Cursor>,
        limit: usize,
    ) -> StoreResult<Page> {
        let cut = self.is(Broken::PositionsCut);
        let checkpoint_first = self.is(Broken::CheckpointFirst);
        let read = |cluster: &mut Cluster| {
            let audience = &cluster.audiences[slice.index as usize];
            let rest = audience.iter().filter(|(position, _)| after.is_none_or(|after| *position > after));
            let rest: Vec<(Cursor, Registration)> = rest.cloned().collect();
            let last = rest.get(limit - 1).map(|(position, _)| *position);
            let len = if cut {
                limit.min(rest.len())
            } else {
                rest.partition_point(|(position, _)| last.is_none_or(|last| *position <= last))
            };
            let end = rest[..len].last().map(|(position, _)| *position).or(after).unwrap_or(Cursor(0));
            if let Some(Row { stands: Some(row), .. }) =
                cluster.parts.get_mut(&slice.index).filter(|_| checkpoint_first)
            {
                row.cursor = row.cursor.max(Some(end));
            }
            let is_last = len == rest.len();
            let (positions, recipients) = rest
                .into_iter()
                .take(len)
                .map(|(position, registration)| (position, registration.into()))
                .unzip();
            Page { recipients, positions, end, last: is_last }
        };
        Ok(self.ask(read).await)
    }
}

impl Doses for Seat {
    async fn claim(&self, _: &DoseKey, owner: &str, now: Timestamp, until: Timestamp) -> StoreResult<Claim> {
        let begun = self.now();
        let lease = until.duration_since(now);
        let until = begun + lease;
        let process = format!("process {}", self.process);
        let owner = if self.is(Broken::OwnerIsTheProcess) { &process } else { owner };
        let now = if self.is(Broken::LeaseNotAwaited) { until + lease } else { begun };
        let more = match self.broken {
            Broken::NoDeadline => Duration::from_secs(60 * 60),
            Broken::NoMargin => reminder::MARGIN,
            _ => Duration::ZERO,
        };
        Ok(match claim::claim(&DoseRow(self), owner, now, until, "claim a dose").await? {
            Claim::Mine(lease) => Claim::Mine(Lease { until: self.on_the_wall(lease.until) + more, ..lease }),
            Claim::Held(until) => Claim::Held(self.on_the_wall(until)),
            marked @ Claim::Marked(_) => marked,
        })
    }

    async fn claimed(&self, _: &DoseKey) -> StoreResult<Option<Claimed>> {
        unreachable!("delivery does not look")
    }

    async fn mark(&self, _: &DoseKey, lease: &Lease, mark: &DoseMark) -> StoreResult<Marked> {
        let begun = Instant::now();
        let marked = claim::mark(&DoseRow(self), lease, mark, "mark a dose").await;
        self.cluster().slow_marks += usize::from(begun.elapsed() > MARK_WITHIN);
        marked
    }

    async fn put_regimen(&self, _: &RegimenId, _: Option<&Regimen>, _: Version) -> StoreResult<()> {
        unreachable!("delivery knows no regimen")
    }

    async fn regimen(&self, _: &RegimenId) -> StoreResult<Option<Regimen>> {
        unreachable!("delivery knows no regimen")
    }

    async fn regimens(&self, _: Option<&RegimenId>, _: usize) -> StoreResult<Vec<(RegimenId, Regimen)>> {
        unreachable!("delivery knows no regimen")
    }

    async fn insert_due(&self, _: Shard, _: &DueRow) -> StoreResult<()> {
        unreachable!("delivery knows no due row")
    }

    async fn due_rows(
        &self,
        _: Shard,
        _: Timestamp,
        _: Timestamp,
        _: Option<&DueRow>,
        _: usize,
    ) -> StoreResult<Vec<DueRow>> {
        unreachable!("delivery knows no due row")
    }

    async fn marks(&self, _: Shard) -> StoreResult<Watermarks> {
        unreachable!("delivery knows no shard")
    }

    async fn init_marks(&self, _: Timestamp) -> StoreResult<()> {
        unreachable!("delivery knows no shard")
    }

    async fn raise(&self, _: Shard, _: Watermark, _: Timestamp) -> StoreResult<()> {
        unreachable!("delivery knows no shard")
    }
}

impl Registry for Seat {
    async fn tokens_of(&self, _: &UserId) -> StoreResult<Vec<Registration>> {
        Ok(self.ask(|cluster| cluster.devices.clone()).await)
    }

    async fn apply(&self, _: &TokenChange, _: Version) -> StoreResult<()> {
        unreachable!("delivery applies nothing")
    }

    async fn revoke(&self, _: &Token, _: Judged, _: &str) -> StoreResult<bool> {
        unreachable!("delivery revokes nothing")
    }

    async fn inspect(&self, token: &Token) -> StoreResult<Option<TokenRow>> {
        let row = |cluster: &mut Cluster| {
            let found = cluster
                .audiences
                .iter()
                .flatten()
                .find(|(_, registration)| registration.token == *token)?
                .1
                .clone();
            let token = found.token.clone();
            let version = found.version;
            Some(TokenRow {
                token,
                version,
                registration: Some(found),
                reason: None,
                created_at: None,
                seen_at: None,
            })
        };
        Ok(self.ask(row).await)
    }

    async fn inspect_hash(&self, _: TokenHash) -> StoreResult<Option<TokenRow>> {
        unreachable!("delivery inspects nothing")
    }

    async fn census(&self) -> StoreResult<Vec<Census>> {
        unreachable!("delivery counts nobody")
    }
}

impl Routes for Seat {
    async fn route(&self, _: ProviderId) -> StoreResult<RouteRow> {
        self.answers_at_all(|cluster| cluster.route_away).await?;
        Ok(self.ask(|cluster| cluster.route.clone()).await)
    }

    async fn set_route(&self, _: ProviderId, route: &RouteRow) -> StoreResult<()> {
        self.answers_at_all(|cluster| cluster.route_away).await?;
        self.ask(|cluster| cluster.route = route.clone()).await;
        Ok(())
    }
}

impl Store for Seat {
    async fn ping(&self) -> StoreResult<()> {
        unreachable!("delivery listens to no pulse")
    }
}

impl Publish for Seat {
    async fn publish(&self, message: Message) -> Result<(), PublishError> {
        if let Err(away) = self.answers_at_all(|cluster| cluster.kafka_away).await {
            return Err(Unavailable::kafka("publishing", away).into());
        }
        let keep = |cluster: &mut Cluster| {
            if message.topic == topics::PUSH_OUTCOMES {
                cluster.outcomes.push(String::from_utf8(message.value.unwrap_or_default()).unwrap());
            }
        };
        self.ask(keep).await;
        Ok(())
    }
}
