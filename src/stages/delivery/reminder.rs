//! A dose: claimed, rung on all of the user's devices of this provider, marked.
//!
//! The claim is a row with a lease. A request starts only while the lease outlasts it by a margin, so that
//! nobody else can own the dose while one of ours may still reach the provider. What was answered is marked
//! before anything is published of it; whoever finds the mark publishes the outcome again and is done. A
//! death between the answer and the mark is the one window in which a dose rings twice.
//!
//! Whom a handling has rung is known to that handling alone. So once it has rung somebody it doesn't give up:
//! it waits for a store that is away, and after a stop it tries to ring the user's other devices for as long
//! as the drain allows. And nothing comes between an answer and the mark, or the next claim, that could
//! outlast the lease: tickets and verdicts wait for the end, and a look at the route that takes too long
//! counts as a dead token that is held.

use std::{sync::Arc, time::Duration};

use consumer::{Fate, HandlerError, Publish, Record};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::{
    Delivery, Stopping,
    follow_up::{counts, dead_tokens, tickets},
    held::{DeadTokenEvidence, Decision, LOOK_EVERY, is_dead},
    instant,
};
use crate::{
    dispatch::{Class, MessageOutcome, Provider, SubmittedPage},
    domain::{Counts, DoseJob, DoseKey, DoseOutcome, Job, Lane, Recipient, Report, Timestamp},
    store::{Claim, DECIDED_WITHIN, DoseMark, Lease, Marked, Store},
};

/// How long a claim holds.
const LEASE: Duration = Duration::from_secs(60);
/// The clocks of two instances differ by no more.
const SKEW_MAX: Duration = Duration::from_secs(4);
/// How long it may take to find out whether dead tokens are held.
const LOOK_WITHIN: Duration = Duration::from_secs(4);
/// What a lease must outlast the last possible answer by: the look at the route, the time that the mark or
/// the next claim takes, and the skew of two clocks.
pub(super) const MARGIN: Duration = LOOK_WITHIN.saturating_add(DECIDED_WITHIN).saturating_add(SKEW_MAX);

/// One handling of a dose.
struct Handling<'a> {
    record: &'a Record,
    job: &'a Job,
    dose: &'a DoseJob,
    key: DoseKey,
    /// Random for each handling: a process that froze must not take its old claim for a new one.
    owner: String,
    /// Whom it has rung so far; a claim that had to be renewed does not ring them again.
    rung: Vec<(Recipient, MessageOutcome)>,
}

impl<S: Store, Q: Publish, P: Provider> Delivery<S, Q, P> {
    pub(super) async fn dose(
        &self,
        record: &Record,
        job: &Job,
        dose: &DoseJob,
        stop: &Stopping<'_>,
    ) -> Result<Fate, HandlerError> {
        let key = DoseKey {
            profile: dose.profile.clone(),
            regimen: dose.regimen.clone(),
            schedule_time: dose.schedule_time,
            provider: self.id(),
        };
        let owner = format!("{:032x}", rand::random::<u128>());
        let mut handling = Handling { record, job, dose, key, owner, rung: Vec::new() };
        let mark = self.marked(&mut handling, stop).await?;
        self.publish_all(tickets(handling.rung())).await;
        self.publish_all(dead_tokens(self.id(), handling.rung(), Timestamp::now())).await;
        let Some(mark) = mark else { return Ok(Fate::Unfinished) };
        self.publish_report(&report(job, &handling.key, &mark)).await;
        Ok(Fate::Done)
    }

    /// Sees to it that the dose is marked, by whomever. `None` = it is left to the next owner, after a stop.
    async fn marked(
        &self,
        handling: &mut Handling<'_>,
        stop: &Stopping<'_>,
    ) -> Result<Option<DoseMark>, HandlerError> {
        while !stop.is_set() || handling.goes_on(stop) {
            let claim = || {
                let now = Timestamp::now();
                self.store.claim(&handling.key, &handling.owner, now, now + LEASE)
            };
            // Once somebody is rung the answer is waited for: a new handling would ring them again.
            let claim =
                if handling.rung.is_empty() { claim().await? } else { self.retry_until_settled(claim).await };
            match claim {
                Claim::Marked(mark) => return Ok(Some(mark)),
                Claim::Held(until) => {
                    let over = instant(until, Timestamp::now()) + Duration::from_millis(1);
                    tokio::select! { () = sleep_until(over) => {}, () = handling.withdrawal(stop) => {} }
                }
                Claim::Mine(lease) => {
                    if let Some(mark) = self.ring(handling, &lease, stop).await? {
                        return Ok(Some(mark));
                    }
                    if stop.is_set() && !handling.goes_on(stop) {
                        self.release(handling).await;
                    }
                }
            }
        }
        Ok(None)
    }

    /// Ends the lease of a handling that stops in good order: nothing of it is on the wire, so the next owner
    /// need not wait for a claim that nobody uses.
    async fn release(&self, handling: &Handling<'_>) {
        let now = Timestamp::now();
        if let Err(err) = self.store.claim(&handling.key, &handling.owner, now, now).await {
            tracing::debug!(notification.id = %handling.job.notification.id, error = %err, "A claim was not released; it ends by itself");
        }
    }

    /// Rings whoever is not rung yet. `None` = look at the claim again: the lease ran out, or somebody took
    /// the dose over.
    async fn ring(
        &self,
        handling: &mut Handling<'_>,
        lease: &Lease,
        stop: &Stopping<'_>,
    ) -> Result<Option<DoseMark>, HandlerError> {
        let body = match self.provider.body(&handling.job.notification) {
            Ok(body) => Arc::new(body),
            Err(refused) => {
                tracing::warn!(notification.id = %handling.job.notification.id, error = %refused, "A dose's notification can't be sent");
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
            recipients = self.retry_until_settled(|| self.unrung(handling)) => recipients,
            () = sleep_until(last_start) => return Ok(None),
            () = handling.withdrawal(stop) => return Ok(None),
        };
        let page = SubmittedPage {
            class: Class::Urgent,
            body,
            recipients: recipients.into(),
            expires: instant(handling.job.notification.expires_at, now),
            start_before: Some(last_start),
            stale_at: instant(lease.until, now),
        };
        let returned = self.batcher.submit(page, handling.withdrawal(stop)).await?;

        let now = Timestamp::now();
        let is_complete = returned.is_complete();
        let answered = returned
            .recipients
            .iter()
            .cloned()
            .zip(returned.outcomes)
            .filter_map(|(to, fate)| Some((to, fate?)));
        // Who seems dead is judged when everybody has answered, and asked again with the others until then.
        let mut answered: Vec<(Recipient, MessageOutcome)> =
            answered.filter(|(_, fate)| is_complete || !is_dead(fate)).collect();
        let evidence = DeadTokenEvidence::of(answered.iter().map(|(_, fate)| fate), now);
        let is_held = self.is_held(handling.record, evidence).await;
        if is_held {
            answered.retain(|(_, fate)| !is_dead(fate));
        }
        self.count(handling.record, Lane::Urgent, answered.iter().map(|(_, fate)| fate), now);
        if !answered.is_empty() {
            let late = now.duration_since(handling.dose.schedule_time).as_secs_f64();
            self.metrics.dose_lateness_seconds.observe(late.max(0.0));
        }
        handling.rung.extend(answered);
        if !is_complete || is_held {
            return Ok(None);
        }
        let counts = counts(handling.rung().map(|(_, fate)| fate));
        let mark = DoseMark { outcome: outcome(counts), counts, at: now };
        Ok(self.mark(handling, lease, mark).await)
    }

    /// Whether those who seem dead are to be asked again, because the route is braked or nobody can say in
    /// time.
    async fn is_held(&self, record: &Record, mut evidence: DeadTokenEvidence) -> bool {
        let look = async {
            let is_held = self.look(record.timestamp, &mut evidence).await != Decision::Pass;
            if is_held {
                // The gate of this instance closes at its next look at the route.
                sleep(LOOK_EVERY).await;
            }
            is_held
        };
        timeout(LOOK_WITHIN, look).await.unwrap_or(true)
    }

    /// The user's devices that this handling has not rung. Read again for each claim: a phone may have
    /// changed hands.
    async fn unrung(&self, handling: &Handling<'_>) -> Result<Vec<Recipient>, HandlerError> {
        let mut tokens = self.store.tokens_of(&handling.dose.user).await?;
        tokens.retain(|registration| {
            let is_rung = handling.rung.iter().any(|(rung, _)| rung.token == registration.token);
            registration.token.kind().provider() == self.id() && !is_rung
        });
        Ok(tokens.into_iter().map(Recipient::from).collect())
    }

    async fn mark(&self, handling: &Handling<'_>, lease: &Lease, mark: DoseMark) -> Option<DoseMark> {
        match self.retry_until_settled(|| self.store.mark(&handling.key, lease, &mark)).await {
            Marked::Kept => Some(mark),
            Marked::Lost => None,
        }
    }
}

impl Handling<'_> {
    /// Whom it has rung so far.
    fn rung(&self) -> impl Iterator<Item = (&Recipient, &MessageOutcome)> {
        self.rung.iter().map(|(to, fate)| (to, fate))
    }

    /// Returns when nobody more is to be rung.
    async fn withdrawal(&self, stop: &Stopping<'_>) {
        if self.rung.is_empty() { stop.wait().await } else { stop.last_call().await }
    }

    /// Whether it goes on although a stop has come.
    fn goes_on(&self, stop: &Stopping<'_>) -> bool {
        !self.rung.is_empty() && !stop.is_over()
    }
}

/// What became of a dose whose messages ended like this.
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
