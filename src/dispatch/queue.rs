//! Which messages are sent next. Pure: no clock, no channel; the batcher asks.
//!
//! Urgent pages first, then lists, then slices; within a class first what has failed before, then pages in
//! the order in which they were submitted. A batch never mixes classes, but it may take from several pages,
//! so that requests are full.

use std::{
    cmp::Ordering,
    collections::{BinaryHeap, VecDeque},
};

use tokio::time::Instant;

use super::page::Class;

/// A submitted page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct PageId(pub u64);

/// One message: a page and an index into its recipients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MessageRef {
    pub page: PageId,
    pub index: u32,
}

/// Messages of one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Batch {
    pub class: Class,
    pub messages: Vec<MessageRef>,
    /// How often they have been sent before.
    pub tries: u8,
    /// When the last try was refused for credentials that have been replaced since.
    pub reauthorised: Option<Instant>,
}

/// All messages that are not on the wire, by class.
#[derive(Debug, Default)]
pub(super) struct Queue {
    /// Never sent.
    fresh: [VecDeque<FreshPage>; 3],
    /// To be sent again as soon as the route allows it.
    retries: [VecDeque<Batch>; 3],
    /// To be sent again at a time of their own.
    later: BinaryHeap<RetryLater>,
    sequence: u64,
}

/// What is left of a page: the messages from `next` to `len`.
#[derive(Debug)]
struct FreshPage {
    page: PageId,
    next: u32,
    len: u32,
}

#[derive(Debug)]
struct RetryLater {
    at: Instant,
    sequence: u64,
    batch: Batch,
    reason: RetryReason,
}

/// Why messages wait before they are sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RetryReason {
    /// For a reason of their own: their device is busy, their answer is unknown.
    Message,
    /// Their request failed as a whole: they may be sent as soon as the provider answers again.
    Request,
}

// === impl Batch ===

impl Batch {
    /// Its messages, page by page.
    pub(super) fn by_page(&self) -> impl DoubleEndedIterator<Item = (PageId, &[MessageRef])> {
        self.messages.chunk_by(|one, next| one.page == next.page).map(|run| (run[0].page, run))
    }
}

// === impl Queue ===

impl Queue {
    /// Adds a submitted page of `len` messages.
    pub(super) fn push(&mut self, class: Class, page: PageId, len: usize) {
        let len = u32::try_from(len).unwrap_or(u32::MAX);
        self.fresh[class as usize].push_back(FreshPage { page, next: 0, len });
    }

    /// Puts back a batch that was taken and may not be sent yet. What was never sent is fresh again, so that
    /// the next request is a full one whatever its size is by then.
    pub(super) fn put_back(&mut self, batch: Batch) {
        if batch.tries > 0 {
            return self.push_retry(batch);
        }
        let fresh = &mut self.fresh[batch.class as usize];
        for (page, run) in batch.by_page().rev() {
            let next = run[0].index;
            let len = run[run.len() - 1].index + 1;
            debug_assert_eq!(run.len(), (len - next) as usize, "it was taken in one piece");
            match fresh.front_mut().filter(|front| front.page == page && front.next == len) {
                Some(front) => front.next = next,
                None => fresh.push_front(FreshPage { page, next, len }),
            }
        }
    }

    /// Adds messages that are sent before all others of their class.
    pub(super) fn push_retry(&mut self, batch: Batch) {
        if !batch.messages.is_empty() {
            self.retries[batch.class as usize].push_front(batch);
        }
    }

    /// Adds messages that are sent before the fresh ones of their class, but after its other retries.
    pub(super) fn push_retry_last(&mut self, batch: Batch) {
        if !batch.messages.is_empty() {
            self.retries[batch.class as usize].push_back(batch);
        }
    }

    /// Adds messages that wait until `at`.
    pub(super) fn push_later(&mut self, at: Instant, batch: Batch, reason: RetryReason) {
        if !batch.messages.is_empty() {
            self.sequence += 1;
            self.later.push(RetryLater { at, sequence: self.sequence, batch, reason });
        }
    }

    /// Whether any message of this class waits, whenever it may be sent.
    pub(super) fn has(&self, class: Class) -> bool {
        let is_of_class = |later: &RetryLater| later.batch.class == class;
        !self.fresh[class as usize].is_empty()
            || !self.retries[class as usize].is_empty()
            || self.later.iter().any(is_of_class)
    }

    /// When the next of the messages that wait for a time is due.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.later.peek().map(|later| later.at)
    }

    /// Moves what is due to the retries of its class.
    pub(super) fn release_due(&mut self, now: Instant) {
        while self.later.peek().is_some_and(|later| later.at <= now) {
            if let Some(later) = self.later.pop() {
                self.retries[later.batch.class as usize].push_back(later.batch);
            }
        }
    }

    /// Moves what waits because its request failed to the retries of its class.
    pub(super) fn release_failed_requests(&mut self) {
        let mut later = std::mem::take(&mut self.later).into_vec();
        later.sort_unstable_by_key(|later| (later.at, later.sequence));
        for one in later {
            match one.reason {
                RetryReason::Request => self.retries[one.batch.class as usize].push_back(one.batch),
                RetryReason::Message => self.later.push(one),
            }
        }
    }

    /// Takes the next messages, at most `max`, of the first of these classes that has any.
    pub(super) fn take(&mut self, max: usize, classes: &[Class]) -> Option<Batch> {
        classes.iter().find_map(|&class| self.take_retry(class, max).or_else(|| self.take_fresh(class, max)))
    }

    fn take_retry(&mut self, class: Class, max: usize) -> Option<Batch> {
        let waiting = &mut self.retries[class as usize];
        let mut batch = waiting.pop_front()?;
        if batch.messages.len() > max {
            let rest = batch.messages.split_off(max);
            waiting.push_front(Batch { messages: rest, ..batch });
        }
        Some(batch)
    }

    fn take_fresh(&mut self, class: Class, max: usize) -> Option<Batch> {
        let pages = &mut self.fresh[class as usize];
        let mut messages = Vec::new();
        while let Some(page) = pages.front_mut()
            && messages.len() < max
        {
            let n = u32::try_from(max - messages.len()).unwrap_or(u32::MAX).min(page.len - page.next);
            messages.extend((page.next..page.next + n).map(|index| MessageRef { page: page.page, index }));
            page.next += n;
            if page.next == page.len {
                pages.pop_front();
            }
        }
        (!messages.is_empty()).then_some(Batch { class, messages, tries: 0, reauthorised: None })
    }

    /// Removes all messages of a page.
    pub(super) fn withdraw(&mut self, withdrawn: PageId) {
        for pages in &mut self.fresh {
            pages.retain(|page| page.page != withdrawn);
        }
        let keep = |batch: &mut Batch| {
            batch.messages.retain(|message| message.page != withdrawn);
            !batch.messages.is_empty()
        };
        for waiting in &mut self.retries {
            waiting.retain_mut(keep);
        }
        let later = std::mem::take(&mut self.later).into_vec();
        self.later =
            later.into_iter().filter_map(|mut later| keep(&mut later.batch).then_some(later)).collect();
    }
}

// === impl RetryLater ===

// The heap's greatest is the earliest.

impl Ord for RetryLater {
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.sequence).cmp(&(self.at, self.sequence))
    }
}

impl PartialOrd for RetryLater {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for RetryLater {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for RetryLater {}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn take(queue: &mut Queue, max: usize) -> Vec<(u64, u32)> {
        queue.take(max, &Class::ALL).as_ref().map(messages).unwrap_or_default()
    }

    fn messages(batch: &Batch) -> Vec<(u64, u32)> {
        batch.messages.iter().map(|message| (message.page.0, message.index)).collect()
    }

    #[test]
    fn urgent_goes_first_then_lists_then_slices() {
        let mut queue = Queue::default();
        queue.push(Class::Slice, PageId(1), 2);
        queue.push(Class::List, PageId(2), 2);
        queue.push(Class::Urgent, PageId(3), 1);
        assert_eq!(take(&mut queue, 10), [(3, 0)]);
        assert_eq!(take(&mut queue, 10), [(2, 0), (2, 1)]);
        assert_eq!(take(&mut queue, 10), [(1, 0), (1, 1)]);
        assert_eq!(take(&mut queue, 10), []);
    }

    #[test]
    fn requests_are_filled_across_pages() {
        let mut queue = Queue::default();
        queue.push(Class::Slice, PageId(1), 3);
        queue.push(Class::Slice, PageId(2), 3);
        assert_eq!(take(&mut queue, 2), [(1, 0), (1, 1)]);
        assert_eq!(take(&mut queue, 2), [(1, 2), (2, 0)]);
        assert_eq!(take(&mut queue, 9), [(2, 1), (2, 2)]);
    }

    #[test]
    fn what_has_failed_goes_first_and_is_split_to_size() {
        let mut queue = Queue::default();
        queue.push(Class::Slice, PageId(1), 4);
        let batch = queue.take(3, &Class::ALL).unwrap();
        queue.push_retry(batch);
        assert_eq!(take(&mut queue, 2), [(1, 0), (1, 1)]);
        assert_eq!(take(&mut queue, 2), [(1, 2)]);
        assert_eq!(take(&mut queue, 2), [(1, 3)]);
    }

    #[test]
    fn what_is_put_back_is_taken_again_in_its_order_and_in_full_requests() {
        let mut queue = Queue::default();
        (1..=3).for_each(|page| queue.push(Class::Slice, PageId(page), 2));
        for (max, taken) in [
            (3, vec![(1, 0), (1, 1), (2, 0)]),
            (2, vec![(1, 0), (1, 1)]),
            (4, vec![(1, 0), (1, 1), (2, 0), (2, 1)]),
        ] {
            let batch = queue.take(max, &Class::ALL).unwrap();
            assert_eq!(messages(&batch), taken);
            queue.put_back(batch);
        }
        assert_eq!(take(&mut queue, 9), [(1, 0), (1, 1), (2, 0), (2, 1), (3, 0), (3, 1)]);

        queue.push(Class::Slice, PageId(4), 4);
        let failed = Batch { tries: 1, ..queue.take(2, &Class::ALL).unwrap() };
        queue.put_back(failed);
        assert_eq!(take(&mut queue, 9), [(4, 0), (4, 1)], "what was sent before stays apart");
    }

    #[test]
    fn a_withdrawn_page_is_removed_wherever_it_waits() {
        let mut queue = Queue::default();
        let now = Instant::now();
        queue.push(Class::Slice, PageId(1), 2);
        queue.push(Class::Slice, PageId(2), 2);
        let mixed = queue.take(3, &Class::ALL).unwrap();
        queue.push_later(now, mixed.clone(), RetryReason::Message);
        queue.push_later(
            now + Duration::from_secs(1),
            Batch { messages: mixed.messages[..2].to_vec(), ..mixed },
            RetryReason::Request,
        );
        queue.withdraw(PageId(1));
        queue.release_due(now + Duration::from_secs(2));
        assert_eq!(take(&mut queue, 9), [(2, 0)]);
        assert_eq!(take(&mut queue, 9), [(2, 1)]);
        assert_eq!(take(&mut queue, 9), []);
    }

    #[test]
    fn slots_reserved_for_urgent_messages_take_no_others() {
        let mut queue = Queue::default();
        queue.push(Class::List, PageId(1), 1);
        assert_eq!(queue.take(9, &[Class::Urgent]), None);
        queue.push(Class::Urgent, PageId(2), 1);
        assert!(queue.take(9, &[Class::Urgent]).is_some());
    }

    #[test]
    fn failed_requests_are_released_when_the_provider_answers_and_other_retries_are_not() {
        let mut queue = Queue::default();
        let soon = Instant::now() + Duration::from_secs(60);
        queue.push(Class::Urgent, PageId(1), 2);
        for reason in [RetryReason::Message, RetryReason::Request] {
            let one = queue.take(1, &Class::ALL).unwrap();
            queue.push_later(soon, one, reason);
        }
        assert!(queue.has(Class::Urgent) && !queue.has(Class::Slice));
        queue.release_failed_requests();
        assert_eq!(take(&mut queue, 9), [(1, 1)]);
        assert_eq!((take(&mut queue, 9), queue.next_due()), (vec![], Some(soon)));
    }
}
