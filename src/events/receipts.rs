//! `expo-receipts`: tickets whose receipts are asked for later. Written and read by pushcast.

use schemars::{JsonSchema, Schema, schema_for};
use serde::{Deserialize, Serialize};

use super::{
    Unreadable,
    fields::{self, DeviceToken, LongId, Moment},
    json,
};
use crate::domain::{Ticket, TicketBatch, Timestamp, Version, limits::BATCH_TICKETS_MAX};

/// Reads a record.
///
/// # Errors
/// The record holds no tickets, or too many.
pub fn read(_key: Option<&[u8]>, value: Option<&[u8]>) -> Result<TicketBatch, Unreadable> {
    let record: Record = json::object(value)?;
    if record.tickets.len() > BATCH_TICKETS_MAX {
        return Err(json::invalid(
            "tickets",
            format_args!("{} tickets, at most {BATCH_TICKETS_MAX} are allowed", record.tickets.len()),
        ));
    }
    let ticket = |ticket: TicketRecord| Ticket {
        id: ticket.id.0.into(),
        token: ticket.token.0,
        registration: Version::from_i64(ticket.registration),
    };
    Ok(TicketBatch {
        tickets: record.tickets.into_iter().map(ticket).collect(),
        first_sent_at: record.first_sent_at.map(|first_sent_at| first_sent_at.0),
    })
}

/// Writes at most [`BATCH_TICKETS_MAX`] tickets. Nothing is copied before: there is one for each message that
/// Expo accepts.
pub fn write(tickets: &[Ticket], first_sent_at: Option<Timestamp>) -> Vec<u8> {
    let tickets = tickets.iter().map(Written::of).collect();
    json::bytes(&WrittenRecord { tickets, first_sent_at: first_sent_at.map(Moment) })
}

pub(super) fn schema() -> Schema {
    schema_for!(Record)
}

/// Tickets of messages that Expo accepted. Written by pushcast for itself.
#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "TicketBatch")]
struct Record {
    #[schemars(length(max = BATCH_TICKETS_MAX))]
    tickets: Vec<TicketRecord>,
    /// When the first of them was sent, if they were produced again; absent = the record's time.
    #[serde(default, deserialize_with = "fields::optional")]
    first_sent_at: Option<Moment>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(expecting = "an object")]
#[schemars(rename = "Ticket")]
struct TicketRecord {
    /// Expo's id for the message.
    id: LongId,
    /// The token that it was sent to.
    token: DeviceToken,
    /// The registration that was sent to.
    registration: i64,
}

/// A [`Record`] as it is written.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct WrittenRecord<'a> {
    tickets: Vec<Written<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    first_sent_at: Option<Moment>,
}

/// A [`TicketRecord`] as it is written.
#[derive(Serialize)]
struct Written<'a> {
    id: &'a str,
    token: &'a str,
    registration: i64,
}

impl<'a> Written<'a> {
    fn of(ticket: &'a Ticket) -> Self {
        Self { id: &ticket.id, token: ticket.token.as_str(), registration: ticket.registration.as_i64() }
    }
}
