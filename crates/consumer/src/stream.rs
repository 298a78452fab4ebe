//! What a stage needs to know of a stream of records, and nothing about the client under it.
//!
//! A stage is a [`Handler`]: it reads one record at a time into its event, handles many at once, and answers
//! with the record's [`Fate`]. An offset is committed only when every record below it has a durable fate, so a
//! handler answers when, and only when, everything that its record causes is durable: in a store, acknowledged
//! by Kafka, or finally answered by whatever it talks to.

use std::{future::Future, sync::Arc};

use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use crate::{Cause, HandlerError, PublishError, Rejected};

/// A record as it was consumed.
#[derive(Clone, Debug)]
pub struct Record {
    /// Where it stood.
    pub topic: Arc<str>,
    /// Where it stood.
    pub partition: i32,
    /// Where it stood.
    pub offset: i64,
    /// When the broker or the producer says it was written.
    pub timestamp: Timestamp,
    /// Its key; a console producer sends none.
    pub key: Option<Vec<u8>>,
    /// Its value; none = a tombstone.
    pub value: Option<Vec<u8>>,
    /// Its headers, in order; a name may come twice, a value may be null.
    pub headers: Vec<Header>,
}

/// A record's header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: Option<Vec<u8>>,
}

/// Records of one lane are handled one after the other, in their order. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LaneKey(pub Arc<[u8]>);

/// What finally became of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Everything it causes is durable.
    Done,
    /// It can't be handled, by its own fault: the runtime writes it to the dead letters.
    DeadLetter(Cause),
    /// Stopped half-way in good order: the next owner of its partition goes on.
    Unfinished,
}

/// A stage: what is done with each record of its topics.
pub trait Handler: Send + Sync + 'static {
    /// What a record says, read once.
    type Event: Send + 'static;

    /// Bytes into an event. Called once for each record, in the order of the partition, and once more before
    /// each further try while a dependency is unavailable; so it depends on the record alone.
    ///
    /// # Errors
    /// The record can't be read: the runtime writes it to the dead letters.
    fn read(&self, record: &Record) -> Result<Self::Event, Rejected>;

    /// Records of one key run one after the other, in their order; `None` runs free.
    fn key(&self, event: &Self::Event) -> Option<LaneKey>;

    /// Not before this time: the partition sleeps unread until its head is due.
    fn due(&self, _record: &Record) -> Option<Timestamp> {
        None
    }

    /// Does the record's work and answers with its fate. Handlers of one partition take turns on one
    /// processor: a handler that computes for long or blocks holds the others up.
    ///
    /// `stop` is set when the record's partition is being revoked or the process ends; a handler that may run
    /// long starts nothing new after it and answers [`Fate::Unfinished`]. It may be set from the beginning: a
    /// record that others of its partition have overtaken is still handled, so that these need not be repeated.
    ///
    /// # Errors
    /// A dependency is unavailable, and the same record is handled again after a pause, for as long as it
    /// takes; or the record is rejected for good, and becomes a dead letter.
    fn handle(
        &self,
        event: Self::Event,
        record: &Record,
        stop: &CancellationToken,
    ) -> impl Future<Output = Result<Fate, HandlerError>> + Send;
}

/// Something to be written to a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Where to.
    pub topic: String,
    /// A partition of its own; `None` = by key, as Java's default partitioner does.
    pub partition: Option<i32>,
    /// Its key.
    pub key: Option<Vec<u8>>,
    /// Its value; none = a tombstone.
    pub value: Option<Vec<u8>>,
    /// Its headers.
    pub headers: Vec<Header>,
}

/// Writes messages to topics.
pub trait Publish: Clone + Send + Sync + 'static {
    /// Returns when Kafka has acknowledged the message: from then on it is not lost.
    ///
    /// # Errors
    /// Kafka did not acknowledge it in time, though it may have been written all the same; or will never take
    /// it.
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

// === impl LaneKey ===

impl LaneKey {
    /// The lane of that text.
    pub fn of(text: &str) -> Self {
        Self(text.as_bytes().into())
    }
}

// === impl Message ===

impl Message {
    /// A message without headers, sent where its key says.
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
