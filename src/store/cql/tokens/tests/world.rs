//! Three copies of each cell, and the cells as a handler sees them: right, or broken in one way.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    task::Poll,
};

use rand::prelude::*;

use super::super::protocol::{Cells, Hint, Of, TokenCell};
use crate::store::StoreError;

/// What is wrong with the protocol. Each is the right protocol over cells that do something else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    Nothing,
    NoMark,
    MarkReadFirst,
    WalkBeforeMark,
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

/// In the order in which one stands against another: later, deleted, expiring, greater.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Kept {
    pub at: i64,
    pub deleted: bool,
    pub expires: bool,
    pub value: Option<Value>,
}

pub type Copies = BTreeMap<Cell, Kept>;

pub struct World {
    pub copies: [Copies; 3],
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
    /// The event's version; of a revocation the clock.
    pub ver: i64,
    pub kind: String,
    pub early: Mutex<Early>,
}

/// What a broken handler has read too early, or not yet written.
#[derive(Default)]
pub struct Early {
    pub mark: Option<Option<i64>>,
    pub device: Option<Vec<Hint>>,
    pub writes: Vec<(Cell, Kept)>,
}

// === impl World ===

impl World {
    pub fn write(&mut self, copy: usize, cell: &Cell, kept: &Kept) {
        let stands = self.copies[copy].entry(cell.clone()).or_insert_with(|| kept.clone());
        if kept > stands {
            *stands = kept.clone();
        }
    }

    pub fn order(&mut self) -> [usize; 3] {
        let mut order = [0, 1, 2];
        order.shuffle(&mut self.random);
        order
    }

    /// All copies as one, late writes too.
    pub fn settle(&mut self) -> Copies {
        for (copy, cell, kept) in std::mem::take(&mut self.late) {
            self.write(copy, &cell, &kept);
        }
        let mut all = Copies::new();
        for copy in &self.copies {
            merge(&mut all, copy.clone());
        }
        all
    }
}

pub fn merge(into: &mut Copies, from: impl IntoIterator<Item = (Cell, Kept)>) {
    for (cell, kept) in from {
        match into.get(&cell) {
            Some(stands) if *stands >= kept => {}
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
    /// Lets others run.
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
            // On their way, whatever becomes of the handler.
            world.late.push((second, cell.clone(), kept.clone()));
            world.late.push((third, cell.clone(), kept.clone()));
            second
        };
        self.turn().await;
        self.world.lock().unwrap().write(second, &cell, &kept);
    }

    pub async fn read(&self, wanted: impl Fn(&Cell) -> bool) -> Copies {
        let mut found = Copies::new();
        let [first, second, _] = self.world.lock().unwrap().order();
        for copy in [first, second] {
            self.turn().await;
            let world = self.world.lock().unwrap();
            merge(
                &mut found,
                world.copies[copy]
                    .iter()
                    .filter(|(cell, _)| wanted(cell))
                    .map(|(cell, kept)| (cell.clone(), kept.clone())),
            );
        }
        found
    }

    pub async fn hints_now(&self, of: Of<'_>) -> Vec<Hint> {
        let token = |cell: &Cell| match (cell, of) {
            (Cell::OfUser(user, token), Of::User(name)) if user == name => Some(token.clone()),
            (Cell::OfDevice(device, token), Of::Device(name)) if device == name => Some(token.clone()),
            _ => None,
        };
        let found = self.read(|cell| token(cell).is_some()).await;
        found
            .iter()
            .filter_map(|(cell, kept)| Some(Hint { token: token(cell)?, ver: ver(Some(kept))? }))
            .collect()
    }

    pub async fn mark_now(&self, user: &str) -> Option<i64> {
        let cell = Cell::Deleted(user.to_owned());
        let found = self.read(|other| *other == cell).await;
        ver(found.get(&cell))
    }
}

pub fn hint_cell(of: Of<'_>, token: &str) -> Cell {
    match of {
        Of::User(user) => Cell::OfUser(user.to_owned(), token.to_owned()),
        Of::Device(device) => Cell::OfDevice(device.to_owned(), token.to_owned()),
    }
}

/// Later than everything.
pub const FAR: i64 = i64::MAX - 2;

impl Cells for Handler {
    /// The next page begins after this token.
    type Place = String;

    async fn row(&self, token: &str) -> Result<Option<TokenCell>, StoreError> {
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
            found =
                Some(found.filter(|state| state.active).unwrap_or_else(|| TokenCell::blank(FAR, "e", "")));
        }
        Ok(found)
    }

    async fn put_row(&self, token: &str, state: &TokenCell) -> Result<(), StoreError> {
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
        of: Of<'_>,
        from: Option<String>,
    ) -> Result<(Vec<Hint>, Option<String>), StoreError> {
        let early = match of {
            Of::Device(_) => self.early.lock().unwrap().device.clone(),
            Of::User(_) => None,
        };
        let all = match early {
            Some(early) => early,
            None => self.hints_now(of).await,
        };
        // Pages of one hint.
        let mut rest = all.into_iter().filter(|hint| from.as_ref().is_none_or(|from| hint.token > *from));
        let page: Vec<Hint> = rest.next().into_iter().collect();
        let next = page.last().map(|last| last.token.clone()).filter(|_| rest.next().is_some());
        Ok((page, next))
    }

    async fn put_hint(&self, of: Of<'_>, token: &str, ver: i64) -> Result<(), StoreError> {
        let (cell, kept) = (hint_cell(of, token), live(Value::Ver(ver), ver));
        if self.broken == Broken::RowBeforeHints {
            self.early.lock().unwrap().writes.push((cell, kept));
        } else {
            self.write(cell, kept).await;
        }
        Ok(())
    }

    async fn delete_hint(&self, of: Of<'_>, token: &str, at: i64) -> Result<(), StoreError> {
        let at = if self.broken == Broken::HintsDeletedAtTheEvent { at.max(self.ver) } else { at };
        self.write(hint_cell(of, token), deleted(at)).await;
        Ok(())
    }

    async fn deleted_at(&self, user: &str) -> Result<Option<i64>, StoreError> {
        let early = self.early.lock().unwrap().mark;
        Ok(match early {
            _ if self.broken == Broken::NoMark => None,
            Some(early) => early,
            None => self.mark_now(user).await,
        })
    }

    async fn put_deleted(&self, user: &str, ver: i64) -> Result<(), StoreError> {
        // Not at what the walk was told, if that is broken.
        let ver = ver.min(self.ver);
        let (cell, kept) = (Cell::Deleted(user.to_owned()), live(Value::Ver(ver), ver));
        if self.broken == Broken::WalkBeforeMark {
            self.early.lock().unwrap().writes.push((cell, kept));
        } else {
            self.write(cell, kept).await;
        }
        Ok(())
    }
}
