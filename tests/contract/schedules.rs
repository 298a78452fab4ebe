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
    oracle::{Event, Final, expected, replaced},
    v,
};

/// The tokens, users and devices of one schedule; their names begin with its own, so that many share a store.
pub struct Cast {
    pub tokens: Vec<Token>,
    pub users: Vec<UserId>,
    devices: Vec<DeviceId>,
}

/// What happens to the store.
#[derive(Clone, Debug)]
enum Step {
    Apply(Event),
    Seen(Token, Version),
    /// A send failed: the token is dead, says a verdict on this registration.
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
    let cast = cast(&mut random, &format!("s{seed}"));
    let events = events(&mut random, &cast, ties);
    let mut steps: Vec<Step> = events.iter().cloned().map(Step::Apply).collect();
    let seen: BTreeMap<Token, Version> =
        cast.tokens.iter().filter(|_| random.random_bool(0.3)).map(|token| (token.clone(), v(3))).collect();
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
            revoked.extend(take(store, step).await);
        }
    } else {
        revoked.extend(join_all(steps.iter().map(|step| take(store, step))).await.into_iter().flatten());
    }
    let rows = rows(store, &cast).await;
    let complaints = judge(&events, &cast, &rows, &revoked, ties);
    assert!(complaints.is_empty(), "seed {seed}: {complaints:#?}\nsteps {steps:#?}");
    for (token, row) in cast.tokens.iter().zip(&rows) {
        let expected = seen.get(token).filter(|_| row.is_some());
        assert_eq!(row.as_ref().and_then(|row| row.seen_at), expected.map(|_| super::at(3)), "seed {seed}");
    }
    found_by_their_users(store, &cast, &rows, seed).await;
}

/// Does a step; says which registration it revoked, if it did.
async fn take(store: &impl Store, step: &Step) -> Option<(Token, Version)> {
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

/// Applies an event of the oracle's.
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
pub async fn rows(store: &impl Registry, cast: &Cast) -> Vec<Option<TokenRow>> {
    join_all(cast.tokens.iter().map(|token| async { store.inspect(token).await.unwrap() })).await
}

/// A few names: the fewer, the more they meet.
pub fn cast(random: &mut StdRng, name: &str) -> Cast {
    let number = random.random_range(1..=3);
    let tokens = (0..number).map(|n| {
        let token = format!("{name}-t{n}");
        if random.random_bool(0.2) { fcm(&token) } else { expo(&token) }
    });
    Cast {
        tokens: tokens.collect(),
        users: ["A", "B"].map(|user| UserId::new(format!("{name}-{user}"))).to_vec(),
        devices: ["D1", "D2"].map(|device| DeviceId::new(format!("{name}-{device}"))).to_vec(),
    }
}

/// Two to seven events about them.
pub fn events(random: &mut StdRng, cast: &Cast, ties: bool) -> Vec<Event> {
    let mut n = 0;
    let number = random.random_range(2..=7);
    (0..number)
        .map(|_| {
            if !(ties && random.random_bool(0.4)) {
                n += 1;
            }
            let (token, version) = (cast.tokens.choose(random).unwrap().clone(), v(n));
            let sometimes = |random: &mut StdRng, often: f64| random.random_bool(often);
            match random.random_range(0..100) {
                0..65 => Event::Registered {
                    token,
                    user: sometimes(random, 0.7).then(|| cast.users.choose(random).unwrap().clone()),
                    device: sometimes(random, 0.7).then(|| cast.devices.choose(random).unwrap().clone()),
                    previous: sometimes(random, 0.25).then(|| cast.tokens.choose(random).unwrap().clone()),
                    version,
                },
                65..80 => Event::Unregistered { token, version },
                _ => Event::UserDeleted { user: cast.users.choose(random).unwrap().clone(), version },
            }
        })
        .collect()
}

fn judge(
    events: &[Event],
    cast: &Cast,
    rows: &[Option<TokenRow>],
    revoked: &[(Token, Version)],
    ties: bool,
) -> Vec<String> {
    let mut complaints = Vec::new();
    for (token, row) in cast.tokens.iter().zip(rows) {
        let expected = expected(events, token);
        let found = row.as_ref().map(|row| Final {
            version: row.version,
            owner: row.registration.as_ref().map(|active| (active.user.clone(), active.device.clone())),
        });
        // Struck out by a later registration on its device, or by a verdict on the very registration.
        let struck_out = |state: &Final| {
            let Some((_, device)) = &state.owner else { return false };
            found == Some(Final { version: state.version.revocation(), owner: None })
                && (ties
                    || revoked.contains(&(token.clone(), state.version))
                    || device.as_ref().is_some_and(|device| replaced(events, token, state.version, device)))
        };
        if !expected.contains(&found) && !expected.iter().flatten().any(struck_out) {
            complaints.push(format!("{token}: found {found:?}, expected {expected:?}"));
        }
    }
    let active: Vec<&Registration> =
        rows.iter().flatten().filter_map(|row| row.registration.as_ref()).collect();
    for (n, one) in active.iter().enumerate() {
        for other in &active[n + 1..] {
            if one.device.is_some() && one.device == other.device && one.token.kind() == other.token.kind() {
                complaints.push(format!("{} and {} are both active on one device", one.token, other.token));
            }
        }
    }
    complaints
}

/// Users find their active tokens, and nothing else.
async fn found_by_their_users(store: &impl Registry, cast: &Cast, rows: &[Option<TokenRow>], seed: u64) {
    for user in &cast.users {
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
