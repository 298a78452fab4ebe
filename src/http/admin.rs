//! The admin listener: metrics, health, and the endpoints of the commands `inspect`, `cancel`, `pause`,
//! `resume` and `release`.
//!
//! It has no authentication; by default it listens on the loopback address only (`http.admin_listen`).
//! **Invariant:** an answer contains a token's hash, never the token.

mod broadcast;
mod control;
mod dose;

use std::{future::IntoFuture, io, sync::Arc};

use axum::{
    Json, Router,
    extract::{Path, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::{Health, HealthReport};
use crate::{
    domain::{Registration, Token, TokenHash, UserId},
    metrics::Metrics,
    store::{Broadcasts, Doses, Registry, Routes, StoreError, TokenRow},
};

/// What the endpoints read and change.
#[derive(Clone, Debug)]
pub struct Admin<S> {
    /// For `/metrics`; the rates also for `/inspect/broadcast`.
    pub metrics: Arc<Metrics>,
    /// For `/ready`; its details also for `/inspect/route` and `/inspect/broadcast`.
    pub health: Health,
    /// For `/inspect`, `/broadcast` and `/route`.
    pub store: S,
}

/// Serves until `stop`, and finishes the requests that are open then.
///
/// # Errors
/// The listener failed.
pub async fn serve<S: Registry + Routes + Broadcasts + Doses>(
    listener: TcpListener,
    admin: Admin<S>,
    stop: CancellationToken,
) -> io::Result<()> {
    let stopped = async move { stop.cancelled().await };
    axum::serve(listener, routes(admin)).with_graceful_shutdown(stopped).into_future().await
}

/// Every endpoint of this listener.
fn routes<S: Registry + Routes + Broadcasts + Doses>(admin: Admin<S>) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/live", get(async || "alive\n"))
        .route("/ready", get(ready))
        .route("/inspect/token/{token}", get(inspect_token))
        .route("/inspect/user/{user}", get(inspect_user))
        .route("/inspect/route/{provider}", get(control::inspect_route))
        .route("/inspect/broadcast/{id}", get(broadcast::inspect))
        .route("/inspect/dose/{profile}/{regimen}/{time}", get(dose::inspect))
        .route("/broadcast/{id}/cancel", post(broadcast::cancel))
        .route("/route/{provider}/{action}", post(control::set_route))
        .with_state(admin)
}

async fn metrics<S: Registry + Routes + Broadcasts>(State(admin): State<Admin<S>>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], admin.metrics.exposition())
}

async fn ready<S: Registry + Routes + Broadcasts>(State(admin): State<Admin<S>>) -> impl IntoResponse {
    let report = admin.health.report();
    let status = if report.is_ready() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(to_json(&report)))
}

/// `{token}` is a token, or its hash as in the logs.
async fn inspect_token<S: Registry + Routes + Broadcasts>(
    State(admin): State<Admin<S>>,
    Path(text): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let row = match (TokenHash::parse(&text), Token::parse(&text)) {
        (Some(hash), _) => admin.store.inspect_hash(hash).await?,
        (None, Ok(token)) => admin.store.inspect(&token).await?,
        (None, Err(_)) => return Err(ApiError::NeitherTokenNorHash),
    };
    row.map(|row| Json(token_json(&row))).ok_or(ApiError::Unknown)
}

async fn inspect_user<S: Registry + Routes + Broadcasts>(
    State(admin): State<Admin<S>>,
    Path(user): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let registrations = admin.store.tokens_of(&UserId::new(user.clone())).await?;
    let tokens: Vec<_> = registrations.iter().map(registration_json).collect();
    Ok(Json(json!({ "user": user, "tokens": tokens })))
}

/// Why a request failed. Its status follows from it.
#[derive(Debug)]
enum ApiError {
    NeitherTokenNorHash,
    Unknown,
    NotFound(String),
    BadRequest(String),
    Conflict(String),
    Store(StoreError),
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let (status, error) = match self {
            Self::NeitherTokenNorHash => (
                StatusCode::BAD_REQUEST,
                "neither a token nor a token's hash (12 hexadecimal digits)".to_owned(),
            ),
            Self::Unknown => (StatusCode::NOT_FOUND, "no such token was ever registered".to_owned()),
            Self::NotFound(what) => (StatusCode::NOT_FOUND, what),
            Self::BadRequest(why) => (StatusCode::BAD_REQUEST, why),
            Self::Conflict(why) => (StatusCode::CONFLICT, why),
            Self::Store(error) => (StatusCode::SERVICE_UNAVAILABLE, error.to_string()),
        };
        (status, Json(json!({ "error": error }))).into_response()
    }
}

fn to_json(report: &HealthReport) -> Value {
    json!({
        "ready": report.is_ready(),
        "store": report.store.as_deref().unwrap_or("answers"),
        "kafka": report.kafka.as_deref().unwrap_or("answers"),
        "stages": report.stages,
        "details": report.details,
    })
}

fn token_json(row: &TokenRow) -> Value {
    let mut answer = match &row.registration {
        Some(active) => registration_json(active),
        None => json!({ "token": row.token.hash().to_string(), "kind": row.token.kind().label() }),
    };
    answer["active"] = row.registration.is_some().into();
    answer["version"] = row.version.as_i64().into();
    answer["reason"] = json!(row.reason);
    answer["createdAt"] = json!(row.created_at);
    answer["seenAt"] = json!(row.seen_at);
    answer
}

fn registration_json(registration: &Registration) -> Value {
    let Registration { token, version, user, platform, device, device_info } = registration;
    json!({
        "token": token.hash().to_string(),
        "kind": token.kind().label(),
        "user": user.as_ref().map(UserId::as_str),
        "platform": platform.map(|platform| platform.label()),
        "device": device.as_ref().map(|device| device.as_str()),
        "deviceInfo": device_info.as_deref().and_then(|text| serde_json::from_str::<Value>(text).ok()),
        "version": version.as_i64(),
    })
}

#[cfg(test)]
mod tests;
