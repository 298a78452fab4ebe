//! A stage as a member of its group: joining, refused commits, being fenced.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use consumer::{ConsumerMetrics, GroupProtocol, Producer, Settings, mock::Broker};
use rdkafka::types::RDKafkaRespErr;
use tokio::{task::JoinSet, time::Instant};

use crate::{Handled, Log, RunningStage, TestHandler, committed, settings, until, until_committed, write};

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_is_refused_because_of_a_rebalance_is_made_again() {
    let broker = Broker::start([("t", 2)]).unwrap();
    let settings = settings(&broker, GroupProtocol::Consumer);
    let producer = Producer::new(&settings).unwrap();
    let log = Log::default();
    let metrics = Arc::new(ConsumerMetrics::default());
    let mut stage = RunningStage::start(&settings, "s", &["t"], TestHandler::new(0, &log), &metrics);
    stage.owns(2).await;
    broker.refuse_commits(&[RDKafkaRespErr::RD_KAFKA_RESP_ERR_REBALANCE_IN_PROGRESS]);
    write(&producer, "t", 0, None, "one").await;
    write(&producer, "t", 1, None, "two").await;
    until(&log, "both", |log| log.len() >= 2).await;
    stage.stop().await;
    assert_eq!(committed(&settings, "s", "t", 2), [Some(1); 2]);
}

/// Only a refused commit reveals it: all that runs is aborted, and the process joins as a new member.
#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_is_fenced_during_a_revocation_joins_again_and_loses_nothing() {
    let broker = Broker::start([("t", 2)]).unwrap();
    broker.heartbeat_every(Duration::from_millis(100));
    let settings = settings(&broker, GroupProtocol::Consumer);
    let producer = Producer::new(&settings).unwrap();
    let log = Log::default();
    let metrics = Arc::new(ConsumerMetrics::default());
    let mut fenced = RunningStage::start(&settings, "s", &["t"], TestHandler::new(0, &log), &metrics);
    fenced.owns(2).await;
    for partition in 0..2 {
        write(&producer, "t", partition, None, "when stopped").await;
    }
    until_committed(&settings, &[0; 2]).await;
    broker.refuse_commits(&[RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_MEMBER_ID]);
    let mut other = RunningStage::start(&settings, "s", &["t"], TestHandler::new(1, &log), &metrics);
    fenced.owns(1).await;
    other.owns(1).await;
    for partition in 0..2 {
        write(&producer, "t", partition, None, &format!("after it {partition}")).await;
    }
    let after = |log: &Vec<Handled>| {
        log.iter()
            .filter(|handled| handled.offset == 1)
            .map(|handled| handled.member)
            .collect::<BTreeSet<_>>()
    };
    until(&log, "both members handle records again", |log| after(log).len() == 2).await;
    fenced.stop().await;
    other.stop().await;
    let firsts = log.borrow().iter().filter(|handled| handled.offset == 0).count();
    assert!(firsts > 2, "what was handled in the drain, and not committed, is handled again");
    assert_eq!(committed(&settings, "s", "t", 2), [Some(2); 2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_stages_of_one_process_are_ready_soon() {
    let topics: Vec<_> = (0..10).map(|n| format!("t{n}")).collect();
    let broker = Broker::start(topics.iter().map(|topic| (topic.as_str(), 16))).unwrap();
    let settings = settings(&broker, GroupProtocol::Classic);
    let log = Log::default();
    let metrics = Arc::new(ConsumerMetrics::default());
    let from = Instant::now();
    let mut stages = Vec::new();
    // The last one reads two topics.
    for first in 0..9 {
        let read: Vec<_> =
            topics[first..][..1 + usize::from(first == 8)].iter().map(String::as_str).collect();
        let stage = RunningStage::start(&settings, read[0], &read, TestHandler::new(0, &log), &metrics);
        stages.push((read.len() * 16, stage));
    }
    for (partitions, stage) in &mut stages {
        stage.owns(*partitions).await;
    }
    println!("{} stages were ready after {:?}", stages.len(), from.elapsed());
    let mut stops = JoinSet::new();
    for (_, stage) in stages {
        stops.spawn(stage.stop());
    }
    while let Some(stopped) = stops.join_next().await {
        stopped.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_with_nothing_to_read_is_ready_too() {
    for protocol in [GroupProtocol::Classic, GroupProtocol::Consumer] {
        let broker = Broker::start([("t", 1)]).unwrap();
        broker.heartbeat_every(Duration::from_millis(100));
        let mut settings =
            Settings { session_timeout: Duration::from_secs(3), ..settings(&broker, protocol) };
        settings.properties.insert("statistics.interval.ms".into(), "100".into());
        let log = Log::default();
        let metrics = Arc::new(ConsumerMetrics::default());
        let mut first = RunningStage::start(&settings, "s", &["t"], TestHandler::new(0, &log), &metrics);
        first.owns(1).await;
        let mut second = RunningStage::start(&settings, "s", &["t"], TestHandler::new(1, &log), &metrics);
        second.owns(0).await;
        second.stop().await;
        first.stop().await;
    }
}
