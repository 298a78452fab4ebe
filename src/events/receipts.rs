//! `expo-receipts`: tickets to ask Expo about later. Written and read by pushcast.

use schemars::{JsonSchema, Schema, schema_for};
use serde::{Deserialize, Serialize};

use super::{
    Unreadable,
    fields::{self, DeviceToken, LongId, Moment},
    json,
};
use crate::domain::{Ticket, TicketBatch, Version};

/// How many tickets a record may hold: what one question to Expo may ask for.
pub const TICKETS_MAX: usize = 1000;

/// Reads a record.
///
/// # Errors
/// The record holds no tickets, or too many.
pub fn read(_key: Option<&[u8]>, value: Option<&[u8]>) -> Result<TicketBatch, Unreadable> {
    let record: Record = json::object(value)?;
    if record.tickets.len() > TICKETS_MAX {
        return Err(json::invalid("tickets", format_args!("{} tickets, at most {TICKETS_MAX} are allowed", record.tickets.len())));
    }
    let ticket =
        |ticket: TicketRecord| Ticket { id: ticket.id.0, token: ticket.token.0, registration: Version::from_i64(ticket.registration) };
    Ok(TicketBatch {
        tickets: record.tickets.into_iter().map(ticket).collect(),
        first_sent_at: record.first_sent_at.map(|first_sent_at| first_sent_at.0),
    })
}

/// Writes a batch of at most [`TICKETS_MAX`] tickets.
pub fn write(batch: &TicketBatch) -> Vec<u8> {
    let ticket = |ticket: &Ticket| TicketRecord {
        id: LongId(ticket.id.clone()),
        token: DeviceToken(ticket.token.clone()),
        registration: ticket.registration.as_i64(),
    };
    json::bytes(&Record { tickets: batch.tickets.iter().map(ticket).collect(), first_sent_at: batch.first_sent_at.map(Moment) })
}

pub(super) fn schema() -> Schema {
    schema_for!(Record)
}

/// Tickets of messages that Expo took. Written by pushcast for itself.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "TicketBatch")]
struct Record {
    #[schemars(length(max = TICKETS_MAX))]
    tickets: Vec<TicketRecord>,
    /// When the first of them was sent, once they were put back; absent = the record's time.
    #[serde(default, deserialize_with = "fields::optional", skip_serializing_if = "Option::is_none")]
    first_sent_at: Option<Moment>,
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(expecting = "an object")]
#[schemars(rename = "Ticket")]
struct TicketRecord {
    /// Expo's id for the message.
    id: LongId,
    /// Whom it was for.
    token: DeviceToken,
    /// The registration that was sent to.
    registration: i64,
}
