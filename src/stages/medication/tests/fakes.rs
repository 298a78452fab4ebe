//! A store and a producer in memory, with random latency, and with defects in what the chain of due rows
//! relies on.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::poll_fn,
    sync::{Arc, Mutex, MutexGuard},
    task::Poll,
    time::Duration,
};

use consumer::{Message, Publish, PublishError};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

use crate::{
    domain::{
        DoseKey, DueRow, Judged, Regimen, RegimenId, Registration, Timestamp, Token, TokenChange, TokenHash,
        UserId, Version,
    },
    store::{
        Census, Claim, Claimed, DoseMark, Doses, Lease, Marked, Registry, Shard, StoreError, TokenRow,
        Watermark, Watermarks,
    },
};

type StoreResult<T> = Result<T, StoreError>;

/// A defect of the store. Each stands for an order of steps that the chain must not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Defect {
    /// As if a tick raised the read watermark after it has read the rows.
    ReadRaisedAfterTheRows,
    /// As if the read watermark were read before the row is inserted.
    RowsVisibleLate,
    /// As if a tick raised the dispatched watermark before its work.
    DispatchedRaisedBeforeTheWork,
    /// As if there were no read watermark, and the process that inserts a row went by the dispatched one and
    /// how far a tick may be ahead of that.
    SlackInsteadOfRead,
    /// As if the process that inserts a row left it to the ticks, whatever they have read.
    InsertedRowIsLeft,
    /// As if the first due row were inserted before its definition.
    DefinitionsVisibleLate,
    /// As if a tick went beyond the clock. The schedule does this one, not the store.
    TicksBeyondTheClock,
}

/// How far a tick may be ahead of the dispatched watermark, for [`Defect::SlackInsteadOfRead`].
const SLACK: Duration = Duration::from_secs(3 * 60);
/// After how many operations, of all tasks, a late effect becomes visible.
const OPERATIONS_LATE: u32 = 8;

/// The store and the producer of the stage, in one state: so a schedule orders the operations on both.
#[derive(Clone, Default)]
pub struct FakeBackend {
    state: Arc<Mutex<BackendState>>,
    /// Decides how long every operation takes; none = no time at all.
    latency: Option<Arc<Mutex<StdRng>>>,
    defect: Option<Defect>,
}

#[derive(Default)]
struct BackendState {
    regimens: BTreeMap<RegimenId, (Version, Option<Regimen>)>,
    due: BTreeMap<(Shard, Timestamp, RegimenId), Option<String>>,
    /// Due rows that are acknowledged but can't be read yet, and for how many operations.
    late_rows: Vec<(u32, Shard, DueRow)>,
    marks: BTreeMap<Shard, Watermarks>,
    /// Read watermarks that are acknowledged but not raised yet, likewise.
    late_reads: Vec<(u32, Shard, Timestamp)>,
    /// Definitions that are acknowledged but can't be read yet, likewise.
    late_definitions: Vec<(u32, RegimenId, Option<Regimen>, Version)>,
    registrations: BTreeMap<UserId, Vec<Registration>>,
    published: Vec<Message>,
    /// The keys of everything that was ever published.
    all_keys: BTreeSet<Vec<u8>>,
}

impl FakeBackend {
    pub fn with_latency(seed: u64, defect: Option<Defect>) -> Self {
        let latency = Some(Arc::new(Mutex::new(StdRng::seed_from_u64(seed))));
        Self { latency, defect, ..Self::default() }
    }

    pub fn register(&self, user: &str, token: &str) {
        let user = UserId::new(user);
        let registration = Registration {
            token: Token::parse(token).unwrap(),
            version: Version::from_i64(2),
            user: Some(user.clone()),
            platform: None,
            device: None,
            device_info: None,
        };
        self.state().registrations.entry(user).or_default().push(registration);
    }

    pub fn remove_tokens_of(&self, user: &str) {
        self.state().registrations.remove(&UserId::new(user));
    }

    pub fn remove_due_rows(&self) {
        self.state().due.clear();
    }

    pub fn due(&self, regimen: &RegimenId) -> Vec<DueRow> {
        let shard = Shard::of(regimen);
        let state = self.state();
        let rows = state.due.iter().filter(|((of, _, id), _)| *of == shard && id == regimen);
        rows.map(|((_, due_at, id), payload)| DueRow {
            due_at: *due_at,
            regimen: id.clone(),
            payload: payload.clone(),
        })
        .collect()
    }

    /// What was published since the last call.
    pub fn published(&self) -> Vec<Message> {
        std::mem::take(&mut self.state().published)
    }

    /// The keys of everything that was ever published.
    pub fn keys(&self) -> BTreeSet<Vec<u8>> {
        self.state().all_keys.clone()
    }

    fn state(&self) -> MutexGuard<'_, BackendState> {
        self.state.lock().unwrap()
    }

    fn chance(&self, probability: f64) -> bool {
        self.latency.as_ref().is_some_and(|rng| rng.lock().unwrap().random_bool(probability))
    }

    /// Every operation waits here, so that those of other tasks may come between it and the one before.
    async fn operation(&self) -> MutexGuard<'_, BackendState> {
        poll_fn(|task| {
            if self.chance(0.5) {
                task.waker().wake_by_ref();
                return Poll::Pending;
            }
            Poll::Ready(())
        })
        .await;
        let mut state = self.state();
        state.apply_late_effects();
        state
    }
}

impl BackendState {
    fn apply_late_effects(&mut self) {
        let rows = self.late_rows.iter_mut().map(|late| &mut late.0);
        let marks = self.late_reads.iter_mut().map(|late| &mut late.0);
        let regimens = self.late_definitions.iter_mut().map(|late| &mut late.0);
        rows.chain(marks).chain(regimens).for_each(|operations| *operations -= 1);
        for (_, shard, row) in self.late_rows.extract_if(.., |late| late.0 == 0).collect::<Vec<_>>() {
            self.insert(shard, row);
        }
        for (_, shard, read) in self.late_reads.extract_if(.., |late| late.0 == 0).collect::<Vec<_>>() {
            self.raise(shard, Watermark::Read, read);
        }
        for (_, regimen, definition, version) in
            self.late_definitions.extract_if(.., |late| late.0 == 0).collect::<Vec<_>>()
        {
            self.define(regimen, definition, version);
        }
    }

    fn define(&mut self, regimen: RegimenId, definition: Option<Regimen>, version: Version) {
        if self.regimens.get(&regimen).is_none_or(|(current, _)| *current < version) {
            self.regimens.insert(regimen, (version, definition));
        }
    }

    /// The regimen's own row never replaces an upstream dose.
    fn insert(&mut self, shard: Shard, row: DueRow) {
        let payload = self.due.entry((shard, row.due_at, row.regimen)).or_default();
        if row.payload.is_some() {
            *payload = row.payload;
        }
    }

    fn raise(&mut self, shard: Shard, mark: Watermark, to: Timestamp) {
        let marks = self.marks.get_mut(&shard).expect("the watermarks are initialised");
        let mark = match mark {
            Watermark::Read => &mut marks.read,
            Watermark::Dispatched => &mut marks.dispatched,
        };
        *mark = to.max(*mark);
    }
}

impl Doses for FakeBackend {
    async fn put_regimen(
        &self,
        regimen: &RegimenId,
        definition: Option<&Regimen>,
        version: Version,
    ) -> StoreResult<()> {
        let mut state = self.operation().await;
        if self.defect == Some(Defect::DefinitionsVisibleLate) {
            state.late_definitions.push((OPERATIONS_LATE, regimen.clone(), definition.cloned(), version));
        } else {
            state.define(regimen.clone(), definition.cloned(), version);
        }
        Ok(())
    }

    async fn regimen(&self, regimen: &RegimenId) -> StoreResult<Option<Regimen>> {
        Ok(self.operation().await.regimens.get(regimen).and_then(|(_, definition)| definition.clone()))
    }

    async fn regimens(
        &self,
        after: Option<&RegimenId>,
        limit: usize,
    ) -> StoreResult<Vec<(RegimenId, Regimen)>> {
        let state = self.operation().await;
        let current =
            state.regimens.iter().filter_map(|(id, (_, definition))| Some((id.clone(), definition.clone()?)));
        Ok(current.filter(|(id, _)| after.is_none_or(|after| after < id)).take(limit).collect())
    }

    async fn insert_due(&self, shard: Shard, row: &DueRow) -> StoreResult<()> {
        let mut state = self.operation().await;
        if self.defect == Some(Defect::RowsVisibleLate) {
            state.late_rows.push((OPERATIONS_LATE, shard, row.clone()));
        } else {
            state.insert(shard, row.clone());
        }
        Ok(())
    }

    async fn due_rows(
        &self,
        shard: Shard,
        after: Timestamp,
        until: Timestamp,
        past: Option<&DueRow>,
        limit: usize,
    ) -> StoreResult<Vec<DueRow>> {
        let mut state = self.operation().await;
        // Small pages under random schedules, so that there are many.
        let limit = if self.latency.is_some() { 2 } else { limit };
        let rows = state.due.iter().filter(|((of, due_at, regimen), _)| {
            *of == shard
                && after < *due_at
                && *due_at <= until
                && past.is_none_or(|past| (past.due_at, &past.regimen) < (*due_at, regimen))
        });
        let page = rows
            .take(limit)
            .map(|((_, due_at, regimen), payload)| DueRow {
                due_at: *due_at,
                regimen: regimen.clone(),
                payload: payload.clone(),
            })
            .collect();
        if self.defect == Some(Defect::DispatchedRaisedBeforeTheWork) {
            state.raise(shard, Watermark::Dispatched, until);
        }
        Ok(page)
    }

    async fn marks(&self, shard: Shard) -> StoreResult<Watermarks> {
        let marks = self.operation().await.marks[&shard];
        Ok(match self.defect {
            Some(Defect::SlackInsteadOfRead) => Watermarks { read: marks.dispatched + SLACK, ..marks },
            Some(Defect::InsertedRowIsLeft) => Watermarks { read: Timestamp::UNIX_EPOCH, ..marks },
            _ => marks,
        })
    }

    async fn init_marks(&self, now: Timestamp) -> StoreResult<()> {
        let mut state = self.state();
        for shard in Shard::all() {
            state.marks.entry(shard).or_insert(Watermarks { read: now, dispatched: now });
        }
        Ok(())
    }

    async fn raise(&self, shard: Shard, mark: Watermark, to: Timestamp) -> StoreResult<()> {
        let mut state = self.operation().await;
        if self.defect == Some(Defect::ReadRaisedAfterTheRows) && mark == Watermark::Read {
            state.late_reads.push((OPERATIONS_LATE, shard, to));
        } else {
            state.raise(shard, mark, to);
        }
        Ok(())
    }

    async fn claim(&self, _: &DoseKey, _: &str, _: Timestamp, _: Timestamp) -> StoreResult<Claim> {
        unreachable!("delivery claims")
    }

    async fn claimed(&self, _: &DoseKey) -> StoreResult<Option<Claimed>> {
        unreachable!("only an operator asks for that")
    }

    async fn mark(&self, _: &DoseKey, _: &Lease, _: &DoseMark) -> StoreResult<Marked> {
        unreachable!("delivery marks")
    }
}

impl Registry for FakeBackend {
    async fn tokens_of(&self, user: &UserId) -> StoreResult<Vec<Registration>> {
        Ok(self.operation().await.registrations.get(user).cloned().unwrap_or_default())
    }

    async fn apply(&self, _: &TokenChange, _: Version) -> StoreResult<()> {
        unreachable!("the tokens stage applies")
    }

    async fn revoke(&self, _: &Token, _: Judged, _: &str) -> StoreResult<bool> {
        unreachable!("cleanup revokes")
    }

    async fn inspect(&self, _: &Token) -> StoreResult<Option<TokenRow>> {
        unreachable!("only an operator inspects")
    }

    async fn inspect_hash(&self, _: TokenHash) -> StoreResult<Option<TokenRow>> {
        unreachable!("only an operator inspects")
    }

    async fn census(&self) -> StoreResult<Vec<Census>> {
        unreachable!("only an operator counts")
    }
}

impl Publish for FakeBackend {
    async fn publish(&self, message: Message) -> Result<(), PublishError> {
        let mut state = self.operation().await;
        state.all_keys.extend(message.key.clone());
        state.published.push(message);
        Ok(())
    }
}
