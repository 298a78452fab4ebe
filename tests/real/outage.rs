//! Kafka goes away and comes back while relays are at work.

use std::{thread, time::Duration};

use consumer::GroupProtocol::{Classic, Consumer};

use crate::{
    cluster::Cluster,
    passage::{IN_FLIGHT, Load, Passage, Relay},
};

/// Two relays, under load.
struct AtWork {
    passage: Passage,
    a: Relay,
    b: Relay,
    load: Load,
}

/// The only broker is away, for longer than the session of one group, 6 s, and shorter than that of the
/// others, 5 min and 45 s. `go` takes it away, `come` brings it back, which may take it most of a minute on a
/// machine that has much to do.
pub fn of_the_only_broker(go: impl Fn(&mut Cluster), away: Duration, come: impl Fn(&mut Cluster)) {
    let mut cluster = Cluster::start(1);
    let broker = cluster.broker.clone();
    // A producer that gives up, after its usual 30 s, writes again what the broker may have kept.
    let waiting = |name, protocol| {
        Passage::new(&broker, name, 4, protocol).with_property("message.timeout.ms", "300000")
    };
    let mut patient = AtWork::begins(waiting("patient", Classic).with("session_timeout", "5m"), 100);
    let mut hasty =
        AtWork::begins(Passage::new(&broker, "hasty", 4, Classic).with("session_timeout", "6s"), 100);
    let mut modern = AtWork::begins(waiting("modern", Consumer), 100);

    go(&mut cluster);
    thread::sleep(away);
    come(&mut cluster);

    for work in [&mut patient, &mut hasty, &mut modern] {
        work.passage.is_shared_by(&mut [&mut work.a, &mut work.b]);
    }
    assert!(hasty.a.has_owned().contains(&0) || hasty.b.has_owned().contains(&0), "its session was not over");
    for work in [&mut patient, &mut modern] {
        assert!(!work.a.has_owned().contains(&0), "nothing was to be taken away");
    }
    patient.ends_with(0);
    modern.ends_with(0);
    // What both had in hand, and what they had done just before and not committed.
    hasty.ends_with(2 * 2 * IN_FLIGHT);
}

/// Of three brokers each is stopped and killed in turn: leaders move, and the group's coordinator too.
pub fn of_one_of_three(rounds: usize) {
    let mut cluster = Cluster::start(3);
    let broker = cluster.broker.clone();
    let classic =
        AtWork::begins(Passage::new(&broker, "three", 6, Classic).with("session_timeout", "45s"), 50);
    let modern = AtWork::begins(Passage::new(&broker, "three", 6, Consumer), 50);
    for round in 0..rounds {
        let node = round % 3;
        match round / 3 % 2 {
            0 => cluster.stop(node),
            _ => cluster.kill(node),
        }
        println!("broker {} is away", node + 1);
        thread::sleep(Duration::from_secs(5));
        cluster.start_again(node);
        thread::sleep(Duration::from_secs(5));
    }
    // On a small machine a leader may take longer over a record than the producer waits (21 s, seen at load
    // 40), and a session may end: then what is in hand is done again.
    classic.ends_with(rounds * IN_FLIGHT);
    modern.ends_with(rounds * IN_FLIGHT);
}

impl AtWork {
    fn begins(passage: Passage, per_second: u64) -> Self {
        let (mut a, mut b) = (passage.start("a", "20ms"), passage.start("b", "20ms"));
        passage.is_shared_by(&mut [&mut a, &mut b]);
        let load = passage.load(per_second);
        passage.is_worked_at_by(&a);
        passage.is_worked_at_by(&b);
        Self { passage, a, b, load }
    }

    /// Everything was handled, and not more than that many records twice.
    fn ends_with(self, repeats_max: usize) {
        let Self { passage, a, b, load } = self;
        let written = load.end();
        let account = passage.settled();
        account.nothing_is_missing().order_is_kept();
        let repeats = account.repeats();
        println!("{}: {written} records, {} done twice", passage.input(), repeats.len());
        assert!(
            repeats.len() <= repeats_max,
            "{} records of {written} were done twice: {repeats:?}",
            repeats.len()
        );
        a.stop();
        b.stop();
    }
}
