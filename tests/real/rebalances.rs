//! Relays join, stop and are killed while records are written.

use std::{slice, thread, time::Duration};

use consumer::GroupProtocol;
use rand::{RngExt as _, rngs::StdRng};

use crate::{
    broker::Broker,
    history::explained_by,
    relay::{IN_FLIGHT, Pipeline, Relay, has_unique_keys},
    world::seeded_random,
};

/// Relays join and stop gracefully, three at a time. No record is lost, and where each key is unique none is
/// handled twice.
pub fn joins_and_stops(broker: &Broker, protocol: GroupProtocol) {
    // No relay dies here, and on a busy machine none must look dead.
    let pipeline = Pipeline::new(broker, "joins", 8, protocol).with("session_timeout", "45s");
    let load = pipeline.load(400);
    let mut a = start_beside(&pipeline, "a", &mut []);
    let mut b = start_beside(&pipeline, "b", &mut [&mut a]);
    let mut c = start_beside(&pipeline, "c", &mut [&mut a, &mut b]);
    a.stop();
    pipeline.wait_until_shared_by(&mut [&mut b, &mut c]);
    let mut d = start_beside(&pipeline, "d", &mut [&mut b, &mut c]);
    b.stop();
    c.stop();
    pipeline.wait_until_shared_by(&mut [&mut d]);
    let e = start_beside(&pipeline, "e", &mut [&mut d]);
    let written = load.end();

    let history = pipeline.wait_until_settled();
    history.nothing_is_missing().order_is_kept().all_have_handled(&["a", "b", "c", "d", "e"]);
    let repeats = history.repeats();
    println!("{protocol:?}: {written} records, {} repeated", repeats.len());
    let of_unique_keys: Vec<_> =
        repeats.iter().filter(|((partition, _), _)| has_unique_keys(*partition)).collect();
    assert!(of_unique_keys.is_empty(), "{of_unique_keys:?}");
    d.stop();
    e.stop();
}

/// Three relays, of which one after the other is killed, at a random moment, and started again a little
/// later. No record is lost, and where each key is unique only those are handled twice that a killed relay
/// had handled and the group had not committed.
pub fn kills(broker: &Broker, protocol: GroupProtocol, rounds: usize) {
    let pipeline = Pipeline::new(broker, "kills", 8, protocol);
    let mut random = seeded_random(&format!("killing relays, {protocol:?}"));
    let load = pipeline.load(400);
    let mut relays: Vec<_> = (0..3).map(|n| pipeline.start(&format!("r{n}"), "20ms")).collect();
    pipeline.wait_until_shared_by(&mut relays.iter_mut().collect::<Vec<_>>());
    let mut kills = Vec::new();
    for round in 3..3 + rounds {
        wait_up_to(&mut random, 4_000);
        let killed = relays.swap_remove(random.random_range(0..relays.len()));
        kills.push(killed.kill(&pipeline));
        wait_up_to(&mut random, 1_000);
        relays.push(pipeline.start(&format!("r{round}"), "20ms"));
    }
    pipeline.wait_until_shared_by(&mut relays.iter_mut().collect::<Vec<_>>());
    let written = load.end();

    let history = pipeline.wait_until_settled();
    history.nothing_is_missing().order_is_kept();
    let repeats = history.repeats();
    let (explained, others): (Vec<_>, Vec<_>) =
        repeats.iter().partition(|(position, by)| explained_by(&kills, **position, by));
    println!(
        "{protocol:?}, {rounds} killed: {written} records; twice: {} by killed relays, {} in rebalances",
        explained.len(),
        others.len()
    );
    // In a rebalance these are records that had overtaken others, which still waited for one of the same key.
    let of_unique_keys: Vec<_> =
        others.iter().filter(|((partition, _), _)| has_unique_keys(*partition)).collect();
    assert!(of_unique_keys.is_empty(), "{of_unique_keys:?} after {kills:?}");
    let most = IN_FLIGHT * rounds * 2 * usize::try_from(pipeline.partitions).unwrap() / 2;
    assert!(others.len() <= most, "{} are more than {most}", others.len());
    relays.into_iter().for_each(Relay::stop);
}

/// A relay with a `kafka.instance_id` that was stopped or killed gets its partitions back when it is started
/// again. In the classic protocol a kill causes no rebalance; a relay that stops leaves the group, so the
/// others have its partitions meanwhile. (Under KIP-848 it is the other way round: the instance id of a
/// killed member is taken until its session ends.)
pub fn static_members(broker: &Broker, protocol: GroupProtocol) {
    let pipeline = Pipeline::new(broker, "static", 4, protocol).with("session_timeout", "30s");
    let mut a = pipeline.start_with_instance_id("pod-a", "a", "20ms");
    let mut b = pipeline.start_with_instance_id("pod-b", "b", "20ms");
    pipeline.wait_until_shared_by(&mut [&mut a, &mut b]);
    let load = pipeline.load(100);
    pipeline.wait_until_handled_by(&a);
    a.stop();
    let mut restarted = pipeline.start_with_instance_id("pod-a", "a, again", "20ms");
    pipeline.wait_until_handled_by(&restarted);
    pipeline.wait_until_shared_by(&mut [&mut restarted, &mut b]);
    let before_kill = b.partition_counts();
    let kill = restarted.kill(&pipeline);
    let mut restarted = pipeline.start_with_instance_id("pod-a", "a, once more", "20ms");
    pipeline.wait_until_handled_by(&restarted);
    pipeline.wait_until_shared_by(&mut [&mut restarted, &mut b]);
    let written = load.end();

    let history = pipeline.wait_until_settled();
    history.nothing_is_missing().order_is_kept();
    let repeats = history.repeats();
    println!(
        "{protocol:?}, static: {written} records, {} handled twice, the other had {before_kill:?}, then {:?}",
        repeats.len(),
        b.partition_counts()
    );
    let unexplained: Vec<_> = repeats
        .iter()
        .filter(|(position, by)| !explained_by(slice::from_ref(&kill), **position, by))
        .collect();
    assert!(
        unexplained.iter().all(|((partition, _), _)| !has_unique_keys(*partition)),
        "{unexplained:?} after {kill:?}"
    );
    if protocol == GroupProtocol::Classic {
        assert_eq!(b.partition_counts(), before_kill, "the kill caused a rebalance");
    }
    restarted.stop();
    b.stop();
}

/// Starts a relay beside others; returns when it has its share of the partitions and has handled a record.
fn start_beside(pipeline: &Pipeline, name: &str, others: &mut [&mut Relay]) -> Relay {
    let mut relay = pipeline.start(name, "20ms");
    let mut all: Vec<&mut Relay> = others.iter_mut().map(|other| &mut **other).collect();
    all.push(&mut relay);
    pipeline.wait_until_shared_by(&mut all);
    pipeline.wait_until_handled_by(&relay);
    relay
}

/// Sleeps for a random time, up to so many milliseconds.
fn wait_up_to(random: &mut StdRng, millis: u64) {
    thread::sleep(Duration::from_millis(random.random_range(0..millis)));
}
