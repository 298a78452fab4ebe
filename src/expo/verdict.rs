//! What an answer of Expo means: a table without side effects, which gets all it needs as arguments. Its
//! tests are rows.

use std::{collections::HashMap, time::Duration};

use super::wire::{ReceiptsResponse, RequestError, SendResponse, Ticket, same_device};
use crate::{
    dispatch::{Receipt, Reply, Verdict, answer::redacted},
    domain::Token,
};

/// Always means a dead token, whether `dead_token_errors` lists it or not.
const DEVICE_NOT_REGISTERED: &str = "DeviceNotRegistered";

/// The parts of an answer that a verdict depends on.
pub(super) struct ExpoAnswer<B> {
    /// HTTP status.
    pub status: u16,
    /// The wait that `Retry-After` asks for.
    pub retry_after: Option<Duration>,
    /// Unparsed.
    pub body: B,
}

/// The settings that verdicts depend on.
#[derive(Debug)]
pub(super) struct VerdictReader {
    /// Further error codes of Expo that mean a dead token.
    pub dead: Vec<String>,
    /// Whether receipts will be asked for. If not, the tickets' ids are dropped.
    pub receipts: bool,
}

/// The reply to a request with these tokens, in the order in which they were sent.
pub(super) fn reply<B: AsRef<[u8]>>(
    answer: &ExpoAnswer<B>,
    tokens: &[&Token],
    reader: &VerdictReader,
) -> Reply {
    let ExpoAnswer { status, retry_after, .. } = *answer;
    let body = answer.body.as_ref();
    let down = |why: String| Reply::Down { ambiguous: true, retry_after, why };
    match status {
        429 => return Reply::Throttled { retry_after },
        408 | 500..=599 => return down(describe(status, body, tokens)),
        _ => {}
    }
    // One UTF-8 check of the whole body is cheaper than one of each string.
    let text = str::from_utf8(body).ok();
    let response = text.and_then(|text| serde_json::from_str::<SendResponse<'_>>(text).ok());
    let (tickets, errors) = response.map_or((None, None), |response| (response.data, response.errors));
    let error = errors.as_ref().and_then(|errors| errors.first());
    if let Some(error) = error {
        return request_error(status, error, retry_after, tokens);
    }
    match (status, tickets) {
        (200..=299, Some(tickets)) if tickets.0.len() == tokens.len() => Reply::Each(
            tickets.0.into_iter().zip(tokens).map(|(ticket, token)| verdict(ticket, token, reader)).collect(),
        ),
        // Tickets can't be matched to messages, and some messages were taken.
        (200..=299, Some(tickets)) => {
            down(format!("{} tickets for {} messages", tickets.0.len(), tokens.len()))
        }
        (200..=299, None) => down(describe(status, body, tokens)),
        (401 | 403, _) => Reply::CredentialsRefused { why: describe(status, body, tokens) },
        // A proxy's HTML page: Expo itself answers in JSON.
        (400..=499, _) if is_markup(body) => down(describe(status, body, tokens)),
        (400, _) => Reply::Refused { why: describe(status, body, tokens) },
        _ => Reply::Unrecognised { status, why: describe(status, body, tokens) },
    }
}

/// The receipts in an answer.
///
/// # Errors
/// It has none: the reason.
pub(super) fn receipts<B: AsRef<[u8]>>(
    answer: &ExpoAnswer<B>,
    dead: &[String],
) -> Result<Vec<(String, Receipt)>, String> {
    let body = answer.body.as_ref();
    let receipts = match answer.status {
        200..=299 => {
            serde_json::from_slice::<ReceiptsResponse<'_>>(body).ok().and_then(|response| response.data)
        }
        _ => None,
    };
    let receipts = receipts.ok_or_else(|| describe(answer.status, body, &[]))?;
    Ok(receipts.into_iter().map(|(id, ticket)| (id, receipt(&ticket, dead))).collect())
}

fn request_error(
    status: u16,
    error: &RequestError<'_>,
    retry_after: Option<Duration>,
    tokens: &[&Token],
) -> Reply {
    let text = error.message.as_ref().map_or("", |text| &text.0);
    let why = format!("HTTP {status} {}: {}", error.code(), redacted(text, tokens.iter().copied()));
    match (status, error.code()) {
        (_, "TOO_MANY_REQUESTS") => Reply::Throttled { retry_after },
        (401 | 403, _) | (_, "UNAUTHORIZED") => Reply::CredentialsRefused { why },
        (_, "PUSH_TOO_MANY_EXPERIENCE_IDS") => {
            let groups = groups(error, tokens);
            if groups.len() > 1 { Reply::Split(groups) } else { Reply::Refused { why } }
        }
        (_, "INTERNAL_SERVER_ERROR") => Reply::Down { ambiguous: true, retry_after, why },
        // Errors in place of tickets, under a status of success: it is unknown what was taken.
        (200..=299, _) => Reply::Down { ambiguous: true, retry_after, why },
        (400, _) => Reply::Refused { why },
        _ => Reply::Unrecognised { status, why },
    }
}

/// The request's messages by project; those that Expo does not list are one more group. Where Expo lists
/// none of the tokens, two halves: repeated halving separates the projects too, only slower.
fn groups(error: &RequestError<'_>, tokens: &[&Token]) -> Vec<Vec<usize>> {
    let projects = error.tokens_by_project();
    let listed: HashMap<&str, usize> = projects
        .values()
        .enumerate()
        .flat_map(|(group, tokens)| tokens.iter().map(move |token| (token.as_str(), group)))
        .collect();
    let mut groups = vec![Vec::new(); projects.len() + 1];
    for (index, token) in tokens.iter().enumerate() {
        groups[listed.get(token.as_str()).copied().unwrap_or(projects.len())].push(index);
    }
    groups.retain(|group| !group.is_empty());
    if groups.len() < 2 && tokens.len() > 1 {
        let middle = tokens.len() / 2;
        return vec![(0..middle).collect(), (middle..tokens.len()).collect()];
    }
    groups
}

fn verdict(ticket: Ticket<'_>, token: &Token, VerdictReader { dead, receipts }: &VerdictReader) -> Verdict {
    if ticket.status.0 == "ok" {
        return Verdict::Accepted { ticket: ticket.id.filter(|_| *receipts).map(|id| id.0.into()) };
    }
    let details = ticket.details();
    let error = details.error.as_ref().map_or("", |error| error.0.as_ref());
    let text = ticket.message.as_ref().map_or("", |message| message.0.as_ref());
    let why = format!("{error}: {}", redacted(text, [token]));
    if ticket.status.0 != "error" {
        return Verdict::Unrecognised {
            why: format!("a ticket with status {:?}: {why}", redacted(&ticket.status.0, [token])),
        };
    }
    if is_dead(error, dead) {
        return match details.expo_push_token {
            Some(named) if !same_device(&named.0, token) => {
                Verdict::Unrecognised { why: format!("{error} in the ticket of another token") }
            }
            _ => Verdict::Dead { reason: error.to_owned() },
        };
    }
    match error {
        "InvalidCredentials" | "MismatchSenderId" | "InvalidProviderToken" => {
            Verdict::CredentialsRefused { why }
        }
        "MessageTooBig" => Verdict::PayloadRefused { why },
        "MessageRateExceeded" => Verdict::DeviceBusy { retry_after: None },
        // Expo, or the service behind it, reports a failure of its own: this message was not taken.
        "ExpoError" | "ProviderError" => Verdict::Down { ambiguous: false, why },
        // DeveloperError among them: Expo's SDK names it, and no document says whether it is about the token
        // or the payload. Stopping a whole broadcast for one bad token would be the worse mistake.
        _ => Verdict::Unrecognised { why },
    }
}

fn receipt(ticket: &Ticket<'_>, dead: &[String]) -> Receipt {
    if ticket.status.0 == "ok" {
        return Receipt::Delivered;
    }
    let details = ticket.details();
    let error = details.error.as_ref().map_or("", |error| error.0.as_ref());
    let text = ticket.message.as_ref().map_or("", |message| message.0.as_ref());
    let why = format!("{error}: {}", redacted(text, []));
    match error {
        error if ticket.status.0 == "error" && is_dead(error, dead) => {
            Receipt::Dead { reason: error.to_owned() }
        }
        "InvalidCredentials" | "MismatchSenderId" | "InvalidProviderToken" => {
            Receipt::CredentialsRefused { why }
        }
        _ => Receipt::Failed { why },
    }
}

fn is_dead(error: &str, dead: &[String]) -> bool {
    error == DEVICE_NOT_REGISTERED || (!error.is_empty() && dead.iter().any(|code| code == error))
}

fn is_markup(body: &[u8]) -> bool {
    body.trim_ascii_start().starts_with(b"<")
}

/// An answer for the log, without tokens.
fn describe(status: u16, body: &[u8], tokens: &[&Token]) -> String {
    format!("HTTP {status}: {}", redacted(&String::from_utf8_lossy(body), tokens.iter().copied()))
}

#[cfg(test)]
mod tests;
