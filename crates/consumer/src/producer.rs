//! Writes to Kafka: idempotent, acknowledged by all in-sync replicas, through a bounded queue.

use std::{fmt, time::Duration};

use rdkafka::{
    ClientContext,
    config::RDKafkaLogLevel,
    error::{KafkaError, RDKafkaErrorCode},
    message::{Header, OwnedHeaders},
    producer::{FutureProducer, FutureRecord, Producer as _, future_producer::DeliveryFuture},
};
use tokio::time::{Instant, sleep};
use tracing::warn;

use super::{
    ClientError, Settings,
    client::{self, code_of, log},
};
use crate::{Cause, LogThrottle, Message, Publish, PublishError, Rejected, Unavailable};

/// How long a message waits for a place in a full queue. A queue that stays full that long means that Kafka
/// is unavailable.
const QUEUE_FULL_TIMEOUT: Duration = Duration::from_secs(5);
/// The interval in which a full queue is tried again: librdkafka doesn't report when a place is free.
const QUEUE_FULL_POLL: Duration = Duration::from_millis(20);

/// Publishes messages. Clones share one client, one queue and one set of connections.
#[derive(Clone)]
pub struct Producer(FutureProducer<ProducerContext>);

struct ProducerContext {
    log_throttle: LogThrottle,
}

impl Producer {
    /// A producer, which connects in the background.
    ///
    /// # Errors
    /// librdkafka refuses a property of the settings.
    pub fn new(settings: &Settings) -> Result<Self, ClientError> {
        let context = ProducerContext { log_throttle: LogThrottle::default() };
        let producer = client::producer(settings).create_with_context(context);
        producer.map(Self).map_err(|source| ClientError { kind: "producer", source })
    }

    /// Waits until everything published so far is acknowledged or has failed, but not longer than `within`.
    /// Call it before the last clone is dropped: what is still queued then is discarded.
    ///
    /// # Errors
    /// Something was not acknowledged in time.
    pub async fn flush(&self, within: Duration) -> Result<(), Unavailable> {
        let producer = self.0.clone();
        let flushed = tokio::task::spawn_blocking(move || producer.flush(within)).await;
        match flushed {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(Unavailable::kafka("flushing the producer", error)),
            Err(error) => Err(Unavailable::kafka("flushing the producer", error)),
        }
    }

    /// Returns when a broker has answered a request for the metadata of `topic`: a health check.
    ///
    /// # Errors
    /// No broker has answered `within` that time.
    pub async fn ping(&self, topic: &str, within: Duration) -> Result<(), Unavailable> {
        let producer = self.0.clone();
        let topic = topic.to_owned();
        // Of one topic: the metadata of all would be too large for a check every few seconds.
        let fetch = move || producer.client().fetch_metadata(Some(&topic), within).map(drop);
        match tokio::task::spawn_blocking(fetch).await {
            Ok(answer) => answer.map_err(|error| Unavailable::kafka("requesting metadata", error)),
            Err(error) => Err(Unavailable::kafka("requesting metadata", error)),
        }
    }

    /// The error after which this producer will never publish again, if there was one: an idempotent producer
    /// stops rather than reorder or repeat. Only a new one helps, so the process should end.
    pub fn fatal_error(&self) -> Option<String> {
        self.0.client().fatal_error().map(|(code, reason)| format!("{code}: {reason}"))
    }
}

impl Publish for Producer {
    async fn publish(&self, message: Message) -> Result<(), PublishError> {
        let delivery = self.enqueue(&message).await?;
        delivered(delivery, &message.topic).await
    }

    async fn publish_all(&self, messages: Vec<Message>) -> Result<(), PublishError> {
        // They are queued one after the other: messages that wait concurrently for a full queue would
        // overtake each other.
        let mut deliveries = Vec::with_capacity(messages.len());
        for message in &messages {
            deliveries.push(self.enqueue(message).await?);
        }
        for (delivery, message) in deliveries.into_iter().zip(&messages) {
            delivered(delivery, &message.topic).await?;
        }
        Ok(())
    }
}

impl Producer {
    /// Puts the message into the queue as soon as it has a place.
    async fn enqueue(&self, message: &Message) -> Result<DeliveryFuture, PublishError> {
        let deadline = Instant::now() + QUEUE_FULL_TIMEOUT;
        loop {
            match self.0.send_result(record_of(message)) {
                Ok(delivery) => return Ok(delivery),
                Err((error, _))
                    if code_of(&error) == Some(RDKafkaErrorCode::QueueFull) && Instant::now() < deadline =>
                {
                    sleep(QUEUE_FULL_POLL).await;
                }
                Err((error, _)) => {
                    return Err(not_published(&message.topic, error));
                }
            }
        }
    }
}

/// Returns when Kafka has acknowledged it.
async fn delivered(delivery: DeliveryFuture, topic: &str) -> Result<(), PublishError> {
    let error = match delivery.await {
        Ok(Ok(_)) => return Ok(()),
        Ok(Err((error, _))) => error,
        Err(_the_producer_is_gone) => KafkaError::Canceled,
    };
    Err(not_published(topic, error))
}

/// Decides whether Kafka will ever accept the message; no caller looks into the client's error.
fn not_published(topic: &str, error: KafkaError) -> PublishError {
    use RDKafkaErrorCode::{MessageBatchTooLarge, MessageSizeTooLarge};
    let context = format!("publishing to {topic}");
    match code_of(&error) {
        Some(MessageSizeTooLarge | MessageBatchTooLarge) => {
            Rejected(Cause::Refused(format!("{context}: {error}"))).into()
        }
        _ => Unavailable::kafka(context, error).into(),
    }
}

fn record_of(message: &Message) -> FutureRecord<'_, [u8], [u8]> {
    let Message { topic, partition, key, value, headers } = message;
    FutureRecord {
        topic,
        partition: *partition,
        payload: value.as_deref(),
        key: key.as_deref(),
        timestamp: None,
        headers: (!headers.is_empty()).then(|| {
            let empty = OwnedHeaders::new_with_capacity(headers.len());
            headers.iter().fold(empty, |all, header| {
                all.insert(Header { key: &header.name, value: header.value.as_deref() })
            })
        }),
    }
}

impl fmt::Debug for Producer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Producer").finish_non_exhaustive()
    }
}

impl ClientContext for ProducerContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        log(level, facility, message);
    }

    /// Not used: the settings' properties may turn statistics on for all clients.
    fn stats_raw(&self, _: &[u8]) {}

    fn error(&self, error: KafkaError, reason: &str) {
        if self.log_throttle.now() {
            warn!(%error, "Kafka is unreachable: client=producer error={reason}");
        }
    }
}
