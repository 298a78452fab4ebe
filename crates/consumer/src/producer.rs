//! Writes to Kafka: idempotent, acknowledged by all replicas, with a queue that has an end.

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

/// How long a message waits for a place in a full queue. A queue that stays full that long is Kafka's way of
/// being away.
const PLACE_TIMEOUT: Duration = Duration::from_secs(5);
/// librdkafka doesn't say when a place is free.
const PLACE_POLL: Duration = Duration::from_millis(20);

/// Publishes messages. Clones share one client, one queue and one set of connections.
#[derive(Clone)]
pub struct Producer(FutureProducer<ProducerContext>);

struct ProducerContext {
    log_throttle: LogThrottle,
}

impl Producer {
    /// A producer; it connects when it has something to say.
    ///
    /// # Errors
    /// A property in the settings is wrong.
    pub fn new(settings: &Settings) -> Result<Self, ClientError> {
        let context = ProducerContext { log_throttle: LogThrottle::default() };
        let producer = client::producer(settings).create_with_context(context);
        producer.map(Self).map_err(|source| ClientError { kind: "producer", source })
    }

    /// Waits until everything published so far is acknowledged or refused, but not longer than `within`. Call
    /// it before the last clone goes: what is still queued then is thrown away.
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

    /// Returns when a broker has answered a question about `topic`.
    ///
    /// # Errors
    /// No broker has answered `within` that time.
    pub async fn ping(&self, topic: &str, within: Duration) -> Result<(), Unavailable> {
        let producer = self.0.clone();
        let topic = topic.to_owned();
        // One topic's metadata: those of all would be a lot to ask every few seconds.
        let asking = move || producer.client().fetch_metadata(Some(&topic), within).map(drop);
        let asked = tokio::task::spawn_blocking(asking).await;
        match asked {
            Ok(answer) => answer.map_err(|error| Unavailable::kafka("asking whether it is there", error)),
            Err(error) => Err(Unavailable::kafka("asking whether it is there", error)),
        }
    }

    /// Why this producer will never publish again, if so. An idempotent producer gives up rather than break
    /// its promise; only a new one helps, so the process should end.
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
        // One after the other into the queue: with a full queue, messages that wait side by side would
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
    /// Puts the message into the queue, when it has a place.
    async fn enqueue(&self, message: &Message) -> Result<DeliveryFuture, PublishError> {
        let deadline = Instant::now() + PLACE_TIMEOUT;
        loop {
            match self.0.send_result(record_of(message)) {
                Ok(delivery) => return Ok(delivery),
                Err((error, _))
                    if code_of(&error) == Some(RDKafkaErrorCode::QueueFull) && Instant::now() < deadline =>
                {
                    sleep(PLACE_POLL).await;
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

/// Whether Kafka will ever take the message, told once, here: nothing above looks into the client's error.
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

    /// `kafka.properties` may ask for statistics; the consumers' are the ones we read.
    fn stats_raw(&self, _: &[u8]) {}

    fn error(&self, error: KafkaError, reason: &str) {
        if self.log_throttle.now() {
            warn!(%error, "Kafka is unreachable for the producer: {reason}");
        }
    }
}
