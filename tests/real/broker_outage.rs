//! Kafka is unreachable for a while under running relays.

use std::{thread, time::Duration};

use consumer::GroupProtocol::{Classic, Consumer};

use crate::{
    cluster::Cluster,
    relay::{IN_FLIGHT, Load, Pipeline, Relay},
};

/// Two relays, under load.
struct LoadedRelays {
    pipeline: Pipeline,
    a: Relay,
    b: Relay,
    load: Load,
}

/// The only broker is unreachable, for longer than the session of one group, 6 s, and shorter than that of
/// the others, 5 min and 45 s. `begin` makes it so, `end` brings it back, which may take most of a minute on
/// a busy machine.
pub fn of_the_only_broker(begin: impl Fn(&mut Cluster), length: Duration, end: impl Fn(&mut Cluster)) {
    let mut cluster = Cluster::start(1);
    let broker = cluster.broker.clone();
    // Patient too: a producer that gives up, after its usual 30 s, writes again what the broker may have
    // kept.
    let with_patient_producer = |name, protocol| {
        Pipeline::new(&broker, name, 4, protocol).with_property("message.timeout.ms", "300000")
    };
    let mut long_session = LoadedRelays::start(
        with_patient_producer("long-session", Classic).with("session_timeout", "5m"),
        100,
    );
    let mut short_session = LoadedRelays::start(
        Pipeline::new(&broker, "short-session", 4, Classic).with("session_timeout", "6s"),
        100,
    );
    let mut kip_848 = LoadedRelays::start(with_patient_producer("kip-848", Consumer), 100);

    begin(&mut cluster);
    thread::sleep(length);
    end(&mut cluster);

    for relays in [&mut long_session, &mut short_session, &mut kip_848] {
        relays.pipeline.wait_until_shared_by(&mut [&mut relays.a, &mut relays.b]);
    }
    assert!(
        short_session.a.partition_counts().contains(&0) || short_session.b.partition_counts().contains(&0),
        "its session has not ended"
    );
    for relays in [&mut long_session, &mut kip_848] {
        assert!(!relays.a.partition_counts().contains(&0), "its partitions were revoked");
    }
    long_session.finish(0);
    kip_848.finish(0);
    // What was in flight in both, and what they had handled just before and not committed.
    short_session.finish(2 * 2 * IN_FLIGHT);
}

/// Of three brokers each is stopped and killed in turn: the leaders of partitions move, and the coordinator
/// of the group too.
pub fn of_one_of_three(rounds: usize) {
    let mut cluster = Cluster::start(3);
    let broker = cluster.broker.clone();
    let classic =
        LoadedRelays::start(Pipeline::new(&broker, "three", 6, Classic).with("session_timeout", "45s"), 50);
    let kip_848 = LoadedRelays::start(Pipeline::new(&broker, "three", 6, Consumer), 50);
    for round in 0..rounds {
        let node = round % 3;
        match round / 3 % 2 {
            0 => cluster.stop(node),
            _ => cluster.kill(node),
        }
        println!("broker {} has ended", node + 1);
        thread::sleep(Duration::from_secs(5));
        cluster.start_again(node);
        thread::sleep(Duration::from_secs(5));
    }
    // On a small machine a leader may take longer over a record than the producer waits (21 s, seen at load
    // 40), and a session may end: then what is in flight is handled again.
    classic.finish(rounds * IN_FLIGHT);
    kip_848.finish(rounds * IN_FLIGHT);
}

impl LoadedRelays {
    fn start(pipeline: Pipeline, per_second: u64) -> Self {
        let mut a = pipeline.start("a", "20ms");
        let mut b = pipeline.start("b", "20ms");
        pipeline.wait_until_shared_by(&mut [&mut a, &mut b]);
        let load = pipeline.load(per_second);
        pipeline.wait_until_handled_by(&a);
        pipeline.wait_until_handled_by(&b);
        Self { pipeline, a, b, load }
    }

    /// Every record was handled, and not more than that many of them twice.
    fn finish(self, repeats_max: usize) {
        let Self { pipeline, a, b, load } = self;
        let written = load.end();
        let history = pipeline.wait_until_settled();
        history.nothing_is_missing().order_is_kept();
        let repeats = history.repeats();
        println!("{}: {written} records, {} handled twice", pipeline.input(), repeats.len());
        assert!(
            repeats.len() <= repeats_max,
            "{} records of {written} were handled twice: {repeats:?}",
            repeats.len()
        );
        a.stop();
        b.stop();
    }
}
