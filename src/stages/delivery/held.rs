//! Holds what looks like a flood of dead tokens until somebody has looked.
//!
//! A flood looks the same when *we* are the mistake (foreign credentials, another project); then no token is
//! dead, and nobody was reached. So it brakes the route before any of it is reported, and when the route is
//! opened again whoever looked dead is *asked again*: who was misjudged rings, who is dead says so once more.
//! After a release that second answer is believed; after anything else it may brake the route again.
//!
//! A stop does not wait for that: whoever looked dead stays open, and the next owner asks again.

use std::{
    sync::{Arc, MutexGuard, PoisonError},
    time::Duration,
};

use consumer::{Publish, Record};
use tokio::time::{Instant, sleep};
use tracing::error;

use super::{Delivery, Stopping, follow_up::tickets};
use crate::{
    dispatch::{MessageOutcome, Provider, Returned, SubmittedPage},
    domain::{BroadcastId, Recipient, Timestamp},
    stages::brake::{Answers, Brake},
    store::{RouteRow, RouteState, Store},
};

/// How often a braked route is looked at again.
pub(super) const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Answers of a provider as the brake counts them, and whether the dead among them are held.
#[derive(Debug)]
pub(super) struct DeadTokenEvidence {
    answers: u64,
    dead: u64,
    answered_at: Timestamp,
    counted: bool,
    held: bool,
}

/// What a look at the route says of dead tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// They may be reported.
    Pass,
    /// They were held, and the route is open: they are to be asked again.
    AskAgain,
    /// They are held.
    Wait,
}

// === impl DeadTokenEvidence ===

impl DeadTokenEvidence {
    pub(super) fn of<'a>(
        fates: impl IntoIterator<Item = &'a MessageOutcome>,
        answered_at: Timestamp,
    ) -> Self {
        let mut evidence = Self { answers: 0, dead: 0, answered_at, counted: false, held: false };
        for fate in fates {
            evidence.answers += u64::from(!matches!(fate, MessageOutcome::Expired));
            evidence.dead += u64::from(is_dead(fate));
        }
        evidence
    }
}

impl<S: Store, Q: Publish, P: Provider> Delivery<S, Q, P> {
    /// Whether dead tokens may be reported. Counts them, once, and brakes the route if they are a flood.
    pub(super) async fn look(&self, written_at: Timestamp, evidence: &mut DeadTokenEvidence) -> Decision {
        if evidence.dead == 0 {
            self.brake().add(evidence.answered_at, evidence.answers, 0);
            return Decision::Pass;
        }
        let route = self.retry_until_settled(|| self.store.route(self.id())).await;
        if evidence.held && route.state.sends() {
            return Decision::AskAgain;
        }
        if route.lets_pass(written_at) {
            return Decision::Pass;
        }
        if !std::mem::replace(&mut evidence.counted, true) {
            self.brake().add(evidence.answered_at, evidence.answers, evidence.dead);
        }
        let now = Timestamp::now();
        evidence.held |= match route.state {
            // Only a release starts the count anew. If the braking did too, a handler that had read the route
            // just before would find no flood, and report its dead.
            RouteState::Running | RouteState::Released => match self.flood_since(route.since, now) {
                None => false,
                Some(flood) => {
                    let detail = self.brake().tell(flood, "answers");
                    error!(provider = %self.id(), "The route of {} is braked: {detail}", self.id());
                    let braked = RouteRow {
                        state: RouteState::Braked,
                        since: now,
                        set_by: "delivery".to_owned(),
                        detail,
                    };
                    self.retry_until_settled(|| self.store.set_route(self.id(), &braked)).await;
                    true
                }
            },
            RouteState::Braked => true,
            // Closed for another reason; whoever opens it does not say that he has looked at these.
            RouteState::Paused | RouteState::Halted => self.brake().flood(now).is_some(),
        };
        if evidence.held { Decision::Wait } else { Decision::Pass }
    }

    /// The answers that are a flood of dead tokens. Those before the route was opened don't count: somebody
    /// has looked.
    fn flood_since(&self, since: Timestamp, now: Timestamp) -> Option<Answers> {
        let mut brake = self.brake();
        brake.forget_before(since);
        brake.flood(now)
    }

    fn brake(&self) -> MutexGuard<'_, Brake> {
        self.brake.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns when the dead of a page may be reported. With a stop they may lose their outcome instead, and
    /// are asked again by the next owner; with a cancelling nobody asks them again, and they are not counted.
    pub(super) async fn hold(
        &self,
        record: &Record,
        broadcast: &BroadcastId,
        returned: &mut Returned,
        sending: &(impl Fn(Arc<[Recipient]>) -> SubmittedPage<P::Body> + Sync),
        stop: &Stopping<'_>,
    ) {
        let mut evidence = DeadTokenEvidence::of(returned.outcomes.iter().flatten(), Timestamp::now());
        loop {
            let opened = async {
                loop {
                    match self.look(record.timestamp, &mut evidence).await {
                        Decision::Wait => tokio::select! {
                            () = sleep(LOOK_EVERY) => {}
                            () = stop.wait() => return Decision::Wait,
                        },
                        opened => return opened,
                    }
                }
            };
            let opened = tokio::select! {
                biased;
                opened = opened => opened,
                () = stop.last_call() => Decision::Wait,
                () = self.stopped(broadcast) => Decision::Wait,
            };
            match opened {
                Decision::Pass => return,
                Decision::AskAgain => {}
                Decision::Wait => return leave_open(&mut returned.outcomes),
            }
            let again = self.still_registered(returned).await;
            let recipients = again.iter().map(|&index| returned.recipients[index].clone()).collect();
            let page = SubmittedPage {
                stale_at: Instant::now() + self.limits.page_stale_after,
                ..sending(recipients)
            };
            let asked = self.batcher.submit(page, self.withdrawal(broadcast, stop)).await;
            let mut fates = asked.map(|asked| asked.outcomes).unwrap_or_default();
            fates.resize(again.len(), None);
            let is_complete = fates.iter().all(Option::is_some);
            evidence = DeadTokenEvidence::of(fates.iter().flatten(), Timestamp::now());
            for (&index, fate) in again.iter().zip(fates) {
                returned.outcomes[index] = fate;
            }
            let decided = again
                .iter()
                .filter_map(|&index| Some((&returned.recipients[index], returned.outcomes[index].as_ref()?)));
            self.publish_all(tickets(decided)).await;
            if !is_complete {
                return leave_open(&mut returned.outcomes);
            }
        }
    }

    /// The dead of a page whose registration still stands: a phone may have changed hands while the route was
    /// braked.
    async fn still_registered(&self, returned: &Returned) -> Vec<usize> {
        let mut standing = Vec::new();
        for (index, to) in returned
            .recipients
            .iter()
            .enumerate()
            .filter(|(index, _)| returned.outcomes[*index].as_ref().is_some_and(is_dead))
        {
            let row = self.retry_until_settled(|| self.store.inspect(&to.token)).await;
            if row.and_then(|row| row.registration).is_some_and(|now| now.version == to.version) {
                standing.push(index);
            }
        }
        standing
    }
}

pub(super) fn is_dead(fate: &MessageOutcome) -> bool {
    matches!(fate, MessageOutcome::Dead { .. })
}

/// Takes their outcome from the dead: they are asked again by whoever goes on with the page.
fn leave_open(outcomes: &mut [Option<MessageOutcome>]) {
    for fate in outcomes {
        fate.take_if(|fate| is_dead(fate));
    }
}
