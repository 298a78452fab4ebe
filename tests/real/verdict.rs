//! What became of the records: read from the input and from what the relays say that they have done.
//!
//! The output is in order: a relay works on the records of a key one by one, and writes each with that key
//! before it begins the next. So the order in which the output holds a key's records is the order in which
//! they were handled.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
};

use serde_json::Value;

use crate::broker::Stored;

/// Where a record stands.
pub type Place = (i32, i64);

/// Input and output, side by side.
pub struct Account {
    /// Every record of the input, and its key.
    input: BTreeMap<Place, Option<Vec<u8>>>,
    /// What was handled, in the order of the output's partitions.
    handled: Vec<Handled>,
}

/// A record was handled.
#[derive(Clone, Debug)]
pub struct Handled {
    pub place: Place,
    pub key: Option<Vec<u8>>,
    /// The relay that did it.
    pub by: String,
}

/// A relay that was killed, and what its group had committed by then.
#[derive(Debug)]
pub struct Death {
    pub relay: String,
    pub committed: Vec<Option<i64>>,
}

impl Account {
    pub fn of(input: &[Stored], output: &[Stored]) -> Self {
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

    /// Every record was handled, and nothing that isn't there.
    pub fn nothing_is_missing(&self) -> &Self {
        let handled: BTreeSet<_> = self.handled.iter().map(|handled| handled.place).collect();
        let missing: Vec<_> = self.input.keys().filter(|place| !handled.contains(place)).collect();
        assert!(
            missing.is_empty(),
            "{} of {} are missing: {}",
            missing.len(),
            self.input.len(),
            some_of(&missing)
        );
        let invented: Vec<_> = handled.iter().filter(|place| !self.input.contains_key(place)).collect();
        assert!(invented.is_empty(), "nobody wrote {}", some_of(&invented));
        self
    }

    /// The records of a key were handled, each for the first time, in the order in which they were written.
    pub fn order_is_kept(&self) -> &Self {
        let mut last: BTreeMap<&[u8], Place> = BTreeMap::new();
        let mut seen = BTreeSet::new();
        for Handled { place, key, by, .. } in self.handled.iter().filter(|handled| seen.insert(handled.place))
        {
            let Some(key) = key else { continue };
            let before = last.insert(key, *place);
            assert!(
                before.is_none_or(|before| before < *place),
                "{}: {place:?} by {by} after {before:?}",
                String::from_utf8_lossy(key)
            );
        }
        self
    }

    /// Each of these relays has handled something.
    pub fn all_have_worked(&self, relays: &[&str]) -> &Self {
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

    /// The records that were handled more than once, and by whom.
    pub fn repeats(&self) -> BTreeMap<Place, Vec<&str>> {
        let mut by: BTreeMap<Place, Vec<&str>> = BTreeMap::new();
        for handled in &self.handled {
            by.entry(handled.place).or_default().push(&handled.by);
        }
        by.retain(|_, by| by.len() > 1);
        by
    }
}

impl Handled {
    pub fn of(stored: &Stored) -> Self {
        let told: Value = serde_json::from_slice(&stored.value).unwrap();
        Self {
            place: (
                i32::try_from(told["partition"].as_i64().unwrap()).unwrap(),
                told["offset"].as_i64().unwrap(),
            ),
            key: stored.key.clone(),
            by: told["by"].as_str().unwrap().to_owned(),
        }
    }
}

/// A few, for a message that somebody reads.
fn some_of(many: &[impl Debug]) -> String {
    format!("{:?} …", &many[..many.len().min(20)])
}

/// Without these deaths the record would not have been repeated: whoever had done it before, all but the
/// last, was killed before the group had committed it.
pub fn explained_by(deaths: &[Death], (partition, offset): Place, by: &[&str]) -> bool {
    let died_before = |relay: &&str| {
        let death = deaths.iter().find(|death| death.relay == **relay);
        death.is_some_and(|death| death.committed[usize::try_from(partition).unwrap()].unwrap_or(0) <= offset)
    };
    by.iter().filter(|relay| died_before(relay)).count() + 1 >= by.len()
}
