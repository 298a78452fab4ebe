//! Keeps this instance's copy of a route's state equal to the store's row, and writes halts to it.

use std::{error::Error, time::Duration};

use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::retry_until_settled;
use crate::{
    dispatch::{ClosedBy, Gate, RouteSync},
    domain::{ProviderId, Timestamp},
    store::{RouteRow, RouteState, Routes},
    telemetry::LogThrottle,
};

/// How often the row is read.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Follows the row of `provider` until `stop`. With `enabled` false (`push.enabled`) the gate stays closed
/// whatever the row says: jobs wait in Kafka. `show` is called with the row each time it is read.
pub async fn sync_route<S: Routes>(
    store: S,
    provider: ProviderId,
    enabled: bool,
    instance: String,
    mut route_sync: RouteSync,
    stop: CancellationToken,
    show: impl Fn(&RouteRow) + Send,
) {
    let mut look = interval(LOOK_EVERY);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    if !enabled {
        info!(provider = %provider, "push.enabled is false: {provider} sends nothing, jobs wait in Kafka");
    }
    let mut shown = None;
    let mut failure_logged = false;
    let log_throttle = LogThrottle::default();
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            why = route_sync.halted() => {
                let Some(why) = why else { return };
                let halted = RouteRow {
                    state: RouteState::Halted,
                    since: Timestamp::now(),
                    set_by: instance.clone(),
                    detail: why,
                };
                let write = retry_until_settled(&log_throttle, || store.set_route(provider, &halted));
                // The gate is closed here whether it is written or not, so a stop need not wait for the
                // store.
                let _written = stop.run_until_cancelled(write).await;
            }
            _ = look.tick() => match store.route(provider).await {
                Ok(route) => {
                    if shown.is_some_and(|state| state != route.state) {
                        let state = route.state.label();
                        info!(
                            provider = %provider,
                            state,
                            set_by = %route.set_by,
                            "The route of {provider} is {state}"
                        );
                    }
                    shown = Some(route.state);
                    failure_logged = false;
                    show(&route);
                    route_sync.follow(gate(enabled, route.state));
                }
                // A store that is unavailable changes nothing: what is open stays open, and no page can be
                // read to be sent anyway.
                Err(err) if !failure_logged => {
                    let error: &dyn Error = &err;
                    warn!(
                        provider = %provider,
                        error,
                        "The state of the route of {provider} can't be read; it is tried each second"
                    );
                    failure_logged = true;
                }
                Err(_) => {}
            },
        }
    }
}

fn gate(enabled: bool, state: RouteState) -> Gate {
    match state {
        RouteState::Running | RouteState::Released if enabled => Gate::Open,
        RouteState::Running | RouteState::Released | RouteState::Paused => Gate::Closed(ClosedBy::Paused),
        RouteState::Halted => Gate::Closed(ClosedBy::Halted),
        RouteState::Braked => Gate::Closed(ClosedBy::Braked),
    }
}
