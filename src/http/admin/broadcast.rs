//! What an operator may ask of a broadcast, and its end by hand.
//!
//! How many messages are left nobody knows before they are read. It is guessed from how much of the token
//! ring is behind the cursors, for tokens lie evenly on it.

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
        BroadcastId, BroadcastState, Counts, Outcome, PartId, PostId, Progress, ProviderId, Slice, Timestamp,
    },
    events::broadcast_specs::{self, Audience, Spec},
    store::{Broadcasts, Registry, RouteRow, Routes},
};

/// Parts that are asked about at once.
const PARTS_AT_ONCE: usize = 32;

/// How one provider's parts of a broadcast are.
#[derive(Debug, PartialEq)]
struct BroadcastStatus {
    parts: u32,
    begun: u32,
    done: u32,
    counts: Counts,
    /// Messages, if that can be guessed.
    left: Option<u64>,
}

/// What this instance knows of a provider's route.
struct PartsStillSending {
    route: RouteRow,
    /// What holds it here although it is open.
    local_status: Option<String>,
    /// Messages per second: of the deployment (0 = no limit), and what falls to this instance.
    rate: f64,
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
    admin.store.stop(&id, "cancelled").await?;
    tracing::info!(broadcast.id = %id, "Broadcast {id} is cancelled by an operator's wish");
    let (plan, state) = admin.store.broadcast(&id).await?;
    Ok(Json(json!({ "broadcast": id.as_str(), "state": label(state.as_ref()), "planned": plan.is_some() })))
}

pub(super) async fn inspect<S: Registry + Routes + Broadcasts>(
    State(admin): State<Admin<S>>,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let id = broadcast_of(&id);
    let (plan, state) = admin.store.broadcast(&id).await?;
    let mut told = json!({ "broadcast": id.as_str(), "state": label(state.as_ref()) });
    if let Some(BroadcastState::Stopped { reason }) = &state {
        told["reason"] = json!(reason);
    }
    let Some(plan) = plan else {
        return if state.is_some() {
            Ok(Json(told))
        } else {
            Err(ApiError::NotFound(format!("there was never a broadcast {id}")))
        };
    };
    let spec = broadcast_specs::read(&plan.spec)
        .map_err(|unreadable| ApiError::Conflict(format!("its plan can't be read: {}", unreadable)))?;
    let now = Timestamp::now();
    told["title"] = json!(spec.notification.title);
    told["expiresAt"] = json!(spec.notification.expires_at);
    let of_each = plan.parts / u32::try_from(spec.providers.len()).unwrap_or(1).max(1);
    for &provider in &spec.providers {
        let parts = (0..of_each).map(|part| PartId { broadcast: id.clone(), provider, part });
        let progress = parts.map(|part| {
            let store = &admin.store;
            async move { store.progress(&part).await }
        });
        let progress: Vec<_> = stream::iter(progress).buffered(PARTS_AT_ONCE).try_collect().await?;
        let standing = standing(&spec, &progress);
        let sending = sending(&admin, provider).await?;
        let is_open = state == Some(BroadcastState::Planned) && standing.done < standing.parts;
        let holds = if is_open {
            holds(&spec, &sending, admin.health.report().details.get("push"), now)
        } else {
            Vec::new()
        };
        let ends_at = if is_open && holds.is_empty() { ends_at(&standing, &sending, now) } else { None };
        told["providers"][provider.label()] = shown(&standing, &holds, ends_at);
    }
    Ok(Json(told))
}

/// A broadcast's id, or the post's that it is for.
fn broadcast_of(id: &str) -> BroadcastId {
    if id.starts_with("post:") { BroadcastId::new(id) } else { BroadcastId::of_post(&PostId::new(id)) }
}

async fn sending<S: Routes>(admin: &Admin<S>, provider: ProviderId) -> Result<PartsStillSending, ApiError> {
    let rate = |of| admin.metrics.rate_limit.with_label_values(&[provider.label(), of]).get();
    Ok(PartsStillSending {
        route: admin.store.route(provider).await?,
        local_status: admin.health.report().details.get(&local_status_of(provider)).cloned(),
        rate: rate("deployment"),
        rate_here: rate("instance"),
    })
}

/// Sums up the parts of one provider, in their order; `None` = not begun.
fn standing(spec: &Spec, parts: &[Option<Progress>]) -> BroadcastStatus {
    let mut standing = BroadcastStatus {
        parts: u32::try_from(parts.len()).unwrap_or(u32::MAX),
        begun: 0,
        done: 0,
        counts: Counts::default(),
        left: None,
    };
    let mut behind = 0.0;
    for (index, progress) in (0..).zip(parts) {
        let Some(progress) = progress else { continue };
        standing.begun += 1;
        standing.done += u32::from(progress.done);
        standing.counts += progress.counts;
        behind += match (&spec.audience, progress.cursor) {
            _ if progress.done => 1.0,
            (Audience::Everybody { slices, .. }, Some(cursor)) => {
                behind_cursor(Slice { index, of: *slices }, cursor.0)
            }
            _ => 0.0,
        };
    }
    let part = behind / f64::from(standing.parts.max(1));
    if part > 0.0 {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "a guess, and not negative"
        )]
        let left = (standing.counts.total() as f64 * (1.0 - part).max(0.0) / part).round() as u64;
        standing.left = Some(left);
    }
    standing
}

/// Which part of a slice lies behind a cursor, from 0 to 1.
fn behind_cursor(slice: Slice, cursor: i64) -> f64 {
    let (low, high) = slice.bounds();
    #[expect(clippy::cast_precision_loss, reason = "a guess")]
    let [low, high, cursor] = [low, high, cursor].map(|position| position as f64);
    if high > low { ((cursor - low) / (high - low)).clamp(0.0, 1.0) } else { 1.0 }
}

/// Why nothing of it is sent, as far as this instance knows.
fn holds(spec: &Spec, sending: &PartsStillSending, switch: Option<&String>, now: Timestamp) -> Vec<String> {
    let mut holds = Vec::new();
    if spec.notification.expires_at <= now {
        holds.push("its life is over: what is left expires unsent".to_owned());
    }
    let route = &sending.route;
    if !route.state.sends() {
        holds.push(format!(
            "the route is {} since {} by {}: {}",
            route.state.label(),
            route.since,
            route.set_by,
            route.detail
        ));
    }
    holds.extend(switch.cloned());
    holds.extend(sending.local_status.clone());
    if sending.rate_here <= 0.0 && sending.local_status.is_none() {
        holds.push("this instance sends nothing through it: it owns none of its partitions".to_owned());
    }
    holds
}

/// When it is done if the whole deployment sends nothing else.
fn ends_at(standing: &BroadcastStatus, sending: &PartsStillSending, now: Timestamp) -> Option<Timestamp> {
    if sending.rate <= 0.0 {
        return None;
    }
    #[expect(clippy::cast_precision_loss, reason = "a guess")]
    let seconds = standing.left? as f64 / sending.rate;
    now.checked_add(Duration::try_from_secs_f64(seconds).ok()?).ok()
}

fn shown(standing: &BroadcastStatus, holds: &[String], ends_at: Option<Timestamp>) -> Value {
    let mut shown = json!({
        "parts": standing.parts, "begun": standing.begun, "done": standing.done, "left": standing.left, "endsAt": ends_at, "standsStill": holds,
    });
    for outcome in Outcome::ALL {
        shown[outcome.label()] = standing.counts.of(outcome).into();
    }
    shown
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
