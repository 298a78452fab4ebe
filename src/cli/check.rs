//! `pushcast check`: would it run?

use std::sync::Arc;

use anyhow::bail;
use pushcast::{
    config::Config,
    expo::Expo,
    fcm::Fcm,
    metrics::Metrics,
    store::{Store, embedded::EmbeddedOpenError},
    topology,
};

use super::run::{OpenStore, open};

/// Tells what is set, and tries Kafka, the store and FCM's credentials; Expo has nothing to try that rings
/// nobody. A configuration with a mistake never comes this far: all its mistakes are printed, with exit code
/// 2.
pub async fn run(config: Config) -> anyhow::Result<()> {
    println!("configuration  fine: {}", config.redacted());
    let metrics = Arc::new(Metrics::new());
    let kafka = topology::check(&config.kafka).await.map(|topics| format!("fine: {} topics", topics.len()));
    let store = match open(&config).await {
        Err(err) if matches!(err.downcast_ref(), Some(EmbeddedOpenError::InUse { .. })) => {
            Ok(format!("fine: {:#}", err.root_cause()))
        }
        Err(err) => Err(err),
        Ok(OpenStore::Embedded(store)) => {
            store.ping().await.map(|()| "fine".to_owned()).map_err(anyhow::Error::from)
        }
        Ok(OpenStore::Cql(store)) => store
            .ping()
            .await
            .map(|()| "fine: it has this release's tables".to_owned())
            .map_err(anyhow::Error::from),
    };
    let expo = match config.expo.enabled {
        true => Expo::new(&config.expo, Arc::clone(&metrics))
            .map(|_| format!("set: {}", config.expo.url))
            .map_err(anyhow::Error::from),
        false => Ok("off".to_owned()),
    };
    let fcm = match Fcm::new(&config.fcm, metrics).await {
        Ok(Some(fcm)) => fcm
            .authorised()
            .await
            .map(|()| "fine: its credentials got an OAuth token".to_owned())
            .map_err(anyhow::Error::from),
        Ok(None) => Ok("off: no credentials".to_owned()),
        Err(err) => Err(err.into()),
    };
    let mut wrong = 0;
    for (what, found) in [("kafka", kafka), ("store", store), ("expo", expo), ("fcm", fcm)] {
        match found {
            Ok(fine) => println!("{what:13}  {fine}"),
            Err(err) => {
                wrong += 1;
                println!("{what:13}  {err:#}");
            }
        }
    }
    if wrong > 0 { bail!("{wrong} of 4 would not work") } else { Ok(()) }
}
