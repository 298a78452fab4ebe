//! `pushcast init`: creates what the first `run` needs.

use anyhow::Context;
use consumer::admin::{self, GroupOffsets, TopicState};
use jiff::Timestamp;
use pushcast::{
    config::Config,
    store::{Doses, StoreUrl, cql::CqlStore, embedded::EmbeddedOpenError},
    topology,
};

use super::run::{OpenStore, open};

/// Creates missing topics, first offsets, the store's tables and its first rows, and prints what it did.
pub async fn run(config: Config) -> anyhow::Result<()> {
    let report =
        admin::init(&config.kafka, &topology::topics(config.kafka.partitions), &topology::subscriptions())
            .await?;
    for (topic, state) in report.topics {
        println!(
            "topic  {topic:24} {}",
            if state == TopicState::Created { "created" } else { "is there, left as it is" }
        );
    }
    for (subscription, offsets) in report.groups {
        let group = config.kafka.group_of(subscription.stage);
        let offsets = match offsets {
            GroupOffsets::Committed { partitions } => {
                format!("begins at the {} of {partitions} partitions", subscription.from.label())
            }
            GroupOffsets::Exist => "has its offsets".to_owned(),
            GroupOffsets::GroupActive => "has running members".to_owned(),
        };
        println!("group  {group:30} {:24} {offsets}", subscription.topic);
    }
    let now = Timestamp::now();
    if let StoreUrl::Cql(cluster) = config.store.location()? {
        for applied in CqlStore::init(&cluster, &config.store, now).await.context("store.url")? {
            println!("store  {applied}");
        }
    }
    match open(&config).await {
        Ok(OpenStore::Embedded(store)) => {
            store.init_marks(now).await?;
            println!("store  ready");
        }
        Ok(OpenStore::Cql(store)) => {
            store.init_marks(now).await?;
            println!("store  ready");
        }
        // The process that has it open has created its tables and rows.
        Err(err) if matches!(err.downcast_ref(), Some(EmbeddedOpenError::InUse { .. })) => {
            println!("store  {:#}", err.root_cause())
        }
        Err(err) => return Err(err),
    }
    Ok(())
}
