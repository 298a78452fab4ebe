//! Which records were handled, by which relay and in which order: read from the input and from what the
//! relays have written.
//!
//! The output is in order: a relay handles the records of a key one by one, and writes each with that key
//! before it begins the next. So the order in which the output has a key's records is the order in which they
//! were handled.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
};

use serde_json::Value;

use crate::broker::StoredRecord;

/// Partition and offset of a record.
pub type Position = (i32, i64);

/// Input and output, side by side.
pub struct History {
    /// Every record of the input, and its key.
    input: BTreeMap<Position, Option<Vec<u8>>>,
    /// What was handled, in the order of the output's partitions.
    handled: Vec<Handled>,
}

/// A record of the output: that one of the input was handled.
#[derive(Clone, Debug)]
pub struct Handled {
    pub position: Position,
    pub key: Option<Vec<u8>>,
    /// The relay that handled it.
    pub by: String,
}

/// A relay that was killed, and the offsets that its group had committed by then.
#[derive(Debug)]
pub struct Kill {
    pub relay: String,
    pub committed: Vec<Option<i64>>,
}

impl History {
    pub fn of(input: &[StoredRecord], output: &[StoredRecord]) -> Self {
        let mut output: Vec<_> = output.iter().collect();
        output.sort_by_key(|stored| (stored.partition, stored.offset));
        Self {
            input: input
                .iter()
                .map(|stored| ((stored.partition, stored.offset), stored.key.clone()))
                .collect(),
            handled: output.into_iter().map(Handled::of).collect(),
        }
    }

    /// What was handled, in the order of the output's partitions.
    pub fn handled(&self) -> &[Handled] {
        &self.handled
    }

    /// Every record of the input was handled, and no other.
    pub fn nothing_is_missing(&self) -> &Self {
        let handled: BTreeSet<_> = self.handled.iter().map(|handled| handled.position).collect();
        let missing: Vec<_> = self.input.keys().filter(|position| !handled.contains(position)).collect();
        assert!(
            missing.is_empty(),
            "{} of {} are missing: {}",
            missing.len(),
            self.input.len(),
            some_of(&missing)
        );
        let unknown: Vec<_> = handled.iter().filter(|position| !self.input.contains_key(position)).collect();
        assert!(unknown.is_empty(), "not in the input: {}", some_of(&unknown));
        self
    }

    /// The records of a key were handled, each for the first time, in the order in which they were written.
    pub fn order_is_kept(&self) -> &Self {
        let mut last: BTreeMap<&[u8], Position> = BTreeMap::new();
        let mut seen = BTreeSet::new();
        for Handled { position, key, by, .. } in
            self.handled.iter().filter(|handled| seen.insert(handled.position))
        {
            let Some(key) = key else { continue };
            let before = last.insert(key, *position);
            assert!(
                before.is_none_or(|before| before < *position),
                "{}: {position:?} by {by} after {before:?}",
                String::from_utf8_lossy(key)
            );
        }
        self
    }

    /// Each of these relays has handled something.
    pub fn all_have_handled(&self, relays: &[&str]) -> &Self {
        for relay in relays {
            assert!(self.handled.iter().any(|handled| handled.by == *relay), "{relay} has handled nothing");
        }
        self
    }

    /// Every record was handled once.
    pub fn nothing_is_repeated(&self) -> &Self {
        let repeats: Vec<_> = self.repeats().into_iter().collect();
        assert!(repeats.is_empty(), "{} are repeated: {}", repeats.len(), some_of(&repeats));
        self
    }

    /// The records that were handled more than once, each with its relays in their order.
    pub fn repeats(&self) -> BTreeMap<Position, Vec<&str>> {
        let mut by: BTreeMap<Position, Vec<&str>> = BTreeMap::new();
        for handled in &self.handled {
            by.entry(handled.position).or_default().push(&handled.by);
        }
        by.retain(|_, by| by.len() > 1);
        by
    }
}

impl Handled {
    pub fn of(stored: &StoredRecord) -> Self {
        let written: Value = serde_json::from_slice(&stored.value).unwrap();
        Self {
            position: (
                i32::try_from(written["partition"].as_i64().unwrap()).unwrap(),
                written["offset"].as_i64().unwrap(),
            ),
            key: stored.key.clone(),
            by: written["by"].as_str().unwrap().to_owned(),
        }
    }
}

/// The first few, for a message.
fn some_of(many: &[impl Debug]) -> String {
    format!("{:?} …", &many[..many.len().min(20)])
}

/// Whether these kills explain that the record was handled more than once: all relays but the last were
/// killed before the group had committed it.
pub fn explained_by(kills: &[Kill], (partition, offset): Position, by: &[&str]) -> bool {
    let killed_before_commit = |relay: &&str| {
        let kill = kills.iter().find(|kill| kill.relay == **relay);
        kill.is_some_and(|kill| kill.committed[usize::try_from(partition).unwrap()].unwrap_or(0) <= offset)
    };
    by.iter().filter(|relay| killed_before_commit(relay)).count() + 1 >= by.len()
}
