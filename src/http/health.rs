//! Whether this process does its work: written by the stages and by the checks of the store and Kafka, read
//! by `/ready` and by `inspect`.
//!
//! Ready = every stage has its assignment, perhaps an empty one, and the store and Kafka answer. A route that
//! is halted or braked is reported in the details and does not make the process unready: a restart would not
//! help.

use std::{
    collections::BTreeMap,
    fmt::Display,
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::domain::ProviderId;

/// How often the store and Kafka are pinged, and the time-out of a ping.
pub const ASK_EVERY: Duration = Duration::from_secs(2);

/// The shared state. Clones share it.
#[derive(Clone, Debug)]
pub struct Health(Arc<Mutex<HealthReport>>);

/// The state at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthReport {
    /// Each enabled stage, and whether it has its assignment.
    pub stages: BTreeMap<String, bool>,
    /// `None` = the store answers; otherwise the error.
    pub store: Option<String>,
    /// `None` = Kafka answers, or has not been pinged since the start; otherwise the error.
    pub kafka: Option<String>,
    /// Further facts, by subject: `route.expo` → `halted: …`.
    pub details: BTreeMap<String, String>,
}

/// The subject of a route's local status: why this process sends nothing although the route is open. Its
/// provider is down, asks us to wait, or is not configured.
pub fn local_status_of(provider: ProviderId) -> String {
    format!("sending.{provider}")
}

// === impl Health ===

impl Health {
    /// No stage has its assignment yet, and the store has not been pinged.
    pub fn new<S: Into<String>>(stages: impl IntoIterator<Item = S>) -> Self {
        Self(Arc::new(Mutex::new(HealthReport {
            stages: stages.into_iter().map(|stage| (stage.into(), false)).collect(),
            store: Some("not pinged yet".to_owned()),
            kafka: None,
            details: BTreeMap::new(),
        })))
    }

    /// Whether the stage has its assignment, perhaps an empty one, or is no member of its group.
    pub fn assigned(&self, stage: &str, has: bool) {
        self.lock().stages.insert(stage.to_owned(), has);
    }

    /// The result of the last ping of the store.
    pub fn store(&self, answer: Result<(), String>) {
        self.lock().store = answer.err();
    }

    /// The result of the last ping of Kafka.
    pub fn kafka(&self, answer: Result<(), String>) {
        self.lock().kafka = answer.err();
    }

    /// Sets the detail of a subject; `None` removes it.
    pub fn detail(&self, subject: &str, text: Option<String>) {
        let details = &mut self.lock().details;
        match text {
            Some(text) => drop(details.insert(subject.to_owned(), text)),
            None => drop(details.remove(subject)),
        }
    }

    /// The state now.
    pub fn report(&self) -> HealthReport {
        self.lock().clone()
    }

    /// Pings the store every two seconds, until `stop`. A store that does not answer within that time is
    /// unavailable.
    pub async fn ask_the_store<F, E>(&self, ping: impl Fn() -> F, stop: &CancellationToken)
    where
        F: Future<Output = Result<(), E>>,
        E: Display,
    {
        check(ping, |answer| self.store(answer), stop).await;
    }

    /// Pings Kafka in the same way.
    pub async fn ask_kafka<F, E>(&self, ping: impl Fn() -> F, stop: &CancellationToken)
    where
        F: Future<Output = Result<(), E>>,
        E: Display,
    {
        check(ping, |answer| self.kafka(answer), stop).await;
    }

    /// A panic cannot leave the report half-written: every write to it is one assignment.
    fn lock(&self) -> MutexGuard<'_, HealthReport> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn check<F, E>(ping: impl Fn() -> F, report: impl Fn(Result<(), String>), stop: &CancellationToken)
where
    F: Future<Output = Result<(), E>>,
    E: Display,
{
    while !stop.is_cancelled() {
        report(match timeout(ASK_EVERY, ping()).await {
            Ok(answer) => answer.map_err(|err| err.to_string()),
            Err(_) => Err(format!("no answer within {ASK_EVERY:?}")),
        });
        tokio::select! {
            () = stop.cancelled() => {}
            () = sleep(ASK_EVERY) => {}
        }
    }
}

// === impl HealthReport ===

impl HealthReport {
    /// Whether this process does its work: the status of `/ready`.
    pub fn is_ready(&self) -> bool {
        self.store.is_none() && self.kafka.is_none() && self.stages.values().all(|assigned| *assigned)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_ready_while_every_stage_is_assigned_and_the_store_and_kafka_answer() {
        let health = Health::new(["tokens", "posts"]);
        assert!(!health.report().is_ready());
        health.store(Ok(()));
        health.assigned("tokens", true);
        assert!(!health.report().is_ready());
        health.assigned("posts", true);
        assert!(health.report().is_ready());
        health.store(Err("unavailable".to_owned()));
        assert!(!health.report().is_ready());
        health.store(Ok(()));
        health.kafka(Err("unavailable".to_owned()));
        assert!(!health.report().is_ready());
    }

    #[test]
    fn a_halted_route_does_not_make_the_process_unready() {
        let health = Health::new(["tokens"]);
        health.store(Ok(()));
        health.assigned("tokens", true);
        health.detail("route.expo", Some("halted: 401".to_owned()));
        assert!(health.report().is_ready());
        health.detail("route.expo", None);
        assert_eq!(health.report().details, BTreeMap::new());
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_hangs_is_unavailable_until_it_answers_again() {
        let health = Health::new(["tokens"]);
        let token = CancellationToken::new();
        let hangs = std::sync::atomic::AtomicBool::new(true);
        let ping = async || {
            if hangs.load(std::sync::atomic::Ordering::SeqCst) {
                std::future::pending::<()>().await;
            }
            Ok::<_, String>(())
        };
        let stop = token.clone();
        let pinging = health.ask_the_store(ping, &stop);
        let watching = async {
            sleep(ASK_EVERY + Duration::from_millis(1)).await;
            assert_eq!(health.report().store.as_deref(), Some("no answer within 2s"));
            hangs.store(false, std::sync::atomic::Ordering::SeqCst);
            sleep(ASK_EVERY).await;
            assert_eq!(health.report().store, None);
            token.cancel();
        };
        tokio::join!(pinging, watching);
    }
}
