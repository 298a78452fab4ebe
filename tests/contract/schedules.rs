//! Random events, in random orders, some of them twice, against the [`oracle`](super::oracle).

use std::collections::BTreeMap;

use futures::future::join_all;
use pushcast::{
    domain::{DeviceId, Judged, Platform, Registration, Token, TokenChange, UserId, Version},
    store::{Registry, Store, TokenRow},
};
use rand::prelude::*;

use super::{
    expo, fcm,
    oracle::{Event, FinalState, expected, replaced},
    v,
};

/// The tokens, users and devices of one schedule; their names begin with its name, so that many schedules can
/// share a store.
pub struct Entities {
    pub tokens: Vec<Token>,
    pub users: Vec<UserId>,
    devices: Vec<DeviceId>,
}

/// An operation on the store.
#[derive(Clone, Debug)]
enum Step {
    Apply(Event),
    Seen(Token, Version),
    /// A verdict on this registration: the token is dead.
    Verdict(Token, Version),
}

pub async fn any_schedule_ends_in_an_expected_state(store: &impl Store) {
    join_all((0..200).map(|seed| run(store, seed, false))).await;
}

pub async fn schedules_with_equal_versions_end_in_an_expected_state(store: &impl Store) {
    join_all((1_000..1_100).map(|seed| run(store, seed, true))).await;
}

async fn run(store: &impl Store, seed: u64, ties: bool) {
    let mut random = StdRng::seed_from_u64(seed);
    let entities = entities(&mut random, &format!("s{seed}"));
    let events = events(&mut random, &entities, ties);
    let mut steps: Vec<Step> = events.iter().cloned().map(Step::Apply).collect();
    let seen = entities.tokens.iter().filter(|_| random.random_bool(0.3));
    let seen: BTreeMap<Token, Version> = seen.map(|token| (token.clone(), v(3))).collect();
    steps.extend(seen.iter().map(|(token, version)| Step::Seen(token.clone(), *version)));
    for event in &events {
        if let Event::Registered { token, version, .. } = event
            && random.random_bool(0.15)
        {
            steps.push(Step::Verdict(token.clone(), *version));
        }
        if random.random_bool(0.2) {
            steps.push(Step::Apply(event.clone()));
        }
    }
    steps.shuffle(&mut random);

    let mut revoked = Vec::new();
    if random.random_bool(0.5) {
        for step in &steps {
            revoked.extend(run_step(store, step).await);
        }
    } else {
        revoked.extend(join_all(steps.iter().map(|step| run_step(store, step))).await.into_iter().flatten());
    }
    let rows = rows(store, &entities).await;
    let violations = violations(&events, &entities, &rows, &revoked, ties);
    assert!(violations.is_empty(), "seed {seed}: {violations:#?}\nsteps {steps:#?}");
    for (token, row) in entities.tokens.iter().zip(&rows) {
        let expected = seen.get(token).filter(|_| row.is_some());
        assert_eq!(row.as_ref().and_then(|row| row.seen_at), expected.map(|_| super::at(3)), "seed {seed}");
    }
    found_by_their_users(store, &entities, &rows, seed).await;
}

/// Runs a step; returns the registration that it revoked, if it did.
async fn run_step(store: &impl Store, step: &Step) -> Option<(Token, Version)> {
    match step {
        Step::Apply(event) => apply(store, event).await,
        Step::Seen(token, version) => store.apply(&TokenChange::Seen(token.clone()), *version).await.unwrap(),
        Step::Verdict(token, version) => {
            let revoked = store.revoke(token, Judged::Registration(*version), "dead").await.unwrap();
            return revoked.then(|| (token.clone(), *version));
        }
    }
    None
}

/// Applies an event of the oracle.
pub async fn apply(store: &impl Registry, event: &Event) {
    let (change, version) = match event.clone() {
        Event::Registered { token, user, device, previous, version } => (
            TokenChange::Registered {
                token,
                user,
                platform: Some(Platform::Android),
                device,
                device_info: None,
                previous,
            },
            version,
        ),
        Event::Unregistered { token, version } => (TokenChange::Unregistered(token), version),
        Event::UserDeleted { user, version } => (TokenChange::UserDeleted(user), version),
    };
    store.apply(&change, version).await.unwrap();
}

/// The rows of all tokens.
pub async fn rows(store: &impl Registry, entities: &Entities) -> Vec<Option<TokenRow>> {
    join_all(entities.tokens.iter().map(|token| async { store.inspect(token).await.unwrap() })).await
}

/// Few of each: the fewer, the more their events collide.
pub fn entities(random: &mut StdRng, name: &str) -> Entities {
    let number = random.random_range(1..=3);
    let tokens = (0..number).map(|n| {
        let token = format!("{name}-t{n}");
        if random.random_bool(0.2) { fcm(&token) } else { expo(&token) }
    });
    Entities {
        tokens: tokens.collect(),
        users: ["A", "B"].map(|user| UserId::new(format!("{name}-{user}"))).to_vec(),
        devices: ["D1", "D2"].map(|device| DeviceId::new(format!("{name}-{device}"))).to_vec(),
    }
}

/// Two to seven events about them.
pub fn events(random: &mut StdRng, entities: &Entities, ties: bool) -> Vec<Event> {
    let mut n = 0;
    let number = random.random_range(2..=7);
    (0..number)
        .map(|_| {
            if !(ties && random.random_bool(0.4)) {
                n += 1;
            }
            let token = entities.tokens.choose(random).unwrap().clone();
            let version = v(n);
            match random.random_range(0..100) {
                0..65 => Event::Registered {
                    token,
                    user: sometimes(random, 0.7, &entities.users),
                    device: sometimes(random, 0.7, &entities.devices),
                    previous: sometimes(random, 0.25, &entities.tokens),
                    version,
                },
                65..80 => Event::Unregistered { token, version },
                _ => Event::UserDeleted { user: entities.users.choose(random).unwrap().clone(), version },
            }
        })
        .collect()
}

/// With this probability one of `all`.
fn sometimes<T: Clone>(random: &mut StdRng, probability: f64, all: &[T]) -> Option<T> {
    random.random_bool(probability).then(|| all.choose(random).unwrap().clone())
}

fn violations(
    events: &[Event],
    entities: &Entities,
    rows: &[Option<TokenRow>],
    revoked: &[(Token, Version)],
    ties: bool,
) -> Vec<String> {
    let mut violations = Vec::new();
    for (token, row) in entities.tokens.iter().zip(rows) {
        let expected = expected(events, token);
        let found = row.as_ref().map(|row| FinalState {
            version: row.version,
            owner: row.registration.as_ref().map(|active| (active.user.clone(), active.device.clone())),
        });
        // Revoked by a later registration on its device, or by a verdict on this very registration.
        let is_revoked = |state: &FinalState| {
            let Some((_, device)) = &state.owner else { return false };
            found == Some(FinalState { version: state.version.revocation(), owner: None })
                && (ties
                    || revoked.contains(&(token.clone(), state.version))
                    || device.as_ref().is_some_and(|device| replaced(events, token, state.version, device)))
        };
        if !expected.contains(&found) && !expected.iter().flatten().any(is_revoked) {
            violations.push(format!("{token}: found {found:?}, expected {expected:?}"));
        }
    }
    let active: Vec<&Registration> =
        rows.iter().flatten().filter_map(|row| row.registration.as_ref()).collect();
    for (n, one) in active.iter().enumerate() {
        for other in &active[n + 1..] {
            if one.device.is_some() && one.device == other.device && one.token.kind() == other.token.kind() {
                violations.push(format!("{} and {} are both active on one device", one.token, other.token));
            }
        }
    }
    violations
}

/// Each user's active tokens are found by the user, and no others.
async fn found_by_their_users(
    store: &impl Registry,
    entities: &Entities,
    rows: &[Option<TokenRow>],
    seed: u64,
) {
    for user in &entities.users {
        let mut found = store.tokens_of(user).await.unwrap();
        let owned = |active: &&Registration| active.user.as_ref() == Some(user);
        let mut expected: Vec<_> = rows
            .iter()
            .flatten()
            .filter_map(|row| row.registration.as_ref())
            .filter(owned)
            .cloned()
            .collect();
        for registrations in [&mut found, &mut expected] {
            registrations.sort_by(|a, b| a.token.cmp(&b.token));
        }
        assert_eq!(found, expected, "seed {seed}: tokens of {user}");
    }
}
