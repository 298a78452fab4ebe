//! Records of one lane run one after the other; records without a lane run free.

use std::collections::{HashMap, VecDeque, hash_map::Entry};

use crate::LaneKey;

/// The key_queues of a partition that have somebody in them: one job running, the others waiting behind it.
#[derive(Debug)]
pub(super) struct KeyQueues<J>(HashMap<LaneKey, VecDeque<J>>);

impl<J> KeyQueues<J> {
    /// The job enters its key. Given back, it may start now.
    #[must_use = "a job that is given back starts now"]
    pub(super) fn enter(&mut self, key: Option<&LaneKey>, job: J) -> Option<J> {
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

    /// The job that ran in the lane has left it; the next one starts.
    #[must_use = "the next job starts now"]
    pub(super) fn leave(&mut self, key: Option<&LaneKey>) -> Option<J> {
        let Entry::Occupied(mut waiting) = self.0.entry(key?.clone()) else { return None };
        let next = waiting.get_mut().pop_front();
        if next.is_none() {
            waiting.remove();
        }
        next
    }

    /// Of those who have not started yet, sends everybody home who does not `stay`.
    pub(super) fn retain_waiting(&mut self, stay: impl Fn(&J) -> bool) {
        self.0.values_mut().for_each(|waiting| waiting.retain(&stay));
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
        fn a_lane_runs_one_job_at_a_time_in_the_order_they_came(came in prop::collection::vec(prop::option::of(0..4_u8), 0..80), order in prop::collection::vec(any::<Index>(), 80)) {
            let lane_key = |key: u8| LaneKey([key].into());
            let (mut key_queues, mut running, mut finished) = (KeyQueues::default(), Vec::new(), Vec::new());
            for (number, key) in came.iter().enumerate() {
                running.extend(key_queues.enter(key.map(lane_key).as_ref(), (*key, number)));
            }
            for which in &order {
                for key in 0..4 {
                    prop_assert!(running.iter().filter(|(other, _)| *other == Some(key)).count() <= 1);
                }
                if running.is_empty() { break }
                let job = running.swap_remove(which.index(running.len()));
                finished.push(job);
                running.extend(key_queues.leave(job.0.map(lane_key).as_ref()));
            }
            prop_assert_eq!(finished.len(), came.len(), "everybody has run");
            for key in 0..4 {
                let numbers: Vec<_> = finished.iter().filter(|(other, _)| *other == Some(key)).map(|(_, number)| *number).collect();
                prop_assert!(numbers.is_sorted(), "key {key}: {numbers:?}");
            }
            prop_assert!(key_queues.0.is_empty(), "an empty lane is forgotten");
        }
    }

    #[test]
    fn whoever_is_sent_home_from_a_lane_never_starts() {
        let (key, mut key_queues) = (LaneKey::of("a"), KeyQueues::default());
        assert_eq!(key_queues.enter(Some(&key), 1), Some(1));
        assert_eq!((key_queues.enter(Some(&key), 2), key_queues.enter(Some(&key), 3)), (None, None));
        key_queues.retain_waiting(|&job| job != 2);
        assert_eq!(key_queues.leave(Some(&key)), Some(3));
        assert_eq!(key_queues.leave(Some(&key)), None);
    }
}
