//! The tasks of a process: all in one [`JoinSet`], each with a name, and how an early end is
//! distinguished from a stop.

use std::{future::Future, time::Duration};

use anyhow::anyhow;
use tokio::{task::JoinSet, time::timeout};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

/// Named tasks. Dropping it aborts them.
#[derive(Default)]
pub(super) struct ProcessTasks(JoinSet<(String, anyhow::Result<()>)>);

impl ProcessTasks {
    pub(super) fn spawn(
        &mut self,
        name: impl Into<String>,
        task: impl Future<Output = anyhow::Result<()>> + Send + 'static,
    ) {
        let name = name.into();
        self.0.spawn(async move {
            let ended = task.await;
            (name, ended)
        });
    }

    /// Waits for the stop, or for a task that ends before it: that is an error, which names the task. It is
    /// logged at once, because the drain that follows may take a minute.
    pub(super) async fn first_to_end(&mut self, stop: &CancellationToken) -> Option<anyhow::Error> {
        let first = tokio::select! {
            () = stop.cancelled() => None,
            ended = self.0.join_next() => ended,
        };
        let cause = match first? {
            // It saw the stop sooner than this did.
            Ok((_, Ok(()))) if stop.is_cancelled() => return None,
            Ok((name, Ok(()))) => anyhow!("{name} ended without a stop"),
            Ok((name, Err(err))) => err.context(format!("{name} failed")),
            Err(panicked) => anyhow!(panicked).context("a task panicked"),
        };
        error!(error = format!("{cause:#}"), "The process stops early: {cause:#}");
        Some(cause)
    }

    /// Waits until all tasks have ended, for `grace` at most.
    pub(super) async fn drain(&mut self, grace: Duration) {
        let drained = timeout(grace, async {
            while let Some(ended) = self.0.join_next().await {
                match ended {
                    Ok((_, Ok(()))) => {}
                    Ok((name, Err(err))) => warn!(error = format!("{err:#}"), "{name} failed while stopping"),
                    Err(panicked) => warn!(error = %panicked, "A task panicked while stopping"),
                }
            }
        });
        if drained.await.is_err() {
            warn!(
                grace_seconds = grace.as_secs(),
                "The drain outlasted its grace period; what is unsettled will be delivered again"
            );
        }
    }
}

/// How the process ended. The cause of an early end is kept, whatever fails after it.
pub(super) fn ended(early: Option<anyhow::Error>, flushed: anyhow::Result<()>) -> anyhow::Result<()> {
    match (early, flushed) {
        (Some(cause), flushed) => {
            if let Err(err) = flushed {
                warn!(error = format!("{err:#}"), "Flushing the producer failed while stopping");
            }
            Err(cause)
        }
        (None, Ok(())) => {
            info!("Stopped");
            Ok(())
        }
        (None, Err(err)) => Err(err),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    };

    use super::*;

    #[tokio::test]
    async fn a_task_that_sees_the_stop_first_has_not_ended_too_early() {
        // Which of the two is polled first is random.
        for _ in 0..100 {
            let stop = CancellationToken::new();
            let mut tasks = ProcessTasks::default();
            let stopped = stop.clone().cancelled_owned();
            tasks.spawn("sweep", async move {
                stopped.await;
                Ok(())
            });
            stop.cancel();
            tokio::task::yield_now().await;
            assert!(tasks.first_to_end(&stop).await.is_none());
        }
    }

    #[tokio::test]
    async fn a_task_that_ends_without_a_stop_is_named() {
        let stop = CancellationToken::new();
        let mut tasks = ProcessTasks::default();
        tasks.spawn("sweep", async { Ok(()) });
        assert_eq!(tasks.first_to_end(&stop).await.unwrap().to_string(), "sweep ended without a stop");
        tasks.spawn("tokens", async { Err(anyhow!("unavailable")) });
        assert_eq!(format!("{:#}", tasks.first_to_end(&stop).await.unwrap()), "tokens failed: unavailable");
    }

    #[tokio::test(start_paused = true)]
    async fn the_cause_of_an_early_end_is_logged_before_the_drain() {
        let lines = Arc::<Mutex<Vec<u8>>>::default();
        let written = Arc::clone(&lines);
        let log = tracing_subscriber::fmt().with_ansi(false).with_writer(move || Sink(Arc::clone(&written)));
        let _log = tracing::subscriber::set_default(log.finish());
        let stop = CancellationToken::new();
        let drained = Arc::<AtomicUsize>::default();
        let counted = Arc::clone(&drained);
        let stopped = stop.clone().cancelled_owned();
        let mut tasks = ProcessTasks::default();
        tasks.spawn("slow", async move {
            stopped.await;
            tokio::time::sleep(Duration::from_secs(60)).await;
            counted.fetch_add(1, Ordering::Relaxed);
            Ok(())
        });
        tasks.spawn("tokens", async { Err(anyhow!("fenced")) });

        let early = tasks.first_to_end(&stop).await;
        let logged = String::from_utf8(lines.lock().unwrap().clone()).unwrap();
        assert!(logged.contains("The process stops early: tokens failed: fenced"), "{logged}");
        assert_eq!(drained.load(Ordering::Relaxed), 0);
        stop.cancel();
        tasks.drain(Duration::from_secs(100)).await;
        assert_eq!(drained.load(Ordering::Relaxed), 1);
        let ended = ended(early, Err(anyhow!("Kafka is unavailable: flushing the producer")));
        assert_eq!(
            format!("{:#}", ended.unwrap_err()),
            "tokens failed: fenced",
            "not the error of the flush"
        );
    }

    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_flush_that_fails_after_a_stop_is_an_error() {
        assert!(ended(None, Ok(())).is_ok());
        assert_eq!(ended(None, Err(anyhow!("no flush"))).unwrap_err().to_string(), "no flush");
    }
}
