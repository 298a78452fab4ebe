//! Whether a provider's route is open for this instance.
//!
//! The state that counts lies in the store, where every instance and every operator sees it. This is this
//! instance's copy of it, and the way a refusal of our credentials gets there: the gate closes at once, the
//! row follows.

use tokio::sync::{mpsc, watch};

/// Whether requests may start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Gate {
    /// They may.
    Open,
    /// They may not: `paused` by an operator or by `push.enabled`, `halted`, `braked`, or `unknown` until the
    /// row is read.
    Closed {
        /// The state's word.
        state: &'static str,
    },
}

/// The engine's side of a route.
#[derive(Clone, Debug)]
pub struct Route {
    gate: watch::Sender<Gate>,
    halts: mpsc::Sender<String>,
    local_status: watch::Sender<Option<String>>,
}

/// The route_sync's side: whoever mirrors the store's row.
#[derive(Debug)]
pub struct RouteSync {
    gate: watch::Sender<Gate>,
    halts: mpsc::Receiver<String>,
    local_status: watch::Receiver<Option<String>>,
}

/// A route that is closed until its route_sync has seen the row.
pub fn route() -> (Route, RouteSync) {
    let gate = watch::Sender::new(Gate::Closed { state: "unknown" });
    let (halt, halts) = mpsc::channel(1);
    let (told, local_status) = watch::channel(None);
    (Route { gate: gate.clone(), halts: halt, local_status: told }, RouteSync { gate, halts, local_status })
}

// === impl Route ===

impl Route {
    /// Closes the gate now and asks the route_sync to write it down. Called once for many refusals at the same
    /// time.
    pub fn halt(&self, why: &str) {
        self.gate.send_replace(Gate::Closed { state: "halted" });
        // A full channel holds an earlier refusal that says the same.
        let _noted_before = self.halts.try_send(why.to_owned());
    }

    /// Tells what holds an open route in this instance: the provider is down, or asks us to wait. `None` =
    /// nothing does.
    pub fn tell(&self, local_status: Option<String>) {
        self.local_status.send_if_modified(|told| {
            let changed = *told != local_status;
            *told = local_status;
            changed
        });
    }

    /// Follows the gate.
    pub fn gate(&self) -> watch::Receiver<Gate> {
        self.gate.subscribe()
    }
}

// === impl RouteSync ===

impl RouteSync {
    /// What the row says. Ignored while a halt waits to be written: the row is older than the refusal.
    pub fn follow(&self, gate: Gate) {
        if self.halts.is_empty() {
            self.gate.send_if_modified(|current| {
                let changed = *current != gate;
                *current = gate;
                changed
            });
        }
    }

    /// Follows what holds the route in this instance, for whoever looks.
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
    use super::*;

    #[tokio::test]
    async fn a_row_that_was_read_before_a_refusal_does_not_open_the_gate() {
        let (route, mut route_sync) = route();
        route_sync.follow(Gate::Open);
        route.halt("HTTP 401");
        route.halt("HTTP 403");
        route_sync.follow(Gate::Open);
        assert_eq!(*route.gate().borrow(), Gate::Closed { state: "halted" });
        assert_eq!(route_sync.halted().await.as_deref(), Some("HTTP 401"));
        // It is written by now, and what the row says after that counts.
        route_sync.follow(Gate::Open);
        assert_eq!(*route.gate().borrow(), Gate::Open);
    }
}
