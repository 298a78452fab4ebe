//! Records of one lane run one after the other; records without a lane run free.

use std::collections::{HashMap, VecDeque, hash_map::Entry};

use crate::stream::LaneKey;

/// The lanes of a partition that have somebody in them: one job running, the others waiting behind it.
#[derive(Debug)]
pub(super) struct Lanes<J>(HashMap<LaneKey, VecDeque<J>>);

impl<J> Lanes<J> {
    /// The job enters its lane. Given back, it may start now.
    #[must_use = "a job that is given back starts now"]
    pub(super) fn enter(&mut self, lane: Option<&LaneKey>, job: J) -> Option<J> {
        let Some(lane) = lane else { return Some(job) };
        match self.0.entry(lane.clone()) {
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
    pub(super) fn leave(&mut self, lane: Option<&LaneKey>) -> Option<J> {
        let Entry::Occupied(mut waiting) = self.0.entry(lane?.clone()) else { return None };
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

impl<J> Default for Lanes<J> {
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
            let key = |lane: u8| LaneKey([lane].into());
            let (mut lanes, mut running, mut finished) = (Lanes::default(), Vec::new(), Vec::new());
            for (number, lane) in came.iter().enumerate() {
                running.extend(lanes.enter(lane.map(key).as_ref(), (*lane, number)));
            }
            for which in &order {
                for lane in 0..4 {
                    prop_assert!(running.iter().filter(|(other, _)| *other == Some(lane)).count() <= 1);
                }
                if running.is_empty() { break }
                let job = running.swap_remove(which.index(running.len()));
                finished.push(job);
                running.extend(lanes.leave(job.0.map(key).as_ref()));
            }
            prop_assert_eq!(finished.len(), came.len(), "everybody has run");
            for lane in 0..4 {
                let numbers: Vec<_> = finished.iter().filter(|(other, _)| *other == Some(lane)).map(|(_, number)| *number).collect();
                prop_assert!(numbers.is_sorted(), "lane {lane}: {numbers:?}");
            }
            prop_assert!(lanes.0.is_empty(), "an empty lane is forgotten");
        }
    }

    #[test]
    fn whoever_is_sent_home_from_a_lane_never_starts() {
        let (lane, mut lanes) = (LaneKey::of("a"), Lanes::default());
        assert_eq!(lanes.enter(Some(&lane), 1), Some(1));
        assert_eq!((lanes.enter(Some(&lane), 2), lanes.enter(Some(&lane), 3)), (None, None));
        lanes.retain_waiting(|&job| job != 2);
        assert_eq!(lanes.leave(Some(&lane)), Some(3));
        assert_eq!(lanes.leave(Some(&lane)), None);
    }
}
