//! What else a stage meets in Kafka: poison pills, slow handlers, offsets out of range, topics that grow or
//! are compacted, transactions, and producers that know nothing of pushcast.

use std::{collections::BTreeSet, iter, time::Duration};

use consumer::GroupProtocol;
use futures::executor::block_on;
use rdkafka::{
    Offset, TopicPartitionList,
    admin::{AdminOptions, NewPartitions},
    consumer::{CommitMode, Consumer as _},
    producer::{BaseProducer, BaseRecord, Producer as _},
};

use crate::{
    broker::Broker,
    relay::{Pipeline, WAIT_MAX},
    world::until,
};

/// Records that can't be read, or that make the handler panic, are written to `dead-letters`; those after
/// them are handled.
pub fn poison_pills() {
    // `dead-letters` is a fixed name, so tests of pushcast must not run meanwhile.
    let (broker, _lock) = block_on(Broker::without_topics());
    block_on(broker.create_topic("dead-letters", 4, &[]));
    let pipeline = Pipeline::new(&broker, "poison-pills", 1, GroupProtocol::Classic);
    let values = [
        r#"{"seq":0}"#,
        "this is no JSON",
        r#"{"panic":true}"#,
        r#"{"seq":1}"#,
        r#"{"work":"a while"}"#,
        r#"{"seq":2}"#,
    ];
    pipeline.write(Some(0), values.map(|value| (Some("k"), Some(value))));
    let relay = pipeline.start("a", "0s");
    let history = pipeline.wait_until_settled();
    relay.stop();

    let handled: Vec<_> = history.handled().iter().map(|handled| handled.position.1).collect();
    assert_eq!(handled, [0, 3, 5]);
    let mut letters = broker.records("dead-letters");
    letters.retain(|letter| letter.headers["relay.group"] == pipeline.group());
    letters.sort_by_key(|letter| letter.headers["relay.offset"].clone());
    let causes: Vec<_> = letters
        .iter()
        .map(|letter| (str::from_utf8(&letter.value).unwrap(), &*letter.headers["relay.cause"]))
        .collect();
    assert_eq!(causes, [(values[1], "unreadable"), (values[2], "panicked"), (values[4], "unreadable")]);
}

/// A handler that takes longer than `max.poll.interval.ms` keeps its partition, and delays no other record.
pub fn a_slow_handler(broker: &Broker, protocol: GroupProtocol) {
    let pipeline = Pipeline::new(broker, "slow", 2, protocol)
        .with("session_timeout", "6s")
        .with_property("max.poll.interval.ms", "6000");
    pipeline.write(Some(0), [(Some("slow"), Some(r#"{"work":"14s"}"#)), (Some("slow"), None)]);
    pipeline.write(Some(0), iter::repeat_n((Some("quick"), None), 20));
    let mut relay = pipeline.start("a", "0s");
    until("the quick ones are handled", WAIT_MAX, || {
        (pipeline.history().handled().len() == 20).then_some(())
    });
    pipeline.wait_until_settled().nothing_is_missing().order_is_kept().nothing_is_repeated();
    assert_eq!(relay.partition_counts(), [2], "no partition was ever revoked");
    relay.stop();
}

/// Partitions that are added to a topic are found, assigned and read from their beginning.
pub fn more_partitions(broker: &Broker, protocol: GroupProtocol) {
    let mut pipeline = Pipeline::new(broker, "grow", 2, protocol)
        .with_property("topic.metadata.refresh.interval.ms", "1000");
    let mut a = pipeline.start("a", "20ms");
    let mut b = pipeline.start("b", "20ms");
    pipeline.wait_until_shared_by(&mut [&mut a, &mut b]);
    let load = pipeline.load(100);
    let created = block_on(
        broker.admin().create_partitions(&[NewPartitions::new(&pipeline.input(), 6)], &AdminOptions::new()),
    )
    .unwrap();
    assert!(created.iter().all(Result::is_ok), "{created:?}");
    until("producers see the new ones", WAIT_MAX, || {
        (broker.partitions(&pipeline.input()) == 6).then_some(())
    });
    pipeline.partitions = 6;
    // One of them is written to before any relay reads it.
    pipeline.write(Some(5), iter::repeat_n((Some("early"), None), 10));
    pipeline.wait_until_shared_by(&mut [&mut a, &mut b]);
    load.end();
    pipeline.wait_until_settled().nothing_is_missing().order_is_kept().nothing_is_repeated();
    a.stop();
    b.stop();
}

/// Records that were deleted before they were read are skipped, and no others; a committed offset beyond the
/// end makes the group begin again with the first record that the topic has.
pub fn offsets_out_of_range(broker: &Broker, protocol: GroupProtocol) {
    let pipeline = Pipeline::new(broker, "range", 1, protocol);
    pipeline.write(Some(0), iter::repeat_n((Some("k"), None), 100));
    commit(&pipeline, 10);
    delete_before(&pipeline, 60);
    let relay = pipeline.start("a", "0s");
    let history = pipeline.wait_until_settled();
    history.nothing_is_missing().order_is_kept().nothing_is_repeated();
    assert_eq!(history.handled().len(), 40);
    relay.stop();

    commit(&pipeline, 1_000);
    let relay = pipeline.start("b", "0s");
    pipeline.wait_until_handled_by(&relay);
    pipeline.write(Some(0), iter::repeat_n((Some("k"), None), 10));
    until("all records were handled again", WAIT_MAX, || {
        (pipeline.history().handled().len() >= 90).then_some(())
    });
    let history = pipeline.wait_until_settled();
    history.nothing_is_missing().order_is_kept();
    assert_eq!((history.repeats().len(), history.handled().len()), (40, 90));
    relay.stop();
}

/// In a compacted topic most offsets have no record. It is read to its end, and the end is committed.
pub fn compaction(broker: &Broker, protocol: GroupProtocol) {
    let compacted_soon = [
        ("cleanup.policy", "compact"),
        ("segment.ms", "100"),
        ("min.cleanable.dirty.ratio", "0.001"),
        ("max.compaction.lag.ms", "100"),
    ];
    let pipeline = Pipeline::on_topic(broker, "compact", 2, protocol, &compacted_soon);
    let mut written = 0;
    // A segment is closed by the first write after its time, and cleaned after that.
    until("the topic is compacted", WAIT_MAX, || {
        pipeline.write(
            None,
            (0..200).map(|n| (Some(["a", "b", "c", "d", "e", "f", "g"][n % 7]), Some(r#"{"work":"0s"}"#))),
        );
        pipeline.write(None, [(Some("a"), None)]);
        written += 201;
        (broker.records(&pipeline.input()).len() < written / 2).then_some(())
    });
    let relay = pipeline.start("a", "0s");
    pipeline.write(None, [(Some("h"), None), (Some("i"), None)]);
    broker.wait_until_settled(&pipeline.group(), &pipeline.input(), WAIT_MAX);
    let handled: BTreeSet<_> = pipeline.history().handled().iter().map(|handled| handled.position).collect();
    // Records that were compacted meanwhile may have been read before, so not the other way round.
    for left in broker.records(&pipeline.input()) {
        assert!(handled.contains(&(left.partition, left.offset)), "{left:?} is missing");
    }
    println!(
        "compaction left {} of {written}, {} were handled",
        broker.records(&pipeline.input()).len(),
        handled.len()
    );
    relay.stop();
}

/// Records of a transaction are handled when it is committed, and never when it is aborted. Transaction
/// markers have offsets but are no records for a consumer; the committed offsets pass them all the same.
pub fn transactions(broker: &Broker, protocol: GroupProtocol) {
    let pipeline = Pipeline::new(broker, "transactions", 1, protocol);
    let relay = pipeline.start("a", "0s");
    let writer: BaseProducer = broker.client().set("transactional.id", pipeline.input()).create().unwrap();
    writer.init_transactions(WAIT_MAX).unwrap();
    for key in ["committed", "aborted", "committed", "aborted"] {
        writer.begin_transaction().unwrap();
        for _ in 0..10 {
            writer
                .send(BaseRecord::to(&pipeline.input()).key(key).partition(0).payload(r#"{"work":"1ms"}"#))
                .map_err(|(error, _)| error)
                .unwrap();
        }
        writer.flush(WAIT_MAX).unwrap();
        match key {
            "committed" => writer.commit_transaction(WAIT_MAX).unwrap(),
            _ => writer.abort_transaction(WAIT_MAX).unwrap(),
        }
        // After an aborted transaction only its marker is left to pass.
        broker.wait_until_settled(&pipeline.group(), &pipeline.input(), WAIT_MAX);
    }
    let history = pipeline.wait_until_settled();
    history.nothing_is_missing().order_is_kept().nothing_is_repeated();
    assert_eq!(history.handled().len(), 20);
    assert!(history.handled().iter().all(|handled| handled.key.as_deref() == Some(b"committed")));
    relay.stop();
}

/// Java's console producer writes lines without keys, lines with keys, and tombstones.
pub fn console_producer(broker: &Broker, protocol: GroupProtocol) {
    let pipeline = Pipeline::new(broker, "console", 3, protocol);
    let relay = pipeline.start("a", "0s");
    let without_keys: Vec<_> = (0..30).map(|n| format!(r#"{{"seq":{n}}}"#)).collect();
    broker.write_with_console_producer(&pipeline.input(), &[], &without_keys);
    let keyed = ["parse.key=true", "key.separator=:", "null.marker=NULL"]
        .map(|property| ["--property", property])
        .concat();
    let lines = [r#"k1:{"seq":30}"#, "k1:NULL", r#"k2:{"seq":31}"#, "k1:NULL"].map(str::to_owned);
    broker.write_with_console_producer(&pipeline.input(), &keyed, &lines);
    all_are_handled(&pipeline, 34, &["k1", "k1", "k1", "k2"]);
    relay.stop();
}

/// The same with kcat, which uses librdkafka too, with other defaults.
pub fn kcat(broker: &Broker, protocol: GroupProtocol) {
    let pipeline = Pipeline::new(broker, "kcat", 3, protocol);
    let relay = pipeline.start("a", "0s");
    broker.write_with_kcat(&pipeline.input(), &[], &["{}", r#"{"seq":1}"#].map(str::to_owned));
    broker.write_with_kcat(
        &pipeline.input(),
        &["-K:", "-Z", "-X", "partitioner=murmur2_random"],
        &[r#"k1:{"seq":2}"#, "k1:"].map(str::to_owned),
    );
    all_are_handled(&pipeline, 4, &["k1", "k1"]);
    relay.stop();
}

/// So many records were handled, and these are the keys of those that have one.
fn all_are_handled(pipeline: &Pipeline, records: usize, keys: &[&str]) {
    let history = pipeline.wait_until_settled();
    history.nothing_is_missing().order_is_kept().nothing_is_repeated();
    assert_eq!(history.handled().len(), records);
    let mut seen: Vec<_> = history.handled().iter().filter_map(|handled| handled.key.as_deref()).collect();
    seen.sort_unstable();
    assert_eq!(seen, keys.iter().map(|key| key.as_bytes()).collect::<Vec<_>>());
}

/// A backlog that is much larger than the memory that a relay may use.
pub fn a_backlog(broker: &Broker, protocol: GroupProtocol) {
    let pipeline =
        Pipeline::new(broker, "backlog", 12, protocol).with("in_flight", "256").with("span", "10000");
    let value = format!(r#"{{"padding":"{}"}}"#, "x".repeat(2_000));
    for partition in 0..12 {
        pipeline.write(Some(partition), (0..4_000).map(|_| (None, Some(&*value))));
    }
    let relay = pipeline.start("a", "20ms");
    pipeline.wait_until_settled().nothing_is_missing().nothing_is_repeated();
    relay.stop(); // which checks its peak memory
}

// === Changes to the topic or the group from outside ===

/// Commits an offset of a group without members.
fn commit(pipeline: &Pipeline, offset: i64) {
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(&pipeline.input(), 0, Offset::Offset(offset)).unwrap();
    pipeline.broker.consumer(&pipeline.group()).commit(&list, CommitMode::Sync).unwrap();
}

fn delete_before(pipeline: &Pipeline, offset: i64) {
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(&pipeline.input(), 0, Offset::Offset(offset)).unwrap();
    let deleted = block_on(
        pipeline
            .broker
            .admin()
            .delete_records(&list, &AdminOptions::new().operation_timeout(Some(Duration::from_secs(10)))),
    );
    assert!(deleted.unwrap().elements().iter().all(|element| element.error().is_ok()));
}
