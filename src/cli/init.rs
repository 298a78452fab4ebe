//! `pushcast init`: what has to be there before the first `run`.

use jiff::Timestamp;
use pushcast::{
    config::Config,
    kafka::admin::{self, Began, Created},
    store::{Doses, embedded::OpenError},
};

use super::run::open;

/// Creates missing topics, first offsets and the store's first rows, and tells what it did.
pub async fn run(config: Config) -> anyhow::Result<()> {
    let report = admin::init(&config.kafka).await?;
    for (topic, created) in report.topics {
        println!("topic  {topic:24} {}", if created == Created::Created { "created" } else { "is there, left as it is" });
    }
    for (subscription, began) in report.groups {
        let group = config.kafka.group_of(subscription.stage);
        let began = match began {
            Began::Began { partitions } => format!("begins at the {} of {partitions} partitions", subscription.from.label()),
            Began::Exists => "has its offsets".to_owned(),
            Began::Running => "is being read".to_owned(),
        };
        println!("group  {group:30} {:24} {began}", subscription.topic);
    }
    match open(&config) {
        Ok(store) => {
            store.init_marks(Timestamp::now()).await?;
            println!("store  ready");
        }
        // Whoever has it open has prepared it.
        Err(err) if matches!(err.downcast_ref(), Some(OpenError::InUse { .. })) => println!("store  {:#}", err.root_cause()),
        Err(err) => return Err(err),
    }
    Ok(())
}
