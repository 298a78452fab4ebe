//! What an operator may change in a running deployment: whether a provider's route sends.
//!
//! All instances follow the route's row in the store, so the command may go to any of them.

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

/// What an operator may do to a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RouteAction {
    /// Send nothing until it is resumed.
    Pause,
    /// Send again: after a pause, or after refused credentials have been corrected.
    Resume,
    /// Send again after the brake: the operator has looked at the dead tokens.
    Release,
}

/// Who makes a change, and why.
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
    let mut answer = to_json(provider, &admin.store.route(provider).await?);
    answer["here"] = json!(admin.health.report().details.get(&local_status_of(provider)));
    Ok(Json(answer))
}

pub(super) async fn set_route<S: Registry + Routes>(
    State(admin): State<Admin<S>>,
    Path((provider, action)): Path<(String, String)>,
    Json(change): Json<ChangeRequest>,
) -> Result<Json<Value>, ApiError> {
    let provider = provider_of(&provider)?;
    let action = RouteAction::from_label(&action)
        .ok_or_else(|| ApiError::BadRequest(format!("{action:?} is not pause, resume or release")))?;
    let now = admin.store.route(provider).await?;
    let state = next(provider, now.state, action).map_err(ApiError::Conflict)?;
    let route = RouteRow { state, since: Timestamp::now(), set_by: change.by, detail: change.why };
    admin.store.set_route(provider, &route).await?;
    tracing::info!(
        provider = %provider,
        set_by = route.set_by,
        "An operator has set the route of {provider} to {}",
        state.label()
    );
    Ok(Json(to_json(provider, &route)))
}

/// The state of a route after an action. The brake has an action of its own, so that a habitual `resume` does
/// not release it.
fn next(provider: ProviderId, state: RouteState, action: RouteAction) -> Result<RouteState, String> {
    match (state, action) {
        (RouteState::Running | RouteState::Released | RouteState::Paused, RouteAction::Pause) => {
            Ok(RouteState::Paused)
        }
        (RouteState::Halted | RouteState::Braked, RouteAction::Pause) => {
            Err(format!("the route of {provider} is {}: it sends nothing already", state.label()))
        }
        (RouteState::Braked, RouteAction::Resume) => Err(format!(
            "the route of {provider} is braked: look at its dead tokens first, then `pushcast release \
             {provider} brake`"
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
        .ok_or_else(|| ApiError::BadRequest(format!("{label:?} is not a provider: expo or fcm")))
}

fn to_json(provider: ProviderId, route: &RouteRow) -> Value {
    json!({
        "provider": provider.label(),
        "state": route.state.label(),
        "since": route.since,
        "setBy": route.set_by,
        "detail": route.detail,
    })
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
    fn a_braked_route_is_released_and_not_resumed() {
        let next = |state, action| next(ProviderId::Expo, state, action);
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
            "resuming does not undo a release"
        );
        assert!(next(RouteState::Running, RouteAction::Release).is_err());
        assert!(
            next(RouteState::Halted, RouteAction::Pause).is_err(),
            "a pause would hide why the route is closed"
        );
    }
}
