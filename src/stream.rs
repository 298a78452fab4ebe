//! What a stage needs to know of a stream of records, and nothing about Kafka.
//!
//! A stage is a [`Handler`]: it is given one record at a time, many at once, and answers with the record's
//! [`Fate`]. An offset is committed only when every record below it has a durable fate, so a handler answers
//! when, and only when, everything that its record causes is in the store, acknowledged by Kafka or finally
//! answered by a provider.

mod rarely;

use std::{fmt, future::Future, sync::Arc};

use tokio_util::sync::CancellationToken;

pub(crate) use self::rarely::Rarely;
use crate::domain::{Timestamp, Unavailable};

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
    /// It can't be handled, by its own fault: it goes to `dead-letters`.
    DeadLetter(Cause),
    /// Stopped half-way ([`Stop`]) in good order: its next owner goes on.
    Unfinished,
}

/// Why a record can't be handled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    /// A word for metrics and for grouping: `unreadable`, `invalid`, `panicked`, `refused`.
    pub label: &'static str,
    /// What is wrong and where, for the person who reads the dead letter. Holds no token.
    pub detail: String,
}

/// Set when the record's partition is being taken away or the process ends. A handler that may run long
/// starts nothing new after it. It may be set from the beginning: a record that others of its partition have
/// overtaken is still handled, so that these need not be repeated.
#[derive(Clone, Debug, Default)]
pub struct Stop(CancellationToken);

/// A stage: what is done with each record of its topics.
pub trait Handler: Send + Sync + 'static {
    /// Records of one lane run one after the other; `None` runs free.
    fn lane(&self, record: &Record) -> Option<LaneKey>;

    /// Not before this time: the partition sleeps unread until its head is due.
    fn due(&self, _record: &Record) -> Option<Timestamp> {
        None
    }

    /// Does the record's work and answers with its fate. Handlers of one partition take turns on one
    /// processor: whoever computes for long or blocks holds the others up.
    ///
    /// # Errors
    /// A dependency was away; the same record is handled again after a pause, for as long as it takes.
    fn handle(&self, record: &Record, stop: &Stop) -> impl Future<Output = Result<Fate, Unavailable>> + Send;
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
    /// Kafka did not acknowledge it in time. It may have been written all the same.
    fn publish(&self, message: Message) -> impl Future<Output = Result<(), Unavailable>> + Send;

    /// Publishes all of them, in order, and returns when the last one is acknowledged.
    ///
    /// # Errors
    /// At least one was not acknowledged; any of the others may have been written.
    fn publish_all(&self, messages: Vec<Message>) -> impl Future<Output = Result<(), Unavailable>> + Send {
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

// === impl Cause ===

impl Cause {
    /// The bytes could not be read as an event of their topic.
    pub fn unreadable(detail: impl fmt::Display) -> Self {
        Self { label: "unreadable", detail: detail.to_string() }
    }

    /// The event could be read but says something impossible.
    pub fn invalid(detail: impl fmt::Display) -> Self {
        Self { label: "invalid", detail: detail.to_string() }
    }

    /// The handler panicked on it.
    pub fn panicked(detail: impl fmt::Display) -> Self {
        Self { label: "panicked", detail: detail.to_string() }
    }
}

// === impl Stop ===

impl Stop {
    /// The stop that `token` sets.
    pub fn of(token: CancellationToken) -> Self {
        Self(token)
    }

    /// The token that sets it.
    pub fn token(&self) -> CancellationToken {
        self.0.clone()
    }

    /// Whether it is set.
    pub fn is_set(&self) -> bool {
        self.0.is_cancelled()
    }

    /// Returns when it is set.
    pub async fn wait(&self) {
        self.0.cancelled().await;
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
