//! The stronger guarantee of a store with transactions: not only a correct state, but the same one in any
//! order.
//!
//! This is beyond the contract: a store without transactions may miss that a token had replaced another one
//! before it moved to another device.

use futures::future::join_all;
use pushcast::{domain::Version, store::Store};
use rand::prelude::*;

use crate::suite::{
    oracle::{Event, expected, replaced},
    schedules::{apply, entities, events, rows},
};

pub async fn the_same_events_in_any_order_end_in_the_same_state(store: &impl Store) {
    join_all((0..60).map(|seed| in_all_orders(store, seed))).await;
}

async fn in_all_orders(store: &impl Store, seed: u64) {
    let final_states = join_all((0..12_u64).map(|order| async move {
        // The same events for each order, about tokens of its own.
        let mut random = StdRng::seed_from_u64(seed);
        let entities = entities(&mut random, &format!("c{seed}-o{order:02}"));
        let events = events(&mut random, &entities, false);
        let mut steps = events.clone();
        match order {
            0 => {}
            1 => steps.reverse(),
            _ => {
                let mut shuffled = StdRng::seed_from_u64(order);
                steps.extend(events.iter().filter(|_| shuffled.random_bool(0.3)).cloned());
                steps.shuffle(&mut shuffled);
            }
        }
        for event in &steps {
            apply(store, event).await;
        }
        let rows = rows(store, &entities).await;
        for (token, row) in entities.tokens.iter().zip(&rows) {
            let last = expected(&events, token).pop().flatten();
            let is_replaced = last.as_ref().is_some_and(|last| {
                let device = last.owner.as_ref().and_then(|(_, device)| device.as_ref());
                device.is_some_and(|device| replaced(&events, token, last.version, device))
            });
            let version = last.map(|last| if is_replaced { last.version.revocation() } else { last.version });
            assert_eq!(
                row.as_ref().map(|row| row.version),
                version,
                "seed {seed}, order {order}: {steps:#?}"
            );
        }
        let first = |token| events.iter().filter_map(|event| registration_of(event, token)).min();
        for (token, row) in entities.tokens.iter().zip(&rows) {
            let created = row.as_ref().and_then(|row| row.created_at).map(|at| Version::of_record(at, 0));
            assert_eq!(created, first(token), "seed {seed}, order {order}: {steps:#?}");
        }
        let without_prefix = |text: &str| text.replace(&format!("c{seed}-o{order:02}"), "");
        rows.into_iter()
            .map(|row| {
                row.map(|row| {
                    let owner = row.registration.map(|active| {
                        (
                            active.user.map(|user| without_prefix(user.as_str())),
                            active.device.map(|device| without_prefix(device.as_str())),
                        )
                    });
                    (row.version, owner)
                })
            })
            .collect::<Vec<_>>()
    }))
    .await;
    assert!(final_states.windows(2).all(|pair| pair[0] == pair[1]), "seed {seed}: {final_states:#?}");
}

fn registration_of(event: &Event, of: &pushcast::domain::Token) -> Option<Version> {
    match event {
        Event::Registered { token, version, .. } if token == of => Some(*version),
        _ => None,
    }
}
