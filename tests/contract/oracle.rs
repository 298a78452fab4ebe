//! Which final states of tokens are correct, computed from the events alone.
//!
//! The rules: of the events that concern a token the one with the highest version wins; the deletion of a
//! user revokes earlier registrations. A token may besides be revoked by a later registration on its device,
//! or by a verdict on this very registration.

use pushcast::domain::{DeviceId, Token, UserId, Version};

/// An event, with what the oracle needs of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Registered {
        token: Token,
        user: Option<UserId>,
        device: Option<DeviceId>,
        previous: Option<Token>,
        version: Version,
    },
    Unregistered {
        token: Token,
        version: Version,
    },
    UserDeleted {
        user: UserId,
        version: Version,
    },
}

/// The state in a token's row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FinalState {
    pub version: Version,
    /// `None` = inactive.
    pub owner: Option<(Option<UserId>, Option<DeviceId>)>,
}

/// The states that applying the events in the order of their versions may end in: one, unless versions are
/// equal.
pub fn expected(events: &[Event], token: &Token) -> Vec<Option<FinalState>> {
    let mut relevant: Vec<Event> = events.iter().flat_map(|event| concerning(event, token)).collect();
    relevant.sort_by_key(version);
    relevant.chunk_by(|a, b| version(a) == version(b)).fold(vec![None], |states, equals| {
        let mut next = Vec::new();
        for order in orders(equals) {
            for state in &states {
                let after = order.iter().fold(state.clone(), step);
                if !next.contains(&after) {
                    next.push(after);
                }
            }
        }
        next
    })
}

/// Whether a registration on this device is later than that of `token` at `than`, and so may have replaced
/// it.
pub fn replaced(events: &[Event], token: &Token, than: Version, on: &DeviceId) -> bool {
    events.iter().any(|event| match event {
        Event::Registered { token: other, device: Some(device), version, .. } => {
            other != token
                && device == on
                && other.kind() == token.kind()
                && (*version, other.as_str()) > (than, token.as_str())
        }
        _ => false,
    })
}

/// The version that the event was applied with.
pub fn version(event: &Event) -> Version {
    match event {
        Event::Registered { version, .. }
        | Event::Unregistered { version, .. }
        | Event::UserDeleted { version, .. } => *version,
    }
}

fn concerning(event: &Event, of: &Token) -> Option<Event> {
    match event {
        Event::UserDeleted { .. } => Some(event.clone()),
        Event::Registered { token, .. } | Event::Unregistered { token, .. } if token == of => {
            Some(event.clone())
        }
        Event::Registered { previous: Some(previous), version, .. } if previous == of => {
            Some(Event::Unregistered { token: of.clone(), version: *version })
        }
        _ => None,
    }
}

fn step(state: Option<FinalState>, event: &Event) -> Option<FinalState> {
    match event {
        Event::Registered { user, device, version, .. } => {
            Some(FinalState { version: *version, owner: Some((user.clone(), device.clone())) })
        }
        Event::Unregistered { version, .. } => Some(FinalState { version: *version, owner: None }),
        Event::UserDeleted { user, .. } => state.map(|state| match &state.owner {
            Some((Some(owner), _)) if owner == user => {
                FinalState { version: state.version.revocation(), owner: None }
            }
            _ => state,
        }),
    }
}

/// All orders of a few events.
fn orders(events: &[Event]) -> Vec<Vec<Event>> {
    if events.is_empty() {
        return vec![Vec::new()];
    }
    let mut all = Vec::new();
    for first in 0..events.len() {
        let mut rest = events.to_vec();
        let event = rest.remove(first);
        for mut order in orders(&rest) {
            order.insert(0, event.clone());
            all.push(order);
        }
    }
    all
}
