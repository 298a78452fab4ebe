//! `push-outcomes`: what became of a notification. Public, written by pushcast.

use schemars::{JsonSchema, Schema, schema_for};
use serde::{Deserialize, Serialize};

use super::{
    Unreadable,
    fields::{self, LongId, Moment, Provider, Text},
    json,
};
use crate::domain::{Counts, DoseOutcome, NotificationId, Report};

/// Reads a record.
///
/// # Errors
/// The record is no outcome.
pub fn read(_key: Option<&[u8]>, value: Option<&[u8]>) -> Result<Report, Unreadable> {
    #[derive(Deserialize)]
    struct Which {
        #[serde(rename = "type")]
        type_: Text,
    }
    let Which { type_: Text(kind) } = json::object(value)?;
    match kind.as_str() {
        "broadcast" => {
            let Broadcast { notification_id, sent, dead, refused, failed, expired, at } =
                json::object(value)?;
            let counts = Counts { sent, dead, refused, failed, expired };
            Ok(Report::Broadcast { notification: NotificationId::new(notification_id.0), counts, at: at.0 })
        }
        "dose" => json::object::<Dose>(value)?.report(),
        kind => {
            Err(json::invalid("type", format_args!("{} is not one of broadcast, dose", fields::shown(kind))))
        }
    }
}

/// Writes a report.
pub fn write(report: &Report) -> Vec<u8> {
    json::bytes(&match report {
        Report::Broadcast { notification, counts, at } => Record::Broadcast(Broadcast {
            notification_id: LongId(notification.as_str().to_owned()),
            sent: counts.sent,
            dead: counts.dead,
            refused: counts.refused,
            failed: counts.failed,
            expired: counts.expired,
            at: Moment(*at),
        }),
        Report::Dose { notification, provider, outcome, counts, at } => {
            // If no provider was asked there is nothing to count.
            let asked = |count: u64| (provider.is_some() || count > 0).then_some(count);
            let some = |count: u64| (count > 0).then_some(count);
            let sent = *outcome == DoseOutcome::Sent;
            Record::Dose(Dose {
                notification_id: LongId(notification.as_str().to_owned()),
                provider: provider.map(Provider),
                outcome: Text(outcome.label().to_owned()),
                sent: asked(counts.sent),
                dead: asked(counts.dead),
                refused: some(counts.refused),
                failed: some(counts.failed),
                expired: some(counts.expired),
                push_sent_at: sent.then_some(Moment(*at)),
                at: (!sent).then_some(Moment(*at)),
            })
        }
    })
}

pub(super) fn schema() -> Schema {
    schema_for!(Record)
}

/// What became of a notification. At least once, with the same content each time: take `notificationId` and
/// `provider` as the key.
#[derive(Serialize, JsonSchema)]
#[serde(tag = "type", rename_all = "camelCase")]
#[schemars(rename = "Outcome")]
enum Record {
    /// A broadcast is complete. The numbers count messages.
    Broadcast(Broadcast),
    /// A dose has its outcome, by provider.
    Dose(Dose),
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
struct Broadcast {
    #[serde(alias = "notification_id")]
    notification_id: LongId,
    /// Accepted by the provider.
    sent: u64,
    /// The token is dead.
    dead: u64,
    /// The provider refuses the notification.
    refused: u64,
    /// Given up.
    failed: u64,
    /// Expired before a provider accepted it.
    expired: u64,
    at: Moment,
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
struct Dose {
    #[serde(alias = "notification_id")]
    notification_id: LongId,
    /// Absent if no provider was asked.
    #[serde(default, deserialize_with = "fields::optional", skip_serializing_if = "Option::is_none")]
    provider: Option<Provider>,
    /// sent, noTokens, missed, failed, expired or refused.
    outcome: Text,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sent: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    dead: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    refused: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    failed: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expired: Option<u64>,
    /// When the provider accepted it, if the outcome is `sent`.
    #[serde(
        default,
        alias = "push_sent_at",
        deserialize_with = "fields::optional",
        skip_serializing_if = "Option::is_none"
    )]
    push_sent_at: Option<Moment>,
    /// When it ended, for every other outcome.
    #[serde(default, deserialize_with = "fields::optional", skip_serializing_if = "Option::is_none")]
    at: Option<Moment>,
}

impl Dose {
    fn report(self) -> Result<Report, Unreadable> {
        let label = self.outcome.0.as_str();
        let outcome = DoseOutcome::from_label(label).ok_or_else(|| {
            json::invalid(
                "outcome",
                format_args!(
                    "{} is not one of sent, noTokens, missed, failed, expired, refused",
                    fields::shown(label)
                ),
            )
        })?;
        let at = self.push_sent_at.or(self.at).ok_or_else(|| json::missing("at"))?;
        Ok(Report::Dose {
            notification: NotificationId::new(self.notification_id.0),
            provider: self.provider.map(|provider| provider.0),
            outcome,
            counts: Counts {
                sent: self.sent.unwrap_or_default(),
                dead: self.dead.unwrap_or_default(),
                refused: self.refused.unwrap_or_default(),
                failed: self.failed.unwrap_or_default(),
                expired: self.expired.unwrap_or_default(),
            },
            at: at.0,
        })
    }
}
