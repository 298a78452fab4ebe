//! From a partition's queue to a record that may start.
//!
//! One record per partition is held outside the budget: the *head*. It waits here until it is due and until
//! the budget has room; meanwhile the queue is not read, and Kafka feels that as backpressure. (A seat taken
//! before the record would let idle partitions sit on all the seats.)

use std::{sync::Arc, time::Duration};

use futures::FutureExt as _;
use jiff::Timestamp;
use rdkafka::{
    Offset,
    consumer::{Consumer as _, stream_consumer::StreamPartitionQueue},
    error::{KafkaError, RDKafkaErrorCode},
    message::{BorrowedMessage, Headers as _, Message as _},
};
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{debug, warn};

use super::{
    TopicPartition,
    budget::{Admission, Permits},
    poller::{Member, StageConsumerContext},
    work::guarded,
};
use crate::{Handler, Header, LogThrottle, Record, client::code_of};

/// How long a queue is listened to before it is looked at again. A split queue can lose its wake-up for ever
/// (rust-rdkafka PR 840), so nobody may wait for it without an end.
const LISTEN: Duration = Duration::from_secs(1);

/// Where a partition's records come from.
pub(super) trait RecordSource: Send + 'static {
    /// The next record; none = all is quiet. Cancel safe.
    fn next(&mut self) -> impl Future<Output = Option<Record>> + Send;

    /// Behind the last record that was given out, what is never delivered included (the markers of
    /// transactions).
    fn position(&self) -> Option<i64>;
}

/// A partition's intake.
#[derive(Debug)]
pub(super) struct Intake<S> {
    source: S,
    admission: Admission,
    head: Option<Head>,
}

/// What came in.
#[derive(Debug)]
pub(super) enum Arrival {
    /// A record that is due and has its permits.
    Record(Box<Record>, Permits),
    /// Nothing for a while, and everything that was read has been handed over.
    Quiet,
}

#[derive(Debug)]
struct Head {
    record: Box<Record>,
    /// None = now. (Even a sleep that is over lasts to the clock's next millisecond, which would be a
    /// record's price.)
    due_at: Option<Instant>,
}

impl<S: RecordSource> Intake<S> {
    pub(super) fn new(source: S, admission: Admission) -> Self {
        Self { source, admission, head: None }
    }

    /// The next arrival. Cancel safe: what has been read stays here.
    pub(super) async fn next(&mut self, handler: &impl Handler) -> Arrival {
        loop {
            if let Some(head) = &self.head {
                if let Some(due_at) = head.due_at {
                    sleep_until(due_at).await;
                }
                let permits = self.admission.admit(&head.record).await;
                if let Some((head, permits)) = self.head.take().zip(permits) {
                    return Arrival::Record(head.record, permits);
                }
            }
            let Some(record) = self.source.next().await else {
                return Arrival::Quiet;
            };
            // A handler that panics over the due time will panic over the record too, and then it is buried.
            let due = guarded(|| handler.due(&record)).ok().flatten();
            let due_at = due.and_then(|due| wait(due, Timestamp::now())).map(|wait| Instant::now() + wait);
            self.head = Some(Head { record: Box::new(record), due_at });
        }
    }

    /// Behind the last record that was read, what is never delivered included. Meant for quiet moments: it
    /// asks librdkafka.
    pub(super) fn position(&self) -> Option<i64> {
        self.source.position()
    }

    /// When the head was written.
    pub(super) fn oldest(&self) -> Option<Timestamp> {
        self.head.as_ref().map(|head| head.record.timestamp)
    }
}

/// How long until it is due; none = it is.
fn wait(due: Timestamp, now: Timestamp) -> Option<Duration> {
    Duration::try_from(due.duration_since(now)).ok().filter(|wait| !wait.is_zero())
}

/// The queue of a partition, split off its consumer.
pub(super) struct SplitQueue {
    queue: StreamPartitionQueue<StageConsumerContext>,
    member: Arc<Member>,
    of: TopicPartition,
    log_throttle: LogThrottle,
}

impl SplitQueue {
    /// Splits the partition off. Has to happen before it is assigned, and after the queue of an earlier
    /// assignment is gone: dropping that one would take the new one's wake-up away (vector PR 26438). None =
    /// no such partition.
    pub(super) fn split(member: &Arc<Member>, of: TopicPartition) -> Option<Self> {
        let queue = member.split_partition_queue(&of.topic, of.partition)?;
        // A partition that was taken away before librdkafka knew where to begin may have been fetched all the
        // time (2.12.1), and lies here from the first record on, though others have been on since.
        while let Some(stale) = queue.recv().now_or_never() {
            let offset = stale.ok().map(|message| message.offset());
            debug!(kafka.topic = %of.topic, kafka.partition = of.partition, offset, "Fetched for an earlier assignment of {of}, and left unread");
        }
        Some(Self { queue, member: Arc::clone(member), of, log_throttle: LogThrottle::default() })
    }

    fn log_unavailable(&self, error: &KafkaError) {
        // Only where kafka.properties asks for it: nothing more is read until an operator has decided.
        if code_of(error) == Some(RDKafkaErrorCode::AutoOffsetReset) {
            return self.member.context().on_offset_reset(&format!("{}: {error}", self.of));
        }
        if self.log_throttle.now() {
            let of = &self.of;
            warn!(kafka.topic = %of.topic, kafka.partition = of.partition, %error, "Reading {of} fails, librdkafka tries again: {error}");
        }
    }
}

impl RecordSource for SplitQueue {
    async fn next(&mut self) -> Option<Record> {
        match timeout(LISTEN, self.queue.recv()).await {
            Ok(Ok(message)) => Some(record_of(&message, &self.of)),
            // Fatal errors are the poller's to see; all others pass.
            Ok(Err(error)) => {
                self.log_unavailable(&error);
                None
            }
            Err(_elapsed) => None,
        }
    }

    fn position(&self) -> Option<i64> {
        // The list is dropped here and now: one that outlives this call would block the consumer's end.
        let positions = self.member.position().ok()?;
        match positions.find_partition(&self.of.topic, self.of.partition)?.offset() {
            Offset::Offset(offset) => Some(offset),
            _ => None,
        }
    }
}

/// A copy of the message: a borrowed one keeps its whole fetch buffer.
fn record_of(message: &BorrowedMessage<'_>, of: &TopicPartition) -> Record {
    Record {
        topic: of.topic.clone(),
        partition: of.partition,
        offset: message.offset(),
        // Only brokers older than 0.10 give none. A version has to be a pure function of the record, so: the
        // beginning.
        timestamp: message
            .timestamp()
            .to_millis()
            .and_then(|ms| Timestamp::from_millisecond(ms).ok())
            .unwrap_or(Timestamp::UNIX_EPOCH),
        key: message.key().map(<[u8]>::to_vec),
        value: message.payload().map(<[u8]>::to_vec),
        headers: message.headers().map(headers_of).unwrap_or_default(),
    }
}

/// The headers whose name is text: rdkafka panics over any other, and one such record must not end the stage.
fn headers_of(headers: &rdkafka::message::BorrowedHeaders) -> Vec<Header> {
    let readable = (0..headers.count()).filter_map(|index| guarded(|| headers.try_get(index)).ok().flatten());
    readable
        .map(|header| Header { name: header.key.to_owned(), value: header.value.map(<[u8]>::to_vec) })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_overdue_does_not_wait() {
        let now = Timestamp::from_second(1_000).unwrap();
        assert_eq!(wait(Timestamp::from_second(990).unwrap(), now), None);
        assert_eq!(wait(now, now), None);
        assert_eq!(wait(Timestamp::from_second(1_010).unwrap(), now), Some(Duration::from_secs(10)));
    }
}
