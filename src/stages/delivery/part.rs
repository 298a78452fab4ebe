//! A part of a broadcast: page by page, each checkpointed when all its messages have their outcome.
//!
//! STORE.md's protocol of a part, step by step: take over, page, checkpoint, and at the end the own number into the
//! broadcast's set *before* reading it, the total before the broadcast is closed. A death between any two steps repeats at
//! most the open page; a second owner is found out at the next checkpoint and stops.

use std::{sync::Arc, time::Duration};

use futures::{StreamExt as _, TryStreamExt as _, stream};
use tokio::time::{Instant, sleep};
use tracing::{debug, info, warn};

use super::{
    Delivery, Stopping, instant,
    ledger::{counts, dead_tokens, tickets},
};
use crate::{
    delivery::{Class, Final, Page as Sending, Provider, Returned},
    domain::{BroadcastId, BroadcastState, Cursor, Job, Lane, ListJob, PartId, Progress, Recipient, Report, Timestamp, Unavailable, Work},
    store::{Checkpoint, Page, Store, Total},
    stream::{Cause, Fate, Publish, Record},
};

/// How often a part looks whether its broadcast was stopped.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How many users of a list are looked up at once.
const USERS_AT_ONCE: usize = 16;
/// How long a part that was taken over waits before it looks again.
const LOST_PAUSE: Duration = Duration::from_secs(1);
/// How long the first who sees all parts finished may take to tell the total, before another one tells it too.
const FIRST_TELLS_WITHIN: Duration = Duration::from_secs(2);

/// How the walk over a part ended.
enum Ended {
    Done,
    Unfinished,
    Lost,
}

impl<S: Store, Q: Publish, P: Provider> Delivery<S, Q, P> {
    pub(super) async fn part(&self, record: &Record, job: &Job, stop: &Stopping<'_>) -> Result<Fate, Unavailable> {
        let Some(part) = part_of(job) else { return Ok(Fate::DeadLetter(Cause::invalid("not a part of a broadcast"))) };
        let (Some(plan), _) = self.store.broadcast(&part.broadcast).await? else {
            return Ok(Fate::DeadLetter(Cause::invalid(format!("there is no broadcast {}", part.broadcast))));
        };
        loop {
            let progress = self.store.take_over(&part).await?;
            let ended = if progress.done { Ended::Done } else { self.walk(record, job, &part, progress, stop).await? };
            match ended {
                Ended::Done => break,
                Ended::Unfinished => return Ok(Fate::Unfinished),
                Ended::Lost => {
                    debug!(broadcast = %part.broadcast, part = part.part, "Somebody else has taken the part over");
                    tokio::select! { () = sleep(LOST_PAUSE) => {}, () = stop.wait() => return Ok(Fate::Unfinished) }
                }
            }
        }
        self.finish(&part, plan.parts).await?;
        Ok(Fate::Done)
    }

    /// A part whose handling panics becomes a dead letter. It counts as finished, with what it has sent so far: otherwise its
    /// broadcast would stay open for ever. A replay goes on where it stopped.
    pub(super) async fn give_up(&self, job: &Job) {
        let Some(part) = part_of(job) else { return };
        warn!(broadcast = %part.broadcast, part = part.part, "A part panicked: its broadcast goes on without the rest of it");
        self.insist(|| async {
            match self.store.broadcast(&part.broadcast).await? {
                (Some(plan), _) => self.finish(&part, plan.parts).await,
                (None, _) => Ok(()),
            }
        })
        .await;
    }

    async fn walk(
        &self,
        record: &Record,
        job: &Job,
        part: &PartId,
        mut progress: Progress,
        stop: &Stopping<'_>,
    ) -> Result<Ended, Unavailable> {
        let body = match self.provider.body(&job.notification) {
            Ok(body) => Arc::new(body),
            Err(refused) => {
                // Every part finds that out; the first one says so.
                if !self.is_stopped(&part.broadcast).await? {
                    self.refuse(&part.broadcast, &refused.reason).await;
                }
                return self.end(part, progress).await;
            }
        };
        let class = if matches!(job.work, Work::List(_)) { Class::List } else { Class::Slice };
        let mut looked = None;
        loop {
            if stop.is_set() {
                return Ok(Ended::Unfinished);
            }
            if looked.is_none_or(|at: Instant| at.elapsed() >= LOOK_EVERY) {
                looked = Some(Instant::now());
                if self.is_stopped(&part.broadcast).await? {
                    return self.end(part, progress).await;
                }
            }
            let stale_at = Instant::now() + self.limits.page_stale_after;
            let page = self.read_page(job, progress.cursor).await?;
            let expires = instant(job.notification.expires_at, Timestamp::now());
            let sending = |recipients| Sending { class, body: Arc::clone(&body), recipients, expires, start_before: None, stale_at };
            let withdraw = self.withdrawal(&part.broadcast, stop);
            let mut returned = self.desk.send(sending(page.recipients.into()), withdraw).await?;
            if stop.is_set() {
                self.close_gaps(&mut returned, &page.positions, &sending, stop).await;
            }

            self.follow_up(record, &part.broadcast, (&mut returned, &page.positions), &sending, stop).await;
            let cover = covered(&returned, &page.positions, page.end);
            // What was sent beyond the checkpoint is counted by whoever sends it again; a stopped broadcast has nobody.
            let stopped = !returned.is_complete() && !stop.is_set() && self.insist(|| self.is_stopped(&part.broadcast)).await;
            let counted = if stopped { returned.finals.len() } else { cover.messages };
            progress.counts += counts(returned.finals[..counted].iter().flatten());
            progress.cursor = cover.cursor.or(progress.cursor);
            progress.done = stopped || (returned.is_complete() && page.last);
            if let Checkpoint::Lost = self.insist(|| self.store.checkpoint(part, &progress)).await {
                return Ok(Ended::Lost);
            }
            if progress.done {
                return Ok(Ended::Done);
            }
        }
    }

    /// After a stop: what lies before the last message that has its outcome goes once more, ahead of any pause that it was
    /// in. A checkpoint covers no gap, and the next owner would send everything behind it again.
    async fn close_gaps(
        &self,
        returned: &mut Returned,
        positions: &[Cursor],
        sending: impl Fn(Arc<[Recipient]>) -> Sending<P::Body>,
        stop: &Stopping<'_>,
    ) {
        let gaps = gaps(&returned.finals, positions);
        let mut rest = sending(gaps.iter().map(|&index| returned.recipients[index].clone()).collect());
        rest.stale_at = rest.expires; // The page is begun; how old it is was asked then.
        // An error means that the batcher has ended, and with it the process: nothing more can be sent.
        if let Ok(closed) = self.desk.send(rest, stop.last_call()).await {
            for (index, fate) in gaps.into_iter().zip(closed.finals) {
                returned.finals[index] = fate;
            }
        }
    }

    /// The next messages of the part.
    async fn read_page(&self, job: &Job, after: Option<Cursor>) -> Result<Page, Unavailable> {
        match &job.work {
            Work::Slice(slice) => self.store.page_of_slice(self.id(), slice.slice, &slice.to, after, self.limits.page_size).await,
            Work::List(list) => self.page_of_list(list, after).await,
            Work::Dose(_) => Ok(Page { recipients: Vec::new(), positions: Vec::new(), end: Cursor(0), last: true }),
        }
    }

    /// The tokens of the next users; a user is never cut, so a page may be a few messages longer than a page.
    async fn page_of_list(&self, list: &ListJob, after: Option<Cursor>) -> Result<Page, Unavailable> {
        let done = after.map_or(0, |Cursor(done)| usize::try_from(done).unwrap_or(0));
        let mut page = Page { recipients: Vec::new(), positions: Vec::new(), end: after.unwrap_or(Cursor(0)), last: true };
        let mut tokens = stream::iter(done..list.users.len()).map(|index| self.store.tokens_of(&list.users[index])).buffered(USERS_AT_ONCE);
        for position in (0..).map(Cursor).take(list.users.len() + 1).skip(done + 1) {
            if page.recipients.len() >= self.limits.page_size {
                page.last = false;
                break;
            }
            let tokens = tokens.try_next().await?.unwrap_or_default();
            let ours = tokens.into_iter().filter(|registration| registration.token.kind().provider() == self.id());
            page.recipients.extend(ours.map(Recipient::from));
            page.positions.resize(page.recipients.len(), position);
            page.end = position;
        }
        Ok(page)
    }

    /// Publishes and counts what the page's answers say.
    async fn follow_up(
        &self,
        record: &Record,
        broadcast: &BroadcastId,
        (returned, positions): (&mut Returned, &[Cursor]),
        sending: &(impl Fn(Arc<[Recipient]>) -> Sending<P::Body> + Sync),
        stop: &Stopping<'_>,
    ) {
        self.publish_all(tickets(decided(returned).map(|(_, to, fate)| (to, fate)))).await;
        let unreported = self.hold(record, broadcast, (&mut *returned, positions), sending, stop).await;
        let now = Timestamp::now();
        self.count(record, Lane::Bulk, returned.finals.iter().flatten(), now);
        let reported = decided(returned).filter(|(index, ..)| !unreported.contains(index)).map(|(_, to, fate)| (to, fate));
        self.publish_all(dead_tokens(self.id(), reported, now)).await;
        let refused = returned.finals.iter().flatten().find_map(|fate| match fate {
            Final::Refused { why, whoever: true } => Some(why),
            _ => None,
        });
        if let Some(why) = refused {
            self.refuse(broadcast, why).await;
        }
    }

    /// The provider refuses the payload whoever it is for: one refusal stops the whole broadcast.
    async fn refuse(&self, broadcast: &BroadcastId, why: &str) {
        warn!(broadcast = %broadcast, provider = %self.id(), error = %why, "{} refuses the payload of {broadcast}: the broadcast is stopped", self.id());
        self.insist(|| self.store.stop(broadcast, "refused")).await;
    }

    /// Nothing more is sent of this part.
    async fn end(&self, part: &PartId, progress: Progress) -> Result<Ended, Unavailable> {
        let progress = Progress { done: true, ..progress };
        Ok(match self.store.checkpoint(part, &progress).await? {
            Checkpoint::Kept => Ended::Done,
            Checkpoint::Lost => Ended::Lost,
        })
    }

    async fn is_stopped(&self, broadcast: &BroadcastId) -> Result<bool, Unavailable> {
        let (_, state) = self.store.broadcast(broadcast).await?;
        Ok(matches!(state, Some(BroadcastState::Stopped { .. })))
    }

    /// Returns when nothing more is to be sent of the broadcast, here or at all.
    pub(super) async fn withdrawal(&self, broadcast: &BroadcastId, stop: &Stopping<'_>) {
        tokio::select! { () = stop.wait() => {}, () = self.stopped(broadcast) => {} }
    }

    /// Returns when the broadcast is stopped.
    pub(super) async fn stopped(&self, broadcast: &BroadcastId) {
        loop {
            sleep(LOOK_EVERY).await;
            // A store that does not answer stops nothing.
            if self.is_stopped(broadcast).await.unwrap_or(false) {
                return;
            }
        }
    }

    /// The own number first, then the set: whoever sees it full publishes the total, and only then closes the broadcast.
    async fn finish(&self, part: &PartId, parts: u32) -> Result<(), Unavailable> {
        let finished = self.store.finish_part(part).await?;
        let (_, state) = self.store.broadcast(&part.broadcast).await?;
        if finished < parts || state == Some(BroadcastState::Done) {
            return Ok(());
        }
        let asked_at = Timestamp::now();
        let Total { counts, at } = self.store.total(&part.broadcast, asked_at).await?;
        if at.as_microsecond() != asked_at.as_microsecond() {
            // Somebody else saw the last parts end in the same moment, and asked first: he tells it, unless he has died.
            sleep(FIRST_TELLS_WITHIN).await;
            if let (_, Some(BroadcastState::Done)) = self.store.broadcast(&part.broadcast).await? {
                return Ok(());
            }
        }
        self.publish_report(&Report::Broadcast { notification: part.broadcast.notification(), counts, at }).await;
        info!(broadcast = %part.broadcast, sent = counts.sent, dead = counts.dead, "Broadcast {} is complete: {} messages", part.broadcast, counts.total());
        self.store.close(&part.broadcast).await
    }
}

fn part_of(job: &Job) -> Option<PartId> {
    let (broadcast, part) = match &job.work {
        Work::Slice(slice) => (&slice.broadcast, slice.slice.index),
        Work::List(list) => (&list.broadcast, list.part),
        Work::Dose(_) => return None,
    };
    Some(PartId { broadcast: broadcast.clone(), provider: job.provider, part })
}

/// What a checkpoint may cover.
#[derive(Debug, PartialEq, Eq)]
struct Cover {
    /// Everything up to here has its outcome; `None` = not even the first position.
    cursor: Option<Cursor>,
    /// So many messages from the page's start.
    messages: usize,
}

/// A checkpoint covers the messages from the page's start that have their outcome, cut between positions: a cursor names a
/// position, and everything that stands there must be done.
fn covered(returned: &Returned, positions: &[Cursor], end: Cursor) -> Cover {
    let settled = returned.settled_prefix();
    let Some(&open) = positions.get(settled) else { return Cover { cursor: Some(end), messages: settled } };
    let messages = positions[..settled].iter().take_while(|&&position| position < open).count();
    Cover { cursor: messages.checked_sub(1).map(|last| positions[last]), messages }
}

/// The messages without an outcome that a checkpoint of the last one with an outcome needs: those before it, and those
/// that share its position.
fn gaps(finals: &[Option<Final>], positions: &[Cursor]) -> Vec<usize> {
    let Some(last) = finals.iter().rposition(Option::is_some) else { return Vec::new() };
    let end = positions.partition_point(|&position| position <= positions[last]);
    (0..end).filter(|&index| finals[index].is_none()).collect()
}

/// The messages of the page that have their outcome, each with its place.
fn decided(returned: &Returned) -> impl Iterator<Item = (usize, &Recipient, &Final)> {
    let fates = returned.recipients.iter().zip(&returned.finals).enumerate();
    fates.filter_map(|(index, (to, fate))| Some((index, to, fate.as_ref()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn returned(settled: &[bool]) -> Returned {
        Returned { recipients: Arc::new([]), finals: settled.iter().map(|&is| is.then_some(Final::Sent { ticket: None })).collect() }
    }

    fn cover(settled: &[bool], positions: &[i64]) -> (Option<i64>, usize) {
        let positions: Vec<Cursor> = positions.iter().copied().map(Cursor).collect();
        let cover = covered(&returned(settled), &positions, Cursor(100));
        (cover.cursor.map(|Cursor(at)| at), cover.messages)
    }

    #[test]
    fn a_complete_page_is_covered_to_its_end() {
        assert_eq!(cover(&[true, true], &[5, 7]), (Some(100), 2));
        assert_eq!(cover(&[], &[]), (Some(100), 0));
    }

    #[test]
    fn a_page_that_was_withdrawn_is_covered_up_to_its_first_gap() {
        assert_eq!(cover(&[true, true, false, true], &[5, 7, 8, 9]), (Some(7), 2));
        assert_eq!(cover(&[false, true], &[5, 7]), (None, 0));
    }

    #[test]
    fn gaps_are_what_keeps_the_last_outcome_from_being_covered() {
        let gaps = |settled: &[bool], positions: &[i64]| {
            let positions: Vec<Cursor> = positions.iter().copied().map(Cursor).collect();
            gaps(&returned(settled).finals, &positions)
        };
        assert_eq!(gaps(&[true, false, true, false], &[5, 7, 8, 9]), [1]);
        assert_eq!(gaps(&[false, true, false, false], &[5, 7, 7, 8]), [0, 2]);
        assert!(gaps(&[false, false], &[5, 7]).is_empty() && gaps(&[true, true], &[5, 7]).is_empty());
    }

    #[test]
    fn tokens_that_share_a_position_are_covered_together_or_not_at_all() {
        assert_eq!(cover(&[true, true, false], &[5, 7, 7]), (Some(5), 1));
        assert_eq!(cover(&[true, false], &[7, 7]), (None, 0));
    }
}
