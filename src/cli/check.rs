//! `pushcast check`: would `pushcast run` work with this configuration?

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

/// Prints the settings, and tries Kafka, the store and FCM's credentials. Expo has no request that would try
/// its credentials without sending a notification. An invalid configuration does not get here: `main` prints
/// all its errors and exits with code 2.
pub async fn run(config: Config) -> anyhow::Result<()> {
    println!("configuration  ok: {}", config.redacted());
    let metrics = Arc::new(Metrics::new());
    let kafka = topology::check(&config.kafka).await.map(|topics| format!("ok: {} topics", topics.len()));
    let store = match open(&config).await {
        Err(err) if matches!(err.downcast_ref(), Some(EmbeddedOpenError::InUse { .. })) => {
            Ok(format!("ok: {:#}", err.root_cause()))
        }
        Err(err) => Err(err),
        Ok(OpenStore::Embedded(store)) => {
            store.ping().await.map(|()| "ok".to_owned()).map_err(anyhow::Error::from)
        }
        Ok(OpenStore::Cql(store)) => store
            .ping()
            .await
            .map(|()| "ok: it has this release's tables".to_owned())
            .map_err(anyhow::Error::from),
    };
    let expo = match config.expo.enabled {
        true => Expo::new(&config.expo, Arc::clone(&metrics))
            .map(|_| format!("not tried: {}", config.expo.url))
            .map_err(anyhow::Error::from),
        false => Ok("off".to_owned()),
    };
    let fcm = match Fcm::new(&config.fcm, metrics).await {
        Ok(Some(fcm)) => fcm
            .authorised()
            .await
            .map(|()| "ok: Google issued an access token for its credentials".to_owned())
            .map_err(anyhow::Error::from),
        Ok(None) => Ok("off: no credentials".to_owned()),
        Err(err) => Err(err.into()),
    };
    let mut failed = 0;
    for (name, result) in [("kafka", kafka), ("store", store), ("expo", expo), ("fcm", fcm)] {
        match result {
            Ok(status) => println!("{name:13}  {status}"),
            Err(err) => {
                failed += 1;
                println!("{name:13}  {err:#}");
            }
        }
    }
    if failed > 0 { bail!("{failed} of 4 checks failed") } else { Ok(()) }
}
