//! What an answer of Expo means: a table, told everything it needs. No side effects; tests are rows.

use std::{collections::HashMap, time::Duration};

use super::wire::{Received, RequestError, Sent, Ticket, same_device};
use crate::{
    dispatch::{Receipt, Reply, Verdict, answer::words},
    domain::Token,
};

/// Always a dead token, whatever `dead_token_errors` says.
const DEVICE_NOT_REGISTERED: &str = "DeviceNotRegistered";

/// An answer as far as its meaning goes.
pub(super) struct ExpoAnswer<B> {
    /// HTTP status.
    pub status: u16,
    /// What `Retry-After` asks for.
    pub retry_after: Option<Duration>,
    /// As it came.
    pub body: B,
}

/// What a deployment makes of Expo's answers.
#[derive(Debug)]
pub(super) struct VerdictReader {
    /// Further words of Expo's that mean a dead token.
    pub dead: Vec<String>,
    /// Whether receipts will be asked for. If not, nobody needs the tickets' ids.
    pub receipts: bool,
}

/// What Expo said to a request with these tokens.
pub(super) fn reply<B: AsRef<[u8]>>(
    answer: &ExpoAnswer<B>,
    tokens: &[&Token],
    reading: &VerdictReader,
) -> Reply {
    let ExpoAnswer { status, retry_after, .. } = *answer;
    let body = answer.body.as_ref();
    let down = |why: String| Reply::Down { ambiguous: true, retry_after, why };
    match status {
        429 => return Reply::Throttled { retry_after },
        408 | 500..=599 => return down(said(status, body, tokens)),
        _ => {}
    }
    // Whether it is text is asked once of all of it, not of each string.
    let sent = str::from_utf8(body).ok().and_then(|body| serde_json::from_str::<Sent<'_>>(body).ok());
    let (tickets, errors) = sent.map_or((None, None), |sent| (sent.data, sent.errors));
    let error = errors.as_ref().and_then(|errors| errors.first());
    if let Some(error) = error {
        return request_error(status, error, retry_after, tokens);
    }
    match (status, tickets) {
        (200..=299, Some(tickets)) if tickets.0.len() == tokens.len() => Reply::Each(
            tickets
                .0
                .into_iter()
                .zip(tokens)
                .map(|(ticket, token)| verdict(ticket, token, reading))
                .collect(),
        ),
        // Which ticket is whose can't be told, and some were taken.
        (200..=299, Some(tickets)) => {
            down(format!("{} tickets for {} messages", tickets.0.len(), tokens.len()))
        }
        (200..=299, None) => down(said(status, body, tokens)),
        (401 | 403, _) => Reply::CredentialsRefused { why: said(status, body, tokens) },
        // A proxy's page: Expo itself answers in JSON.
        (400..=499, _) if is_markup(body) => down(said(status, body, tokens)),
        (400, _) => Reply::Refused { why: said(status, body, tokens) },
        _ => Reply::Unrecognised { status, why: said(status, body, tokens) },
    }
}

/// The receipts in an answer.
///
/// # Errors
/// It holds none: why.
pub(super) fn receipts<B: AsRef<[u8]>>(
    answer: &ExpoAnswer<B>,
    dead: &[String],
) -> Result<Vec<(String, Receipt)>, String> {
    let body = answer.body.as_ref();
    let received = match answer.status {
        200..=299 => serde_json::from_slice::<Received<'_>>(body).ok().and_then(|received| received.data),
        _ => None,
    };
    let receipts = received.ok_or_else(|| said(answer.status, body, &[]))?;
    Ok(receipts.into_iter().map(|(id, ticket)| (id, receipt(&ticket, dead))).collect())
}

fn request_error(
    status: u16,
    error: &RequestError<'_>,
    retry_after: Option<Duration>,
    tokens: &[&Token],
) -> Reply {
    let text = error.message.as_ref().map_or("", |text| &text.0);
    let why = format!("HTTP {status} {}: {}", error.code(), words(text, tokens.iter().copied()));
    match (status, error.code()) {
        (_, "TOO_MANY_REQUESTS") => Reply::Throttled { retry_after },
        (401 | 403, _) | (_, "UNAUTHORIZED") => Reply::CredentialsRefused { why },
        (_, "PUSH_TOO_MANY_EXPERIENCE_IDS") => {
            let groups = groups(error, tokens);
            if groups.len() > 1 { Reply::Split(groups) } else { Reply::Refused { why } }
        }
        (_, "INTERNAL_SERVER_ERROR") => Reply::Down { ambiguous: true, retry_after, why },
        // Errors in place of tickets, with a status that says all is well: nobody knows what was taken.
        (200..=299, _) => Reply::Down { ambiguous: true, retry_after, why },
        (400, _) => Reply::Refused { why },
        _ => Reply::Unrecognised { status, why },
    }
}

/// The request's messages by project; those that Expo does not list are one more group. Where Expo lists
/// nothing that we sent, two halves: that finds the stranger too, only slower.
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
        let (first, second) = (0..tokens.len() / 2, tokens.len() / 2..tokens.len());
        return vec![first.collect(), second.collect()];
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
    let why = format!("{error}: {}", words(text, [token]));
    if ticket.status.0 != "error" {
        return Verdict::Unrecognised {
            why: format!("a ticket with status {:?}: {why}", words(&ticket.status.0, [token])),
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
        // Expo, or the service behind it, failed and says so: this message was not taken.
        "ExpoError" | "ProviderError" => Verdict::Down { ambiguous: false, why },
        // DeveloperError among them: Expo's SDK names it, nobody says whether token or payload is at fault.
        // Stopping a whole broadcast for one bad token would be the worse mistake.
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
    let why = format!("{error}: {}", words(text, []));
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
    error == DEVICE_NOT_REGISTERED || (!error.is_empty() && dead.iter().any(|word| word == error))
}

fn is_markup(body: &[u8]) -> bool {
    body.trim_ascii_start().starts_with(b"<")
}

fn said(status: u16, body: &[u8], tokens: &[&Token]) -> String {
    format!("HTTP {status}: {}", words(&String::from_utf8_lossy(body), tokens.iter().copied()))
}

#[cfg(test)]
mod tests;
