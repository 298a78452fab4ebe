//! What an operator may change in a running deployment: whether a provider's route sends.
//!
//! The row in the store is every instance's, so it does not matter which one is told.

use axum::{
    Json,
    extract::{Path, State},
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{super::trouble_of, Admin, Refusal};
use crate::{
    domain::{ProviderId, Timestamp},
    store::{Registry, Route, RouteState, Routes},
};

/// What an operator asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wish {
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
pub(super) struct Said {
    by: String,
    why: String,
}

pub(super) async fn inspect_route<S: Registry + Routes>(
    State(admin): State<Admin<S>>,
    Path(provider): Path<String>,
) -> Result<Json<Value>, Refusal> {
    let provider = provider_of(&provider)?;
    let mut told = told(provider, &admin.store.route(provider).await?);
    told["here"] = json!(admin.health.report().details.get(&trouble_of(provider)));
    Ok(Json(told))
}

pub(super) async fn set_route<S: Registry + Routes>(
    State(admin): State<Admin<S>>,
    Path((provider, wish)): Path<(String, String)>,
    Json(said): Json<Said>,
) -> Result<Json<Value>, Refusal> {
    let provider = provider_of(&provider)?;
    let wish = Wish::from_label(&wish)
        .ok_or_else(|| Refusal::BadRequest(format!("{wish:?} is not pause, resume or release")))?;
    let now = admin.store.route(provider).await?;
    let state = next(provider, now.state, wish).map_err(Refusal::Conflict)?;
    let route = Route { state, since: Timestamp::now(), set_by: said.by, detail: said.why };
    admin.store.set_route(provider, &route).await?;
    tracing::info!(provider = %provider, set_by = route.set_by, "The route of {provider} is {} by an operator's wish", state.label());
    Ok(Json(told(provider, &route)))
}

/// What becomes of a route in `state`. The brake needs a word of its own, so that nobody releases it out of
/// habit.
fn next(provider: ProviderId, state: RouteState, wish: Wish) -> Result<RouteState, String> {
    match (state, wish) {
        (RouteState::Running | RouteState::Released | RouteState::Paused, Wish::Pause) => {
            Ok(RouteState::Paused)
        }
        (RouteState::Halted | RouteState::Braked, Wish::Pause) => {
            Err(format!("the route of {provider} is {}: it sends nothing already", state.label()))
        }
        (RouteState::Braked, Wish::Resume) => Err(format!(
            "the route of {provider} is braked: look at its dead tokens first, then `pushcast release {provider} brake`"
        )),
        (RouteState::Released, Wish::Resume) | (RouteState::Braked, Wish::Release) => {
            Ok(RouteState::Released)
        }
        (_, Wish::Resume) => Ok(RouteState::Running),
        (_, Wish::Release) => Err(format!("the route of {provider} is {}, not braked", state.label())),
    }
}

fn provider_of(label: &str) -> Result<ProviderId, Refusal> {
    ProviderId::from_label(label)
        .ok_or_else(|| Refusal::BadRequest(format!("{label:?} is no provider; there are expo and fcm")))
}

fn told(provider: ProviderId, route: &Route) -> Value {
    json!({ "provider": provider.label(), "state": route.state.label(), "since": route.since, "setBy": route.set_by, "detail": route.detail })
}

impl Wish {
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
        assert_eq!(next(RouteState::Running, Wish::Pause), Ok(RouteState::Paused));
        assert_eq!(next(RouteState::Paused, Wish::Resume), Ok(RouteState::Running));
        assert_eq!(next(RouteState::Halted, Wish::Resume), Ok(RouteState::Running));
        assert!(next(RouteState::Braked, Wish::Resume).unwrap_err().contains("pushcast release expo brake"));
        assert_eq!(next(RouteState::Braked, Wish::Release), Ok(RouteState::Released));
        assert_eq!(
            next(RouteState::Released, Wish::Resume),
            Ok(RouteState::Released),
            "a release is not taken back by the way"
        );
        assert!(next(RouteState::Running, Wish::Release).is_err());
        assert!(
            next(RouteState::Halted, Wish::Pause).is_err(),
            "a pause would hide why the route stands still"
        );
    }
}
