//! A store and a Kafka in memory, which can be made to take their time and to break the promises that the
//! chain leans on.

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

/// What the store gets wrong: each stands for an order of steps that the chain must not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// As if a tick raised `opened` after it has read the marks and the rows.
    OpenedAfterTheRows,
    /// As if `opened` were read before the row is inserted.
    RowsShowLate,
    /// As if a tick raised `handed` before its work.
    HandedBeforeTheWork,
    /// As if there were no `opened`: whoever inserts a row goes by `handed` and what a tick may be ahead of
    /// it.
    SlackForOpened,
    /// As if who inserts a row left it to the ticks, whatever they have read.
    InsertedIsLeft,
    /// As if the first due row were inserted before its definition.
    RegimensShowLate,
    /// As if a tick went beyond the clock. The store has no part in this one.
    TickAheadOfTheClock,
}

/// What stands for `opened` where there is none.
const SLACK: Duration = Duration::from_secs(3 * 60);
/// How many operations, anybody's, come before what a broken store keeps back.
const OPERATIONS_LATE: u32 = 8;

#[derive(Clone, Default)]
pub struct Fake {
    state: Arc<Mutex<State>>,
    /// Decides how long every operation takes; none = no time at all.
    pace: Option<Arc<Mutex<StdRng>>>,
    broken: Option<Broken>,
}

#[derive(Default)]
struct State {
    regimens: BTreeMap<RegimenId, (Version, Option<Regimen>)>,
    due: BTreeMap<(Shard, Timestamp, RegimenId), Option<String>>,
    /// Rows that are acknowledged but do not show yet, and for how many operations.
    hidden: Vec<(u32, Shard, DueRow)>,
    marks: BTreeMap<Shard, Watermarks>,
    /// Watermarks that are acknowledged but not raised yet, likewise.
    opened_late: Vec<(u32, Shard, Timestamp)>,
    /// Definitions that are acknowledged but can't be read yet, likewise.
    regimens_late: Vec<(u32, RegimenId, Option<Regimen>, Version)>,
    registrations: BTreeMap<UserId, Vec<Registration>>,
    published: Vec<Message>,
    all_keys: BTreeSet<Vec<u8>>,
}

impl Fake {
    pub fn paced(seed: u64, broken: Option<Broken>) -> Self {
        let pace = Some(Arc::new(Mutex::new(StdRng::seed_from_u64(seed))));
        Self { pace, broken, ..Self::default() }
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

    pub fn forget(&self, user: &str) {
        self.state().registrations.remove(&UserId::new(user));
    }

    pub fn lose_due_rows(&self) {
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

    /// What was published since the last look.
    pub fn published(&self) -> Vec<Message> {
        std::mem::take(&mut self.state().published)
    }

    /// The keys of everything that was ever published.
    pub fn keys(&self) -> BTreeSet<Vec<u8>> {
        self.state().all_keys.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn chance(&self, probability: f64) -> bool {
        self.pace.as_ref().is_some_and(|pace| pace.lock().unwrap().random_bool(probability))
    }

    /// Every operation waits here, so that others may come between it and the one before.
    async fn turn(&self) -> MutexGuard<'_, State> {
        poll_fn(|task| {
            if self.chance(0.5) {
                task.waker().wake_by_ref();
                return Poll::Pending;
            }
            Poll::Ready(())
        })
        .await;
        let mut state = self.state();
        state.let_show();
        state
    }
}

impl State {
    fn let_show(&mut self) {
        let rows = self.hidden.iter_mut().map(|late| &mut late.0);
        let marks = self.opened_late.iter_mut().map(|late| &mut late.0);
        let regimens = self.regimens_late.iter_mut().map(|late| &mut late.0);
        rows.chain(marks).chain(regimens).for_each(|wait| *wait -= 1);
        for (_, shard, row) in self.hidden.extract_if(.., |late| late.0 == 0).collect::<Vec<_>>() {
            self.insert(shard, row);
        }
        for (_, shard, opened) in self.opened_late.extract_if(.., |late| late.0 == 0).collect::<Vec<_>>() {
            self.raise(shard, Watermark::Read, opened);
        }
        for (_, regimen, definition, version) in
            self.regimens_late.extract_if(.., |late| late.0 == 0).collect::<Vec<_>>()
        {
            self.define(regimen, definition, version);
        }
    }

    fn define(&mut self, regimen: RegimenId, definition: Option<Regimen>, version: Version) {
        if self.regimens.get(&regimen).is_none_or(|(held, _)| *held < version) {
            self.regimens.insert(regimen, (version, definition));
        }
    }

    /// The regimen's own row never takes the place of a dose that upstream found.
    fn insert(&mut self, shard: Shard, row: DueRow) {
        let payload = self.due.entry((shard, row.due_at, row.regimen)).or_default();
        if row.payload.is_some() {
            *payload = row.payload;
        }
    }

    fn raise(&mut self, shard: Shard, mark: Watermark, to: Timestamp) {
        let marks = self.marks.get_mut(&shard).expect("the marks are written");
        let mark = match mark {
            Watermark::Read => &mut marks.read,
            Watermark::Dispatched => &mut marks.dispatched,
        };
        *mark = to.max(*mark);
    }
}

impl Doses for Fake {
    async fn put_regimen(
        &self,
        regimen: &RegimenId,
        definition: Option<&Regimen>,
        version: Version,
    ) -> StoreResult<()> {
        let mut state = self.turn().await;
        if self.broken == Some(Broken::RegimensShowLate) {
            state.regimens_late.push((OPERATIONS_LATE, regimen.clone(), definition.cloned(), version));
        } else {
            state.define(regimen.clone(), definition.cloned(), version);
        }
        Ok(())
    }

    async fn regimen(&self, regimen: &RegimenId) -> StoreResult<Option<Regimen>> {
        Ok(self.turn().await.regimens.get(regimen).and_then(|(_, definition)| definition.clone()))
    }

    async fn regimens(
        &self,
        after: Option<&RegimenId>,
        limit: usize,
    ) -> StoreResult<Vec<(RegimenId, Regimen)>> {
        let state = self.turn().await;
        let living =
            state.regimens.iter().filter_map(|(id, (_, definition))| Some((id.clone(), definition.clone()?)));
        Ok(living.filter(|(id, _)| after.is_none_or(|after| after < id)).take(limit).collect())
    }

    async fn insert_due(&self, shard: Shard, row: &DueRow) -> StoreResult<()> {
        let mut state = self.turn().await;
        if self.broken == Some(Broken::RowsShowLate) {
            state.hidden.push((OPERATIONS_LATE, shard, row.clone()));
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
        let mut state = self.turn().await;
        // Small pages where schedules are tried out, so that there are many.
        let limit = if self.pace.is_some() { 2 } else { limit };
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
        if self.broken == Some(Broken::HandedBeforeTheWork) {
            state.raise(shard, Watermark::Dispatched, until);
        }
        Ok(page)
    }

    async fn marks(&self, shard: Shard) -> StoreResult<Watermarks> {
        let marks = self.turn().await.marks[&shard];
        Ok(match self.broken {
            Some(Broken::SlackForOpened) => Watermarks { read: marks.dispatched + SLACK, ..marks },
            Some(Broken::InsertedIsLeft) => Watermarks { read: Timestamp::UNIX_EPOCH, ..marks },
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
        let mut state = self.turn().await;
        if self.broken == Some(Broken::OpenedAfterTheRows) && mark == Watermark::Read {
            state.opened_late.push((OPERATIONS_LATE, shard, to));
        } else {
            state.raise(shard, mark, to);
        }
        Ok(())
    }

    async fn claim(&self, _: &DoseKey, _: &str, _: Timestamp, _: Timestamp) -> StoreResult<Claim> {
        unreachable!("delivery claims")
    }

    async fn claimed(&self, _: &DoseKey) -> StoreResult<Option<Claimed>> {
        unreachable!("only people ask that")
    }

    async fn mark(&self, _: &DoseKey, _: &Lease, _: &DoseMark) -> StoreResult<Marked> {
        unreachable!("delivery marks")
    }
}

impl Registry for Fake {
    async fn tokens_of(&self, user: &UserId) -> StoreResult<Vec<Registration>> {
        Ok(self.turn().await.registrations.get(user).cloned().unwrap_or_default())
    }

    async fn apply(&self, _: &TokenChange, _: Version) -> StoreResult<()> {
        unreachable!("the tokens stage applies")
    }

    async fn revoke(&self, _: &Token, _: Judged, _: &str) -> StoreResult<bool> {
        unreachable!("cleanup revokes")
    }

    async fn inspect(&self, _: &Token) -> StoreResult<Option<TokenRow>> {
        unreachable!("people inspect")
    }

    async fn inspect_hash(&self, _: TokenHash) -> StoreResult<Option<TokenRow>> {
        unreachable!("people inspect")
    }

    async fn census(&self) -> StoreResult<Vec<Census>> {
        unreachable!("people count")
    }
}

impl Publish for Fake {
    async fn publish(&self, message: Message) -> Result<(), PublishError> {
        let mut state = self.turn().await;
        state.all_keys.extend(message.key.clone());
        state.published.push(message);
        Ok(())
    }
}
