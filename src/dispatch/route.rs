//! Whether a provider's route is open for this instance.
//!
//! The state that counts lies in the store, where every instance and every operator sees it. This is this
//! instance's copy of it, and the way by which a refusal of our credentials gets there: the gate closes at
//! once, the row is written afterwards.

use tokio::sync::{mpsc, watch};

/// Whether requests may start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// They may.
    Open,
    /// They may not.
    Closed(ClosedBy),
}

/// Why a gate is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClosedBy {
    /// The row has not been read yet.
    Unknown,
    /// By an operator, or by `push.enabled`.
    Paused,
    /// The provider refuses our credentials.
    Halted,
    /// Too many tokens looked dead.
    Braked,
}

/// The batcher's side of a route.
#[derive(Clone, Debug)]
pub struct Route {
    gate: watch::Sender<Gate>,
    halts: mpsc::Sender<String>,
    local_status: watch::Sender<Option<String>>,
}

/// The side of the task that keeps the gate equal to the store's row.
#[derive(Debug)]
pub struct RouteSync {
    gate: watch::Sender<Gate>,
    halts: mpsc::Receiver<String>,
    local_status: watch::Receiver<Option<String>>,
}

/// A route that is closed until its row has been read.
pub fn route() -> (Route, RouteSync) {
    let gate = watch::Sender::new(Gate::Closed(ClosedBy::Unknown));
    let (halt_sender, halts) = mpsc::channel(1);
    let (status_sender, local_status) = watch::channel(None);
    let route = Route { gate: gate.clone(), halts: halt_sender, local_status: status_sender };
    (route, RouteSync { gate, halts, local_status })
}

// === impl ClosedBy ===

impl ClosedBy {
    /// The value of the metric's label `state`.
    pub fn label(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Paused => "paused",
            Self::Halted => "halted",
            Self::Braked => "braked",
        }
    }
}

// === impl Route ===

impl Route {
    /// Closes the gate at once and queues the halt, which [`RouteSync::halted`] returns to be written to the
    /// row. Called once for many refusals at the same time.
    pub fn halt(&self, why: &str) {
        // Under the gate's lock, as in `RouteSync::follow`: in between, a row could open the gate again.
        self.gate.send_modify(|gate| {
            *gate = Gate::Closed(ClosedBy::Halted);
            // A full channel holds an earlier refusal, which is written in place of this one.
            let _queued_before = self.halts.try_send(why.to_owned());
        });
    }

    /// Sets what stops an open route in this instance only: the provider is down, or asks us to wait. `None`
    /// = nothing does.
    pub fn set_local_status(&self, local_status: Option<String>) {
        self.local_status.send_if_modified(|current| {
            let changed = *current != local_status;
            *current = local_status;
            changed
        });
    }

    /// The gate, and each change of it.
    pub fn gate(&self) -> watch::Receiver<Gate> {
        self.gate.subscribe()
    }
}

// === impl RouteSync ===

impl RouteSync {
    /// Sets the gate to what the row says. Ignored while a halt waits to be written: the row was read before
    /// the refusal.
    pub fn follow(&self, gate: Gate) {
        self.gate.send_if_modified(|current| {
            // Under the gate's lock, so that no halt comes between this look and the change.
            let changed = self.halts.is_empty() && *current != gate;
            if changed {
                *current = gate;
            }
            changed
        });
    }

    /// What stops the route in this instance, for its readiness and for operators.
    pub fn local_status(&self) -> watch::Receiver<Option<String>> {
        self.local_status.clone()
    }

    /// The next refusal to be written to the row; `None` when the engine has ended.
    pub async fn halted(&mut self) -> Option<String> {
        self.halts.recv().await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::*;

    #[tokio::test]
    async fn a_row_that_was_read_before_a_refusal_does_not_open_the_gate() {
        let (route, mut route_sync) = route();
        route_sync.follow(Gate::Open);
        route.halt("HTTP 401");
        route.halt("HTTP 403");
        route_sync.follow(Gate::Open);
        assert_eq!(*route.gate().borrow(), Gate::Closed(ClosedBy::Halted));
        assert_eq!(route_sync.halted().await.as_deref(), Some("HTTP 401"));
        // The halt is written by now, and rows that are read after that count.
        route_sync.follow(Gate::Open);
        assert_eq!(*route.gate().borrow(), Gate::Open);
    }

    #[test]
    fn a_row_that_is_followed_during_a_refusal_does_not_open_the_gate() {
        const ROUNDS: u32 = 20_000;
        let (route, mut route_sync) = route();
        let barrier = Barrier::new(2);
        let reopened = std::thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..ROUNDS {
                    barrier.wait();
                    route.halt("HTTP 401");
                    barrier.wait();
                }
            });
            // Counted, and asserted at the end: a panic here would leave the other thread at the barrier.
            let mut reopened = 0;
            for _ in 0..ROUNDS {
                barrier.wait();
                // Many times, because the halt is a matter of less than a microsecond.
                for _ in 0..50 {
                    route_sync.follow(Gate::Open);
                }
                barrier.wait();
                reopened += u32::from(*route.gate().borrow() == Gate::Open);
                let _unread = route_sync.halts.try_recv();
                route_sync.follow(Gate::Open);
            }
            reopened
        });
        assert_eq!(reopened, 0, "of {ROUNDS} rounds");
    }
}
