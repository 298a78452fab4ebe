//! Outages, refused writes, an offset out of range, an instance id that is not released.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use consumer::{ConsumerMetrics, GroupProtocol, Producer, Settings, mock::Broker};
use rdkafka::{
    ClientConfig, Offset, TopicPartitionList,
    consumer::{BaseConsumer, CommitMode, Consumer as _},
    types::RDKafkaRespErr::{
        RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE, RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION,
        RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT, RD_KAFKA_RESP_ERR_UNRELEASED_INSTANCE_ID,
    },
};
use tokio::{task::JoinSet, time::sleep};

use crate::{Log, RunningStage, TestHandler, read, settings, until, until_committed, write};

/// Settings under which the session of a classic member ends after 1.5 s.
fn short_session(broker: &Broker) -> Settings {
    let mut settings = settings(broker, GroupProtocol::Classic);
    for (name, value) in [
        ("session.timeout.ms", "1500"),
        ("heartbeat.interval.ms", "300"),
        ("reconnect.backoff.max.ms", "300"),
    ] {
        settings.properties.insert(name.into(), value.into());
    }
    settings
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_shorter_than_a_session_loses_nothing_and_repeats_nothing() {
    let broker = Broker::start([("t", 2)]).unwrap();
    let settings = settings(&broker, GroupProtocol::Classic);
    let producer = Producer::new(&settings).unwrap();
    let log = Log::default();
    let metrics = Arc::new(ConsumerMetrics::default());
    let mut stage = RunningStage::start(&settings, "s", &["t"], TestHandler::new(0, &log), &metrics);
    stage.owns(2).await;
    write(&producer, "t", 0, None, "before").await;
    until(&log, "the record before the outage", |log| log.len() == 1).await;
    broker.take_down().unwrap();
    let mut during = JoinSet::new();
    during.spawn(async move { write(&producer, "t", 1, None, "during").await });
    sleep(Duration::from_secs(1)).await;
    broker.bring_up().unwrap();
    during.join_next().await.unwrap().unwrap();
    until(&log, "the record of the outage", |log| log.iter().any(|handled| handled.value == "during")).await;
    until_committed(&settings, &[1; 2]).await;
    stage.stop().await;
    assert_eq!(log.borrow().len(), 2);
}

/// Handlers that run when their partition is lost run to their end, and settle nothing; what was settled and
/// not committed is delivered again too. But no record is ever handled twice at once, though the member
/// rejoins before its orphaned handlers have ended.
#[tokio::test(flavor = "multi_thread")]
async fn an_outage_longer_than_a_session_repeats_what_was_in_flight_but_never_concurrently() {
    let broker = Broker::start([("t", 2)]).unwrap();
    let settings = short_session(&broker);
    let producer = Producer::new(&settings).unwrap();
    let log = Log::default();
    let metrics = Arc::new(ConsumerMetrics::default());
    let mut stage = RunningStage::start(&settings, "s", &["t"], TestHandler::new(0, &log), &metrics);
    stage.owns(2).await;
    for partition in 0..2 {
        write(&producer, "t", partition, None, "quick").await;
    }
    until_committed(&settings, &[1; 2]).await;
    for partition in 0..2 {
        write(&producer, "t", partition, None, "for ms 4500").await;
        write(&producer, "t", partition, None, "quick").await;
    }
    until(&log, "the quick ones", |log| log.len() == 4).await;
    broker.take_down().unwrap();
    let lost = stage.assignment.wait_for(|assignment| assignment.partitions.is_empty());
    tokio::time::timeout(crate::TEST_TIMEOUT, lost).await.expect("the session ends").unwrap();
    broker.bring_up().unwrap();
    until_committed(&settings, &[3; 2]).await;
    stage.stop().await;

    let handled = log.borrow().clone();
    let records: BTreeSet<_> = handled.iter().map(|handled| (handled.partition, handled.offset)).collect();
    assert_eq!(records.len(), 6, "nothing is lost");
    assert_eq!(
        handled.iter().filter(|handled| handled.value == "for ms 4500").count(),
        4,
        "each ran to its end, twice: {handled:?}"
    );
    assert!(
        handled.iter().all(|handled| handled.offset != 0 || handled.value == "quick")
            && handled.len() <= 6 + 4,
        "{handled:?}"
    );
    assert!(handled.iter().all(|handled| !handled.value.ends_with("concurrently")), "{handled:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_slower_than_the_poll_interval_costs_nothing() {
    let broker = Broker::start([("t", 1)]).unwrap();
    let mut settings = short_session(&broker);
    settings.properties.insert("max.poll.interval.ms".into(), "1500".into());
    let producer = Producer::new(&settings).unwrap();
    write(&producer, "t", 0, None, "for ms 4000").await;
    let log = Log::default();
    let metrics = Arc::new(ConsumerMetrics::default());
    let stage = RunningStage::start(&settings, "s", &["t"], TestHandler::new(0, &log), &metrics);
    until_committed(&settings, &[1]).await;
    stage.stop().await;
    assert_eq!(log.borrow().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_that_kafka_refuses_for_a_while_leave_one_dead_letter_each() {
    let broker = Broker::start([("t", 1), ("dead-letters", 1)]).unwrap();
    let mut settings = settings(&broker, GroupProtocol::Consumer);
    // The mock ignores sequence numbers: it accepts a batch though it has refused the one before, and
    // librdkafka rightly concludes that it has both. Kafka would not.
    settings.properties.insert("max.in.flight.requests.per.connection".into(), "1".into());
    let producer = Producer::new(&settings).unwrap();
    for value in ["unreadable", "panic", "fine"] {
        write(&producer, "t", 0, None, value).await;
    }
    let retriable = [RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION, RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT];
    broker.refuse_writes(&[retriable, retriable].concat());
    let log = Log::default();
    let metrics = Arc::new(ConsumerMetrics::default());
    let stage = RunningStage::start(&settings, "s", &["t"], TestHandler::new(0, &log), &metrics);
    until_committed(&settings, &[3]).await;
    stage.stop().await;
    write(&producer, "dead-letters", 0, None, "the last").await;
    let written: Vec<_> =
        read(&settings, "dead-letters", 3).into_iter().map(|(_, value, _)| value.unwrap()).collect();
    assert_eq!(written[2], b"the last", "two dead letters and no more");
    assert_eq!(
        written[..2].iter().map(Vec::as_slice).collect::<BTreeSet<_>>(),
        BTreeSet::from([&b"unreadable"[..], b"panic"])
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_that_is_too_large_for_kafka_is_written_without_its_value() {
    let broker = Broker::start([("t", 1), ("dead-letters", 1)]).unwrap();
    let settings = settings(&broker, GroupProtocol::Consumer);
    write(&Producer::new(&settings).unwrap(), "t", 0, Some("k"), "unreadable").await;
    broker.refuse_writes(&[RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE]);
    let log = Log::default();
    let metrics = Arc::new(ConsumerMetrics::default());
    let stage = RunningStage::start(&settings, "s", &["t"], TestHandler::new(0, &log), &metrics);
    until_committed(&settings, &[1]).await;
    stage.stop().await;
    let (key, value, headers) = read(&settings, "dead-letters", 1).remove(0);
    assert_eq!((key.as_deref(), value), (Some(&b"k"[..]), None));
    assert_eq!(headers["app.value-bytes"], "10");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_offset_out_of_range_is_counted_and_reading_goes_on_from_the_beginning() {
    let broker = Broker::start([("t", 1)]).unwrap();
    let settings = settings(&broker, GroupProtocol::Classic);
    let producer = Producer::new(&settings).unwrap();
    for value in ["one", "two", "three"] {
        write(&producer, "t", 0, None, value).await;
    }
    let client: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", &settings.bootstrap_servers)
        .set("group.id", settings.group_of("s"))
        .create()
        .unwrap();
    let mut out_of_range = TopicPartitionList::new();
    out_of_range.add_partition_offset("t", 0, Offset::Offset(1_000)).unwrap();
    client.commit(&out_of_range, CommitMode::Sync).unwrap();

    let log = Log::default();
    let metrics = Arc::new(ConsumerMetrics::default());
    let stage = RunningStage::start(&settings, "s", &["t"], TestHandler::new(0, &log), &metrics);
    until(&log, "all three", |log| log.len() == 3).await;
    stage.stop().await;
    assert_eq!(metrics.offset_resets_total.with_label_values(&["s"]).get(), 1);
}

/// The instance id of a killed process is not released until its session has ended; under KIP-848 librdkafka
/// calls that fatal.
#[tokio::test(flavor = "multi_thread")]
async fn a_process_whose_instance_id_is_not_released_yet_waits_and_then_joins() {
    let broker = Broker::start([("t", 1)]).unwrap();
    let settings = Settings { instance_id: "a".into(), ..settings(&broker, GroupProtocol::Consumer) };
    write(&Producer::new(&settings).unwrap(), "t", 0, None, "one").await;
    broker.refuse_heartbeats(&[RD_KAFKA_RESP_ERR_UNRELEASED_INSTANCE_ID; 2]);
    let log = Log::default();
    let metrics = Arc::new(ConsumerMetrics::default());
    let stage = RunningStage::start(&settings, "s", &["t"], TestHandler::new(0, &log), &metrics);
    until_committed(&settings, &[1]).await;
    stage.stop().await;
    assert_eq!(log.borrow().len(), 1);
}
