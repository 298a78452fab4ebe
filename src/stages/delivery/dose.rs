//! A dose: claimed, rung on all of the user's devices of this provider, marked.
//!
//! The claim is a row with a lease. A request starts only while the lease outlasts it by a margin, so that nobody else can
//! own the dose while one of ours may still reach the provider. What was answered is marked before anything else is done
//! with it; whoever finds the mark publishes the outcome again and is done. A death between the answer and the mark is the
//! one window in which a dose rings twice.
//!
//! Whom a handling has rung is known to that handling alone. So once it has rung somebody it doesn't give up: it waits
//! for a store that is away, and after a stop it tries to ring the user's other devices for as long as the drain allows.

use std::{future::Future, sync::Arc, time::Duration};

use tokio::time::{Instant, sleep, sleep_until};

use super::{
    Delivery, Stopping,
    held::{LOOK_EVERY, Look, Suspects, is_dead},
    instant,
    ledger::counts,
};
use crate::{
    delivery::{Class, Final, Page, Provider},
    domain::{Counts, DoseJob, DoseKey, DoseOutcome, Job, Lane, Registration, Report, Timestamp, Unavailable},
    store::{Claim, DECIDED_WITHIN, DoseMark, Lease, Marked, Store},
    stream::{Fate, Publish, Record},
};

/// How long a claim holds.
const LEASE: Duration = Duration::from_secs(60);
/// The clocks of two instances differ by no more.
const SKEW_MAX: Duration = Duration::from_secs(4);
/// What a lease must outlast the last possible answer by: the skew of two clocks and the time that the mark takes.
pub(super) const MARGIN: Duration = SKEW_MAX.saturating_add(DECIDED_WITHIN);

/// One handling of a dose.
struct Handling<'a> {
    record: &'a Record,
    job: &'a Job,
    dose: &'a DoseJob,
    key: DoseKey,
    /// Random for each handling: a process that froze must not take its old claim for a new one.
    owner: String,
    /// Whom it has rung so far; a claim that had to be renewed does not ring them again.
    rung: Vec<(Registration, Final)>,
}

impl<S: Store, Q: Publish, P: Provider> Delivery<S, Q, P> {
    pub(super) async fn dose(&self, record: &Record, job: &Job, dose: &DoseJob, stop: &Stopping<'_>) -> Result<Fate, Unavailable> {
        let key = DoseKey {
            profile: dose.profile.clone(),
            regimen: dose.regimen.clone(),
            schedule_time: dose.schedule_time,
            provider: self.id(),
        };
        let owner = format!("{:032x}", rand::random::<u128>());
        let mut handling = Handling { record, job, dose, key, owner, rung: Vec::new() };
        while !stop.is_set() || handling.goes_on(stop) {
            let claim = || {
                let now = Timestamp::now();
                self.store.claim(&handling.key, &handling.owner, now, now + LEASE)
            };
            match self.ask(&handling, claim).await? {
                Claim::Marked(mark) => {
                    self.publish_report(&report(job, &handling.key, &mark)).await;
                    return Ok(Fate::Done);
                }
                Claim::Held(until) => {
                    let over = instant(until, Timestamp::now()) + Duration::from_millis(1);
                    tokio::select! { () = sleep_until(over) => {}, () = handling.withdrawal(stop) => {} }
                }
                Claim::Mine(lease) => {
                    if let Some(mark) = self.ring(&mut handling, &lease, stop).await? {
                        self.publish_report(&report(job, &handling.key, &mark)).await;
                        return Ok(Fate::Done);
                    }
                    if stop.is_set() && !handling.goes_on(stop) {
                        self.release(&handling).await;
                    }
                }
            }
        }
        Ok(Fate::Unfinished)
    }

    /// Ends the lease of a handling that stops in good order: nothing of it is on the wire, so the next owner need not wait
    /// for a claim that nobody uses.
    async fn release(&self, handling: &Handling<'_>) {
        let now = Timestamp::now();
        if let Err(err) = self.store.claim(&handling.key, &handling.owner, now, now).await {
            tracing::debug!(notification.id = %handling.job.notification.id, error = %err, "A claim was not released; it ends by itself");
        }
    }

    /// Rings whoever is not rung yet. `None` = look at the claim again: the lease ran out, or somebody took the dose over.
    async fn ring(&self, handling: &mut Handling<'_>, lease: &Lease, stop: &Stopping<'_>) -> Result<Option<DoseMark>, Unavailable> {
        let body = match self.provider.body(&handling.job.notification) {
            Ok(body) => Arc::new(body),
            Err(refused) => {
                tracing::warn!(notification.id = %handling.job.notification.id, error = %refused, "A dose's notification can't be sent");
                let mark = DoseMark { outcome: DoseOutcome::Refused, counts: Counts::default(), at: Timestamp::now() };
                return Ok(self.mark(handling, lease, mark).await);
            }
        };
        let recipients = self.unrung(handling).await?;
        let now = Timestamp::now();
        let last_start = instant(lease.until, now).checked_sub(self.limits.request_timeout + MARGIN).unwrap_or_else(Instant::now);
        let page = Page {
            class: Class::Urgent,
            body,
            recipients,
            expires: instant(handling.job.notification.expires_at, now),
            start_before: Some(last_start),
            stale_at: instant(lease.until, now),
        };
        let returned = self.desk.send(page, handling.withdrawal(stop)).await?;

        let is_complete = returned.is_complete();
        let answered = returned.recipients.into_iter().zip(returned.finals).filter_map(|(to, fate)| Some((to, fate?)));
        let mut answered: Vec<(Registration, Final)> = answered.collect();
        let mut suspects = Suspects::of(answered.iter().map(|(_, fate)| fate), Timestamp::now());
        // Whoever seems dead in a flood is asked again when the route is open.
        let is_held = self.look(handling.record.timestamp, &mut suspects).await != Look::Pass;
        if is_held {
            answered.retain(|(_, fate)| !is_dead(fate));
        }
        let before = handling.rung.len();
        handling.rung.extend(answered);
        let new: Vec<_> = handling.rung[before..].iter().map(|(to, fate)| (to, fate)).collect();
        let now = Timestamp::now();
        self.count(handling.record, Lane::Urgent, &new, now);
        if !new.is_empty() {
            let late = now.duration_since(handling.dose.schedule_time).as_secs_f64();
            self.metrics.dose_lateness_seconds.observe(late.max(0.0));
        }
        let follow_up = async {
            self.publish_tickets(&new).await;
            self.publish_dead(&new, now).await;
        };
        if !is_complete || is_held {
            follow_up.await;
            if is_held {
                // The gate of this instance closes at its next look at the route.
                tokio::select! { () = sleep(LOOK_EVERY) => {}, () = handling.withdrawal(stop) => {} }
            }
            return Ok(None);
        }
        let all: Vec<_> = handling.rung.iter().map(|(to, fate)| (to, fate)).collect();
        let counts = counts(&all);
        let mark = DoseMark { outcome: outcome(counts), counts, at: now };
        // The mark does not wait for Kafka: the lease is running. Each is tried until it succeeds.
        let (mark, ()) = tokio::join!(self.mark(handling, lease, mark), follow_up);
        Ok(mark)
    }

    /// The user's devices that this handling has not rung. Read again for each claim: a phone may have changed hands.
    async fn unrung(&self, handling: &Handling<'_>) -> Result<Vec<Registration>, Unavailable> {
        let mut tokens = self.ask(handling, || self.store.tokens_of(&handling.dose.user)).await?;
        tokens.retain(|registration| {
            let is_rung = handling.rung.iter().any(|(rung, _)| rung.token == registration.token);
            registration.token.kind().provider() == self.id() && !is_rung
        });
        Ok(tokens)
    }

    async fn mark(&self, handling: &Handling<'_>, lease: &Lease, mark: DoseMark) -> Option<DoseMark> {
        match self.insist(|| self.store.mark(&handling.key, lease, &mark)).await {
            Marked::Kept => Some(mark),
            Marked::Lost => None,
        }
    }

    /// Asks the store. Once somebody is rung the answer is waited for: a new handling would ring them again.
    async fn ask<T, F: Future<Output = Result<T, Unavailable>>>(
        &self,
        handling: &Handling<'_>,
        mut question: impl FnMut() -> F,
    ) -> Result<T, Unavailable> {
        if handling.rung.is_empty() { question().await } else { Ok(self.insist(question).await) }
    }
}

impl Handling<'_> {
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
