//! Holds what looks like a flood of dead tokens until somebody has looked.
//!
//! A flood looks the same when *we* are the mistake (foreign credentials, another project); then no token is dead, and
//! nobody was reached. So it brakes the route before any of it is reported, and when the route is opened again whoever
//! looked dead is *asked again*: who was misjudged rings, who is dead says so once more. After a release that second
//! answer is believed; after anything else it may brake the route again.
//!
//! A stop does not wait for that. What stands behind everybody who was reached is left to the next owner, who asks again;
//! the rest is given up unreported, for a checkpoint covers no gap. A token that is dead says so at its next message.

use std::{
    collections::BTreeSet,
    sync::{Arc, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::{Instant, sleep};
use tracing::{error, warn};

use super::{Delivery, Stopping, ledger::tickets};
use crate::{
    delivery::{Final, Page, Provider, Returned},
    domain::{BroadcastId, Cursor, Recipient, Timestamp},
    stages::brake::{Answers, Brake},
    store::{Route, RouteState, Store},
    stream::{Publish, Record},
};

/// How often a braked route is looked at again.
pub(super) const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Answers of a provider as the brake counts them, and whether the dead among them are held.
#[derive(Debug)]
pub(super) struct Suspects {
    answers: u64,
    dead: u64,
    answered_at: Timestamp,
    counted: bool,
    held: bool,
}

/// What a look at the route says of dead tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    /// They may be reported.
    Pass,
    /// They were held, and the route is open: they are to be asked again.
    AskAgain,
    /// They are held.
    Wait,
}

// === impl Suspects ===

impl Suspects {
    pub(super) fn of<'a>(fates: impl IntoIterator<Item = &'a Final>, answered_at: Timestamp) -> Self {
        let mut suspects = Self { answers: 0, dead: 0, answered_at, counted: false, held: false };
        for fate in fates {
            suspects.answers += u64::from(!matches!(fate, Final::Expired));
            suspects.dead += u64::from(is_dead(fate));
        }
        suspects
    }
}

impl<S: Store, Q: Publish, P: Provider> Delivery<S, Q, P> {
    /// Whether dead tokens may be reported. Counts them, once, and brakes the route if they are a flood.
    pub(super) async fn look(&self, written_at: Timestamp, suspects: &mut Suspects) -> Look {
        if suspects.dead == 0 {
            self.brake().add(suspects.answered_at, suspects.answers, 0);
            return Look::Pass;
        }
        let route = self.insist(|| self.store.route(self.id())).await;
        if suspects.held && route.state.sends() {
            return Look::AskAgain;
        }
        if route.lets_pass(written_at) {
            return Look::Pass;
        }
        if !std::mem::replace(&mut suspects.counted, true) {
            self.brake().add(suspects.answered_at, suspects.answers, suspects.dead);
        }
        let now = Timestamp::now();
        suspects.held |= match route.state {
            // Only a release starts the count anew. If the braking did too, a handler that had read the route just before
            // would find no flood, and report its dead.
            RouteState::Running | RouteState::Released => match self.flood_since(route.since, now) {
                None => false,
                Some(flood) => {
                    let detail = self.brake().tell(flood, "answers");
                    error!(provider = %self.id(), "The route of {} is braked: {detail}", self.id());
                    let braked = Route { state: RouteState::Braked, since: now, set_by: "delivery".to_owned(), detail };
                    self.insist(|| self.store.set_route(self.id(), &braked)).await;
                    true
                }
            },
            RouteState::Braked => true,
            // Closed for another reason; whoever opens it does not say that he has looked at these.
            RouteState::Paused | RouteState::Halted => self.brake().flood(now).is_some(),
        };
        if suspects.held { Look::Wait } else { Look::Pass }
    }

    /// The answers that are a flood of dead tokens. Those before the route was opened don't count: somebody has looked.
    fn flood_since(&self, since: Timestamp, now: Timestamp) -> Option<Answers> {
        let mut brake = self.brake();
        brake.forget_before(since);
        brake.flood(now)
    }

    fn brake(&self) -> MutexGuard<'_, Brake> {
        self.brake.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns when the dead of a page may be reported, or are given up: these, by their place in the page. With a stop or a
    /// cancelling messages may lose their outcome.
    pub(super) async fn hold(
        &self,
        record: &Record,
        broadcast: &BroadcastId,
        (returned, positions): (&mut Returned, &[Cursor]),
        sending: &(impl Fn(Arc<[Recipient]>) -> Page<P::Body> + Sync),
        stop: &Stopping<'_>,
    ) -> BTreeSet<usize> {
        let mut suspects = Suspects::of(returned.finals.iter().flatten(), Timestamp::now());
        loop {
            let opened = async {
                loop {
                    match self.look(record.timestamp, &mut suspects).await {
                        Look::Wait => sleep(LOOK_EVERY).await,
                        opened => return opened,
                    }
                }
            };
            let opened = tokio::select! {
                biased;
                opened = opened => opened,
                () = stop.last_call() => Look::Wait,
                () = self.stopped(broadcast) => Look::Wait,
            };
            match opened {
                Look::Pass => return BTreeSet::new(),
                Look::AskAgain => {}
                Look::Wait => return self.give_up_dead(returned, positions),
            }
            let again = self.still_registered(returned).await;
            let recipients = again.iter().map(|&index| returned.recipients[index].clone()).collect();
            let page = Page { stale_at: Instant::now() + self.limits.page_stale_after, ..sending(recipients) };
            let asked = self.desk.send(page, self.withdrawal(broadcast, stop)).await;
            let mut fates = asked.map(|asked| asked.finals).unwrap_or_default();
            fates.resize(again.len(), None);
            let is_complete = fates.iter().all(Option::is_some);
            suspects = Suspects::of(fates.iter().flatten(), Timestamp::now());
            for (&index, fate) in again.iter().zip(fates) {
                returned.finals[index] = fate.or(returned.finals[index].take());
            }
            let decided = again.iter().filter_map(|&index| Some((&returned.recipients[index], returned.finals[index].as_ref()?)));
            self.publish_all(tickets(decided)).await;
            if !is_complete {
                return self.give_up_dead(returned, positions);
            }
        }
    }

    /// The dead of a page whose registration still stands: a phone may have changed hands while the route was braked.
    async fn still_registered(&self, returned: &Returned) -> Vec<usize> {
        let mut standing = Vec::new();
        for (index, to) in returned.recipients.iter().enumerate().filter(|(index, _)| returned.finals[*index].as_ref().is_some_and(is_dead))
        {
            let row = self.insist(|| self.store.inspect(&to.token)).await;
            if row.and_then(|row| row.registration).is_some_and(|now| now.version == to.version) {
                standing.push(index);
            }
        }
        standing
    }

    fn give_up_dead(&self, returned: &mut Returned, positions: &[Cursor]) -> BTreeSet<usize> {
        let given_up = leave_open(&mut returned.finals, positions);
        if !given_up.is_empty() {
            warn!(
                provider = %self.id(), tokens = given_up.len(),
                "Dead tokens that a braked route held are given up; their next message finds them again"
            );
        }
        given_up
    }
}

pub(super) fn is_dead(fate: &Final) -> bool {
    matches!(fate, Final::Dead { .. })
}

/// Takes the outcome from the dead that stand behind everybody who was reached, so that they are asked again by whoever
/// goes on from the checkpoint. Gives back the other dead, by their place.
fn leave_open(finals: &mut [Option<Final>], positions: &[Cursor]) -> BTreeSet<usize> {
    let reached = finals.iter().rposition(|fate| matches!(fate, Some(Final::Sent { .. })));
    let open_from = reached.map_or(0, |last| positions.partition_point(|&position| position <= positions[last]));
    let mut given_up = BTreeSet::new();
    for (index, fate) in finals.iter_mut().enumerate().filter(|(_, fate)| fate.as_ref().is_some_and(is_dead)) {
        if index < open_from {
            given_up.insert(index);
        } else {
            *fate = None;
        }
    }
    given_up
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dead_behind_everybody_who_was_reached_are_left_to_the_next_owner() {
        let left = |fates: &str, positions: &[i64]| {
            let mut finals: Vec<Option<Final>> = fates
                .chars()
                .map(|fate| match fate {
                    's' => Some(Final::Sent { ticket: None }),
                    'd' => Some(Final::Dead { reason: String::new() }),
                    _ => None,
                })
                .collect();
            let given_up = leave_open(&mut finals, &positions.iter().copied().map(Cursor).collect::<Vec<_>>());
            let open: Vec<usize> = (0..finals.len()).filter(|&index| finals[index].is_none()).collect();
            (given_up.into_iter().collect::<Vec<_>>(), open)
        };
        assert_eq!(left("ddd", &[5, 7, 8]), (vec![], vec![0, 1, 2]));
        assert_eq!(left("dsdd", &[5, 7, 8, 9]), (vec![0], vec![2, 3]));
        assert_eq!(left("dsdd", &[5, 7, 7, 9]), (vec![0, 2], vec![3]), "who shares a position is covered with it");
        assert_eq!(left("dds", &[5, 7, 8]), (vec![0, 1], vec![]));
    }
}
