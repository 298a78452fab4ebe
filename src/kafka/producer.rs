//! Writes to Kafka: idempotent, acknowledged by all replicas, with a queue that has an end.

use std::{fmt, time::Duration};

use rdkafka::{
    ClientContext,
    config::RDKafkaLogLevel,
    error::KafkaError,
    message::{Header, OwnedHeaders},
    producer::{FutureProducer, FutureRecord, Producer as _},
};
use tracing::warn;

use super::{
    ClientError, Settings,
    client::{self, Rarely, log},
};
use crate::{
    domain::Unavailable,
    stream::{Message, Publish},
};

/// How long a message waits for a place in a full queue. A queue that stays full that long is Kafka's way of being away.
const PLACE_TIMEOUT: Duration = Duration::from_secs(5);

/// Publishes messages. Clones share one client, one queue and one set of connections.
#[derive(Clone)]
pub struct Producer(FutureProducer<Context>);

struct Context {
    complaints: Rarely,
}

impl Producer {
    /// A producer; it connects when it has something to say.
    ///
    /// # Errors
    /// A property in the settings is wrong.
    pub fn new(settings: &Settings) -> Result<Self, ClientError> {
        let context = Context { complaints: Rarely::default() };
        let producer = client::producer(settings).create_with_context(context);
        producer.map(Self).map_err(|source| ClientError { kind: "producer", source })
    }

    /// Waits until everything published so far is acknowledged or refused, but not longer than `within`. Call it before
    /// the last clone goes: what is still queued then is thrown away.
    ///
    /// # Errors
    /// Something was still on its way.
    pub async fn flush(&self, within: Duration) -> Result<(), Unavailable> {
        let producer = self.0.clone();
        let flushed = tokio::task::spawn_blocking(move || producer.flush(within)).await;
        match flushed {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(Unavailable::kafka("flushing the producer", error)),
            Err(error) => Err(Unavailable::kafka("flushing the producer", error)),
        }
    }

    /// Why this producer will never publish again, if so. An idempotent producer gives up rather than break its promise;
    /// only a new one helps, so the process should end.
    pub fn fatal_error(&self) -> Option<String> {
        self.0.client().fatal_error().map(|(code, reason)| format!("{code}: {reason}"))
    }
}

impl Publish for Producer {
    async fn publish(&self, message: Message) -> Result<(), Unavailable> {
        let Message { topic, partition, key, value, headers } = message;
        let record = FutureRecord {
            topic: &topic,
            partition,
            payload: value.as_deref(),
            key: key.as_deref(),
            timestamp: None,
            headers: (!headers.is_empty()).then(|| {
                let empty = OwnedHeaders::new_with_capacity(headers.len());
                headers.iter().fold(empty, |all, header| all.insert(Header { key: &header.name, value: header.value.as_deref() }))
            }),
        };
        match self.0.send(record, PLACE_TIMEOUT).await {
            Ok(_delivery) => Ok(()),
            Err((error, _message)) => Err(Unavailable::kafka(format!("publishing to {topic}"), error)),
        }
    }
}

impl fmt::Debug for Producer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Producer").finish_non_exhaustive()
    }
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        if self.complaints.now() {
            warn!(%error, "Kafka is not well for the producer: {reason}");
        }
    }
}
