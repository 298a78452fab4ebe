//! What an operator may change in a running deployment: whether a provider's route sends.
//!
//! The row in the store is every instance's, so it does not matter which one is told.

use axum::{
    Json,
    extract::{Path, State},
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{super::local_status_of, Admin, ApiError};
use crate::{
    domain::{ProviderId, Timestamp},
    store::{Registry, RouteRow, RouteState, Routes},
};

/// What an operator asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RouteAction {
    /// Send nothing until somebody resumes.
    Pause,
    /// Send again: after a pause, or when refused credentials have been mended.
    Resume,
    /// Send again after the brake: somebody has looked at the dead tokens.
    Release,
}

/// Who wishes it, and why.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct ChangeRequest {
    by: String,
    why: String,
}

pub(super) async fn inspect_route<S: Registry + Routes>(
    State(admin): State<Admin<S>>,
    Path(provider): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let provider = provider_of(&provider)?;
    let mut told = to_json(provider, &admin.store.route(provider).await?);
    told["here"] = json!(admin.health.report().details.get(&local_status_of(provider)));
    Ok(Json(told))
}

pub(super) async fn set_route<S: Registry + Routes>(
    State(admin): State<Admin<S>>,
    Path((provider, wish)): Path<(String, String)>,
    Json(said): Json<ChangeRequest>,
) -> Result<Json<Value>, ApiError> {
    let provider = provider_of(&provider)?;
    let wish = RouteAction::from_label(&wish)
        .ok_or_else(|| ApiError::BadRequest(format!("{wish:?} is not pause, resume or release")))?;
    let now = admin.store.route(provider).await?;
    let state = next(provider, now.state, wish).map_err(ApiError::Conflict)?;
    let route = RouteRow { state, since: Timestamp::now(), set_by: said.by, detail: said.why };
    admin.store.set_route(provider, &route).await?;
    tracing::info!(provider = %provider, set_by = route.set_by, "The route of {provider} is {} by an operator's wish", state.label());
    Ok(Json(to_json(provider, &route)))
}

/// What becomes of a route in `state`. The brake needs a word of its own, so that nobody releases it out of
/// habit.
fn next(provider: ProviderId, state: RouteState, wish: RouteAction) -> Result<RouteState, String> {
    match (state, wish) {
        (RouteState::Running | RouteState::Released | RouteState::Paused, RouteAction::Pause) => {
            Ok(RouteState::Paused)
        }
        (RouteState::Halted | RouteState::Braked, RouteAction::Pause) => {
            Err(format!("the route of {provider} is {}: it sends nothing already", state.label()))
        }
        (RouteState::Braked, RouteAction::Resume) => Err(format!(
            "the route of {provider} is braked: look at its dead tokens first, then `pushcast release {provider} brake`"
        )),
        (RouteState::Released, RouteAction::Resume) | (RouteState::Braked, RouteAction::Release) => {
            Ok(RouteState::Released)
        }
        (_, RouteAction::Resume) => Ok(RouteState::Running),
        (_, RouteAction::Release) => Err(format!("the route of {provider} is {}, not braked", state.label())),
    }
}

fn provider_of(label: &str) -> Result<ProviderId, ApiError> {
    ProviderId::from_label(label)
        .ok_or_else(|| ApiError::BadRequest(format!("{label:?} is no provider; there are expo and fcm")))
}

fn to_json(provider: ProviderId, route: &RouteRow) -> Value {
    json!({ "provider": provider.label(), "state": route.state.label(), "since": route.since, "setBy": route.set_by, "detail": route.detail })
}

impl RouteAction {
    fn from_label(label: &str) -> Option<Self> {
        match label {
            "pause" => Some(Self::Pause),
            "resume" => Some(Self::Resume),
            "release" => Some(Self::Release),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_brake_is_not_resumed_by_the_way() {
        let next = |state, wish| next(ProviderId::Expo, state, wish);
        assert_eq!(next(RouteState::Running, RouteAction::Pause), Ok(RouteState::Paused));
        assert_eq!(next(RouteState::Paused, RouteAction::Resume), Ok(RouteState::Running));
        assert_eq!(next(RouteState::Halted, RouteAction::Resume), Ok(RouteState::Running));
        assert!(
            next(RouteState::Braked, RouteAction::Resume)
                .unwrap_err()
                .contains("pushcast release expo brake")
        );
        assert_eq!(next(RouteState::Braked, RouteAction::Release), Ok(RouteState::Released));
        assert_eq!(
            next(RouteState::Released, RouteAction::Resume),
            Ok(RouteState::Released),
            "a release is not taken back by the way"
        );
        assert!(next(RouteState::Running, RouteAction::Release).is_err());
        assert!(
            next(RouteState::Halted, RouteAction::Pause).is_err(),
            "a pause would hide why the route stands still"
        );
    }
}
