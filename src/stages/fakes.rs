//! The smallest fakes of the ports that the tests of several stages need.

use std::sync::{Arc, Mutex};

use consumer::{
    Fate, Handler, HandlerError, Header, Message, OrderingKey, Publish, PublishError, Record, Rejected,
    Unavailable,
};
use tokio_util::sync::CancellationToken;

use crate::domain::Timestamp;

/// One try at a record, as the runtime makes it: read, then handled; what is rejected becomes a dead letter.
pub(super) async fn handle<H: Handler>(
    stage: &H,
    record: &Record,
    stop: &CancellationToken,
) -> Result<Fate, HandlerError> {
    let handled = match stage.read(record) {
        Ok(event) => stage.handle(event, record, stop).await,
        Err(rejected) => Err(rejected.into()),
    };
    match handled {
        Err(HandlerError::Rejected(Rejected(cause))) => Ok(Fate::DeadLetter(cause)),
        handled => handled,
    }
}

/// The key that keeps a record in order; none for one that can't be read.
pub(super) fn key_of<H: Handler>(stage: &H, record: &Record) -> Option<OrderingKey> {
    stage.key(&stage.read(record).ok()?)
}

/// A record without a key, at offset 7, written at 2026-11-20T01:00:00Z.
pub(super) fn record(value: &str) -> Record {
    Record {
        topic: "topic".into(),
        partition: 0,
        offset: 7,
        timestamp: "2026-11-20T01:00:00Z".parse().unwrap(),
        key: None,
        value: Some(value.as_bytes().to_vec()),
        headers: Vec::new(),
    }
}

/// The same with the headers of a replayed dead letter.
pub(super) fn replayed(record: Record, timestamp: &str, offset: &str) -> Record {
    let header =
        |name: &str, value: &str| Header { name: name.to_owned(), value: Some(value.as_bytes().to_vec()) };
    let headers =
        vec![header("pushcast.origin.timestamp", timestamp), header("pushcast.origin.offset", offset)];
    Record { headers, ..record }
}

/// The same, written that many seconds from now.
pub(super) fn written_in(record: Record, seconds: i64) -> Record {
    Record { timestamp: Timestamp::from_second(Timestamp::now().as_second() + seconds).unwrap(), ..record }
}

/// Keeps the messages that are published; can refuse some.
#[derive(Clone, Debug, Default)]
pub(super) struct FakeProducer(Arc<Mutex<ProducerState>>);

#[derive(Debug, Default)]
struct ProducerState {
    published: Vec<Message>,
    /// How many of the next messages are refused.
    refusals: usize,
}

impl FakeProducer {
    /// Refuses the next messages.
    pub(super) fn refuse(&self, messages: usize) {
        self.0.lock().unwrap().refusals = messages;
    }

    /// All messages that were published since the last call.
    pub(super) fn take(&self) -> Vec<Message> {
        std::mem::take(&mut self.0.lock().unwrap().published)
    }
}

impl Publish for FakeProducer {
    async fn publish(&self, message: Message) -> Result<(), PublishError> {
        let mut state = self.0.lock().unwrap();
        if state.refusals > 0 {
            state.refusals -= 1;
            return Err(Unavailable::kafka("write a message", "the test refuses it").into());
        }
        state.published.push(message);
        Ok(())
    }
}
