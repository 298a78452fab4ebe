//! One provider: its batcher, its route, its share of the rate, and a consumer for each lane.

use std::{sync::Arc, time::Duration};

use consumer::{Assignment, Handler};
use tokio::sync::watch;

use super::{RunningProcess, share, thresholds};
use crate::{
    dispatch::{self, Batcher, Provider, RateLimiter, Share},
    domain::{Lane, ProviderId},
    events,
    http::{self, Health},
    stages::delivery::{Delivery, DeliveryLimits, sync_route},
    store::{RouteRow, Store},
    topology,
};

/// Doses that one consumer has in flight at once.
const URGENT_IN_FLIGHT: usize = 1_024;
/// What follows from the last answer of a drain may take that long.
const CHECKPOINT_WITHIN: Duration = Duration::from_secs(1);

impl<S: Store> RunningProcess<S> {
    /// Everything that delivers through this provider, if this process runs any of its lanes.
    pub(super) fn delivery<P: Provider>(
        &mut self,
        provider: Arc<P>,
        limiter: RateLimiter,
        slots: usize,
        request_timeout: Duration,
    ) -> anyhow::Result<()> {
        let id = provider.id();
        if Lane::ALL.into_iter().all(|lane| !self.app.stages.contains(topology::delivery(id, lane).name)) {
            return Ok(()); // This process plans for it at most.
        }
        let push = self.app.config.push.clone();
        if !push.enabled {
            let detail = "push.enabled is false: nothing is sent, jobs wait in Kafka";
            self.app.health.detail("push", Some(detail.to_owned()));
        }
        let (route, route_sync) = dispatch::route();
        let share = watch::Sender::new(Share::NONE);
        let (batcher, handle) = Batcher::new(
            Arc::clone(&provider),
            slots,
            limiter,
            share.subscribe(),
            route,
            Arc::clone(&self.app.metrics),
        );
        let limits = DeliveryLimits {
            page_size: push.page_size,
            page_stale_after: push.page_stale_after,
            request_timeout,
            brake: thresholds(&push),
            finish_within: finish_within(self.app.config.kafka.drain_timeout, request_timeout),
        };
        let handler = Arc::new(Delivery::new(
            provider,
            handle,
            self.app.store.clone(),
            self.producer.clone(),
            limits,
            Arc::clone(&self.app.metrics),
        ));

        let urgent = self.lane(id, Lane::Urgent, URGENT_IN_FLIGHT, Arc::clone(&handler))?;
        let bulk = self.lane(id, Lane::Bulk, push.open_pages, handler)?;
        let stop = self.stop.clone();
        self.tasks.spawn(format!("batcher of {id}"), async move {
            batcher.run().await;
            stop.cancelled().await; // As in `show_readiness`: without consumers it has nothing to do.
            Ok(())
        });
        let local_status = route_sync.local_status();
        let health = self.app.health.clone();
        let stop = self.stop.clone();
        self.tasks.spawn(format!("local status of {id}"), async move {
            show_local_status(id, local_status, &health).await;
            stop.cancelled().await; // As in `show_readiness`.
            Ok(())
        });
        let store = self.app.store.clone();
        let instance = self.instance.clone();
        let health = self.app.health.clone();
        let stop = self.stop.clone();
        self.tasks.spawn(format!("route of {id}"), async move {
            let show = move |route: &RouteRow| {
                let closed = (!route.state.sends())
                    .then(|| format!("{} by {}: {}", route.state.label(), route.set_by, route.detail));
                health.detail(&format!("route.{id}"), closed);
            };
            sync_route(store, id, push.enabled, instance, route_sync, stop, show).await;
            Ok(())
        });
        let lanes = share::LaneAssignment {
            urgent: self.lane_share(id, Lane::Urgent, urgent)?,
            bulk: self.lane_share(id, Lane::Bulk, bulk)?,
            trusted_for: self.app.config.kafka.session_timeout / 2,
        };
        let stop = self.stop.clone();
        self.tasks.spawn(format!("share of {id}"), async move {
            share::follow(lanes, share).await;
            stop.cancelled().await; // As in `show_readiness`.
            Ok(())
        });
        Ok(())
    }

    fn lane<H: Handler>(
        &mut self,
        id: ProviderId,
        lane: Lane,
        in_flight: usize,
        handler: Arc<H>,
    ) -> anyhow::Result<Option<watch::Receiver<Assignment>>> {
        self.stage(topology::delivery(id, lane), in_flight, handler)
    }

    fn lane_share(
        &self,
        id: ProviderId,
        lane: Lane,
        assignment: Option<watch::Receiver<Assignment>>,
    ) -> anyhow::Result<share::LaneShare> {
        let topic = events::jobs::topic(id, lane);
        let of = u32::try_from(self.partitions.get(topic).copied().unwrap_or(1))?;
        Ok(share::LaneShare { assignment, topic, of })
    }
}

/// Reports why this instance does not send although the route is open, until its batcher has ended.
async fn show_local_status(
    id: ProviderId,
    mut local_status: watch::Receiver<Option<String>>,
    health: &Health,
) {
    loop {
        let detail = local_status.borrow_and_update().clone();
        health.detail(&http::local_status_of(id), detail);
        if local_status.changed().await.is_err() {
            return;
        }
    }
}

/// How long requests may still start after a stop: the last of them has to be answered, and its page
/// checkpointed, before the drain ends.
fn finish_within(drain_timeout: Duration, request_timeout: Duration) -> Duration {
    drain_timeout.saturating_sub(request_timeout + CHECKPOINT_WITHIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stop_leaves_time_for_the_last_answer_and_its_checkpoint() {
        let seconds = Duration::from_secs;
        assert_eq!(finish_within(seconds(20), seconds(15)), seconds(4));
        assert_eq!(finish_within(seconds(15), seconds(15)), Duration::ZERO);
    }
}
