//! The fake Expo.

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    Extension,
    extract::{Request, State},
    http::StatusCode,
    response::Response,
};
use jiff::Timestamp;
use serde_json::json;
use tokio::time::Instant;

use self::{
    ticket::{ReceiptStatus, TicketId},
    wire::Batch,
};
use super::{
    Answer, FailureMode, Faults, Outage, Provider, ProviderFaults, Shared, TakenMessage, TokenFault, lock,
    reply::{ConnectionReset, HttpReply, RequestArrival, read},
};

mod ticket;
mod wire;

const MESSAGES_MAX: usize = 100;
const RECEIPTS_MAX: usize = 1000;
const PAYLOAD_MAX: usize = 4096;

/// `POST /--/api/v2/push/send`
pub(super) async fn send(
    State(shared): State<Arc<Shared>>,
    Extension(reset): Extension<ConnectionReset>,
    request: Request,
) -> Response {
    let (parts, body) = request.into_parts();
    let body = read(&parts.headers, body).await;
    let faults = shared.faults();
    let arrival = RequestArrival::new(parts);
    let reply = match &body {
        Ok(body) => ExpoRequest { shared: &shared, faults: &faults.expo, arrival: &arrival }.answer(body),
        Err(status) => unreadable(*status),
    };
    shared.expo.counts.replied(&reply);
    reply.send(faults.expo.latency, &reset).await
}

/// `POST /--/api/v2/push/getReceipts`
pub(super) async fn receipts(
    State(shared): State<Arc<Shared>>,
    Extension(reset): Extension<ConnectionReset>,
    request: Request,
) -> Response {
    let (parts, body) = request.into_parts();
    let body = read(&parts.headers, body).await;
    let faults = shared.faults();
    let arrival = RequestArrival::new(parts);
    let reply = match &body {
        Ok(body) => answer_receipts(&shared, &faults, &arrival, body),
        Err(status) => unreadable(*status),
    };
    reply.send(faults.expo.latency, &reset).await
}

struct ExpoRequest<'a> {
    shared: &'a Shared,
    faults: &'a ProviderFaults,
    arrival: &'a RequestArrival,
}

impl ExpoRequest<'_> {
    /// The checks, in this order: the credential, an outage, the form, the rate limit, one project for the
    /// whole request. Then each message on its own.
    fn answer(&self, body: &[u8]) -> HttpReply {
        let counts = &self.shared.expo.counts;
        let batch = Batch::parse(body);
        let messages = batch.as_ref().map_or(0, Batch::len);
        let answered = |answer, reply| {
            counts.answered(answer, messages as u64);
            reply
        };
        counts.arrived(messages as u64, self.arrival.version, self.arrival.at);

        if unauthorised(self.shared, self.faults, self.arrival) {
            return answered(Answer::CredentialsRefused, refused_credentials());
        }
        if let Some(outage) = self.shared.expo.outage.on_request(Instant::now()) {
            let taken = match &batch {
                Ok(batch) if outage.take_anyway => {
                    Some(self.tickets(batch, &self.token_faults(batch), body).body)
                }
                _ => None,
            };
            return answered(Answer::Down, outage_reply(&outage, taken));
        }
        let batch = match &batch {
            Ok(batch) => batch,
            Err(why) => return error(400, "VALIDATION_ERROR", why, None),
        };
        if messages > MESSAGES_MAX {
            let why = format!(
                "Cannot send more than {MESSAGES_MAX} push notifications in a single request; got {messages}."
            );
            return answered(Answer::Invalid, error(400, "PUSH_TOO_MANY_NOTIFICATIONS", &why, None));
        }
        let token_faults = self.token_faults(batch);
        let malformed = |(token, fault): &(&str, &Option<TokenFault>)| {
            !wire::is_token(token) || **fault == Some(TokenFault::Malformed)
        };
        if let Some((token, _)) = batch.tokens().zip(&token_faults).find(malformed) {
            return answered(
                Answer::Invalid,
                error(400, "VALIDATION_ERROR", &format!("\"{token}\" is not a valid Expo push token"), None),
            );
        }
        if !self.shared.expo.admitted.admit(messages as u64, self.faults.rate_limit) {
            return answered(Answer::Throttled, rate_limited(self.faults));
        }
        if let Some(reply) = several_projects(batch, &token_faults) {
            return answered(Answer::Foreign, reply);
        }
        let tickets = self.tickets(batch, &token_faults, body);
        counts.answered(Answer::Ok, tickets.taken);
        counts.answered(Answer::Dead, tickets.dead);
        HttpReply::json(200, tickets.body)
    }

    /// The fault of each token, in the order of the tokens.
    fn token_faults(&self, batch: &Batch) -> Vec<Option<TokenFault>> {
        batch.tokens().map(|token| self.faults.fault_of(token)).collect()
    }

    /// Writes a ticket for each message, and counts and keeps those that are taken.
    fn tickets(&self, batch: &Batch, token_faults: &[Option<TokenFault>], body: &[u8]) -> Tickets {
        let mut tickets = Tickets { body: Vec::with_capacity(32 + 64 * batch.len()), taken: 0, dead: 0 };
        let answer = &mut tickets.body;
        let (open, close) = if batch.is_lone() { ("{\"data\":", "}") } else { ("{\"data\":[", "]}") };
        answer.extend_from_slice(open.as_bytes());
        let at_ms = self.arrival.at.as_millisecond().unsigned_abs();
        let first = self.shared.reserve_numbers(batch.len() as u64);
        let messages =
            batch.messages().enumerate().map(|(index, message)| (index, message, message.identity()));
        let each = messages.flat_map(|(index, message, identity)| {
            message.to.iter().map(move |token| (index, message, identity, token))
        });
        for (((index, message, identity, token), fault), sequence) in each.zip(token_faults).zip(first..) {
            if sequence > first {
                answer.push(b',');
            }
            let receipt = match fault {
                Some(TokenFault::Dead) => {
                    tickets.dead += 1;
                    answer.extend_from_slice(dead_ticket(token).as_bytes());
                    continue;
                }
                Some(TokenFault::DeadOnReceipt) => ReceiptStatus::DeviceNotRegistered,
                Some(TokenFault::Busy) => ReceiptStatus::MessageRateExceeded,
                Some(TokenFault::Uncredentialed) => ReceiptStatus::InvalidCredentials,
                _ if message.payload() > PAYLOAD_MAX => ReceiptStatus::MessageTooBig,
                _ => ReceiptStatus::Ok,
            };
            tickets.taken += 1;
            answer.extend_from_slice(b"{\"status\":\"ok\",\"id\":\"");
            answer.extend_from_slice(&TicketId { at_ms, receipt, sequence }.to_uuid());
            answer.extend_from_slice(b"\"}");
            self.shared.expo.counts.take(token, identity);
            if self.shared.options.remember > 0 {
                self.remember(message, token, wire::nth(body, index));
            }
        }
        answer.extend_from_slice(close.as_bytes());
        tickets
    }

    fn remember(&self, message: &wire::Message, token: &str, raw: serde_json::Value) {
        self.shared.remember(TakenMessage {
            provider: Provider::Expo,
            token: token.to_owned(),
            title: message.title.as_deref().map(str::to_owned),
            body: message.body.as_deref().map(str::to_owned),
            data: raw.get("data").cloned().unwrap_or_default(),
            tag: message.tag.as_deref().map(str::to_owned),
            collapse_id: message.collapse_id.as_deref().map(str::to_owned),
            raw,
            headers: self.arrival.remembered_headers(),
            http_version: self.arrival.http_version().to_owned(),
            received_at: self.arrival.at,
        });
    }
}

/// The answer to a request, and how many of its messages were taken or had a dead token.
struct Tickets {
    body: Vec<u8>,
    taken: u64,
    dead: u64,
}

/// The error for a request whose tokens are of two projects. A request of foreign tokens only is valid: it is
/// for their project.
fn several_projects(batch: &Batch, token_faults: &[Option<TokenFault>]) -> Option<HttpReply> {
    let is_foreign = |fault: &Option<TokenFault>| *fault == Some(TokenFault::Foreign);
    let foreign = token_faults.iter().filter(|fault| is_foreign(fault)).count();
    if foreign == 0 || foreign == token_faults.len() {
        return None;
    }
    let mut projects = BTreeMap::<_, Vec<_>>::new();
    for (token, fault) in batch.tokens().zip(token_faults) {
        let project = if is_foreign(fault) { "@other/app" } else { "@sandbox/app" };
        projects.entry(project).or_default().push(token);
    }
    let why = "All push notification messages in the same request must be for the same project; \
               check the details field to investigate conflicting tokens.";
    Some(error(400, "PUSH_TOO_MANY_EXPERIENCE_IDS", why, Some(json!(projects))))
}

fn answer_receipts(shared: &Shared, faults: &Faults, arrival: &RequestArrival, body: &[u8]) -> HttpReply {
    lock(&shared.receipts).requests += 1;
    if unauthorised(shared, &faults.expo, arrival) {
        return refused_credentials();
    }
    if let Some(outage) = shared.receipts_outage.on_request(Instant::now()) {
        return outage_reply(&outage, None);
    }
    let ids = match serde_json::from_slice::<wire::Ids>(body) {
        Ok(wire::Ids { ids }) => ids,
        Err(why) => return error(400, "VALIDATION_ERROR", &why.to_string(), None),
    };
    if ids.len() > RECEIPTS_MAX {
        let why = format!(
            "Cannot get more than {RECEIPTS_MAX} push receipts in a single request; got {}.",
            ids.len()
        );
        return error(400, "PUSH_TOO_MANY_RECEIPTS", &why, None);
    }
    let now = Timestamp::now();
    let receipts: BTreeMap<_, _> = ids
        .iter()
        .filter_map(|id| Some((id, TicketId::parse(id)?.receipt_at(now, faults.expo.receipt_delay)?)))
        .collect();
    let mut statistics = lock(&shared.receipts);
    statistics.asked += ids.len() as u64;
    statistics.given += receipts.len() as u64;
    statistics.bad += receipts.values().filter(|receipt| **receipt != ReceiptStatus::Ok).count() as u64;
    drop(statistics);
    let receipts: BTreeMap<_, _> =
        receipts.into_iter().map(|(id, receipt)| (id, receipt.to_json())).collect();
    HttpReply::json(200, json!({ "data": receipts }).to_string())
}

fn unauthorised(shared: &Shared, faults: &ProviderFaults, arrival: &RequestArrival) -> bool {
    let wanted = shared.options.expo_access_token.as_deref();
    faults.credentials_refused || (wanted.is_some() && wanted != arrival.bearer())
}

fn refused_credentials() -> HttpReply {
    error(403, "UNAUTHORIZED", "Insufficient permissions to send push notifications to @sandbox/app", None)
}

fn rate_limited(faults: &ProviderFaults) -> HttpReply {
    let limit = faults.rate_limit.unwrap_or_default();
    let why = format!("Exceeded {limit} notifications per second, please try again.");
    error(429, "TOO_MANY_REQUESTS", &why, None).retry_after(faults.retry_after)
}

/// `taken` is the body of a success, if the outage takes the messages all the same.
fn outage_reply(outage: &Outage, taken: Option<Vec<u8>>) -> HttpReply {
    let reply = match (outage.manner, taken) {
        (FailureMode::Html, _) => HttpReply::html(outage.status),
        (FailureMode::Short, taken) => HttpReply::json(200, without_last_ticket(&taken.unwrap_or_default())),
        (FailureMode::Drip, Some(taken)) => HttpReply::json(200, taken),
        _ => error_with(outage.status),
    };
    reply.retry_after(outage.retry_after).with_failure_mode(outage.manner)
}

/// An answer without its last ticket.
fn without_last_ticket(answer: &[u8]) -> String {
    let answer: serde_json::Value = serde_json::from_slice(answer).unwrap_or_default();
    let tickets =
        answer["data"].as_array().and_then(|tickets| tickets.split_last()).map(|(_last, others)| others);
    json!({ "data": tickets.unwrap_or_default() }).to_string()
}

fn error_with(status: u16) -> HttpReply {
    match status {
        429 => {
            error(429, "TOO_MANY_REQUESTS", "Exceeded 600 notifications per second, please try again.", None)
        }
        status @ (401 | 403) => {
            error(status, "UNAUTHORIZED", "Insufficient permissions to send push notifications.", None)
        }
        500 => error(500, "INTERNAL_SERVER_ERROR", "An unknown error occurred.", None),
        status => HttpReply::html(status),
    }
}

fn unreadable(status: StatusCode) -> HttpReply {
    error(status.as_u16(), "API_ERROR", "The request body could not be read.", None)
}

fn error(status: u16, code: &str, message: &str, details: Option<serde_json::Value>) -> HttpReply {
    let mut error = json!({ "code": code, "message": message });
    if let Some(details) = details {
        error["details"] = details;
    }
    HttpReply::json(status, json!({ "errors": [error] }).to_string())
}

fn dead_ticket(token: &str) -> String {
    json!({
        "status": "error",
        "message": format!("\"{token}\" is not a registered push notification recipient"),
        "details": { "error": "DeviceNotRegistered", "expoPushToken": token },
    })
    .to_string()
}
