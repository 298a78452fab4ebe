//! What a stage knows of a stream of records, and nothing of the client under it.
//!
//! A stage is a [`Handler`]: it reads one record at a time into its event, handles many at once, and returns
//! the record's [`Fate`]. An offset is committed only when every record below it has a durable fate, so a
//! handler returns when, and only when, everything that its record causes is durable: stored, acknowledged by
//! Kafka, or finally answered by an external service.

use std::{future::Future, sync::Arc};

use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use crate::{Cause, HandlerError, PublishError, Rejected};

/// A record as it was consumed.
#[derive(Clone, Debug)]
pub struct Record {
    /// The topic that it was read from.
    pub topic: Arc<str>,
    /// Its partition in that topic.
    pub partition: i32,
    /// Its offset in that partition.
    pub offset: i64,
    /// When it was written, by the clock of the producer or of the broker, as the topic's
    /// `message.timestamp.type` has it.
    pub timestamp: Timestamp,
    /// Its key; console producers, for one, send none.
    pub key: Option<Vec<u8>>,
    /// Its value; none = a tombstone.
    pub value: Option<Vec<u8>>,
    /// Its headers, in order; a name may occur twice.
    pub headers: Vec<Header>,
}

/// A record's header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Its name.
    pub name: String,
    /// Its value; none = null.
    pub value: Option<Vec<u8>>,
}

/// What keeps records in order: records of a partition with equal ordering keys are handled one after the
/// other, in the order of their offsets. Mostly the record's key. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct OrderingKey(pub Arc<[u8]>);

/// How the handling of a record ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Everything that the record causes is durable.
    Done,
    /// The record can't be handled, and will never be: the runtime writes it to the topic of dead letters.
    DeadLetter(Cause),
    /// The handler stopped early because of `stop`: the next owner of the partition handles the record again.
    Unfinished,
}

/// A stage: what is done with each record of its topics.
pub trait Handler: Send + Sync + 'static {
    /// A record, parsed.
    type Event: Send + 'static;

    /// Parses a record. Called once for each record, in the order of the partition, and once more before each
    /// retry while a dependency is unavailable; so it must depend on the record alone.
    ///
    /// # Errors
    /// The record can't be read: the runtime writes it to the topic of dead letters.
    fn read(&self, record: &Record) -> Result<Self::Event, Rejected>;

    /// Records with the same key run one after the other, in the order of their offsets; records without one
    /// wait for no other.
    fn key(&self, event: &Self::Event) -> Option<OrderingKey>;

    /// The time before which the record must not be handled. Until then nothing behind it in its partition is
    /// read.
    fn due(&self, _record: &Record) -> Option<Timestamp> {
        None
    }

    /// Does the record's work and returns its fate. All handlers of a partition run in one task: one that
    /// computes for long or blocks delays the others.
    ///
    /// `stop` is cancelled when the record's partition is revoked or lost, or the stage stops; a handler that
    /// may run long starts nothing new then and returns [`Fate::Unfinished`]. It may be cancelled from the
    /// start: a record that later records of its partition have overtaken is still handled, so that these
    /// need not be repeated.
    ///
    /// # Errors
    /// A dependency is unavailable, and the record is handled again after a pause, for as long as it takes;
    /// or the record is rejected, and becomes a dead letter.
    fn handle(
        &self,
        event: Self::Event,
        record: &Record,
        stop: &CancellationToken,
    ) -> impl Future<Output = Result<Fate, HandlerError>> + Send;
}

/// A record that is to be written to a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// The topic, which has to exist.
    pub topic: String,
    /// The partition; none = by key, as Java's default partitioner chooses.
    pub partition: Option<i32>,
    /// Its key.
    pub key: Option<Vec<u8>>,
    /// Its value; none = a tombstone.
    pub value: Option<Vec<u8>>,
    /// Its headers, in order.
    pub headers: Vec<Header>,
}

/// Writes messages to topics.
pub trait Publish: Clone + Send + Sync + 'static {
    /// Returns when Kafka has acknowledged the message: from then on it is not lost.
    ///
    /// # Errors
    /// Kafka did not acknowledge it in time, though it may have been written; or Kafka will never accept it.
    fn publish(&self, message: Message) -> impl Future<Output = Result<(), PublishError>> + Send;

    /// Publishes all of them, in order, and returns when the last one is acknowledged.
    ///
    /// # Errors
    /// At least one was not acknowledged; any of the others may have been written.
    fn publish_all(&self, messages: Vec<Message>) -> impl Future<Output = Result<(), PublishError>> + Send {
        async move {
            let sent = messages.into_iter().map(|message| self.publish(message));
            futures::future::try_join_all(sent).await.map(drop)
        }
    }
}

// === impl Record ===

impl Record {
    /// The value of the first header of that name.
    pub fn header(&self, name: &str) -> Option<&[u8]> {
        self.headers.iter().find(|header| header.name == name)?.value.as_deref()
    }
}

// === impl OrderingKey ===

impl OrderingKey {
    /// The bytes of a text as a key.
    pub fn of(text: &str) -> Self {
        Self(text.as_bytes().into())
    }
}

// === impl Message ===

impl Message {
    /// A message without headers, whose partition follows from its key.
    pub fn new(topic: impl Into<String>, key: impl Into<Option<String>>, value: Vec<u8>) -> Self {
        Self {
            topic: topic.into(),
            partition: None,
            key: key.into().map(String::into_bytes),
            value: Some(value),
            headers: Vec::new(),
        }
    }
}
