//! The state of a broadcast for an operator, and its cancellation.
//!
//! How many messages are left is not known before their tokens are read. It is estimated from how much of the
//! token ring is behind the cursors, because tokens are spread evenly on it.

use std::time::Duration;

use axum::{
    Json,
    extract::{Path, State},
};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use serde_json::{Value, json};

use super::{super::local_status_of, Admin, ApiError};
use crate::{
    domain::{
        BroadcastId, BroadcastState, Counts, Outcome, PartId, PostId, Progress, ProviderId, Slice,
        StopReason, Timestamp,
    },
    events::broadcast_specs::{self, Audience, Spec},
    store::{Broadcasts, Registry, RouteRow, Routes},
};

/// Parts whose progress is read at once.
const PARTS_AT_ONCE: usize = 32;

/// The sum over one provider's parts of a broadcast.
#[derive(Debug, PartialEq)]
struct BroadcastStatus {
    parts: u32,
    begun: u32,
    done: u32,
    counts: Counts,
    /// Messages, if that can be estimated.
    left: Option<u64>,
}

/// A provider's route as this instance sees it.
struct RouteStatus {
    route: RouteRow,
    /// Why this instance sends nothing although the route is open.
    local_status: Option<String>,
    /// Messages per second, of the whole deployment; 0 = no limit.
    rate: f64,
    /// This instance's share of it.
    rate_here: f64,
}

pub(super) async fn cancel<S: Registry + Routes + Broadcasts>(
    State(admin): State<Admin<S>>,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let id = broadcast_of(&id);
    if let (_, Some(BroadcastState::Done)) = admin.store.broadcast(&id).await? {
        return Err(ApiError::Conflict(format!("{id} is done: everything is sent")));
    }
    admin.store.stop(&id, &StopReason::Cancelled).await?;
    tracing::info!(broadcast.id = %id, "An operator has cancelled broadcast {id}");
    let (plan, state) = admin.store.broadcast(&id).await?;
    Ok(Json(json!({ "broadcast": id.as_str(), "state": label(state.as_ref()), "planned": plan.is_some() })))
}

pub(super) async fn inspect<S: Registry + Routes + Broadcasts>(
    State(admin): State<Admin<S>>,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let id = broadcast_of(&id);
    let (plan, state) = admin.store.broadcast(&id).await?;
    let mut answer = json!({ "broadcast": id.as_str(), "state": label(state.as_ref()) });
    if let Some(BroadcastState::Stopped { reason }) = &state {
        answer["reason"] = json!(reason.label());
    }
    let Some(plan) = plan else {
        return if state.is_some() {
            Ok(Json(answer))
        } else {
            Err(ApiError::NotFound(format!("there was never a broadcast {id}")))
        };
    };
    let spec = broadcast_specs::read(&plan.spec)
        .map_err(|unreadable| ApiError::Conflict(format!("its plan can't be read: {unreadable}")))?;
    let now = Timestamp::now();
    answer["title"] = json!(spec.notification.title);
    answer["expiresAt"] = json!(spec.notification.expires_at);
    let parts_each = plan.parts / u32::try_from(spec.providers.len()).unwrap_or(1).max(1);
    for &provider in &spec.providers {
        let parts = (0..parts_each).map(|part| PartId { broadcast: id.clone(), provider, part });
        let progress = parts.map(|part| {
            let store = &admin.store;
            async move { store.progress(&part).await }
        });
        let progress: Vec<_> = stream::iter(progress).buffered(PARTS_AT_ONCE).try_collect().await?;
        let status = sum_up(&spec, &progress);
        let route = route_status(&admin, provider).await?;
        let is_open = state == Some(BroadcastState::Planned) && status.done < status.parts;
        let obstacles = if is_open {
            obstacles(&spec, &route, admin.health.report().details.get("push"), now)
        } else {
            Vec::new()
        };
        let ends_at = if is_open && obstacles.is_empty() { ends_at(&status, &route, now) } else { None };
        answer["providers"][provider.label()] = status.to_json(&obstacles, ends_at);
    }
    Ok(Json(answer))
}

/// The broadcast of this id, or of the post with this id.
fn broadcast_of(id: &str) -> BroadcastId {
    if id.starts_with("post:") { BroadcastId::new(id) } else { BroadcastId::of_post(&PostId::new(id)) }
}

async fn route_status<S: Routes>(admin: &Admin<S>, provider: ProviderId) -> Result<RouteStatus, ApiError> {
    let rate = |of| admin.metrics.rate_limit.with_label_values(&[provider.label(), of]).get();
    Ok(RouteStatus {
        route: admin.store.route(provider).await?,
        local_status: admin.health.report().details.get(&local_status_of(provider)).cloned(),
        rate: rate("deployment"),
        rate_here: rate("instance"),
    })
}

/// Sums up the parts of one provider, in their order; `None` = not begun.
fn sum_up(spec: &Spec, parts: &[Option<Progress>]) -> BroadcastStatus {
    let mut status = BroadcastStatus {
        parts: u32::try_from(parts.len()).unwrap_or(u32::MAX),
        begun: 0,
        done: 0,
        counts: Counts::default(),
        left: None,
    };
    let mut behind = 0.0;
    for (index, progress) in (0..).zip(parts) {
        let Some(progress) = progress else { continue };
        status.begun += 1;
        status.done += u32::from(progress.done);
        status.counts += progress.counts;
        behind += match (&spec.audience, progress.cursor) {
            _ if progress.done => 1.0,
            (Audience::Everybody { slices, .. }, Some(cursor)) => {
                behind_cursor(Slice { index, of: *slices }, cursor.0)
            }
            _ => 0.0,
        };
    }
    let share = behind / f64::from(status.parts.max(1));
    if share > 0.0 {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "an estimate, and not negative"
        )]
        let left = (status.counts.total() as f64 * (1.0 - share).max(0.0) / share).round() as u64;
        status.left = Some(left);
    }
    status
}

/// The share of a slice that lies behind a cursor, from 0 to 1.
fn behind_cursor(slice: Slice, cursor: i64) -> f64 {
    let (low, high) = slice.bounds();
    #[expect(clippy::cast_precision_loss, reason = "an estimate")]
    let length = |from: i64, to: i64| to as f64 - from as f64;
    if high > low { (length(low, cursor) / length(low, high)).clamp(0.0, 1.0) } else { 1.0 }
}

/// Why nothing of it is sent, as far as this instance knows. `push_disabled` is the detail of `push.enabled`.
fn obstacles(
    spec: &Spec,
    status: &RouteStatus,
    push_disabled: Option<&String>,
    now: Timestamp,
) -> Vec<String> {
    let mut obstacles = Vec::new();
    if spec.notification.expires_at <= now {
        obstacles.push("it has expired: what is left ends as expired".to_owned());
    }
    let route = &status.route;
    if !route.state.sends() {
        obstacles.push(format!(
            "the route is {} since {} by {}: {}",
            route.state.label(),
            route.since,
            route.set_by,
            route.detail
        ));
    }
    obstacles.extend(push_disabled.cloned());
    obstacles.extend(status.local_status.clone());
    if status.rate_here <= 0.0 && status.local_status.is_none() {
        obstacles.push("this instance sends nothing through it: it owns none of its partitions".to_owned());
    }
    obstacles
}

/// When it is done, if the deployment sends nothing else through the route.
fn ends_at(status: &BroadcastStatus, route: &RouteStatus, now: Timestamp) -> Option<Timestamp> {
    if route.rate <= 0.0 {
        return None;
    }
    #[expect(clippy::cast_precision_loss, reason = "an estimate")]
    let seconds = status.left? as f64 / route.rate;
    now.checked_add(Duration::try_from_secs_f64(seconds).ok()?).ok()
}

impl BroadcastStatus {
    fn to_json(&self, obstacles: &[String], ends_at: Option<Timestamp>) -> Value {
        let mut json = json!({
            "parts": self.parts,
            "begun": self.begun,
            "done": self.done,
            "left": self.left,
            "endsAt": ends_at,
            "standsStill": obstacles,
        });
        for outcome in Outcome::ALL {
            json[outcome.label()] = self.counts.of(outcome).into();
        }
        json
    }
}

fn label(state: Option<&BroadcastState>) -> &'static str {
    match state {
        None => "unknown",
        Some(BroadcastState::Planned) => "planned",
        Some(BroadcastState::Stopped { .. }) => "stopped",
        Some(BroadcastState::Done) => "done",
    }
}

#[cfg(test)]
mod tests;
