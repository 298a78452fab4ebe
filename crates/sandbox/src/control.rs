//! The routes of the fakes, and the control API under `/sandbox/`: faults, statistics, messages.

use std::sync::Arc;

use axum::{
    Json, Router,
    body::Bytes,
    extract::{Query, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde::Deserialize as _;

use super::{Faults, FaultsHandle, Shared, Statistics, TakenMessage, expo, fcm, lock, oauth};

pub(super) fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/--/api/v2/push/send", post(expo::send))
        .route("/--/api/v2/push/getReceipts", post(expo::receipts))
        .route("/v1/projects/{project}/messages:send", post(fcm::send))
        .route("/token", post(oauth::token))
        .route("/sandbox/faults", get(faults).put(set_faults))
        .route("/sandbox/statistics", get(statistics))
        .route("/sandbox/messages", get(messages))
        .route("/sandbox/reset", post(reset))
        .route("/sandbox/revoke-credentials", post(revoke_credentials))
        .route("/sandbox/service-account", get(service_account))
        .with_state(shared)
}

async fn faults(State(shared): State<Arc<Shared>>) -> Json<Faults> {
    Json(FaultsHandle(shared).get())
}

async fn set_faults(State(shared): State<Arc<Shared>>, body: Bytes) -> Response {
    match Faults::deserialize(&mut serde_json::Deserializer::from_slice(&body)) {
        Ok(faults) => {
            let handle = FaultsHandle(shared);
            handle.set(faults);
            Json(handle.get()).into_response()
        }
        Err(err) => (StatusCode::BAD_REQUEST, format!("invalid faults: {err}\n")).into_response(),
    }
}

async fn statistics(State(shared): State<Arc<Shared>>) -> Json<Statistics> {
    Json(shared.statistics())
}

async fn messages(
    State(shared): State<Arc<Shared>>,
    Query(query): Query<Vec<(String, String)>>,
) -> Json<Vec<TakenMessage>> {
    let token = query.into_iter().find_map(|(name, value)| (name == "token").then_some(value));
    let wanted = |message: &&TakenMessage| token.as_ref().is_none_or(|token| message.token == *token);
    Json(lock(&shared.remembered).iter().filter(wanted).cloned().collect())
}

async fn reset(State(shared): State<Arc<Shared>>) -> StatusCode {
    shared.reset();
    StatusCode::NO_CONTENT
}

async fn revoke_credentials(State(shared): State<Arc<Shared>>) -> StatusCode {
    shared.oauth.revoke();
    StatusCode::NO_CONTENT
}

async fn service_account(State(shared): State<Arc<Shared>>) -> impl IntoResponse {
    let account = shared.oauth.service_account(&shared.options.project_id, &shared.url);
    ([(header::CONTENT_TYPE, "application/json")], account)
}
