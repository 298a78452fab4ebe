//! The producer and the admin client.

use std::{collections::BTreeMap, sync::Arc};

use consumer::{
    ConsumerMetrics, FirstOffset, GroupProtocol, Message, Producer, Publish as _, Subscription,
    admin::{self, GroupOffsets},
    mock::Broker,
};

use crate::{Log, RunningStage, TestHandler, committed, read, settings, until, write};

#[tokio::test(flavor = "multi_thread")]
async fn a_key_goes_where_javas_producer_would_put_it() {
    let broker = Broker::start([("t", 16)]).unwrap();
    let settings = settings(&broker, GroupProtocol::Classic);
    let producer = Producer::new(&settings).unwrap();
    let log = Log::default();
    let metrics = Arc::new(ConsumerMetrics::default());
    let stage = RunningStage::start(&settings, "s", &["t"], TestHandler::new(0, &log), &metrics);
    // Kafka's own test vectors for murmur2: 0x7fffffff & -973932308 and -790332482.
    for key in ["21", "foobar"] {
        producer.publish(Message::new("t", key.to_owned(), key.into())).await.unwrap();
    }
    let mut handled = until(&log, "both", |log| log.len() == 2).await;
    stage.stop().await;
    handled.sort_by_key(|handled| handled.partition);
    let partitions: Vec<_> =
        handled.iter().map(|handled| (handled.value.as_str(), handled.partition)).collect();
    assert_eq!(partitions, [("21", 1_173_551_340 % 16), ("foobar", 1_357_151_166 % 16)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_that_are_published_together_are_written_in_their_order_through_a_full_queue() {
    let broker = Broker::start([("t", 1)]).unwrap();
    let mut settings = settings(&broker, GroupProtocol::Classic);
    settings.properties.insert("queue.buffering.max.messages".into(), "10".into());
    let producer = Producer::new(&settings).unwrap();
    let messages = (0..100).map(|n: i32| Message::new("t", None, n.to_string().into())).collect();
    producer.publish_all(messages).await.unwrap();
    let written: Vec<_> = read(&settings, "t", 100)
        .into_iter()
        .map(|(_, value, _)| String::from_utf8(value.unwrap()).unwrap())
        .collect();
    assert_eq!(written, (0..100).map(|n| n.to_string()).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_starts_where_its_subscription_says_and_only_once() {
    let broker = Broker::start([("orders", 16), ("customers", 16)]).unwrap();
    let settings = settings(&broker, GroupProtocol::Classic);
    let producer = Producer::new(&settings).unwrap();
    let subscriptions = [
        Subscription { stage: "billing", topic: "orders", from: FirstOffset::End },
        Subscription { stage: "mailing", topic: "customers", from: FirstOffset::Beginning },
    ];
    write(&producer, "orders", 3, None, "before").await;
    write(&producer, "customers", 3, None, "before").await;

    let first = admin::commit_first_offsets(&settings, &subscriptions).await.unwrap();
    assert!(
        first.iter().all(|(_, offsets)| *offsets == GroupOffsets::Committed { partitions: 16 }),
        "{first:?}"
    );
    let offset = |stage, topic| committed(&settings, stage, topic, 16)[3];
    assert_eq!((offset("billing", "orders"), offset("mailing", "customers")), (Some(1), Some(0)));
    assert_eq!(first.iter().map(|(reads, _)| *reads).collect::<Vec<_>>(), subscriptions);

    write(&producer, "orders", 3, None, "after").await;
    let again = admin::commit_first_offsets(&settings, &subscriptions).await.unwrap();
    assert!(again.iter().all(|(_, offsets)| *offsets == GroupOffsets::Exist), "{again:?}");
    assert_eq!(offset("billing", "orders"), Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_topics_and_unreachable_brokers_are_different_errors() {
    let broker = Broker::start([("customers", 16)]).unwrap();
    let mut settings = settings(&broker, GroupProtocol::Classic);
    let wanted = ["orders", "customers", "dead-letters"];
    let missing = admin::check_topics(&settings, wanted).await.unwrap_err();
    assert_eq!(missing.to_string(), "Kafka has no dead-letters, orders");
    assert_eq!(
        admin::check_topics(&settings, ["customers"]).await.unwrap(),
        BTreeMap::from([("customers".into(), 16)])
    );
    settings.bootstrap_servers = "127.0.0.1:1".into();
    let unreachable = admin::describe_cluster(&settings).await.unwrap_err();
    assert!(unreachable.to_string().starts_with("no Kafka broker answers at 127.0.0.1:1"), "{unreachable}");
}
