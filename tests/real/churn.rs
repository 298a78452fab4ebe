//! Relays join, leave and are killed while records are written.

use std::{slice, thread, time::Duration};

use consumer::GroupProtocol;
use rand::{RngExt as _, rngs::StdRng};

use crate::{
    broker::Broker,
    passage::{IN_FLIGHT, Passage, Relay, comes_once},
    verdict::explained_by,
    world::chance,
};

/// Three relays join and leave in good order. Nothing is lost, and where each key comes once nothing is done
/// twice.
pub fn without_a_crash(broker: &Broker, protocol: GroupProtocol) {
    // Nobody dies here. A machine that is busy must not look like it.
    let passage = Passage::new(broker, "churn", 8, protocol).with("session_timeout", "45s");
    let load = passage.load(400);
    let mut a = at_work(&passage, "a", &mut []);
    let mut b = at_work(&passage, "b", &mut [&mut a]);
    let mut c = at_work(&passage, "c", &mut [&mut a, &mut b]);
    a.stop();
    passage.is_shared_by(&mut [&mut b, &mut c]);
    let mut d = at_work(&passage, "d", &mut [&mut b, &mut c]);
    b.stop();
    c.stop();
    passage.is_shared_by(&mut [&mut d]);
    let e = at_work(&passage, "e", &mut [&mut d]);
    let written = load.end();

    let account = passage.settled();
    account.nothing_is_missing().order_is_kept().all_have_worked(&["a", "b", "c", "d", "e"]);
    let repeats = account.repeats();
    println!("{protocol:?}: {written} records, {} repeated", repeats.len());
    let once: Vec<_> = repeats.iter().filter(|((partition, _), _)| comes_once(*partition)).collect();
    assert!(once.is_empty(), "{once:?}");
    d.stop();
    e.stop();
}

/// Three relays, of which one after the other is killed, at any moment, and started again a little later.
/// Nothing is lost, and where each key comes once only that is done twice which the dead had done and the
/// group had not committed.
pub fn with_crashes(broker: &Broker, protocol: GroupProtocol, rounds: usize) {
    let passage = Passage::new(broker, "crash", 8, protocol);
    let mut chance = chance(&format!("killing relays, {protocol:?}"));
    let load = passage.load(400);
    let mut relays: Vec<_> = (0..3).map(|n| passage.start(&format!("r{n}"), "20ms")).collect();
    passage.is_shared_by(&mut relays.iter_mut().collect::<Vec<_>>());
    let mut deaths = Vec::new();
    for round in 3..3 + rounds {
        pass(&mut chance, 4_000);
        let victim = relays.swap_remove(chance.random_range(0..relays.len()));
        deaths.push(victim.kill(&passage));
        pass(&mut chance, 1_000);
        relays.push(passage.start(&format!("r{round}"), "20ms"));
    }
    passage.is_shared_by(&mut relays.iter_mut().collect::<Vec<_>>());
    let written = load.end();

    let account = passage.settled();
    account.nothing_is_missing().order_is_kept();
    let repeats = account.repeats();
    let (explained, others): (Vec<_>, Vec<_>) =
        repeats.iter().partition(|(place, by)| explained_by(&deaths, **place, by));
    println!(
        "{protocol:?}, {rounds} killed: {written} records; done twice: {} by the dead, {} in handovers",
        explained.len(),
        others.len()
    );
    // In a handover it is what had overtaken records that still waited behind another one of their key.
    let once: Vec<_> = others.iter().filter(|((partition, _), _)| comes_once(*partition)).collect();
    assert!(once.is_empty(), "{once:?} after {deaths:?}");
    let most = IN_FLIGHT * rounds * 2 * usize::try_from(passage.partitions).unwrap() / 2;
    assert!(others.len() <= most, "{} are more than {most}", others.len());
    relays.into_iter().for_each(Relay::stop);
}

/// A relay with a `kafka.instance_id` that was stopped or killed gets its place back when it is started
/// again. In the classic protocol nobody else hears of a kill; one that stops leaves its group, so the others
/// have its partitions meanwhile. (Under KIP-848 it is the other way round: the name of a killed one is taken
/// until its session is over.)
pub fn under_a_name_that_stays(broker: &Broker, protocol: GroupProtocol) {
    let passage = Passage::new(broker, "static", 4, protocol).with("session_timeout", "30s");
    let (mut a, mut b) = (
        passage.start_in_the_place_of("pod-a", "a", "20ms"),
        passage.start_in_the_place_of("pod-b", "b", "20ms"),
    );
    passage.is_shared_by(&mut [&mut a, &mut b]);
    let load = passage.load(100);
    passage.is_worked_at_by(&a);
    a.stop();
    let mut stopped = passage.start_in_the_place_of("pod-a", "a, again", "20ms");
    passage.is_worked_at_by(&stopped);
    passage.is_shared_by(&mut [&mut stopped, &mut b]);
    let heard = b.has_owned();
    let death = stopped.kill(&passage);
    let mut killed = passage.start_in_the_place_of("pod-a", "a, once more", "20ms");
    passage.is_worked_at_by(&killed);
    passage.is_shared_by(&mut [&mut killed, &mut b]);
    let written = load.end();

    let account = passage.settled();
    account.nothing_is_missing().order_is_kept();
    let repeats = account.repeats();
    println!(
        "{protocol:?}, under a name: {written} records, {} done twice, the other one had {heard:?}, {:?}",
        repeats.len(),
        b.has_owned()
    );
    let unexplained: Vec<_> =
        repeats.iter().filter(|(place, by)| !explained_by(slice::from_ref(&death), **place, by)).collect();
    assert!(
        unexplained.iter().all(|((partition, _), _)| !comes_once(*partition)),
        "{unexplained:?} after {death:?}"
    );
    if protocol == GroupProtocol::Classic {
        assert_eq!(b.has_owned(), heard, "the other one heard of the kill");
    }
    killed.stop();
    b.stop();
}

/// Starts a relay beside others; it has its share, and has handled something.
fn at_work(passage: &Passage, name: &str, others: &mut [&mut Relay]) -> Relay {
    let mut relay = passage.start(name, "20ms");
    let mut all: Vec<&mut Relay> = others.iter_mut().map(|other| &mut **other).collect();
    all.push(&mut relay);
    passage.is_shared_by(&mut all);
    passage.is_worked_at_by(&relay);
    relay
}

/// Lets any time pass, up to that many milliseconds.
fn pass(chance: &mut StdRng, most: u64) {
    thread::sleep(Duration::from_millis(chance.random_range(0..most)));
}
