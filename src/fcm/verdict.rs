//! What an answer of FCM means: a table without side effects, which gets all it needs as arguments. Its tests
//! are rows.
//!
//! FCM's own error code decides before the HTTP status does: a 404 may be a dead token or a wrong project, a
//! 403 a token of another project or a missing permission. A token is dead only where FCM's own code is about
//! *that token*.

use std::time::Duration;

use super::wire::{Failure, SendResponse};
use crate::{
    dispatch::{Reply, Verdict, answer::redacted},
    domain::Token,
};

/// The one message under which `INVALID_ARGUMENT` is about the token.
const INVALID_TOKEN: &str = "The registration token is not a valid FCM registration token";

/// The parts of an answer that a verdict depends on.
pub(super) struct FcmAnswer<B> {
    /// HTTP status.
    pub status: u16,
    /// The wait that `Retry-After` asks for.
    pub retry_after: Option<Duration>,
    /// Unparsed.
    pub body: B,
}

/// The reply to a message to this token.
pub(super) fn reply<B: AsRef<[u8]>>(answer: &FcmAnswer<B>, token: &Token) -> Reply {
    let FcmAnswer { status, retry_after, .. } = *answer;
    let body = answer.body.as_ref();
    if (200..=299).contains(&status) {
        return match serde_json::from_slice::<SendResponse<'_>>(body) {
            Ok(_) => one(Verdict::Accepted { ticket: None }),
            Err(_) => Reply::Down { ambiguous: true, retry_after, why: describe(status, body, token) },
        };
    }
    let failure = Failure::parse(body);
    let code = failure.as_ref().and_then(Failure::fcm_code).unwrap_or_default();
    let why = failure.as_ref().map_or_else(
        || describe(status, body, token),
        |failure| format!("HTTP {status} {} {code}: {}", failure.status, redacted(&failure.message, [token])),
    );
    match (status, code) {
        // A token of another project can't be told from a dead one of ours; when there are many, the brake
        // stops the route.
        (_, "UNREGISTERED" | "SENDER_ID_MISMATCH") => one(Verdict::Dead { reason: code.to_owned() }),
        // The APNs key that is stored in Firebase is wrong: other platforms are not affected.
        (_, "THIRD_PARTY_AUTH_ERROR" | "APNS_AUTH_ERROR") => one(Verdict::CredentialsRefused { why }),
        (429, _) | (_, "QUOTA_EXCEEDED") => {
            if failure.as_ref().is_some_and(is_devices_quota) {
                one(Verdict::DeviceBusy { retry_after })
            } else {
                Reply::Throttled { retry_after }
            }
        }
        (408 | 500..=599, _) | (_, "UNAVAILABLE" | "INTERNAL") => {
            Reply::Down { ambiguous: true, retry_after, why }
        }
        (400, _) => match &failure {
            Some(failure) => bad_request(failure, code, why),
            // A proxy's HTML page: FCM itself answers in JSON.
            None => Reply::Down { ambiguous: true, retry_after, why },
        },
        // A bare 404 too: the path names a project that does not exist.
        (401 | 403, _) | (404, "") => Reply::CredentialsRefused { why },
        _ => Reply::Unrecognised { status, why },
    }
}

fn bad_request(failure: &Failure<'_>, code: &str, why: String) -> Reply {
    if code == "INVALID_ARGUMENT" && failure.message.trim_end_matches('.') == INVALID_TOKEN {
        return one(Verdict::Dead { reason: code.to_owned() });
    }
    let mut wrong = failure.wrong_fields().peekable();
    // A wrong field of the payload is wrong for every token; a wrong target for this message only.
    if wrong.peek().is_some() && wrong.any(|field| !matches!(field, "message.token" | "message.fid")) {
        return one(Verdict::PayloadRefused { why });
    }
    Reply::Refused { why }
}

/// Whether the exceeded quota is one device's. FCM has device, topic and project quotas and names the
/// exceeded one in `QuotaFailure`; a project's rate limit may come without.
fn is_devices_quota(failure: &Failure<'_>) -> bool {
    let mut quotas = failure.violated_quotas().peekable();
    quotas.peek().is_some()
        && quotas
            .all(|quota| quota.contains("device") || !(quota.contains("project") || quota.contains("topic")))
}

fn one(verdict: Verdict) -> Reply {
    Reply::Each(vec![verdict])
}

/// An answer for the log, without the token.
fn describe(status: u16, body: &[u8], token: &Token) -> String {
    format!("HTTP {status}: {}", redacted(&String::from_utf8_lossy(body), [token]))
}

#[cfg(test)]
mod tests;
