//! The admin listener, and the loops that ask whether the store, Kafka and the producer work.

use std::{sync::Arc, time::Duration};

use tokio::{net::TcpListener, time::interval};

use super::{RunningProcess, timed::copy_driver_counts};
use crate::{
    events::topics,
    http::{self, admin},
    store::Store,
};

/// How often the producer is checked for a fatal error; only a new process gets a new producer.
const FATAL_EVERY: Duration = Duration::from_secs(5);

impl<S: Store> RunningProcess<S> {
    pub(super) fn edges(&mut self, listener: Option<TcpListener>) {
        let health = self.app.health.clone();
        if let Some(listener) = listener {
            let admin = admin::Admin {
                metrics: Arc::clone(&self.app.metrics),
                health: health.clone(),
                store: self.app.store.clone(),
            };
            let stop = self.stop.clone();
            self.tasks.spawn("admin listener", async move { Ok(admin::serve(listener, admin, stop).await?) });
        }
        let producer = self.producer.clone();
        let stop = self.stop.clone();
        self.tasks.spawn("the producer", async move {
            let mut look = interval(FATAL_EVERY);
            while let Some(_now) = stop.run_until_cancelled(look.tick()).await {
                if let Some(why) = producer.fatal_error() {
                    anyhow::bail!("fatal error, nothing will be published any more: {why}");
                }
            }
            Ok(())
        });
        let producer = self.producer.clone();
        let kafka_health = health.clone();
        let stop = self.stop.clone();
        self.tasks.spawn("health of Kafka", async move {
            // The metadata of one topic, which `run` has checked.
            let ping = || producer.ping(topics::PUSH_OUTCOMES, http::ASK_EVERY);
            kafka_health.ask_kafka(ping, &stop).await;
            Ok(())
        });
        let store = self.app.store.clone();
        let metrics = Arc::clone(&self.app.metrics);
        let stop = self.stop.clone();
        self.tasks.spawn("the store's driver", async move {
            copy_driver_counts(store, metrics, stop).await;
            Ok(())
        });
        let store = self.app.store.clone();
        let stop = self.stop.clone();
        self.tasks.spawn("health of the store", async move {
            health.ask_the_store(|| store.ping(), &stop).await;
            Ok(())
        });
    }
}
