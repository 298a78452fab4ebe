//! Turns the partitions that a process owns into its share of a provider's rate.
//!
//! Partitions count only while the group confirms that we are its member. A process that is cut off from Kafka learns
//! nothing of the partitions that it has lost; half a session later, before anybody else can own them, it stops sending.

use std::time::Duration;

use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

use crate::{delivery::Share, kafka::Assignment};

/// What a share follows from.
pub(super) struct Lanes {
    /// The lane's place in its group; none = this process does not run it.
    pub urgent: Option<watch::Receiver<Assignment>>,
    /// Likewise.
    pub bulk: Option<watch::Receiver<Assignment>>,
    /// The provider's bulk topic.
    pub topic: &'static str,
    /// How many partitions it had when the process started. It may get more.
    pub of: u32,
    /// How long a confirmation is good for.
    pub trusted_for: Duration,
}

/// Keeps `share` up to date until the lanes' consumers have ended.
pub(super) async fn follow(lanes: Lanes, share: watch::Sender<Share>) {
    let Lanes { mut urgent, mut bulk, topic, of, trusted_for } = lanes;
    loop {
        let now = Instant::now();
        let [(urgent_owned, urgent_until), (bulk_owned, bulk_until)] =
            [owned(&mut urgent, trusted_for, now), owned(&mut bulk, trusted_for, now)];
        let now_of = bulk.as_ref().and_then(|bulk| bulk.borrow().topics.get(topic).copied()).and_then(|known| u32::try_from(known).ok());
        let new = Share { bulk: bulk_owned, of: of.max(now_of.unwrap_or(0)), urgent: urgent_owned > 0 };
        share.send_if_modified(|before| std::mem::replace(before, new) != new);
        let doubt_at = [urgent_until, bulk_until].into_iter().flatten().min();
        let ended = tokio::select! {
            ended = changed(&mut urgent) => ended,
            ended = changed(&mut bulk) => ended,
            () = sleep_until(doubt_at.unwrap_or(now)), if doubt_at.is_some() => false,
        };
        if ended || (urgent.is_none() && bulk.is_none()) {
            return; // The stages have ended, and say so themselves.
        }
    }
}

/// How many partitions of a lane are ours beyond doubt, and until when that holds without news.
fn owned(lane: &mut Option<watch::Receiver<Assignment>>, trusted_for: Duration, now: Instant) -> (u32, Option<Instant>) {
    let Some(lane) = lane else { return (0, None) };
    let assignment = lane.borrow_and_update();
    let until = assignment.confirmed_at.map(|at| at + trusted_for).filter(|&until| now < until);
    let owned = u32::try_from(assignment.partitions.len()).unwrap_or(u32::MAX);
    (if until.is_some() { owned } else { 0 }, until)
}

/// Returns when there is news of a lane; true = its consumer has ended.
async fn changed(lane: &mut Option<watch::Receiver<Assignment>>) -> bool {
    match lane {
        Some(lane) => lane.changed().await.is_err(),
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use tokio::task::JoinSet;

    use super::*;
    use crate::kafka::TopicPartition;

    const TRUSTED_FOR: Duration = Duration::from_secs(5);

    fn assignment(partitions: i32) -> Assignment {
        let partitions = (0..partitions).map(|partition| TopicPartition { topic: "bulk".into(), partition }).collect();
        Assignment { arrived: true, partitions, confirmed_at: Some(Instant::now()), ..Assignment::default() }
    }

    fn started(
        urgent: Option<&watch::Sender<Assignment>>,
        bulk: Option<&watch::Sender<Assignment>>,
    ) -> (watch::Receiver<Share>, JoinSet<()>) {
        let (share, shown) = watch::channel(Share::NONE);
        let (urgent, bulk) = (urgent.map(watch::Sender::subscribe), bulk.map(watch::Sender::subscribe));
        let mut tasks = JoinSet::new();
        tasks.spawn(follow(Lanes { urgent, bulk, topic: "bulk", of: 16, trusted_for: TRUSTED_FOR }, share));
        (shown, tasks)
    }

    #[tokio::test(start_paused = true)]
    async fn a_share_follows_the_partitions_of_both_lanes() {
        let (urgent, bulk) = (watch::Sender::new(assignment(0)), watch::Sender::new(assignment(8)));
        let (mut shown, mut tasks) = started(Some(&urgent), Some(&bulk));
        shown.wait_for(|share| *share == Share { bulk: 8, of: 16, urgent: false }).await.unwrap();
        urgent.send_replace(assignment(3));
        shown.wait_for(|share| *share == Share { bulk: 8, of: 16, urgent: true }).await.unwrap();
        drop(bulk);
        tasks.join_next().await.unwrap().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_not_confirmed_stops_and_goes_on_when_confirmed_again() {
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
        shown.wait_for(|share| *share == Share { bulk: 16, of: 16, urgent: false }).await.unwrap();
        bulk.send_modify(|assignment| assignment.topics = [("bulk".to_owned(), 32)].into());
        shown.wait_for(|share| *share == Share { bulk: 16, of: 32, urgent: false }).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_lane_that_is_not_run_owns_nothing() {
        let urgent = watch::Sender::new(assignment(16));
        let (mut shown, _tasks) = started(Some(&urgent), None);
        shown.wait_for(|share| *share == Share { bulk: 0, of: 16, urgent: true }).await.unwrap();
    }
}
