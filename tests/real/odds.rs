//! What else happens to a stage: records that can't be handled, work that takes long, offsets that are gone,
//! topics that grow or were compacted, writers that have never heard of us.

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
    passage::{PATIENCE, Passage},
    world::until,
};

/// Records that no handler can handle, or that make it panic, lie in `dead-letters`; those behind them are
/// handled.
pub fn poison() {
    // `dead-letters` is a fixed name: pushcast's story waits for us, or we for it.
    let (broker, _alone) = block_on(Broker::without_topics());
    block_on(broker.create_topic("dead-letters", 4, &[]));
    let passage = Passage::new(&broker, "poison", 1, GroupProtocol::Classic);
    let values = [
        r#"{"seq":0}"#,
        "this is no JSON",
        r#"{"panic":true}"#,
        r#"{"seq":1}"#,
        r#"{"work":"a while"}"#,
        r#"{"seq":2}"#,
    ];
    passage.write(Some(0), values.map(|value| (Some("k"), Some(value))));
    let relay = passage.start("a", "0s");
    let account = passage.settled();
    relay.stop();

    let done: Vec<_> = account.handled().iter().map(|handled| handled.place.1).collect();
    assert_eq!(done, [0, 3, 5]);
    let mut letters = broker.records("dead-letters");
    letters.retain(|letter| letter.headers["pushcast.group"] == passage.group());
    letters.sort_by_key(|letter| letter.headers["pushcast.offset"].clone());
    let told: Vec<_> = letters
        .iter()
        .map(|it| (str::from_utf8(&it.value).unwrap(), &*it.headers["pushcast.cause"]))
        .collect();
    assert_eq!(told, [(values[1], "unreadable"), (values[2], "panicked"), (values[4], "unreadable")]);
}

/// A handler that works longer than `max.poll.interval.ms` keeps its partition, and keeps nobody else
/// waiting.
pub fn a_slow_handler(broker: &Broker, protocol: GroupProtocol) {
    let passage = Passage::new(broker, "slow", 2, protocol)
        .with("session_timeout", "6s")
        .with_property("max.poll.interval.ms", "6000");
    passage.write(Some(0), [(Some("slow"), Some(r#"{"work":"14s"}"#)), (Some("slow"), None)]);
    passage.write(Some(0), iter::repeat_n((Some("quick"), None), 20));
    let mut relay = passage.start("a", "0s");
    until("the quick ones are done", PATIENCE, || (passage.account().handled().len() == 20).then_some(()));
    passage.settled().nothing_is_missing().order_is_kept().nothing_is_repeated();
    assert_eq!(relay.has_owned(), [2], "it has never given a partition back");
    relay.stop();
}

/// Partitions that are added to a topic are found, shared and read from their beginning.
pub fn more_partitions(broker: &Broker, protocol: GroupProtocol) {
    let mut passage =
        Passage::new(broker, "grow", 2, protocol).with_property("topic.metadata.refresh.interval.ms", "1000");
    let (mut a, mut b) = (passage.start("a", "20ms"), passage.start("b", "20ms"));
    passage.is_shared_by(&mut [&mut a, &mut b]);
    let load = passage.load(100);
    let more = block_on(
        broker.admin().create_partitions(&[NewPartitions::new(&passage.input(), 6)], &AdminOptions::new()),
    )
    .unwrap();
    assert!(more.iter().all(Result::is_ok), "{more:?}");
    until("writers see the new ones", PATIENCE, || (broker.partitions(&passage.input()) == 6).then_some(()));
    passage.partitions = 6;
    // Some are written to before anybody reads them.
    passage.write(Some(5), iter::repeat_n((Some("early"), None), 10));
    passage.is_shared_by(&mut [&mut a, &mut b]);
    load.end();
    passage.settled().nothing_is_missing().order_is_kept().nothing_is_repeated();
    a.stop();
    b.stop();
}

/// Records that were deleted before they were read are passed over, and nothing else; an offset that the
/// topic has never had makes the group begin again with what there is.
pub fn offsets_out_of_range(broker: &Broker, protocol: GroupProtocol) {
    let passage = Passage::new(broker, "range", 1, protocol);
    passage.write(Some(0), iter::repeat_n((Some("k"), None), 100));
    commit(&passage, 10);
    delete_before(&passage, 60);
    let relay = passage.start("a", "0s");
    let account = passage.settled();
    account.nothing_is_missing().order_is_kept().nothing_is_repeated();
    assert_eq!(account.handled().len(), 40);
    relay.stop();

    commit(&passage, 1_000);
    let relay = passage.start("b", "0s");
    passage.is_worked_at_by(&relay);
    passage.write(Some(0), iter::repeat_n((Some("k"), None), 10));
    until("what there is was handled again", PATIENCE, || {
        (passage.account().handled().len() >= 90).then_some(())
    });
    let account = passage.settled();
    account.nothing_is_missing().order_is_kept();
    assert_eq!((account.repeats().len(), account.handled().len()), (40, 90));
    relay.stop();
}

/// In a compacted topic most offsets are gone. It is read to its end, and the group's offsets get there too.
pub fn compaction(broker: &Broker, protocol: GroupProtocol) {
    let eager = [
        ("cleanup.policy", "compact"),
        ("segment.ms", "100"),
        ("min.cleanable.dirty.ratio", "0.001"),
        ("max.compaction.lag.ms", "100"),
    ];
    let passage = Passage::on_topic(broker, "compact", 2, protocol, &eager);
    let mut written = 0;
    // A segment is closed by the first write after its time, and cleaned after that.
    until("the topic is compacted", PATIENCE, || {
        passage.write(
            None,
            (0..200).map(|n| (Some(["a", "b", "c", "d", "e", "f", "g"][n % 7]), Some(r#"{"work":"0s"}"#))),
        );
        passage.write(None, [(Some("a"), None)]);
        written += 201;
        (broker.records(&passage.input()).len() < written / 2).then_some(())
    });
    let relay = passage.start("a", "0s");
    passage.write(None, [(Some("h"), None), (Some("i"), None)]);
    broker.settled(&passage.group(), &passage.input(), PATIENCE);
    let handled: BTreeSet<_> = passage.account().handled().iter().map(|handled| handled.place).collect();
    // What was compacted away meanwhile may have been read before.
    for left in broker.records(&passage.input()) {
        assert!(handled.contains(&(left.partition, left.offset)), "{left:?} is missing");
    }
    println!(
        "compaction left {} of {written}, {} were handled",
        broker.records(&passage.input()).len(),
        handled.len()
    );
    relay.stop();
}

/// What a transaction has written is handled when it is committed, and never when it is aborted. The marks
/// that end transactions are records nobody is given; the group's offsets pass them all the same.
pub fn transactions(broker: &Broker, protocol: GroupProtocol) {
    let passage = Passage::new(broker, "transactions", 1, protocol);
    let relay = passage.start("a", "0s");
    let writer: BaseProducer = broker.client().set("transactional.id", passage.input()).create().unwrap();
    writer.init_transactions(PATIENCE).unwrap();
    for key in ["committed", "aborted", "committed", "aborted"] {
        writer.begin_transaction().unwrap();
        for _ in 0..10 {
            writer
                .send(BaseRecord::to(&passage.input()).key(key).partition(0).payload(r#"{"work":"1ms"}"#))
                .map_err(|(error, _)| error)
                .unwrap();
        }
        writer.flush(PATIENCE).unwrap();
        match key {
            "committed" => writer.commit_transaction(PATIENCE).unwrap(),
            _ => writer.abort_transaction(PATIENCE).unwrap(),
        }
        // Behind an aborted one there is nothing but its mark.
        broker.settled(&passage.group(), &passage.input(), PATIENCE);
    }
    let account = passage.settled();
    account.nothing_is_missing().order_is_kept().nothing_is_repeated();
    assert_eq!(account.handled().len(), 20);
    assert!(account.handled().iter().all(|handled| handled.key.as_deref() == Some(b"committed")));
    relay.stop();
}

/// Java's console producer writes lines without keys, lines with keys, and tombstones.
pub fn console_producer(broker: &Broker, protocol: GroupProtocol) {
    let passage = Passage::new(broker, "console", 3, protocol);
    let relay = passage.start("a", "0s");
    let plain: Vec<_> = (0..30).map(|n| format!(r#"{{"seq":{n}}}"#)).collect();
    broker.type_into_console_producer(&passage.input(), &[], &plain);
    let with_keys = ["parse.key=true", "key.separator=:", "null.marker=NULL"]
        .map(|property| ["--property", property])
        .concat();
    let lines = [r#"k1:{"seq":30}"#, "k1:NULL", r#"k2:{"seq":31}"#, "k1:NULL"].map(str::to_owned);
    broker.type_into_console_producer(&passage.input(), &with_keys, &lines);
    written_by_hand(&passage, 34, &["k1", "k1", "k1", "k2"]);
    relay.stop();
}

/// The same with kcat, whose library is ours, but not its defaults.
pub fn kcat(broker: &Broker, protocol: GroupProtocol) {
    let passage = Passage::new(broker, "kcat", 3, protocol);
    let relay = passage.start("a", "0s");
    broker.type_into_kcat(&passage.input(), &[], &["{}", r#"{"seq":1}"#].map(str::to_owned));
    broker.type_into_kcat(
        &passage.input(),
        &["-K:", "-Z", "-X", "partitioner=murmur2_random"],
        &[r#"k1:{"seq":2}"#, "k1:"].map(str::to_owned),
    );
    written_by_hand(&passage, 4, &["k1", "k1"]);
    relay.stop();
}

/// All of that was handled, and these are the keys of what had one.
fn written_by_hand(passage: &Passage, records: usize, keys: &[&str]) {
    let account = passage.settled();
    account.nothing_is_missing().order_is_kept().nothing_is_repeated();
    assert_eq!(account.handled().len(), records);
    let mut seen: Vec<_> = account.handled().iter().filter_map(|handled| handled.key.as_deref()).collect();
    seen.sort_unstable();
    assert_eq!(seen, keys.iter().map(|key| key.as_bytes()).collect::<Vec<_>>());
}

/// A backlog that is much larger than what a relay may have in memory.
pub fn a_backlog(broker: &Broker, protocol: GroupProtocol) {
    let passage =
        Passage::new(broker, "backlog", 12, protocol).with("in_flight", "256").with("span", "10000");
    let value = format!(r#"{{"padding":"{}"}}"#, "x".repeat(2_000));
    for partition in 0..12 {
        passage.write(Some(partition), (0..4_000).map(|_| (None, Some(&*value))));
    }
    let relay = passage.start("a", "20ms");
    passage.settled().nothing_is_missing().nothing_is_repeated();
    relay.stop(); // which looks at its memory
}

// === What somebody else does to the topic or the group ===

/// Commits in the place of a group that nobody is in.
fn commit(passage: &Passage, offset: i64) {
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(&passage.input(), 0, Offset::Offset(offset)).unwrap();
    passage.broker.consumer(&passage.group()).commit(&list, CommitMode::Sync).unwrap();
}

fn delete_before(passage: &Passage, offset: i64) {
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(&passage.input(), 0, Offset::Offset(offset)).unwrap();
    let deleted = block_on(
        passage
            .broker
            .admin()
            .delete_records(&list, &AdminOptions::new().operation_timeout(Some(Duration::from_secs(10)))),
    );
    assert!(deleted.unwrap().elements().iter().all(|element| element.error().is_ok()));
}
