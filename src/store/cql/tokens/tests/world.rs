//! Three replicas of each cell, and the cells as a handler sees them: correct, or broken in one way.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    task::Poll,
};

use rand::prelude::*;

use super::super::protocol::{Cells, Hint, HintOwner, TokenCell};
use crate::store::StoreResult;

/// What is wrong with the protocol. Each is the correct protocol over cells that behave differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    Nothing,
    NoMarker,
    MarkerReadFirst,
    HintsReadBeforeMarker,
    DeviceReadFirst,
    RowBeforeHints,
    HintsDeletedAtTheEvent,
    ReplacedAtTheEvent,
    DeletedAtTheEvent,
    KindIgnored,
    ReaderDeletesUnproven,
    RevokedByClock,
    RevokedKeepsUser,
    DeletesNewerToo,
    PreviousAtItsRow,
    PreviousIsItself,
    WinnerByVersionOnly,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cell {
    Row(String),
    OfUser(String, String),
    OfDevice(String, String),
    Deleted(String),
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Value {
    TokenCell(TokenCell),
    Ver(i64),
}

/// A write as a replica keeps it. The fields are in the order in which the server compares two writes: the
/// later one wins, then a deletion, then one that expires, then the greater value.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Kept {
    pub at: i64,
    pub deleted: bool,
    pub expires: bool,
    pub value: Option<Value>,
}

/// The cells of a replica, or several merged.
pub type Replica = BTreeMap<Cell, Kept>;

pub struct World {
    pub replicas: [Replica; 3],
    /// Writes that have not reached their replica yet.
    pub late: Vec<(usize, Cell, Kept)>,
    pub random: StdRng,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Registering,
    Deleting,
    Reading,
    Revoking,
}

/// The cells as one handler sees them.
pub struct Handler {
    pub world: Arc<Mutex<World>>,
    pub broken: Broken,
    pub role: Role,
    /// The event's version; of a revocation the current time.
    pub ver: i64,
    pub kind: String,
    pub early: Mutex<Early>,
}

/// What a broken handler has read too early, or not yet written.
#[derive(Default)]
pub struct Early {
    pub marker: Option<Option<i64>>,
    pub device: Option<Vec<Hint>>,
    pub writes: Vec<(Cell, Kept)>,
}

// === impl World ===

impl World {
    pub fn write(&mut self, replica: usize, cell: &Cell, kept: &Kept) {
        let current = self.replicas[replica].entry(cell.clone()).or_insert_with(|| kept.clone());
        if kept > current {
            *current = kept.clone();
        }
    }

    pub fn order(&mut self) -> [usize; 3] {
        let mut order = [0, 1, 2];
        order.shuffle(&mut self.random);
        order
    }

    /// All replicas merged, after the late writes.
    pub fn settle(&mut self) -> Replica {
        for (replica, cell, kept) in std::mem::take(&mut self.late) {
            self.write(replica, &cell, &kept);
        }
        let mut all = Replica::new();
        for replica in &self.replicas {
            merge(&mut all, replica.clone());
        }
        all
    }
}

pub fn merge(into: &mut Replica, from: impl IntoIterator<Item = (Cell, Kept)>) {
    for (cell, kept) in from {
        match into.get(&cell) {
            Some(current) if *current >= kept => {}
            _ => drop(into.insert(cell, kept)),
        }
    }
}

pub fn state(kept: Option<&Kept>) -> Option<&TokenCell> {
    match kept?.value.as_ref()? {
        Value::TokenCell(state) => Some(state),
        Value::Ver(_) => None,
    }
}

pub fn ver(kept: Option<&Kept>) -> Option<i64> {
    match kept?.value.as_ref()? {
        Value::Ver(ver) => Some(*ver),
        Value::TokenCell(_) => None,
    }
}

pub fn live(value: Value, at: i64) -> Kept {
    let expires = matches!(&value, Value::TokenCell(state) if !state.active);
    Kept { at, deleted: false, expires, value: Some(value) }
}

pub fn deleted(at: i64) -> Kept {
    Kept { at, deleted: true, expires: false, value: None }
}

// === impl Handler ===

impl Handler {
    /// Lets other handlers run.
    pub async fn turn(&self) {
        let mut turns = self.world.lock().unwrap().random.random_range(1..=2);
        std::future::poll_fn(|_| {
            turns -= 1;
            if turns < 0 { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    pub async fn write(&self, cell: Cell, kept: Kept) {
        self.turn().await;
        let second = {
            let mut world = self.world.lock().unwrap();
            let [first, second, third] = world.order();
            world.write(first, &cell, &kept);
            // These arrive even if the handler ends here.
            world.late.push((second, cell.clone(), kept.clone()));
            world.late.push((third, cell.clone(), kept.clone()));
            second
        };
        self.turn().await;
        self.world.lock().unwrap().write(second, &cell, &kept);
    }

    pub async fn read(&self, wanted: impl Fn(&Cell) -> bool) -> Replica {
        let mut found = Replica::new();
        let [first, second, _] = self.world.lock().unwrap().order();
        for replica in [first, second] {
            self.turn().await;
            let world = self.world.lock().unwrap();
            merge(
                &mut found,
                world.replicas[replica]
                    .iter()
                    .filter(|(cell, _)| wanted(cell))
                    .map(|(cell, kept)| (cell.clone(), kept.clone())),
            );
        }
        found
    }

    pub async fn hints_now(&self, owner: HintOwner<'_>) -> Vec<Hint> {
        let token = |cell: &Cell| match (cell, owner) {
            (Cell::OfUser(user, token), HintOwner::User(id)) if user == id => Some(token.clone()),
            (Cell::OfDevice(device, token), HintOwner::Device(id)) if device == id => Some(token.clone()),
            _ => None,
        };
        let found = self.read(|cell| token(cell).is_some()).await;
        found
            .iter()
            .filter_map(|(cell, kept)| Some(Hint { token: token(cell)?, ver: ver(Some(kept))? }))
            .collect()
    }

    pub async fn marker_now(&self, user: &str) -> Option<i64> {
        let cell = Cell::Deleted(user.to_owned());
        let found = self.read(|other| *other == cell).await;
        ver(found.get(&cell))
    }
}

pub fn hint_cell(owner: HintOwner<'_>, token: &str) -> Cell {
    match owner {
        HintOwner::User(user) => Cell::OfUser(user.to_owned(), token.to_owned()),
        HintOwner::Device(device) => Cell::OfDevice(device.to_owned(), token.to_owned()),
    }
}

/// A version later than that of every event.
pub const FAR: i64 = i64::MAX - 2;

impl Cells for Handler {
    /// The next page begins after this token.
    type PageState = String;

    async fn row(&self, token: &str) -> StoreResult<Option<TokenCell>> {
        let cell = Cell::Row(token.to_owned());
        let found = self.read(|other| *other == cell).await;
        let mut found = state(found.get(&cell)).cloned();
        if self.broken == Broken::KindIgnored && self.role == Role::Registering {
            found = found.map(|state| TokenCell { kind: self.kind.clone(), ..state });
        }
        if self.broken == Broken::WinnerByVersionOnly && self.role == Role::Registering {
            found = found.filter(|state| state.ver != self.ver);
        }
        if self.broken == Broken::ReaderDeletesUnproven && self.role == Role::Reading {
            let inactive = || TokenCell::inactive(FAR, "e", "");
            found = Some(found.filter(|state| state.active).unwrap_or_else(inactive));
        }
        Ok(found)
    }

    async fn put_row(&self, token: &str, state: &TokenCell) -> StoreResult<()> {
        let mut state = state.clone();
        let replaced = state.reason.as_deref() == Some("replaced");
        match (self.broken, self.role) {
            (Broken::ReplacedAtTheEvent, Role::Registering) if replaced => {
                state.ver = state.ver.max(self.ver)
            }
            (Broken::PreviousAtItsRow, Role::Registering) if replaced && state.ver == self.ver => {
                match self.row(token).await? {
                    Some(row) if row.active && row.ver < self.ver => state.ver = row.ver | 1,
                    _ => return Ok(()),
                }
            }
            (Broken::RevokedKeepsUser, Role::Revoking) => {
                state.user_id = self.row(token).await?.and_then(|row| row.user_id)
            }
            (Broken::DeletedAtTheEvent, Role::Deleting) | (Broken::RevokedByClock, Role::Revoking) => {
                state.ver = self.ver
            }
            _ => {}
        }
        let at = state.ver;
        self.write(Cell::Row(token.to_owned()), live(Value::TokenCell(state), at)).await;
        if self.broken == Broken::RowBeforeHints {
            let later = std::mem::take(&mut self.early.lock().unwrap().writes);
            for (cell, kept) in later {
                self.write(cell, kept).await;
            }
        }
        Ok(())
    }

    async fn hints(
        &self,
        owner: HintOwner<'_>,
        from: Option<String>,
    ) -> StoreResult<(Vec<Hint>, Option<String>)> {
        let early = match owner {
            HintOwner::Device(_) => self.early.lock().unwrap().device.clone(),
            HintOwner::User(_) => None,
        };
        let all = match early {
            Some(early) => early,
            None => self.hints_now(owner).await,
        };
        // Pages of one hint.
        let mut rest = all.into_iter().filter(|hint| from.as_ref().is_none_or(|from| hint.token > *from));
        let page: Vec<Hint> = rest.next().into_iter().collect();
        let next = page.last().map(|last| last.token.clone()).filter(|_| rest.next().is_some());
        Ok((page, next))
    }

    async fn put_hint(&self, owner: HintOwner<'_>, token: &str, ver: i64) -> StoreResult<()> {
        let cell = hint_cell(owner, token);
        let kept = live(Value::Ver(ver), ver);
        if self.broken == Broken::RowBeforeHints {
            self.early.lock().unwrap().writes.push((cell, kept));
        } else {
            self.write(cell, kept).await;
        }
        Ok(())
    }

    async fn delete_hint(&self, owner: HintOwner<'_>, token: &str, at: i64) -> StoreResult<()> {
        let at = if self.broken == Broken::HintsDeletedAtTheEvent { at.max(self.ver) } else { at };
        self.write(hint_cell(owner, token), deleted(at)).await;
        Ok(())
    }

    async fn deleted_at(&self, user: &str) -> StoreResult<Option<i64>> {
        let early = self.early.lock().unwrap().marker;
        Ok(match early {
            _ if self.broken == Broken::NoMarker => None,
            Some(early) => early,
            None => self.marker_now(user).await,
        })
    }

    async fn put_deleted(&self, user: &str, ver: i64) -> StoreResult<()> {
        // `DeletesNewerToo` passes a later version; the marker keeps the event's.
        let ver = ver.min(self.ver);
        let cell = Cell::Deleted(user.to_owned());
        let kept = live(Value::Ver(ver), ver);
        if self.broken == Broken::HintsReadBeforeMarker {
            self.early.lock().unwrap().writes.push((cell, kept));
        } else {
            self.write(cell, kept).await;
        }
        Ok(())
    }
}
