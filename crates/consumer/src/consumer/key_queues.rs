//! The queues of a partition's ordering keys: records with equal keys run one after the other, records
//! without a key wait for no other.

use std::collections::{HashMap, VecDeque, hash_map::Entry};

use crate::OrderingKey;

/// For each key of which a job runs, the jobs that wait behind it.
#[derive(Debug)]
pub(super) struct KeyQueues<J>(HashMap<OrderingKey, VecDeque<J>>);

impl<J> KeyQueues<J> {
    /// Adds the job to its key's queue, or returns it if it may start now.
    #[must_use = "a job that is returned starts now"]
    pub(super) fn enter(&mut self, key: Option<&OrderingKey>, job: J) -> Option<J> {
        let Some(key) = key else { return Some(job) };
        match self.0.entry(key.clone()) {
            Entry::Occupied(mut waiting) => {
                waiting.get_mut().push_back(job);
                None
            }
            Entry::Vacant(empty) => {
                empty.insert(VecDeque::new());
                Some(job)
            }
        }
    }

    /// The job of that key that ran has ended: returns the next one, which starts.
    #[must_use = "the next job starts now"]
    pub(super) fn leave(&mut self, key: Option<&OrderingKey>) -> Option<J> {
        let Entry::Occupied(mut waiting) = self.0.entry(key?.clone()) else { return None };
        let next = waiting.get_mut().pop_front();
        if next.is_none() {
            waiting.remove();
        }
        next
    }

    /// Drops the waiting jobs that are not to be kept. Those that run are not affected.
    pub(super) fn retain_waiting(&mut self, keep: impl Fn(&J) -> bool) {
        self.0.values_mut().for_each(|waiting| waiting.retain(&keep));
    }
}

impl<J> Default for KeyQueues<J> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

#[cfg(test)]
mod tests {
    use proptest::{prelude::*, sample::Index};

    use super::*;

    proptest! {
        #[test]
        fn the_jobs_of_a_key_run_one_at_a_time_in_the_order_in_which_they_came(
            came in prop::collection::vec(prop::option::of(0..4_u8), 0..80),
            order in prop::collection::vec(any::<Index>(), 80),
        ) {
            let ordering_key = |key: u8| OrderingKey([key].into());
            let mut key_queues = KeyQueues::default();
            let mut running = Vec::new();
            let mut finished = Vec::new();
            for (number, key) in came.iter().enumerate() {
                running.extend(key_queues.enter(key.map(ordering_key).as_ref(), (*key, number)));
            }
            for which in &order {
                for key in 0..4 {
                    prop_assert!(running.iter().filter(|(other, _)| *other == Some(key)).count() <= 1);
                }
                if running.is_empty() { break }
                let job = running.swap_remove(which.index(running.len()));
                finished.push(job);
                running.extend(key_queues.leave(job.0.map(ordering_key).as_ref()));
            }
            prop_assert_eq!(finished.len(), came.len(), "every job has run");
            for key in 0..4 {
                let of_key = finished.iter().filter(|(other, _)| *other == Some(key));
                let numbers: Vec<_> = of_key.map(|(_, number)| *number).collect();
                prop_assert!(numbers.is_sorted(), "key {key}: {numbers:?}");
            }
            prop_assert!(key_queues.0.is_empty(), "an empty queue is removed");
        }
    }

    #[test]
    fn a_waiting_job_that_is_dropped_never_starts() {
        let key = OrderingKey::of("a");
        let mut key_queues = KeyQueues::default();
        assert_eq!(key_queues.enter(Some(&key), 1), Some(1));
        assert_eq!(key_queues.enter(Some(&key), 2), None);
        assert_eq!(key_queues.enter(Some(&key), 3), None);
        key_queues.retain_waiting(|&job| job != 2);
        assert_eq!(key_queues.leave(Some(&key)), Some(3));
        assert_eq!(key_queues.leave(Some(&key)), None);
    }
}
