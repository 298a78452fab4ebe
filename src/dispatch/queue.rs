//! Which messages go next. Pure: no clock, no channel; the batcher asks.
//!
//! Urgent pages first, then lists, then slices; within a class what failed before goes first, then pages in
//! the order they came. A batch never mixes classes, but it may take from several pages, so that requests are
//! full.

use std::{
    cmp::Ordering,
    collections::{BinaryHeap, VecDeque},
};

use tokio::time::Instant;

use super::page::Class;

/// A page that is handed in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct PageId(pub u64);

/// One message: a page and a place in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ref {
    pub page: PageId,
    pub index: u32,
}

/// Messages that go in one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Batch {
    pub class: Class,
    pub messages: Vec<Ref>,
    /// How often they were tried before.
    pub tries: u8,
    /// When the last try was refused for its credentials, of which there are new ones.
    pub reauthorised: Option<Instant>,
}

/// Everything that waits to be sent.
#[derive(Debug, Default)]
pub(super) struct Queue {
    fresh: [VecDeque<FreshPage>; 3],
    again: [VecDeque<Batch>; 3],
    later: BinaryHeap<RetryLater>,
    sequence: u64,
}

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
    why: Why,
}

/// Why messages wait before they go again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// By a reason of their own: their device is busy, their answer made no sense.
    Own,
    /// Their request failed as a whole: they may go as soon as the provider answers again.
    Request,
}

// === impl Batch ===

impl Batch {
    /// Its messages, page by page.
    pub(super) fn by_page(&self) -> impl DoubleEndedIterator<Item = (PageId, &[Ref])> {
        self.messages.chunk_by(|one, next| one.page == next.page).map(|run| (run[0].page, run))
    }
}

// === impl Queue ===

impl Queue {
    /// A page has come.
    pub(super) fn push(&mut self, class: Class, page: PageId, len: usize) {
        let len = u32::try_from(len).unwrap_or(u32::MAX);
        self.fresh[class as usize].push_back(FreshPage { page, next: 0, len });
    }

    /// These were taken and may not go yet. What was never sent is fresh again, so that the next request is a
    /// full one whatever it may carry by then.
    pub(super) fn put_back(&mut self, batch: Batch) {
        if batch.tries > 0 {
            return self.push_again(batch);
        }
        let fresh = &mut self.fresh[batch.class as usize];
        for (page, run) in batch.by_page().rev() {
            let (next, len) = (run[0].index, run[run.len() - 1].index + 1);
            debug_assert_eq!(run.len(), (len - next) as usize, "it was taken in one piece");
            match fresh.front_mut().filter(|front| front.page == page && front.next == len) {
                Some(front) => front.next = next,
                None => fresh.push_front(FreshPage { page, next, len }),
            }
        }
    }

    /// These go before anything fresh of their class.
    pub(super) fn push_again(&mut self, batch: Batch) {
        if !batch.messages.is_empty() {
            self.again[batch.class as usize].push_front(batch);
        }
    }

    /// These go before anything fresh of their class, but after what goes again already.
    pub(super) fn push_again_last(&mut self, batch: Batch) {
        if !batch.messages.is_empty() {
            self.again[batch.class as usize].push_back(batch);
        }
    }

    /// These wait until `at`.
    pub(super) fn push_later(&mut self, at: Instant, batch: Batch, why: Why) {
        if !batch.messages.is_empty() {
            self.sequence += 1;
            self.later.push(RetryLater { at, sequence: self.sequence, batch, why });
        }
    }

    /// Whether any message of this class is here, whenever it may go.
    pub(super) fn has(&self, class: Class) -> bool {
        let own = |later: &RetryLater| later.batch.class == class;
        !self.fresh[class as usize].is_empty()
            || !self.again[class as usize].is_empty()
            || self.later.iter().any(own)
    }

    /// When the next of those who wait comes due.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.later.peek().map(|later| later.at)
    }

    /// Moves what is due to the front of its class.
    pub(super) fn wake(&mut self, now: Instant) {
        while self.later.peek().is_some_and(|later| later.at <= now) {
            if let Some(later) = self.later.pop() {
                self.again[later.batch.class as usize].push_back(later.batch);
            }
        }
    }

    /// What waits because its request failed goes as soon as the route lets it.
    pub(super) fn wake_failed(&mut self) {
        let mut later = std::mem::take(&mut self.later).into_vec();
        later.sort_unstable_by_key(|later| (later.at, later.sequence));
        for one in later {
            match one.why {
                Why::Request => self.again[one.batch.class as usize].push_back(one.batch),
                Why::Own => self.later.push(one),
            }
        }
    }

    /// The next messages, at most `max`, of the first of these classes that has any.
    pub(super) fn take(&mut self, max: usize, classes: &[Class]) -> Option<Batch> {
        classes.iter().find_map(|&class| self.take_again(class, max).or_else(|| self.take_fresh(class, max)))
    }

    fn take_again(&mut self, class: Class, max: usize) -> Option<Batch> {
        let waiting = &mut self.again[class as usize];
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
            messages.extend((page.next..page.next + n).map(|index| Ref { page: page.page, index }));
            page.next += n;
            if page.next == page.len {
                pages.pop_front();
            }
        }
        (!messages.is_empty()).then_some(Batch { class, messages, tries: 0, reauthorised: None })
    }

    /// Takes back everything of a page that is not on the wire.
    pub(super) fn withdraw(&mut self, withdrawn: PageId) {
        for pages in &mut self.fresh {
            pages.retain(|page| page.page != withdrawn);
        }
        let keep = |batch: &mut Batch| {
            batch.messages.retain(|message| message.page != withdrawn);
            !batch.messages.is_empty()
        };
        for waiting in &mut self.again {
            waiting.retain_mut(keep);
        }
        let later = std::mem::take(&mut self.later).into_vec();
        self.later =
            later.into_iter().filter_map(|mut later| keep(&mut later.batch).then_some(later)).collect();
    }
}

// === impl RetryLater === (the heap's greatest is the earliest)

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
        queue.take(max, &Class::ALL).as_ref().map(places).unwrap_or_default()
    }

    fn places(batch: &Batch) -> Vec<(u64, u32)> {
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
    fn what_failed_before_goes_first_and_is_cut_to_size() {
        let mut queue = Queue::default();
        queue.push(Class::Slice, PageId(1), 4);
        let batch = queue.take(3, &Class::ALL).unwrap();
        queue.push_again(batch);
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
            assert_eq!(places(&batch), taken);
            queue.put_back(batch);
        }
        assert_eq!(take(&mut queue, 9), [(1, 0), (1, 1), (2, 0), (2, 1), (3, 0), (3, 1)]);

        queue.push(Class::Slice, PageId(4), 4);
        let failed = Batch { tries: 1, ..queue.take(2, &Class::ALL).unwrap() };
        queue.put_back(failed);
        assert_eq!(take(&mut queue, 9), [(4, 0), (4, 1)], "what was sent before stays apart");
    }

    #[test]
    fn a_withdrawn_page_is_gone_wherever_it_waits() {
        let mut queue = Queue::default();
        let now = Instant::now();
        queue.push(Class::Slice, PageId(1), 2);
        queue.push(Class::Slice, PageId(2), 2);
        let mixed = queue.take(3, &Class::ALL).unwrap();
        queue.push_later(now, mixed.clone(), Why::Own);
        queue.push_later(
            now + Duration::from_secs(1),
            Batch { messages: mixed.messages[..2].to_vec(), ..mixed },
            Why::Request,
        );
        queue.withdraw(PageId(1));
        queue.wake(now + Duration::from_secs(2));
        assert_eq!(take(&mut queue, 9), [(2, 0)]);
        assert_eq!(take(&mut queue, 9), [(2, 1)]);
        assert_eq!(take(&mut queue, 9), []);
    }

    #[test]
    fn seats_kept_for_urgent_take_nothing_else() {
        let mut queue = Queue::default();
        queue.push(Class::List, PageId(1), 1);
        assert_eq!(queue.take(9, &[Class::Urgent]), None);
        queue.push(Class::Urgent, PageId(2), 1);
        assert!(queue.take(9, &[Class::Urgent]).is_some());
    }
    #[test]
    fn what_waits_for_the_provider_goes_when_it_answers_and_what_waits_for_itself_does_not() {
        let mut queue = Queue::default();
        let soon = Instant::now() + Duration::from_secs(60);
        queue.push(Class::Urgent, PageId(1), 2);
        for why in [Why::Own, Why::Request] {
            let one = queue.take(1, &Class::ALL).unwrap();
            queue.push_later(soon, one, why);
        }
        assert!(queue.has(Class::Urgent) && !queue.has(Class::Slice));
        queue.wake_failed();
        assert_eq!(take(&mut queue, 9), [(1, 1)]);
        assert_eq!((take(&mut queue, 9), queue.next_due()), (vec![], Some(soon)));
    }
}
