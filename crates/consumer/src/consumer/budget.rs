//! How much a stage holds at once: seats for records, and room for their bytes.
//!
//! A full budget is felt by Kafka as an unread partition. What a record took is given back when the record
//! has met its fate, whatever way that goes, because the permits live and die with it.

use std::{
    future::poll_fn,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::PollSemaphore;

use crate::Record;

/// However small a partition's part of the seats, it may hold that many.
const PARTITION_SEATS_MIN: usize = 64;
const KIB: usize = 1024;

/// What a stage may hold at once, over all its partitions.
#[derive(Debug)]
pub(super) struct Budget {
    seats: Arc<Semaphore>,
    seats_max: usize,
    /// In KiB, so that the sum fits a permit count.
    bytes: Arc<Semaphore>,
    kib_max: u32,
    partitions: AtomicUsize,
}

/// One partition's place in the queues for the budget.
#[derive(Debug)]
pub(super) struct Admission {
    seats: PollSemaphore,
    bytes: PollSemaphore,
    kib_max: u32,
    seat: Option<OwnedSemaphorePermit>,
}

/// A record's seat and the room for its bytes.
#[derive(Debug)]
pub(super) struct Permits {
    _seat: OwnedSemaphorePermit,
    _bytes: OwnedSemaphorePermit,
}

impl Budget {
    pub(super) fn new(in_flight: usize, in_flight_bytes: usize) -> Self {
        let seats_max = in_flight.clamp(1, Semaphore::MAX_PERMITS);
        let kib_max =
            u32::try_from(in_flight_bytes.div_ceil(KIB)).unwrap_or(u32::MAX >> 4).clamp(1, u32::MAX >> 4);
        Self {
            seats: Arc::new(Semaphore::new(seats_max)),
            seats_max,
            bytes: Arc::new(Semaphore::new(kib_max as usize)),
            kib_max,
            partitions: AtomicUsize::new(1),
        }
    }

    /// A place in the queues.
    pub(super) fn admission(&self) -> Admission {
        Admission {
            seats: PollSemaphore::new(Arc::clone(&self.seats)),
            bytes: PollSemaphore::new(Arc::clone(&self.bytes)),
            kib_max: self.kib_max,
            seat: None,
        }
    }

    /// The budget is now shared by that many partitions.
    pub(super) fn shared_by(&self, partitions: usize) {
        self.partitions.store(partitions.max(1), Ordering::Relaxed);
    }

    /// The most seats that one partition may hold: twice its part, so that a partition that stands still
    /// leaves the others something, and a busy one among idle ones is not held back much.
    pub(super) fn partition_seats(&self) -> usize {
        (2 * self.seats_max / self.partitions.load(Ordering::Relaxed)).max(PARTITION_SEATS_MIN)
    }
}

impl Admission {
    /// Waits until the budget has room for a record. Cancel safe: the place in the queue is kept.
    pub(super) async fn admit(&mut self, record: &Record) -> Option<Permits> {
        if self.seat.is_none() {
            self.seat = poll_fn(|cx| self.seats.poll_acquire(cx)).await;
        }
        // A record larger than the whole budget has it for itself.
        let kib = u32::try_from(size_of(record).div_ceil(KIB)).unwrap_or(u32::MAX).clamp(1, self.kib_max);
        let bytes = poll_fn(|cx| self.bytes.poll_acquire_many(cx, kib)).await?;
        Some(Permits { _seat: self.seat.take()?, _bytes: bytes })
    }
}

fn size_of(record: &Record) -> usize {
    let headers =
        record.headers.iter().map(|header| header.name.len() + header.value.as_ref().map_or(0, Vec::len));
    record.key.as_ref().map_or(0, Vec::len)
        + record.value.as_ref().map_or(0, Vec::len)
        + headers.sum::<usize>()
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;
    use jiff::Timestamp;

    fn record(bytes: usize) -> Record {
        let value = Some(vec![0; bytes]);
        Record {
            topic: "t".into(),
            partition: 0,
            offset: 0,
            timestamp: Timestamp::UNIX_EPOCH,
            key: None,
            value,
            headers: Vec::new(),
        }
    }

    #[tokio::test]
    async fn a_full_budget_admits_the_next_record_when_one_has_left() {
        let budget = Budget::new(1, 1 << 20);
        let (mut one, mut other) = (budget.admission(), budget.admission());
        let permits = one.admit(&record(10)).await;
        assert!(other.admit(&record(10)).now_or_never().is_none());
        drop(permits);
        assert!(other.admit(&record(10)).await.is_some());
    }

    #[tokio::test]
    async fn a_record_larger_than_the_budget_is_admitted_alone() {
        let budget = Budget::new(10, 4 * KIB);
        let (mut one, mut other) = (budget.admission(), budget.admission());
        let permits = one.admit(&record(1 << 20)).await;
        assert!(other.admit(&record(1)).now_or_never().is_none());
        drop(permits);
        assert!(other.admit(&record(1)).await.is_some());
    }

    #[test]
    fn a_partition_may_hold_twice_its_part_of_the_seats() {
        let budget = Budget::new(4096, 1 << 20);
        budget.shared_by(16);
        assert_eq!(budget.partition_seats(), 512);
        budget.shared_by(1000);
        assert_eq!(budget.partition_seats(), PARTITION_SEATS_MIN);
    }
}
