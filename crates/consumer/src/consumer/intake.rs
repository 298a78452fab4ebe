//! From a partition's queue to a record that may start.
//!
//! One record per partition is held outside the budget: the *head*. It waits here until it is due and until
//! the budget has room; meanwhile the queue is not read, which is the backpressure. (Permits taken before the
//! record is read would let idle partitions hold all of them.)

use std::{future::pending, sync::Arc, time::Duration};

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
    work::catch_panic,
};
use crate::{Handler, Header, LogThrottle, Record, client::code_of};

/// How long to wait for a queue before polling it again. A split queue can lose its wake-up forever
/// (rust-rdkafka PR 840), so no wait for it may be unbounded.
const RECV_TIMEOUT: Duration = Duration::from_secs(1);

/// Where a partition's records come from.
pub(super) trait RecordSource: Send + 'static {
    /// The next record; none = none for a while. Cancel safe.
    fn next(&mut self) -> impl Future<Output = Option<Record>> + Send;

    /// The offset after the last record that was returned, and after what follows it and is never delivered
    /// (the markers of transactions).
    fn position(&self) -> Option<i64>;
}

/// A partition's intake.
#[derive(Debug)]
pub(super) struct Intake<S> {
    source: S,
    admission: Admission,
    head: Option<Head>,
}

/// What [`Intake::next`] returns.
#[derive(Debug)]
pub(super) enum Arrival {
    /// A record that is due and has its permits.
    Record(Box<Record>, Permits),
    /// Nothing for a while, and no record is held back.
    Quiet,
}

#[derive(Debug)]
struct Head {
    record: Box<Record>,
    /// None = now. (Even a sleep that is over lasts until the clock's next millisecond, which every record
    /// would pay.)
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
                let Some(permits) = self.admission.admit(&head.record).await else {
                    // Nothing closes the semaphores. If anything did, the record would stay here, unread, and
                    // its partition would stop: it is never passed on without permits, and never dropped.
                    return pending().await;
                };
                if let Some(head) = self.head.take() {
                    return Arrival::Record(head.record, permits);
                }
            }
            let Some(record) = self.source.next().await else {
                return Arrival::Quiet;
            };
            // A handler that panics over the due time panics over the record too, which then becomes a dead
            // letter.
            let due = catch_panic(|| handler.due(&record)).ok().flatten();
            let due_at = due.and_then(|due| wait(due, Timestamp::now())).map(|wait| Instant::now() + wait);
            self.head = Some(Head { record: Box::new(record), due_at });
        }
    }

    /// The source's [position](RecordSource::position). Meant for idle partitions: it asks librdkafka.
    pub(super) fn position(&self) -> Option<i64> {
        self.source.position()
    }

    /// When the head was written, if there is one.
    pub(super) fn oldest(&self) -> Option<Timestamp> {
        self.head.as_ref().map(|head| head.record.timestamp)
    }
}

/// How long until `due`; none = it is past.
fn wait(due: Timestamp, now: Timestamp) -> Option<Duration> {
    Duration::try_from(due.duration_since(now)).ok().filter(|wait| !wait.is_zero())
}

/// The queue of a partition, split off its consumer's main queue.
pub(super) struct SplitQueue {
    queue: StreamPartitionQueue<StageConsumerContext>,
    member: Arc<Member>,
    tp: TopicPartition,
    log_throttle: LogThrottle,
}

impl SplitQueue {
    /// Splits the queue off. Has to happen before the partition is assigned, and after the queue of an
    /// earlier assignment was dropped: dropping that one removes the new one's wake-up (vector PR 26438).
    /// None = no such partition.
    pub(super) fn split(member: &Arc<Member>, tp: TopicPartition) -> Option<Self> {
        let queue = member.split_partition_queue(&tp.topic, tp.partition)?;
        // librdkafka (2.12.1) may continue to fetch a partition that was revoked before it knew where to
        // start: then its records are here from the first one on, though other members have read it
        // meanwhile.
        while let Some(stale) = queue.recv().now_or_never() {
            let offset = stale.ok().map(|message| message.offset());
            debug!(
                topic = &*tp.topic,
                partition = tp.partition,
                offset,
                "Discarded a message that was fetched for an earlier assignment of {tp}"
            );
        }
        Some(Self { queue, member: Arc::clone(member), tp, log_throttle: LogThrottle::default() })
    }

    fn log_error(&self, error: &KafkaError) {
        // Only where the settings' properties ask for it: nothing more is read until an operator has decided.
        if code_of(error) == Some(RDKafkaErrorCode::AutoOffsetReset) {
            return self.member.context().on_offset_reset(&format!("{}: {error}", self.tp));
        }
        if self.log_throttle.now() {
            let tp = &self.tp;
            warn!(
                topic = &*tp.topic,
                partition = tp.partition,
                %error,
                "Reading {tp} failed, librdkafka tries again: {error}"
            );
        }
    }
}

impl RecordSource for SplitQueue {
    async fn next(&mut self) -> Option<Record> {
        match timeout(RECV_TIMEOUT, self.queue.recv()).await {
            Ok(Ok(message)) => Some(record_of(&message, &self.tp)),
            // The poller handles fatal errors; all others pass.
            Ok(Err(error)) => {
                self.log_error(&error);
                None
            }
            Err(_elapsed) => None,
        }
    }

    fn position(&self) -> Option<i64> {
        // The list must not outlive this call, or the consumer could not close.
        let positions = self.member.position().ok()?;
        match positions.find_partition(&self.tp.topic, self.tp.partition)?.offset() {
            Offset::Offset(offset) => Some(offset),
            _ => None,
        }
    }
}

/// A copy of the message, because a borrowed one keeps its whole fetch buffer in memory.
fn record_of(message: &BorrowedMessage<'_>, tp: &TopicPartition) -> Record {
    Record {
        topic: tp.topic.clone(),
        partition: tp.partition,
        offset: message.offset(),
        // Only messages of before Kafka 0.10 have none. What a handler derives from the record must be the
        // same each time, so not the present.
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

/// The headers whose names are UTF-8: rdkafka panics over any other, and one such record must not end the
/// stage.
fn headers_of(headers: &rdkafka::message::BorrowedHeaders) -> Vec<Header> {
    let readable =
        (0..headers.count()).filter_map(|index| catch_panic(|| headers.try_get(index)).ok().flatten());
    readable
        .map(|header| Header { name: header.key.to_owned(), value: header.value.map(<[u8]>::to_vec) })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::{Fate, HandlerError, OrderingKey, Rejected, consumer::budget::Budget};

    /// These records, and then quiet.
    #[derive(Debug)]
    struct Records(VecDeque<Record>);

    impl RecordSource for Records {
        async fn next(&mut self) -> Option<Record> {
            self.0.pop_front()
        }

        fn position(&self) -> Option<i64> {
            None
        }
    }

    struct NoOp;

    impl Handler for NoOp {
        type Event = ();

        fn read(&self, _: &Record) -> Result<(), Rejected> {
            Ok(())
        }

        fn key(&self, (): &()) -> Option<OrderingKey> {
            None
        }

        async fn handle(&self, (): (), _: &Record, _: &CancellationToken) -> Result<Fate, HandlerError> {
            Ok(Fate::Done)
        }
    }

    #[tokio::test]
    async fn a_record_that_gets_no_permit_is_kept_and_never_passed_over() {
        let budget = Budget::new(1, 1 << 20);
        let record = Record {
            topic: "t".into(),
            partition: 0,
            offset: 7,
            timestamp: Timestamp::UNIX_EPOCH,
            key: None,
            value: None,
            headers: Vec::new(),
        };
        let mut intake = Intake::new(Records([record].into()), budget.admission());
        budget.close();
        assert!(intake.next(&NoOp).now_or_never().is_none(), "it neither arrives nor is all quiet");
        assert_eq!(intake.oldest(), Some(Timestamp::UNIX_EPOCH), "the record is still the head");
    }

    #[test]
    fn a_record_that_is_overdue_does_not_wait() {
        let now = Timestamp::from_second(1_000).unwrap();
        assert_eq!(wait(Timestamp::from_second(990).unwrap(), now), None);
        assert_eq!(wait(now, now), None);
        assert_eq!(wait(Timestamp::from_second(1_010).unwrap(), now), Some(Duration::from_secs(10)));
    }
}
