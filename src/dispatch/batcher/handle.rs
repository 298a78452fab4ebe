//! How handlers submit pages to the batcher.

use std::sync::Arc;

use tokio::sync::{Notify, mpsc, oneshot};

use super::super::{
    BatcherStopped,
    page::{Returned, SubmittedPage},
    queue::PageId,
};
use crate::domain::ProviderId;

/// Submits pages to a [`super::Batcher`].
#[derive(Debug)]
pub struct BatcherHandle<B> {
    pub(super) inbox: mpsc::Sender<BatcherCommand<B>>,
    pub(super) abandoned: Arc<Notify>,
    pub(super) provider: ProviderId,
}

#[derive(Debug)]
pub(super) enum BatcherCommand<B> {
    Submit(SubmittedPage<B>, oneshot::Sender<Submitted>),
    Withdraw(PageId),
}

/// The answer to a submitted page: its id, and the channel on which it is returned.
pub(super) type Submitted = (PageId, oneshot::Receiver<Returned>);

/// Notifies the batcher when a call of `submit` is dropped before its page is returned.
struct PageWait<'a> {
    abandoned: &'a Notify,
    is_over: bool,
}

// === impl BatcherHandle ===

impl<B> Clone for BatcherHandle<B> {
    fn clone(&self) -> Self {
        Self { inbox: self.inbox.clone(), abandoned: Arc::clone(&self.abandoned), provider: self.provider }
    }
}

impl<B: Send + Sync + 'static> BatcherHandle<B> {
    /// Submits a page and waits until it is returned. When `withdraw` ends first, what is not on the wire is
    /// withdrawn, and what is on the wire is waited for. A call that is dropped withdraws its page too, and
    /// the outcomes of what was on the wire are lost.
    ///
    /// # Errors
    /// The batcher has ended.
    pub async fn submit(
        &self,
        page: SubmittedPage<B>,
        withdraw: impl Future<Output = ()>,
    ) -> Result<Returned, BatcherStopped> {
        if page.recipients.is_empty() {
            return Ok(Returned { recipients: page.recipients, outcomes: Vec::new() });
        }
        let mut waiting = PageWait { abandoned: &self.abandoned, is_over: false };
        let returned = self.submit_and_wait(page, withdraw).await;
        waiting.is_over = true;
        returned.ok_or(BatcherStopped { provider: self.provider })
    }

    /// `None` = the batcher has ended.
    async fn submit_and_wait(
        &self,
        page: SubmittedPage<B>,
        withdraw: impl Future<Output = ()>,
    ) -> Option<Returned> {
        let (sender, submitted) = oneshot::channel();
        self.inbox.send(BatcherCommand::Submit(page, sender)).await.ok()?;
        let (id, mut returned) = submitted.await.ok()?;
        tokio::select! {
            biased;
            returned = &mut returned => return returned.ok(),
            () = withdraw => {}
        }
        self.inbox.send(BatcherCommand::Withdraw(id)).await.ok()?;
        returned.await.ok()
    }
}

// === impl PageWait ===

impl Drop for PageWait<'_> {
    fn drop(&mut self) {
        if !self.is_over {
            self.abandoned.notify_one();
        }
    }
}
