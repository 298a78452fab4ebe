//! A ticket's id encodes its receipt, so that nothing has to be kept between the two requests.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};

/// Expo deletes a receipt after a day.
const KEPT: Duration = Duration::from_secs(24 * 3600);
/// Marks the ids that were issued here.
const MARK: u64 = 0x7b;

/// What a ticket's id encodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TicketId {
    /// When it was issued, in milliseconds since 1970.
    pub at_ms: u64,
    /// What the receipt will report.
    pub receipt: ReceiptStatus,
    /// Makes it unique.
    pub sequence: u64,
}

/// `ok`, or the error of a receipt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReceiptStatus {
    Ok,
    DeviceNotRegistered,
    MessageRateExceeded,
    InvalidCredentials,
    MessageTooBig,
}

impl ReceiptStatus {
    const ALL: [Self; 5] = [
        Self::Ok,
        Self::DeviceNotRegistered,
        Self::MessageRateExceeded,
        Self::InvalidCredentials,
        Self::MessageTooBig,
    ];

    pub fn to_json(self) -> Value {
        let (message, error) = match self {
            Self::Ok => return json!({ "status": "ok" }),
            Self::DeviceNotRegistered => {
                ("The recipient device is not registered with FCM.", "DeviceNotRegistered")
            }
            Self::MessageRateExceeded => {
                ("Too many messages were sent to this device.", "MessageRateExceeded")
            }
            Self::InvalidCredentials => (
                "Failed to authenticate with the FCM server. \
                 Ensure the FCM server key you uploaded is correct.",
                "InvalidCredentials",
            ),
            Self::MessageTooBig => ("The notification payload was too large.", "MessageTooBig"),
        };
        json!({ "status": "error", "message": message, "details": { "error": error } })
    }
}

impl TicketId {
    /// The receipt; none if it is not ready yet, or deleted already.
    pub fn receipt_at(self, now: Timestamp, delay: Duration) -> Option<ReceiptStatus> {
        let age = Duration::from_millis(now.as_millisecond().unsigned_abs().saturating_sub(self.at_ms));
        (delay <= age && age < KEPT).then_some(self.receipt)
    }

    /// A UUID, as Expo's ids are.
    pub fn to_uuid(self) -> [u8; 36] {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let high = self.at_ms << 16 | MARK << 8 | self.receipt as u64;
        let mut number = u128::from(high) << 64 | u128::from(self.sequence);
        let mut text = [b'-'; 36];
        for at in (0..36).rev().filter(|at| ![8, 13, 18, 23].contains(at)) {
            text[at] = DIGITS[(number & 15) as usize];
            number >>= 4;
        }
        text
    }

    /// None if the id was not issued here.
    pub fn parse(id: &str) -> Option<Self> {
        let dashes = [8, 13, 18, 23].into_iter().all(|at| id.as_bytes().get(at) == Some(&b'-'));
        let number =
            u128::from_str_radix(&id.replace('-', ""), 16).ok().filter(|_| id.len() == 36 && dashes)?;
        let high = (number >> 64) as u64;
        let sequence = number as u64;
        let receipt = *ReceiptStatus::ALL.get((high & 0xff) as usize).filter(|_| high >> 8 & 0xff == MARK)?;
        Some(Self { at_ms: high >> 16, receipt, sequence })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_parsed_into_what_it_was_made_from() {
        for (sequence, receipt) in ReceiptStatus::ALL.into_iter().enumerate() {
            let ticket = TicketId { at_ms: 1_795_218_184_300, receipt, sequence: sequence as u64 };
            let id = String::from_utf8(ticket.to_uuid().to_vec()).unwrap();
            assert_eq!(TicketId::parse(&id), Some(ticket), "{id}");
        }
        for unknown in ["", "XXXXXXXX-XXXX-XXXX-XXXX-XXXXXXXXXXXX", "01a1fb2c-5f6c-7c00-0000-000000000001"] {
            assert_eq!(TicketId::parse(unknown), None);
        }
    }

    #[test]
    fn a_receipt_is_there_after_the_delay_and_for_a_day() {
        let ticket = TicketId { at_ms: 1_000_000, receipt: ReceiptStatus::Ok, sequence: 1 };
        let after = |seconds: i64| Timestamp::from_millisecond(1_000_000 + seconds * 1000).unwrap();
        let ready = |seconds| ticket.receipt_at(after(seconds), Duration::from_secs(900)).is_some();
        assert_eq!([0, 899, 900, 86_399, 86_400].map(ready), [false, false, true, true, false]);
    }
}
