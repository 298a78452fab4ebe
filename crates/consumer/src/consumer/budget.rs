//! How much a stage holds at once: a number of records, and their bytes.
//!
//! A full budget leaves partitions unread. A record's permits are released when it ends, in whatever way,
//! because they are dropped with it.

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

/// However small a partition's part of the budget is, it may hold that many records.
const PARTITION_RECORDS_MIN: usize = 64;
const KIB: usize = 1024;

/// What a stage may hold at once, over all its partitions.
#[derive(Debug)]
pub(super) struct Budget {
    records: Arc<Semaphore>,
    records_max: usize,
    /// In KiB, so that the sum fits a permit count.
    bytes: Arc<Semaphore>,
    kib_max: u32,
    partitions: AtomicUsize,
}

/// One partition's places in the semaphores' queues.
#[derive(Debug)]
pub(super) struct Admission {
    records: PollSemaphore,
    bytes: PollSemaphore,
    kib_max: u32,
    /// Acquired, while the bytes are not yet.
    record_permit: Option<OwnedSemaphorePermit>,
}

/// A record's permits.
#[derive(Debug)]
pub(super) struct Permits {
    _record: OwnedSemaphorePermit,
    _bytes: OwnedSemaphorePermit,
}

impl Budget {
    pub(super) fn new(in_flight: usize, in_flight_bytes: usize) -> Self {
        let records_max = in_flight.clamp(1, Semaphore::MAX_PERMITS);
        let kib_max =
            u32::try_from(in_flight_bytes.div_ceil(KIB)).unwrap_or(u32::MAX >> 4).clamp(1, u32::MAX >> 4);
        Self {
            records: Arc::new(Semaphore::new(records_max)),
            records_max,
            bytes: Arc::new(Semaphore::new(kib_max as usize)),
            kib_max,
            partitions: AtomicUsize::new(1),
        }
    }

    /// For one partition.
    pub(super) fn admission(&self) -> Admission {
        Admission {
            records: PollSemaphore::new(Arc::clone(&self.records)),
            bytes: PollSemaphore::new(Arc::clone(&self.bytes)),
            kib_max: self.kib_max,
            record_permit: None,
        }
    }

    #[cfg(test)]
    pub(super) fn close(&self) {
        self.records.close();
        self.bytes.close();
    }

    /// The budget is now shared by that many partitions.
    pub(super) fn shared_by(&self, partitions: usize) {
        self.partitions.store(partitions.max(1), Ordering::Relaxed);
    }

    /// The most records that one partition may hold: twice its part, so that a partition that does not
    /// advance leaves the others something, and a busy one among idle ones is not limited much.
    pub(super) fn partition_max(&self) -> usize {
        (2 * self.records_max / self.partitions.load(Ordering::Relaxed)).max(PARTITION_RECORDS_MIN)
    }
}

impl Admission {
    /// Waits until the budget has room for a record. None = never, the semaphores are closed. Cancel safe:
    /// the places in the queues are kept.
    pub(super) async fn admit(&mut self, record: &Record) -> Option<Permits> {
        if self.record_permit.is_none() {
            self.record_permit = poll_fn(|cx| self.records.poll_acquire(cx)).await;
        }
        // A record larger than the whole budget gets all of it.
        let kib = u32::try_from(size_of(record).div_ceil(KIB)).unwrap_or(u32::MAX).clamp(1, self.kib_max);
        let bytes = poll_fn(|cx| self.bytes.poll_acquire_many(cx, kib)).await?;
        Some(Permits { _record: self.record_permit.take()?, _bytes: bytes })
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
        Record {
            topic: "t".into(),
            partition: 0,
            offset: 0,
            timestamp: Timestamp::UNIX_EPOCH,
            key: None,
            value: Some(vec![0; bytes]),
            headers: Vec::new(),
        }
    }

    #[tokio::test]
    async fn a_full_budget_admits_the_next_record_when_one_has_ended() {
        let budget = Budget::new(1, 1 << 20);
        let mut one = budget.admission();
        let mut other = budget.admission();
        let permits = one.admit(&record(10)).await;
        assert!(other.admit(&record(10)).now_or_never().is_none());
        drop(permits);
        assert!(other.admit(&record(10)).await.is_some());
    }

    #[tokio::test]
    async fn a_record_larger_than_the_budget_is_admitted_alone() {
        let budget = Budget::new(10, 4 * KIB);
        let mut one = budget.admission();
        let mut other = budget.admission();
        let permits = one.admit(&record(1 << 20)).await;
        assert!(other.admit(&record(1)).now_or_never().is_none());
        drop(permits);
        assert!(other.admit(&record(1)).await.is_some());
    }

    #[test]
    fn a_partition_may_hold_twice_its_part_of_the_budget() {
        let budget = Budget::new(4096, 1 << 20);
        budget.shared_by(16);
        assert_eq!(budget.partition_max(), 512);
        budget.shared_by(1000);
        assert_eq!(budget.partition_max(), PARTITION_RECORDS_MIN);
    }
}
