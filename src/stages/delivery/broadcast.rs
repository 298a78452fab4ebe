//! A part of a broadcast: page by page, each checkpointed when its messages have their outcome. Those that
//! have none when a stop comes are named in the checkpoint, and the next owner begins with them.
//!
//! The protocol of a part, step by step: take over, page, checkpoint, and at the end the part's number into
//! the broadcast's set of finished parts *before* reading the set, the total before the broadcast is closed.
//! A crash between any two steps repeats at most the open page; a second owner fails at its next checkpoint
//! and stops.

use std::{sync::Arc, time::Duration};

use consumer::{Cause, Fate, HandlerError, Publish, Record};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use tokio::time::{Instant, sleep};
use tracing::{debug, info, warn};

use super::{
    Delivery, DrainWindow, LOOKUPS_AT_ONCE,
    follow_up::{counts, dead_tokens, tickets},
    instant,
};
use crate::{
    dispatch::{Class, MessageOutcome, Provider, Returned, SubmittedPage},
    domain::{
        BroadcastId, BroadcastState, Cursor, Job, Lane, ListJob, PartId, Progress, Recipient, Report,
        StopReason, Timestamp, Token, UserId, Work,
    },
    store::{Checkpoint, Page, Store, Total},
};

/// How often a part looks whether its broadcast was stopped.
const STOPPED_LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long a part that was taken over waits before it looks again.
const LOST_PAUSE: Duration = Duration::from_secs(1);
/// How long the first part that sees all parts finished may take to publish the total, before another one
/// publishes it too.
const TOTAL_WITHIN: Duration = Duration::from_secs(2);

/// How the walk over a part ended.
enum WalkEnd {
    Done,
    /// The partition is being revoked, or the process ends.
    Unfinished,
    /// Another process has taken the part over.
    Lost,
}

impl<S: Store, Q: Publish, P: Provider> Delivery<S, Q, P> {
    pub(super) async fn part(
        &self,
        record: &Record,
        job: &Job,
        drain: &DrainWindow<'_>,
    ) -> Result<Fate, HandlerError> {
        let Some(part) = part_of(job) else {
            return Ok(Fate::DeadLetter(Cause::invalid("not a part of a broadcast")));
        };
        let (Some(plan), _) = self.store.broadcast(&part.broadcast).await? else {
            return Ok(Fate::DeadLetter(Cause::invalid(format!("there is no broadcast {}", part.broadcast))));
        };
        loop {
            let progress = self.store.take_over(&part).await?;
            let ended = if progress.done {
                WalkEnd::Done
            } else {
                self.walk(record, job, &part, progress, drain).await?
            };
            match ended {
                WalkEnd::Done => break,
                WalkEnd::Unfinished => return Ok(Fate::Unfinished),
                WalkEnd::Lost => {
                    debug!(
                        broadcast.id = %part.broadcast,
                        part = part.part,
                        "Part lost: another process has taken it over"
                    );
                    tokio::select! {
                        () = sleep(LOST_PAUSE) => {}
                        () = drain.stopped() => return Ok(Fate::Unfinished),
                    }
                }
            }
        }
        self.finish(&part, plan.parts).await?;
        Ok(Fate::Done)
    }

    /// A part whose handling panics becomes a dead letter. It counts as finished, with what it has sent so
    /// far: otherwise its broadcast would stay open for ever. A replay goes on where it stopped.
    pub(super) async fn finish_panicked(&self, job: &Job) {
        let Some(part) = part_of(job) else { return };
        warn!(
            broadcast.id = %part.broadcast,
            part = part.part,
            "A part panicked: its broadcast goes on without the rest of it"
        );
        self.retry_until_settled(|| async {
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
        drain: &DrainWindow<'_>,
    ) -> Result<WalkEnd, HandlerError> {
        let body = match self.provider.body(&job.notification) {
            Ok(body) => Arc::new(body),
            Err(refused) => {
                // Every part finds that out; the first one stops the broadcast.
                if !self.is_stopped(&part.broadcast).await? {
                    self.refuse(&part.broadcast, &refused.reason).await;
                }
                return self.end(part, progress).await;
            }
        };
        let class = if matches!(job.work, Work::List(_)) { Class::List } else { Class::Slice };
        let mut looked_at = None;
        loop {
            if drain.is_stopped() {
                return Ok(WalkEnd::Unfinished);
            }
            if looked_at.is_none_or(|at: Instant| at.elapsed() >= STOPPED_LOOK_EVERY) {
                looked_at = Some(Instant::now());
                if self.is_stopped(&part.broadcast).await? {
                    return self.end(part, progress).await;
                }
            }
            let stale_at = Instant::now() + self.limits.page_stale_after;
            let mut page = self.read_page(job, &progress).await?;
            let expires = instant(job.notification.expires_at, Timestamp::now());
            let page_of = |recipients| SubmittedPage {
                class,
                body: Arc::clone(&body),
                recipients,
                expires,
                start_before: None,
                stale_at,
            };
            let withdraw = self.withdrawal(&part.broadcast, drain);
            let submitted = page_of(std::mem::take(&mut page.recipients).into());
            let mut returned = self.batcher.submit(submitted, withdraw).await?;

            self.follow_up(record, &part.broadcast, &mut returned, &page_of, drain).await;
            let stopped = !returned.is_complete()
                && !drain.is_stopped()
                && self.retry_until_settled(|| self.is_stopped(&part.broadcast)).await;
            let has_moved = advance(&mut progress, &page, &returned);
            if stopped {
                progress.open = Vec::new();
                progress.done = true;
            } else if !has_moved {
                continue;
            }
            if let Checkpoint::Lost =
                self.retry_until_settled(|| self.store.checkpoint(part, &progress)).await
            {
                return Ok(WalkEnd::Lost);
            }
            if progress.done {
                return Ok(WalkEnd::Done);
            }
        }
    }

    /// The next messages of the part. What the last owner left open goes first.
    async fn read_page(&self, job: &Job, progress: &Progress) -> Result<Page, HandlerError> {
        if let (Some(end), [_, ..]) = (progress.cursor, &progress.open[..]) {
            return self.page_of_open(&job.work, &progress.open, end).await;
        }
        let after = progress.cursor;
        match &job.work {
            Work::Slice(slice) => {
                let page = self
                    .store
                    .page_of_slice(self.id(), slice.slice, &slice.to, after, self.limits.page_size)
                    .await?;
                Ok(page)
            }
            Work::List(list) => self.page_of_list(list, after).await,
            Work::Dose(_) => {
                Ok(Page { recipients: Vec::new(), positions: Vec::new(), end: Cursor(0), last: true })
            }
        }
    }

    /// The open tokens, as they are registered now: a device may have been registered for another user since.
    async fn page_of_open(&self, work: &Work, open: &[Token], end: Cursor) -> Result<Page, HandlerError> {
        let rows = stream::iter(0..open.len())
            .map(|index| self.store.inspect(&open[index]))
            .buffered(LOOKUPS_AT_ONCE);
        let rows: Vec<_> = rows.try_collect().await?;
        let registrations = rows.into_iter().flatten().filter_map(|row| row.registration);
        let recipients: Vec<_> =
            registrations.filter(|now| is_meant(work, end, now.user.as_ref())).map(Recipient::from).collect();
        Ok(Page { positions: vec![end; recipients.len()], recipients, end, last: false })
    }

    /// The tokens of the next users; a user is never cut, so a page may be a few messages longer than a page.
    async fn page_of_list(&self, list: &ListJob, after: Option<Cursor>) -> Result<Page, HandlerError> {
        let done = after.map_or(0, |Cursor(done)| usize::try_from(done).unwrap_or(0));
        let mut page = Page {
            recipients: Vec::new(),
            positions: Vec::new(),
            end: after.unwrap_or(Cursor(0)),
            last: true,
        };
        let mut tokens = stream::iter(done..list.users.len())
            .map(|index| self.store.tokens_of(&list.users[index]))
            .buffered(LOOKUPS_AT_ONCE);
        for position in (0..).map(Cursor).take(list.users.len() + 1).skip(done + 1) {
            if page.recipients.len() >= self.limits.page_size {
                page.last = false;
                break;
            }
            let tokens = tokens.try_next().await?.unwrap_or_default();
            let ours =
                tokens.into_iter().filter(|registration| registration.token.kind().provider() == self.id());
            page.recipients.extend(ours.map(Recipient::from));
            page.positions.resize(page.recipients.len(), position);
            page.end = position;
        }
        Ok(page)
    }

    /// Publishes and counts the page's outcomes.
    async fn follow_up(
        &self,
        record: &Record,
        broadcast: &BroadcastId,
        returned: &mut Returned,
        page_of: &(impl Fn(Arc<[Recipient]>) -> SubmittedPage<P::Body> + Sync),
        drain: &DrainWindow<'_>,
    ) {
        self.publish_all(tickets(decided(returned))).await;
        self.hold_dead_tokens(record, broadcast, returned, page_of, drain).await;
        let now = Timestamp::now();
        self.count(record, Lane::Bulk, returned.outcomes.iter().flatten(), now);
        self.publish_all(dead_tokens(self.id(), decided(returned), now)).await;
        let refused = returned.outcomes.iter().flatten().find_map(|outcome| match outcome {
            MessageOutcome::Refused { why, for_all_recipients: true } => Some(why),
            _ => None,
        });
        if let Some(why) = refused {
            self.refuse(broadcast, why).await;
        }
    }

    /// The provider refuses the payload for every recipient: one refusal stops the whole broadcast.
    async fn refuse(&self, broadcast: &BroadcastId, why: &str) {
        let provider = self.id();
        warn!(
            broadcast.id = %broadcast,
            provider = %provider,
            error = why,
            "{provider} refuses the payload of {broadcast}: the broadcast is stopped"
        );
        self.retry_until_settled(|| self.store.stop(broadcast, &StopReason::Refused)).await;
    }

    /// Nothing more is sent of this part.
    async fn end(&self, part: &PartId, progress: Progress) -> Result<WalkEnd, HandlerError> {
        let progress = Progress { done: true, open: Vec::new(), ..progress };
        Ok(match self.store.checkpoint(part, &progress).await? {
            Checkpoint::Kept => WalkEnd::Done,
            Checkpoint::Lost => WalkEnd::Lost,
        })
    }

    async fn is_stopped(&self, broadcast: &BroadcastId) -> Result<bool, HandlerError> {
        let (_, state) = self.store.broadcast(broadcast).await?;
        Ok(matches!(state, Some(BroadcastState::Stopped { .. })))
    }

    /// Returns when nothing more is to be sent of the broadcast, here or at all.
    pub(super) async fn withdrawal(&self, broadcast: &BroadcastId, drain: &DrainWindow<'_>) {
        tokio::select! { () = drain.stopped() => {}, () = self.stopped(broadcast) => {} }
    }

    /// Returns when the broadcast is stopped.
    pub(super) async fn stopped(&self, broadcast: &BroadcastId) {
        loop {
            sleep(STOPPED_LOOK_EVERY).await;
            // A store that does not answer stops nothing.
            if self.is_stopped(broadcast).await.unwrap_or(false) {
                return;
            }
        }
    }

    /// The part's number first, then the set: the part that sees it full publishes the total, and only then
    /// closes the broadcast.
    async fn finish(&self, part: &PartId, parts: u32) -> Result<(), HandlerError> {
        let finished = self.store.finish_part(part).await?;
        let (_, state) = self.store.broadcast(&part.broadcast).await?;
        if finished < parts || state == Some(BroadcastState::Done) {
            return Ok(());
        }
        let asked_at = Timestamp::now();
        let Total { counts, at } = self.store.total(&part.broadcast, asked_at).await?;
        if at.as_microsecond() != asked_at.as_microsecond() {
            // Another process saw the last parts end in the same moment, and asked first: it publishes the
            // total, unless it has crashed.
            sleep(TOTAL_WITHIN).await;
            if let (_, Some(BroadcastState::Done)) = self.store.broadcast(&part.broadcast).await? {
                return Ok(());
            }
        }
        self.publish_report(&Report::Broadcast { notification: part.broadcast.notification(), counts, at })
            .await;
        info!(
            broadcast.id = %part.broadcast,
            sent = counts.sent,
            dead = counts.dead,
            "Broadcast {} is complete: {} messages",
            part.broadcast,
            counts.total()
        );
        Ok(self.store.close(&part.broadcast).await?)
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

/// Whether a token before the cursor that is this user's now (`None` = a token without a user) is to be sent
/// to. A list reaches the users behind its cursor anyway.
fn is_meant(work: &Work, Cursor(done): Cursor, user: Option<&UserId>) -> bool {
    match work {
        Work::Slice(slice) => slice.to.include(user.map(UserId::as_str)),
        Work::List(list) => list.users.iter().zip(0..done).any(|(listed, _)| Some(listed) == user),
        Work::Dose(_) => false,
    }
}

/// Moves the part's cursor past a page: behind the last message that has its outcome. Those before it that
/// have none, or on its position, stay open. `false` = no message has an outcome, and nothing has changed.
fn advance(progress: &mut Progress, page: &Page, returned: &Returned) -> bool {
    if returned.is_complete() {
        progress.cursor = Some(page.end);
        progress.open = Vec::new();
        progress.done = page.last;
    } else if let Some(reached) = returned.outcomes.iter().rposition(Option::is_some) {
        let reached = page.positions[reached];
        let before = page.positions.partition_point(|&position| position <= reached);
        let outcomes = returned.recipients.iter().zip(&returned.outcomes).take(before);
        progress.open =
            outcomes.filter(|(_, outcome)| outcome.is_none()).map(|(to, _)| to.token.clone()).collect();
        progress.cursor = Some(reached);
    } else {
        return false;
    }
    progress.counts += counts(returned.outcomes.iter().flatten());
    true
}

/// The messages of the page that have their outcome.
fn decided(returned: &Returned) -> impl Iterator<Item = (&Recipient, &MessageOutcome)> {
    returned
        .recipients
        .iter()
        .zip(&returned.outcomes)
        .filter_map(|(to, outcome)| Some((to, outcome.as_ref()?)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Version;

    /// A page of tokens a, b, … of which some have their outcome: where the part is then, and what is open.
    fn past(settled: &[bool], positions: &[i64]) -> Option<(i64, Vec<String>, u64)> {
        let name = |index| format!("ExponentPushToken[{}]", char::from(b"abcdef"[index]));
        let recipient = |index| Recipient {
            token: Token::parse(&name(index)).unwrap(),
            version: Version::from_i64(2),
            platform: None,
        };
        let returned = Returned {
            recipients: (0..settled.len()).map(recipient).collect(),
            outcomes: settled.iter().map(|&is| is.then_some(MessageOutcome::Sent { ticket: None })).collect(),
        };
        let positions = positions.iter().copied().map(Cursor).collect();
        let page = Page { recipients: Vec::new(), positions, end: Cursor(100), last: true };
        let mut progress = Progress { open: vec![recipient(5).token], ..Progress::default() };
        let before = progress.clone();
        if !advance(&mut progress, &page, &returned) {
            assert_eq!(progress, before);
            return None;
        }
        assert_eq!(progress.done, progress.open.is_empty() && progress.cursor == Some(page.end));
        let open = progress
            .open
            .iter()
            .map(|token| token.as_str()["ExponentPushToken[".len()..].replace(']', ""))
            .collect();
        Some((progress.cursor?.0, open, progress.counts.sent))
    }

    fn open(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn a_complete_page_is_over_and_nothing_is_open() {
        assert_eq!(past(&[true, true], &[5, 7]), Some((100, open(&[]), 2)));
        assert_eq!(past(&[], &[]), Some((100, open(&[]), 0)));
    }

    #[test]
    fn what_has_no_outcome_stays_open_up_to_the_last_message_that_has_one() {
        assert_eq!(past(&[true, true, false, true, false], &[5, 7, 8, 9, 11]), Some((9, open(&["c"]), 3)));
        assert_eq!(past(&[false, true], &[5, 7]), Some((7, open(&["a"]), 1)));
        assert_eq!(past(&[true, false], &[5, 7]), Some((5, open(&[]), 1)));
    }

    #[test]
    fn tokens_that_share_a_position_are_open_each_by_itself() {
        assert_eq!(past(&[false, true, false, false], &[5, 7, 7, 8]), Some((7, open(&["a", "c"]), 1)));
    }

    #[test]
    fn a_page_without_an_outcome_changes_nothing() {
        assert_eq!(past(&[false, false], &[5, 7]), None);
    }
}
