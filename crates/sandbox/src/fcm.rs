//! The fake FCM, HTTP v1.

use std::{sync::Arc, time::Duration};

use axum::{
    Extension,
    extract::{Path, Request, State},
    response::Response,
};
use serde_json::{Value, json};
use tokio::time::Instant;

use self::wire::{Envelope, PayloadError, Target};
use super::{
    Answer, FailureMode, Faults, Outage, Provider, Shared, TakenMessage, TokenFault,
    reply::{ConnectionReset, HttpReply, RequestArrival, read},
};

mod wire;

/// `POST /v1/projects/{project}/messages:send`
pub(super) async fn send(
    State(shared): State<Arc<Shared>>,
    Extension(reset): Extension<ConnectionReset>,
    Path(project): Path<String>,
    request: Request,
) -> Response {
    let (parts, body) = request.into_parts();
    let body = read(&parts.headers, body).await;
    let faults = shared.faults();
    let arrival = RequestArrival::new(parts);
    let reply = match &body {
        Ok(body) => FcmRequest { shared: &shared, faults: &faults, arrival: &arrival }.answer(&project, body),
        Err(status) => error(status.as_u16(), "INVALID_ARGUMENT", "The request body could not be read.", &[]),
    };
    shared.fcm.counts.replied(&reply);
    reply.send(faults.fcm.latency, &reset).await
}

struct FcmRequest<'a> {
    shared: &'a Shared,
    faults: &'a Faults,
    arrival: &'a RequestArrival,
}

impl FcmRequest<'_> {
    /// The checks, in this order: the credential, an outage, the project, the form, the rate limit. Then the
    /// token.
    fn answer(&self, project: &str, body: &[u8]) -> HttpReply {
        let counts = &self.shared.fcm.counts;
        let message = Envelope::parse(body);
        counts.arrived(u64::from(message.is_ok()), self.arrival.version, self.arrival.at);
        let answered = |answer, reply| {
            counts.answered(answer, u64::from(message.is_ok()));
            reply
        };

        if self.is_unauthenticated() {
            return answered(Answer::CredentialsRefused, unauthenticated());
        }
        if let Some(outage) = self.shared.fcm.outage.on_request(Instant::now()) {
            let taken = match &message {
                Ok(envelope) if outage.take_anyway => Some(self.take(project, envelope, body)),
                _ => None,
            };
            return answered(Answer::Down, self.outage_reply(&outage, taken));
        }
        if project != self.shared.options.project_id {
            // Without an FcmError: the answer is not about the token.
            return answered(
                Answer::CredentialsRefused,
                error(404, "NOT_FOUND", "Requested entity was not found.", &[]),
            );
        }
        let envelope = match &message {
            Ok(envelope) => envelope,
            Err(err) => return invalid_payload(err),
        };
        if !self.shared.fcm.admitted.admit(1, self.faults.fcm.rate_limit) {
            return answered(Answer::Throttled, self.project_quota());
        }
        self.answer_by_token(project, envelope, body)
    }

    fn answer_by_token(&self, project: &str, envelope: &Envelope, body: &[u8]) -> HttpReply {
        let (answer, reply) = match self.fault(&envelope.target) {
            Some(TokenFault::Dead) => (
                Answer::Dead,
                error(404, "NOT_FOUND", "Requested entity was not found.", &[fcm_error("UNREGISTERED")]),
            ),
            Some(TokenFault::Foreign) => (
                Answer::Foreign,
                error(403, "PERMISSION_DENIED", "SenderId mismatch", &[fcm_error("SENDER_ID_MISMATCH")]),
            ),
            Some(TokenFault::Busy) => (Answer::Busy, device_quota(&envelope.target)),
            Some(TokenFault::Malformed) => {
                let why = "The registration token is not a valid FCM registration token";
                (Answer::Invalid, error(400, "INVALID_ARGUMENT", why, &[fcm_error("INVALID_ARGUMENT")]))
            }
            Some(TokenFault::Uncredentialed) => {
                let why = "Auth error from APNS or Web Push Service";
                (
                    Answer::CredentialsRefused,
                    error(401, "UNAUTHENTICATED", why, &[fcm_error("THIRD_PARTY_AUTH_ERROR")]),
                )
            }
            Some(TokenFault::DeadOnReceipt) | None => {
                (Answer::Ok, HttpReply::json(200, self.take(project, envelope, body)))
            }
        };
        self.shared.fcm.counts.answered(answer, 1);
        reply
    }

    fn fault(&self, target: &Target) -> Option<TokenFault> {
        match target {
            Target::Device(token) if !wire::is_token(token) => Some(TokenFault::Malformed),
            Target::Device(token) => self.faults.fcm.fault_of(token),
            Target::Group(_) => None,
        }
    }

    /// Takes a message, unless it is `validate_only`, and writes the answer.
    fn take(&self, project: &str, envelope: &Envelope, body: &[u8]) -> String {
        if envelope.validate_only {
            return format!("{{\"name\":\"projects/{project}/messages/fake_message_id\"}}");
        }
        self.shared.fcm.counts.take(envelope.target.text(), envelope.identity);
        if self.shared.options.remember > 0 {
            self.remember(envelope, body);
        }
        let at = self.arrival.at.as_microsecond();
        let number = self.shared.reserve_numbers(1);
        format!("{{\"name\":\"projects/{project}/messages/0:{at}%{number:016x}\"}}")
    }

    fn remember(&self, envelope: &Envelope, body: &[u8]) {
        let request: Value = serde_json::from_slice(body).unwrap_or_default();
        let raw = &request["message"];
        // A text is in one of two fields: the one for all platforms or Android's own.
        let text =
            |paths: &[&str]| paths.iter().find_map(|path| raw.pointer(path)?.as_str()).map(str::to_owned);
        self.shared.remember(TakenMessage {
            provider: Provider::Fcm,
            token: envelope.target.text().to_owned(),
            title: text(&["/notification/title", "/android/notification/title"]),
            body: text(&["/notification/body", "/android/notification/body"]),
            data: raw["data"].clone(),
            tag: text(&["/android/notification/tag"]),
            collapse_id: text(&["/apns/headers/apns-collapse-id"]),
            raw: raw.clone(),
            headers: self.arrival.remembered_headers(),
            http_version: self.arrival.http_version().to_owned(),
            received_at: self.arrival.at,
        });
    }

    fn is_unauthenticated(&self) -> bool {
        let known = || self.arrival.bearer().is_some_and(|bearer| self.shared.oauth.accepts(bearer));
        self.faults.fcm.credentials_refused || (self.shared.options.require_bearer && !known())
    }

    /// `taken` is the body of a success, if the outage takes the message all the same.
    fn outage_reply(&self, outage: &Outage, taken: Option<String>) -> HttpReply {
        let reply = match (outage.manner, taken) {
            (FailureMode::Html, _) => HttpReply::html(outage.status),
            (FailureMode::Short, _) => HttpReply::json(200, "{}"),
            (FailureMode::Drip, Some(taken)) => HttpReply::json(200, taken),
            _ => self.error_with(outage.status),
        };
        let after = outage.retry_after.or(reply.retry_after);
        reply.retry_after(after).with_failure_mode(outage.manner)
    }

    fn error_with(&self, status: u16) -> HttpReply {
        match status {
            401 => unauthenticated(),
            403 => error(
                403,
                "PERMISSION_DENIED",
                "Permission 'cloudmessaging.messages.create' denied on resource.",
                &[],
            ),
            429 => self.project_quota(),
            500 => error(500, "INTERNAL", "Internal error encountered.", &[fcm_error("INTERNAL")]),
            503 => error(
                503,
                "UNAVAILABLE",
                "The service is currently unavailable.",
                &[fcm_error("UNAVAILABLE")],
            ),
            504 => error(504, "DEADLINE_EXCEEDED", "Deadline exceeded.", &[]),
            status => HttpReply::html(status),
        }
    }

    /// The answer beyond the project's rate: without an FcmError, as FCM's answers in production.
    fn project_quota(&self) -> HttpReply {
        let limit = self.faults.fcm.rate_limit.unwrap_or_default();
        let why = "Quota exceeded for quota metric 'Send requests' and limit 'Send requests per minute' \
                   of service 'fcm.googleapis.com' for consumer 'project_number:1234567890'.";
        let info = json!({
            "@type": "type.googleapis.com/google.rpc.ErrorInfo",
            "reason": "RATE_LIMIT_EXCEEDED",
            "domain": "googleapis.com",
            "metadata": {
                "consumer": "projects/1234567890",
                "quota_limit": "SendsPerMinutePerProject",
                "quota_limit_value": (u64::from(limit) * 60).to_string(),
                "quota_location": "global",
                "quota_metric": "fcm.googleapis.com/send_requests",
                "quota_unit": "1/min/{project}",
                "service": "fcm.googleapis.com",
            },
        });
        let help = json!({
            "@type": "type.googleapis.com/google.rpc.Help",
            "links": [{
                "description": "Request a higher quota limit.",
                "url": "https://cloud.google.com/docs/quotas/help/request_increase",
            }],
        });
        let after = self.faults.fcm.retry_after.unwrap_or(Duration::from_secs(1));
        error(429, "RESOURCE_EXHAUSTED", why, &[info, help]).retry_after(Some(after))
    }
}

/// The answer beyond the rate of one device.
fn device_quota(target: &Target) -> HttpReply {
    let violation = json!({
        "@type": "type.googleapis.com/google.rpc.QuotaFailure",
        "violations": [{
            "subject": format!("device:{}", target.text()),
            "description": "The rate of messages to this device is too high.",
        }],
    });
    error(
        429,
        "RESOURCE_EXHAUSTED",
        "Device message rate exceeded.",
        &[fcm_error("QUOTA_EXCEEDED"), violation],
    )
}

fn unauthenticated() -> HttpReply {
    let why = "Request had invalid authentication credentials. \
               Expected OAuth 2 access token, login cookie or other valid authentication credential. \
               See https://developers.google.com/identity/sign-in/web/devconsole-project.";
    let info = json!({
        "@type": "type.googleapis.com/google.rpc.ErrorInfo",
        "reason": "ACCESS_TOKEN_TYPE_UNSUPPORTED",
        "domain": "googleapis.com",
        "metadata": {
            "method": "google.firebase.fcm.v1.FcmService.SendMessage",
            "service": "fcm.googleapis.com",
        },
    });
    error(401, "UNAUTHENTICATED", why, &[info])
}

/// The answer to a payload that FCM refuses for any token.
fn invalid_payload(err: &PayloadError) -> HttpReply {
    let violation = json!({
        "@type": "type.googleapis.com/google.rpc.BadRequest",
        "fieldViolations": [{ "field": err.field, "description": err.why }],
    });
    let details = if err.by_fcm { vec![fcm_error("INVALID_ARGUMENT"), violation] } else { vec![violation] };
    error(400, "INVALID_ARGUMENT", &err.why, &details)
}

fn fcm_error(code: &str) -> Value {
    json!({ "@type": "type.googleapis.com/google.firebase.fcm.v1.FcmError", "errorCode": code })
}

fn error(code: u16, status: &str, message: &str, details: &[Value]) -> HttpReply {
    HttpReply::json(code, google_error(code, status, message, details).to_string())
}

/// The JSON that all of Google's errors have in common.
pub(super) fn google_error(code: u16, status: &str, message: &str, details: &[Value]) -> Value {
    let mut error = json!({ "code": code, "message": message, "status": status });
    if !details.is_empty() {
        error["details"] = details.into();
    }
    json!({ "error": error })
}
