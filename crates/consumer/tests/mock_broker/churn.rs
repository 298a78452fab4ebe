//! Members come and go while records are written and handlers are slow: nothing is lost, nothing is handled
//! twice, and each key keeps its order.
//!
//! In a classic group the mock may begin to deal again while a member still drains, and then refuses its
//! commit as long as it deals, which Kafka does not. So there repeats are allowed here; the suite on the real
//! broker allows none.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use consumer::{ConsumerMetrics, GroupProtocol, Producer, Settings, mock::Broker};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

use crate::{
    Diligent, Handled, Log, Running, assert_ordered_by_key, settings, until, until_committed, write,
};

const PARTITIONS: i32 = 8;
/// So few that records wait in lanes, and others overtake them.
const KEYS: i32 = 24;

/// Writes until it is told to stop; the answer is how many. Handling one takes 10 to 70 ms.
fn writing(settings: &Settings, stop: &CancellationToken) -> JoinSet<i32> {
    let (producer, stop) = (Producer::new(settings).unwrap(), stop.clone());
    let mut writer = JoinSet::new();
    writer.spawn(async move {
        let mut written = 0;
        while !stop.is_cancelled() {
            let (key, value) =
                (format!("key {}", written % KEYS), format!("for ms {}", 10 + 10 * (written % 7)));
            write(&producer, "t", written % PARTITIONS, Some(&key), &value).await;
            written += 1;
            sleep(Duration::from_millis(2)).await;
        }
        written
    });
    writer
}

async fn churn(protocol: GroupProtocol, cycles: usize) {
    let broker = Broker::start([("t", PARTITIONS)]).unwrap();
    broker.heartbeat_every(Duration::from_millis(100));
    let settings = Settings { session_timeout: Duration::from_secs(3), ..settings(&broker, protocol) };
    let (log, metrics) = (Log::default(), Arc::new(ConsumerMetrics::default()));
    let mut steady = Running::start(&settings, "s", &["t"], Diligent::new(0, &log), &metrics);
    steady.owns(8).await;

    let (stop_writing, begun) = (CancellationToken::new(), Instant::now());
    let mut writer = writing(&settings, &stop_writing);
    // A partition that is taken away before librdkafka knows where to begin is fetched on and on by it
    // (2.12.1), and what it fetched comes up when the partition comes back: `Queue::split` throws away most
    // of it, not all.
    let at_work =
        |log: &Vec<Handled>| log.iter().map(|handled| handled.partition).collect::<BTreeSet<_>>().len() == 8;
    until(&log, "all partitions are read", at_work).await;
    for cycle in 1..=cycles {
        let mut guest = Running::start(&settings, "s", &["t"], Diligent::new(cycle, &log), &metrics);
        guest.owns(4).await;
        steady.owns(4).await;
        until(&log, "the guest works", |log| {
            log.iter().filter(|handled| handled.member == cycle).count() > 50
        })
        .await;
        guest.stop().await;
        steady.owns(8).await;
    }
    stop_writing.cancel();
    let written = writer.join_next().await.unwrap().unwrap();
    let each: Vec<_> = (0..PARTITIONS)
        .map(|partition| i64::from((written + PARTITIONS - 1 - partition) / PARTITIONS))
        .collect();
    until_committed(&settings, &each).await;
    steady.stop().await;

    let handled = log.borrow().clone();
    let places: BTreeSet<_> = handled.iter().map(|handled| (handled.partition, handled.offset)).collect();
    println!(
        "{protocol:?}: {written} records, {cycles} guests, {} repeats, {:?}",
        handled.len() - places.len(),
        begun.elapsed()
    );
    assert_eq!(places.len(), usize::try_from(written).unwrap(), "nothing is lost");
    if protocol == GroupProtocol::Consumer {
        assert_eq!(handled.len(), places.len(), "nothing is handled twice");
    }
    assert_ordered_by_key(&handled);
}

#[tokio::test(flavor = "multi_thread")]
async fn members_come_and_go_under_kip_848() {
    churn(GroupProtocol::Consumer, 3).await;
}

/// One guest only: the mock takes most of a session for each change in a classic group.
#[tokio::test(flavor = "multi_thread")]
async fn members_come_and_go_under_cooperative_sticky() {
    churn(GroupProtocol::Classic, 1).await;
}
