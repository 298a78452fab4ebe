//! Members join and leave while records are written and handlers are slow: nothing is lost, nothing is
//! handled twice, and each key keeps its order.
//!
//! In a classic group the mock may start another rebalance while a member still drains, and then refuses its
//! commit during that rebalance, which Kafka does not. So repeats are allowed there.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use consumer::{ConsumerMetrics, GroupProtocol, Producer, Settings, mock::Broker};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

use crate::{
    Handled, Log, RunningStage, TestHandler, assert_ordered_by_key, settings, until, until_committed, write,
};

const PARTITIONS: i32 = 8;
/// So few that records wait in key queues, and others overtake them.
const KEYS: i32 = 24;

/// Writes until `stop`, and returns how many records. Handling one takes 10 to 70 ms.
fn write_until(settings: &Settings, stop: &CancellationToken) -> JoinSet<i32> {
    let producer = Producer::new(settings).unwrap();
    let stop = stop.clone();
    let mut writer = JoinSet::new();
    writer.spawn(async move {
        let mut written = 0;
        while !stop.is_cancelled() {
            let key = format!("key {}", written % KEYS);
            let value = format!("for ms {}", 10 + 10 * (written % 7));
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
    let log = Log::default();
    let metrics = Arc::new(ConsumerMetrics::default());
    let mut first = RunningStage::start(&settings, "s", &["t"], TestHandler::new(0, &log), &metrics);
    first.owns(8).await;

    let stop_writing = CancellationToken::new();
    let from = Instant::now();
    let mut writer = write_until(&settings, &stop_writing);
    // librdkafka (2.12.1) continues to fetch a partition that is revoked before it knows where to start, and
    // what it has fetched is delivered when the partition comes back: the runtime discards most of it, not
    // all.
    let all_read =
        |log: &Vec<Handled>| log.iter().map(|handled| handled.partition).collect::<BTreeSet<_>>().len() == 8;
    until(&log, "all partitions are read", all_read).await;
    for cycle in 1..=cycles {
        let mut other = RunningStage::start(&settings, "s", &["t"], TestHandler::new(cycle, &log), &metrics);
        other.owns(4).await;
        first.owns(4).await;
        until(&log, "the other member handles records", |log| {
            log.iter().filter(|handled| handled.member == cycle).count() > 50
        })
        .await;
        other.stop().await;
        first.owns(8).await;
    }
    stop_writing.cancel();
    let written = writer.join_next().await.unwrap().unwrap();
    let each: Vec<_> = (0..PARTITIONS)
        .map(|partition| i64::from((written + PARTITIONS - 1 - partition) / PARTITIONS))
        .collect();
    until_committed(&settings, &each).await;
    first.stop().await;

    let handled = log.borrow().clone();
    let records: BTreeSet<_> = handled.iter().map(|handled| (handled.partition, handled.offset)).collect();
    println!(
        "{protocol:?}: {written} records, {cycles} other members, {} repeats, {:?}",
        handled.len() - records.len(),
        from.elapsed()
    );
    assert_eq!(records.len(), usize::try_from(written).unwrap(), "nothing is lost");
    if protocol == GroupProtocol::Consumer {
        assert_eq!(handled.len(), records.len(), "nothing is handled twice");
    }
    assert_ordered_by_key(&handled);
}

#[tokio::test(flavor = "multi_thread")]
async fn members_join_and_leave_under_kip_848() {
    churn(GroupProtocol::Consumer, 3).await;
}

/// One other member only: the mock takes most of a session for each change in a classic group.
#[tokio::test(flavor = "multi_thread")]
async fn members_join_and_leave_under_cooperative_sticky() {
    churn(GroupProtocol::Classic, 1).await;
}
