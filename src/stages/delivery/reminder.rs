//! A dose: claimed, sent to all of the user's devices of this provider, marked.
//!
//! The claim is a row with a lease. A request starts only while the lease outlasts it by a margin, so that no
//! other process can own the dose while one of our requests may still reach the provider. What was answered
//! is marked before anything of it is published; a process that finds the mark publishes the outcome again
//! and is done. A crash between the answer and the mark is the one window in which a dose is sent twice.
//!
//! Which devices a handling has sent to is known to that handling alone. So once it has sent to one it
//! doesn't give up: it waits for a store that is unavailable, and after a stop it tries the user's other
//! devices for as long as the drain allows. And nothing comes between an answer and the mark, or the next
//! claim, that could outlast the lease: tickets and verdicts wait for the end, and dead tokens are held when
//! the route can't be read in time.

use std::{sync::Arc, time::Duration};

use consumer::{Fate, HandlerError, Publish, Record};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::{
    Delivery, DrainWindow,
    follow_up::{BRAKED_LOOK_EVERY, counts, dead_tokens, tickets},
    instant,
};
use crate::{
    dispatch::{Class, MessageOutcome, Provider, SubmittedPage},
    domain::{Counts, DoseJob, DoseKey, DoseOutcome, Job, Lane, Recipient, Report, Timestamp},
    stages::quarantine::{DeadTokenEvidence, Decision, is_dead},
    store::{Claim, DECIDED_WITHIN, DoseMark, Lease, Marked, Store},
};

/// How long a claim holds.
const LEASE: Duration = Duration::from_secs(60);
/// The clocks of two instances differ by no more.
const SKEW_MAX: Duration = Duration::from_secs(4);
/// How long it may take to find out whether dead tokens are held.
const JUDGE_WITHIN: Duration = Duration::from_secs(4);
/// What a lease must outlast the last possible answer by: the look at the route, the time that the mark or
/// the next claim takes, and the skew of two clocks.
pub(super) const MARGIN: Duration = JUDGE_WITHIN.saturating_add(DECIDED_WITHIN).saturating_add(SKEW_MAX);

/// One handling of a dose.
struct DoseHandling<'a> {
    record: &'a Record,
    job: &'a Job,
    dose: &'a DoseJob,
    key: DoseKey,
    /// Random for each handling: a process that froze must not take its old claim for a new one.
    owner: String,
    /// The messages that have their outcome; a claim that had to be renewed does not send these again.
    decided: Vec<(Recipient, MessageOutcome)>,
}

impl<S: Store, Q: Publish, P: Provider> Delivery<S, Q, P> {
    pub(super) async fn dose(
        &self,
        record: &Record,
        job: &Job,
        dose: &DoseJob,
        drain: &DrainWindow<'_>,
    ) -> Result<Fate, HandlerError> {
        let key = DoseKey {
            profile: dose.profile.clone(),
            regimen: dose.regimen.clone(),
            schedule_time: dose.schedule_time,
            provider: self.id(),
        };
        let owner = format!("{:032x}", rand::random::<u128>());
        let mut handling = DoseHandling { record, job, dose, key, owner, decided: Vec::new() };
        let mark = self.marked(&mut handling, drain).await?;
        self.publish_all(tickets(handling.decided())).await;
        self.publish_all(dead_tokens(self.id(), handling.decided(), Timestamp::now())).await;
        let Some(mark) = mark else { return Ok(Fate::Unfinished) };
        self.publish_report(&report(job, &handling.key, &mark)).await;
        Ok(Fate::Done)
    }

    /// Returns when the dose is marked, here or by another process. `None` = it is left to the next owner,
    /// after a stop.
    async fn marked(
        &self,
        handling: &mut DoseHandling<'_>,
        drain: &DrainWindow<'_>,
    ) -> Result<Option<DoseMark>, HandlerError> {
        while !drain.is_stopped() || handling.outlasts_a_stop(drain) {
            let claim = || {
                let now = Timestamp::now();
                self.store.claim(&handling.key, &handling.owner, now, now + LEASE)
            };
            // Once one device was sent to, the store is waited for: a new handling would send to it again.
            let claim = if handling.decided.is_empty() {
                claim().await?
            } else {
                self.retry_until_settled(claim).await
            };
            match claim {
                Claim::Marked(mark) => return Ok(Some(mark)),
                Claim::Held(until) => {
                    let over = instant(until, Timestamp::now()) + Duration::from_millis(1);
                    tokio::select! { () = sleep_until(over) => {}, () = handling.withdrawal(drain) => {} }
                }
                Claim::Mine(lease) => {
                    if let Some(mark) = self.send(handling, &lease, drain).await? {
                        return Ok(Some(mark));
                    }
                    if drain.is_stopped() && !handling.outlasts_a_stop(drain) {
                        self.release(handling).await;
                    }
                }
            }
        }
        Ok(None)
    }

    /// Ends the lease of a handling that stops in good order: nothing of it is on the wire, so the next owner
    /// need not wait for a claim that is not used.
    async fn release(&self, handling: &DoseHandling<'_>) {
        let now = Timestamp::now();
        if let Err(error) = self.store.claim(&handling.key, &handling.owner, now, now).await {
            tracing::debug!(
                notification.id = %handling.job.notification.id,
                %error,
                "A claim was not released; its lease ends by itself"
            );
        }
    }

    /// Sends to the devices that have no outcome yet. `None` = look at the claim again: the lease ran out, or
    /// another process took the dose over.
    async fn send(
        &self,
        handling: &mut DoseHandling<'_>,
        lease: &Lease,
        drain: &DrainWindow<'_>,
    ) -> Result<Option<DoseMark>, HandlerError> {
        let body = match self.provider.body(&handling.job.notification) {
            Ok(body) => Arc::new(body),
            Err(refused) => {
                tracing::warn!(
                    notification.id = %handling.job.notification.id,
                    provider = %self.id(),
                    error = %refused,
                    "A dose's notification can't be sent"
                );
                let mark = DoseMark {
                    outcome: DoseOutcome::Refused,
                    counts: Counts::default(),
                    at: Timestamp::now(),
                };
                return Ok(self.mark(handling, lease, mark).await);
            }
        };
        let now = Timestamp::now();
        let last_start = instant(lease.until, now)
            .checked_sub(self.limits.request_timeout + MARGIN)
            .unwrap_or_else(Instant::now);
        let recipients = tokio::select! {
            // Not left to the runtime: a new handling would wait for the end of this one's lease.
            recipients = self.retry_until_settled(|| self.not_sent(handling)) => recipients,
            () = sleep_until(last_start) => return Ok(None),
            () = handling.withdrawal(drain) => return Ok(None),
        };
        let page = SubmittedPage {
            class: Class::Urgent,
            body,
            recipients: recipients.into(),
            expires: instant(handling.job.notification.expires_at, now),
            start_before: Some(last_start),
            stale_at: instant(lease.until, now),
        };
        let returned = self.batcher.submit(page, handling.withdrawal(drain)).await?;

        let now = Timestamp::now();
        let is_complete = returned.is_complete();
        let answered = returned
            .recipients
            .iter()
            .cloned()
            .zip(returned.outcomes)
            .filter_map(|(to, outcome)| Some((to, outcome?)));
        // Dead tokens are judged when all messages have their answer, and sent to again with the others until
        // then.
        let mut answered: Vec<(Recipient, MessageOutcome)> =
            answered.filter(|(_, outcome)| is_complete || !is_dead(outcome)).collect();
        let evidence = DeadTokenEvidence::of(answered.iter().map(|(_, outcome)| outcome), now);
        let is_held = self.is_held(handling.record, evidence).await;
        if is_held {
            answered.retain(|(_, outcome)| !is_dead(outcome));
        }
        self.count(handling.record, Lane::Urgent, answered.iter().map(|(_, outcome)| outcome), now);
        if !answered.is_empty() {
            let late = now.duration_since(handling.dose.schedule_time).as_secs_f64();
            self.metrics.dose_lateness_seconds.observe(late.max(0.0));
        }
        handling.decided.extend(answered);
        if !is_complete || is_held {
            return Ok(None);
        }
        let counts = counts(handling.decided().map(|(_, outcome)| outcome));
        let mark = DoseMark { outcome: outcome(counts), counts, at: now };
        Ok(self.mark(handling, lease, mark).await)
    }

    /// Whether dead tokens are to be sent to again, because the route is braked or its state can't be read in
    /// time.
    async fn is_held(&self, record: &Record, mut evidence: DeadTokenEvidence) -> bool {
        let judged = async {
            let is_held = self.judge(record.timestamp, &mut evidence).await != Decision::Report;
            if is_held {
                // The gate of this instance closes at its next look at the route.
                sleep(BRAKED_LOOK_EVERY).await;
            }
            is_held
        };
        timeout(JUDGE_WITHIN, judged).await.unwrap_or(true)
    }

    /// The user's devices that have no outcome in this handling. Read again for each claim: a device may have
    /// been registered for another user.
    async fn not_sent(&self, handling: &DoseHandling<'_>) -> Result<Vec<Recipient>, HandlerError> {
        let mut tokens = self.store.tokens_of(&handling.dose.user).await?;
        tokens.retain(|registration| {
            let is_decided = handling.decided.iter().any(|(to, _)| to.token == registration.token);
            registration.token.kind().provider() == self.id() && !is_decided
        });
        Ok(tokens.into_iter().map(Recipient::from).collect())
    }

    async fn mark(&self, handling: &DoseHandling<'_>, lease: &Lease, mark: DoseMark) -> Option<DoseMark> {
        match self.retry_until_settled(|| self.store.mark(&handling.key, lease, &mark)).await {
            Marked::Kept => Some(mark),
            Marked::Lost => None,
        }
    }
}

// === impl DoseHandling ===

impl DoseHandling<'_> {
    fn decided(&self) -> impl Iterator<Item = (&Recipient, &MessageOutcome)> {
        self.decided.iter().map(|(to, outcome)| (to, outcome))
    }

    /// Returns when nothing more is to be sent.
    async fn withdrawal(&self, drain: &DrainWindow<'_>) {
        if self.decided.is_empty() { drain.stopped().await } else { drain.over().await }
    }

    /// Whether it goes on although a stop has come.
    fn outlasts_a_stop(&self, drain: &DrainWindow<'_>) -> bool {
        !self.decided.is_empty() && !drain.is_over()
    }
}

/// The outcome of a dose whose messages have these.
fn outcome(counts: Counts) -> DoseOutcome {
    match counts {
        Counts { sent: 1.., .. } => DoseOutcome::Sent,
        Counts { refused: 1.., .. } => DoseOutcome::Refused,
        Counts { expired: 1.., .. } => DoseOutcome::Expired,
        Counts { dead: 0, failed: 0, .. } => DoseOutcome::NoTokens,
        _ => DoseOutcome::Failed,
    }
}

fn report(job: &Job, key: &DoseKey, mark: &DoseMark) -> Report {
    Report::Dose {
        notification: job.notification.id.clone(),
        provider: Some(key.provider),
        outcome: mark.outcome,
        counts: mark.counts,
        at: mark.at,
    }
}
