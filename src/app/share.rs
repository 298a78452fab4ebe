//! Turns the partitions that a process owns into its share of a provider's rate.
//!
//! Partitions count only while the group confirms that we are its member. A process that is cut off from
//! Kafka learns nothing of the partitions that it has lost; half a session later, before another process can
//! own them, it stops sending.

use std::time::Duration;

use consumer::Assignment;
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

use crate::dispatch::Share;

/// What a share follows from.
pub(super) struct LaneAssignment {
    /// The lane of the provider's reminders.
    pub urgent: LaneShare,
    /// The lane of its broadcasts.
    pub bulk: LaneShare,
    /// How long a confirmation is good for.
    pub trusted_for: Duration,
}

/// What a lane contributes to a share.
pub(super) struct LaneShare {
    /// The assignment of its consumer; none = this process does not run it.
    pub assignment: Option<watch::Receiver<Assignment>>,
    /// The topic that its jobs are in.
    pub topic: &'static str,
    /// How many partitions the topic had when the process started. It may get more.
    pub of: u32,
}

/// Keeps `share` up to date until the lanes' consumers have ended.
pub(super) async fn follow(lanes: LaneAssignment, share: watch::Sender<Share>) {
    let LaneAssignment { mut urgent, mut bulk, trusted_for } = lanes;
    loop {
        let now = Instant::now();
        let (urgent_owned, urgent_until) = urgent.owned(trusted_for, now);
        let (bulk_owned, bulk_until) = bulk.owned(trusted_for, now);
        let new = Share {
            bulk: bulk_owned,
            bulk_of: bulk.partitions(),
            urgent: urgent_owned,
            urgent_of: urgent.partitions(),
        };
        share.send_if_modified(|before| std::mem::replace(before, new) != new);
        let doubt_at = [urgent_until, bulk_until].into_iter().flatten().min();
        let ended = tokio::select! {
            ended = urgent.changed() => ended,
            ended = bulk.changed() => ended,
            () = sleep_until(doubt_at.unwrap_or(now)), if doubt_at.is_some() => false,
        };
        if ended || (urgent.assignment.is_none() && bulk.assignment.is_none()) {
            return; // The stages have ended, and report why.
        }
    }
}

// === impl LaneShare ===

impl LaneShare {
    /// How many of its partitions are confirmed to be ours, and until when without a new confirmation.
    fn owned(&mut self, trusted_for: Duration, now: Instant) -> (u32, Option<Instant>) {
        let Some(assignment) = &mut self.assignment else { return (0, None) };
        let assignment = assignment.borrow_and_update();
        let until = assignment.confirmed_at.map(|at| at + trusted_for).filter(|&until| now < until);
        let owned = u32::try_from(assignment.partitions.len()).unwrap_or(u32::MAX);
        (if until.is_some() { owned } else { 0 }, until)
    }

    /// How many partitions its topic has.
    fn partitions(&self) -> u32 {
        let known = self
            .assignment
            .as_ref()
            .and_then(|assignment| assignment.borrow().topics.get(self.topic).copied());
        self.of.max(known.and_then(|known| u32::try_from(known).ok()).unwrap_or(0))
    }

    /// Returns when the assignment has changed; true = its consumer has ended.
    async fn changed(&mut self) -> bool {
        match &mut self.assignment {
            Some(assignment) => assignment.changed().await.is_err(),
            None => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::task::JoinSet;

    use super::*;
    use consumer::TopicPartition;

    const TRUSTED_FOR: Duration = Duration::from_secs(5);

    fn assignment(partitions: i32) -> Assignment {
        let partitions =
            (0..partitions).map(|partition| TopicPartition { topic: "bulk".into(), partition }).collect();
        Assignment { joined: true, partitions, confirmed_at: Some(Instant::now()), ..Assignment::default() }
    }

    fn started(
        urgent: Option<&watch::Sender<Assignment>>,
        bulk: Option<&watch::Sender<Assignment>>,
    ) -> (watch::Receiver<Share>, JoinSet<()>) {
        let (share, shown) = watch::channel(Share::NONE);
        let lane = |assignment: Option<&watch::Sender<_>>, topic, of| LaneShare {
            assignment: assignment.map(watch::Sender::subscribe),
            topic,
            of,
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(follow(
            LaneAssignment {
                urgent: lane(urgent, "urgent", 4),
                bulk: lane(bulk, "bulk", 16),
                trusted_for: TRUSTED_FOR,
            },
            share,
        ));
        (shown, tasks)
    }

    #[tokio::test(start_paused = true)]
    async fn a_share_follows_the_partitions_of_both_lanes() {
        let urgent = watch::Sender::new(assignment(0));
        let bulk = watch::Sender::new(assignment(8));
        let (mut shown, mut tasks) = started(Some(&urgent), Some(&bulk));
        shown
            .wait_for(|share| *share == Share { bulk: 8, bulk_of: 16, urgent: 0, urgent_of: 4 })
            .await
            .unwrap();
        urgent.send_replace(assignment(3));
        shown
            .wait_for(|share| *share == Share { bulk: 8, bulk_of: 16, urgent: 3, urgent_of: 4 })
            .await
            .unwrap();
        drop(bulk);
        tasks.join_next().await.unwrap().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_member_that_is_not_confirmed_stops_sending_and_continues_when_it_is_confirmed_again() {
        let bulk = watch::Sender::new(assignment(16));
        let (mut shown, _tasks) = started(None, Some(&bulk));
        let begun = Instant::now();
        shown.wait_for(|share| share.bulk == 16).await.unwrap();
        shown.wait_for(|share| share.bulk == 0).await.unwrap();
        assert_eq!(begun.elapsed().as_secs(), 5);
        bulk.send_modify(|assignment| assignment.confirmed_at = Some(Instant::now()));
        shown.wait_for(|share| share.bulk == 16).await.unwrap();
        bulk.send_modify(|assignment| assignment.confirmed_at = None);
        shown.wait_for(|share| share.bulk == 0).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn partitions_that_are_added_while_it_runs_make_a_share_smaller() {
        let bulk = watch::Sender::new(assignment(16));
        let (mut shown, _tasks) = started(None, Some(&bulk));
        shown.wait_for(|share| (share.bulk, share.bulk_of) == (16, 16)).await.unwrap();
        bulk.send_modify(|assignment| assignment.topics = [("bulk".to_owned(), 32)].into());
        shown.wait_for(|share| (share.bulk, share.bulk_of) == (16, 32)).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_lane_that_is_not_run_owns_nothing() {
        let urgent = watch::Sender::new(assignment(4));
        let (mut shown, _tasks) = started(Some(&urgent), None);
        shown
            .wait_for(|share| *share == Share { bulk: 0, bulk_of: 16, urgent: 4, urgent_of: 4 })
            .await
            .unwrap();
    }
}
