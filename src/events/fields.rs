//! The kinds of fields that records consist of: how each is read, written and described in the schemas.

use std::{borrow::Cow, fmt, marker::PhantomData};

use jiff::{
    civil::{Date, Time, Weekday},
    tz::TimeZone,
};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{self, Unexpected, Visitor},
    ser::{self, SerializeMap as _},
};
use serde_json::{Map, Value, value::RawValue};

use crate::domain::{
    Data, DataValue, Platform, ProviderId, Timestamp, Token, TokenKind,
    limits::{DATA_BYTES_MAX, ID_BYTES_MAX, LONG_ID_BYTES_MAX, TEXT_BYTES_MAX, TOKEN_BYTES_MAX},
};

/// A field that is written as a text, and read from a text or, if it allows that, from a number.
pub(super) trait Field: Sized {
    /// What an error names as expected: `a text or a whole number`.
    const EXPECTED: &'static str;

    /// Reads it; the text is trimmed and not empty. The error names what is wrong and holds no token.
    fn of_text(text: &str) -> Result<Self, String>;

    /// Reads it from a whole number, if it may be written as one.
    fn of_number(_: i128) -> Option<Self> {
        None
    }

    /// Its text.
    fn text(&self) -> Cow<'_, str>;

    /// Its JSON Schema.
    fn schema() -> Schema;
}

/// An optional field: absent, null and empty mean the same.
pub(super) fn optional<'de, D: Deserializer<'de>, F: Field>(json: D) -> Result<Option<F>, D::Error> {
    json.deserialize_any(FieldVisitor(PhantomData)).map(Result::ok)
}

enum Nothing {
    Null,
    Empty,
}

struct FieldVisitor<F>(PhantomData<F>);

impl<'de, F: Field> Visitor<'de> for FieldVisitor<F> {
    type Value = Result<F, Nothing>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(F::EXPECTED)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
        match text.trim() {
            "" => Ok(Err(Nothing::Empty)),
            text => F::of_text(text).map(Ok).map_err(E::custom),
        }
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<Self::Value, E> {
        F::of_number(number.into()).map(Ok).ok_or_else(|| E::invalid_type(Unexpected::Signed(number), &self))
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<Self::Value, E> {
        F::of_number(number.into())
            .map(Ok)
            .ok_or_else(|| E::invalid_type(Unexpected::Unsigned(number), &self))
    }

    fn visit_unit<E: de::Error>(self) -> Result<Self::Value, E> {
        Ok(Err(Nothing::Null))
    }
}

macro_rules! fields {
    ($($(#[$doc:meta])* $name:ident($inner:ty);)+) => {$(
        $(#[$doc])*
        #[derive(Clone, Debug)]
        pub(super) struct $name(pub $inner);

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
                let visitor = FieldVisitor::<Self>(PhantomData);
                match json.deserialize_any(visitor)? {
                    Ok(field) => Ok(field),
                    Err(Nothing::Null) => {
                        Err(de::Error::invalid_type(Unexpected::Unit, &<Self as Field>::EXPECTED))
                    }
                    Err(Nothing::Empty) => {
                        Err(de::Error::custom(format_args!("empty, expected {}", <Self as Field>::EXPECTED)))
                    }
                }
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, json: S) -> Result<S::Ok, S::Error> {
                json.serialize_str(&self.text())
            }
        }

        impl JsonSchema for $name {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                <Self as Field>::schema()
            }
        }
    )+};
}

fields! {
    /// An identifier of upstream's.
    Id(String);
    /// An identifier of pushcast's, put together from several of upstream's.
    LongId(String);
    /// Any text.
    Text(String);
    /// A device token.
    DeviceToken(Token);
    /// The form of a token.
    Kind(TokenKind);
    /// The platform of a device.
    DevicePlatform(Platform);
    /// A push service.
    Provider(ProviderId);
    /// A point in time.
    Moment(Timestamp);
    /// A day.
    Day(Date);
    /// A time of day, to the minute.
    TimeOfDay(Time);
    /// A day of the week.
    DayOfWeek(Weekday);
    /// A time zone of the IANA database.
    Zone(TimeZone);
}

// === The kinds ===

impl Field for Id {
    const EXPECTED: &'static str = "a text or a whole number";

    fn of_text(text: &str) -> Result<Self, String> {
        bounded(text, ID_BYTES_MAX).map(Self)
    }

    fn of_number(number: i128) -> Option<Self> {
        Some(Self(number.to_string()))
    }

    fn text(&self) -> Cow<'_, str> {
        (&self.0).into()
    }

    fn schema() -> Schema {
        json_schema!({ "type": ["string", "integer"], "minLength": 1, "maxLength": ID_BYTES_MAX })
    }
}

impl Field for LongId {
    const EXPECTED: &'static str = "a text";

    fn of_text(text: &str) -> Result<Self, String> {
        bounded(text, LONG_ID_BYTES_MAX).map(Self)
    }

    fn text(&self) -> Cow<'_, str> {
        (&self.0).into()
    }

    fn schema() -> Schema {
        json_schema!({ "type": "string", "minLength": 1, "maxLength": LONG_ID_BYTES_MAX })
    }
}

impl Field for Text {
    const EXPECTED: &'static str = "a text";

    fn of_text(text: &str) -> Result<Self, String> {
        bounded(text, TEXT_BYTES_MAX).map(Self)
    }

    fn text(&self) -> Cow<'_, str> {
        (&self.0).into()
    }

    fn schema() -> Schema {
        json_schema!({ "type": "string", "maxLength": TEXT_BYTES_MAX })
    }
}

impl Field for DeviceToken {
    const EXPECTED: &'static str = "a device token";

    fn of_text(text: &str) -> Result<Self, String> {
        Token::parse(text).map(Self).map_err(|err| err.to_string())
    }

    fn text(&self) -> Cow<'_, str> {
        self.0.as_str().into()
    }

    fn schema() -> Schema {
        json_schema!({
            "type": "string",
            "$comment": format!(
                "ExponentPushToken[…], ExpoPushToken[…] or a UUID (expo); 22 url-safe characters (fid); \
                 64 to {TOKEN_BYTES_MAX} of [A-Za-z0-9:_-] (fcm)"
            ),
            "minLength": 15,
            "maxLength": TOKEN_BYTES_MAX,
        })
    }
}

impl Field for Kind {
    const EXPECTED: &'static str = "one of expo, fcm, fid";

    fn of_text(text: &str) -> Result<Self, String> {
        TokenKind::from_label(&text.to_ascii_lowercase())
            .map(Self)
            .ok_or_else(|| refused(text, "one of expo, fcm, fid"))
    }

    fn text(&self) -> Cow<'_, str> {
        self.0.label().into()
    }

    fn schema() -> Schema {
        json_schema!({ "enum": ["expo", "fcm", "fid"] })
    }
}

impl Field for DevicePlatform {
    const EXPECTED: &'static str = "one of ios, android, web";

    fn of_text(text: &str) -> Result<Self, String> {
        Platform::from_label(&text.to_ascii_lowercase())
            .map(Self)
            .ok_or_else(|| refused(text, "one of ios, android, web"))
    }

    fn text(&self) -> Cow<'_, str> {
        self.0.label().into()
    }

    fn schema() -> Schema {
        json_schema!({ "enum": ["ios", "android", "web"] })
    }
}

impl Field for Provider {
    const EXPECTED: &'static str = "one of expo, fcm";

    fn of_text(text: &str) -> Result<Self, String> {
        ProviderId::from_label(&text.to_ascii_lowercase())
            .map(Self)
            .ok_or_else(|| refused(text, "one of expo, fcm"))
    }

    fn text(&self) -> Cow<'_, str> {
        self.0.label().into()
    }

    fn schema() -> Schema {
        json_schema!({ "enum": ["expo", "fcm"] })
    }
}

impl Field for Moment {
    const EXPECTED: &'static str = "a time (RFC 3339, such as 2026-11-20T01:00:00Z)";

    fn of_text(text: &str) -> Result<Self, String> {
        let moment: Timestamp = text.parse().map_err(|_| refused(text, Self::EXPECTED))?;
        // The stores keep microseconds. A time that they would cut has to be cut before it is compared.
        Timestamp::from_microsecond(moment.as_microsecond())
            .map(Self)
            .map_err(|_| refused(text, Self::EXPECTED))
    }

    fn text(&self) -> Cow<'_, str> {
        self.0.to_string().into()
    }

    fn schema() -> Schema {
        json_schema!({ "type": "string", "format": "date-time" })
    }
}

impl Field for Day {
    const EXPECTED: &'static str = "a day (YYYY-MM-DD)";

    fn of_text(text: &str) -> Result<Self, String> {
        let is_plain = text.len() == 10 && text.bytes().all(|b| b.is_ascii_digit() || b == b'-');
        let day = if is_plain { text.parse().ok() } else { None };
        day.map(Self).ok_or_else(|| refused(text, Self::EXPECTED))
    }

    fn text(&self) -> Cow<'_, str> {
        self.0.to_string().into()
    }

    fn schema() -> Schema {
        json_schema!({ "type": "string", "format": "date" })
    }
}

impl Field for TimeOfDay {
    const EXPECTED: &'static str = "a time of day (HH:MM)";

    fn of_text(text: &str) -> Result<Self, String> {
        time_of_day(text).map(Self).ok_or_else(|| refused(text, Self::EXPECTED))
    }

    fn text(&self) -> Cow<'_, str> {
        format!("{:02}:{:02}", self.0.hour(), self.0.minute()).into()
    }

    fn schema() -> Schema {
        json_schema!({ "type": "string", "pattern": "^([01][0-9]|2[0-3]):[0-5][0-9](:00)?$" })
    }
}

impl Field for DayOfWeek {
    const EXPECTED: &'static str = "a day of the week (mon to sun, or 1 to 7)";

    fn of_text(text: &str) -> Result<Self, String> {
        let text_lower = text.to_ascii_lowercase();
        Weekday::Monday
            .cycle_forward()
            .take(7)
            .find(|day| {
                let name = weekday_name(*day);
                text_lower == name || text_lower == name[..3]
            })
            .map(Self)
            .ok_or_else(|| refused(text, Self::EXPECTED))
    }

    fn of_number(number: i128) -> Option<Self> {
        let iso = i8::try_from(number).ok()?;
        Weekday::from_monday_one_offset(iso).ok().map(Self)
    }

    fn text(&self) -> Cow<'_, str> {
        weekday_name(self.0)[..3].into()
    }

    fn schema() -> Schema {
        json_schema!({
            "description": "mon to sun, monday to sunday, in upper or lower case; or 1 (Monday) to 7",
            "oneOf": [{ "type": "string" }, { "type": "integer", "minimum": 1, "maximum": 7 }],
        })
    }
}

impl Field for Zone {
    const EXPECTED: &'static str = "the name of a time zone (such as Asia/Bangkok)";

    fn of_text(text: &str) -> Result<Self, String> {
        // The store keeps a zone's name, so it must have one.
        let zone = TimeZone::get(text).ok().filter(|zone| zone.iana_name().is_some());
        zone.map(Self).ok_or_else(|| format!("no such time zone {}", shown(text)))
    }

    fn text(&self) -> Cow<'_, str> {
        self.0.iana_name().unwrap_or("UTC").into()
    }

    fn schema() -> Schema {
        json_schema!({ "type": "string", "description": "IANA name, such as Asia/Bangkok", "minLength": 1 })
    }
}

// === Objects ===

/// A small JSON object of the app's; null is the empty one.
pub(super) fn object<'de, D: Deserializer<'de>>(json: D) -> Result<Map<String, Value>, D::Error> {
    let object = Option::<Map<String, Value>>::deserialize(json)?.unwrap_or_default();
    let size = serde_json::to_string(&object).map_or(0, |text| text.len());
    if size > DATA_BYTES_MAX {
        return Err(de::Error::custom(format_args!("{size} bytes, at most {DATA_BYTES_MAX} are allowed")));
    }
    Ok(object)
}

/// An object as the domain keeps it.
pub(super) fn data_of(object: Map<String, Value>) -> Data {
    let value = |value| match value {
        Value::String(text) => DataValue::String(text),
        other => DataValue::Json(other.to_string()),
    };
    object.into_iter().map(|(name, json)| (name, value(json))).collect()
}

/// Reads an object of a record that pushcast has written.
pub(super) fn read_data<'de, D: Deserializer<'de>>(json: D) -> Result<Data, D::Error> {
    Map::deserialize(json).map(data_of)
}

/// Writes it.
pub(super) fn write_data<S: Serializer>(data: &Data, json: S) -> Result<S::Ok, S::Error> {
    let mut object = json.serialize_map(Some(data.len()))?;
    for (name, value) in data {
        match value {
            DataValue::String(text) => object.serialize_entry(name, text)?,
            DataValue::Json(text) => {
                let raw: &RawValue = serde_json::from_str(text).map_err(ser::Error::custom)?;
                object.serialize_entry(name, raw)?;
            }
        }
    }
    object.end()
}

// === Shared ===

/// A text of upstream's as an error may show it. A text that may be a token, or hold one, is not shown.
pub(super) fn shown(text: &str) -> String {
    if text.len() <= 64 && !may_hold_a_token(text) {
        format!("{text:?}")
    } else {
        format!("a text of {} bytes", text.len())
    }
}

/// Whether the text may hold a token, cut off or in the middle of something else. The shortest form has 22
/// characters.
pub(super) fn may_hold_a_token(text: &str) -> bool {
    let url_safe = |c: char| c.is_ascii_alphanumeric() || matches!(c, ':' | '_' | '-');
    text.to_ascii_lowercase().contains("pushtoken") || text.split(|c| !url_safe(c)).any(|run| run.len() >= 22)
}

fn refused(text: &str, expected: &str) -> String {
    format!("{} is not {expected}", shown(text))
}

fn bounded(text: &str, max: usize) -> Result<String, String> {
    if text.len() > max {
        Err(format!("{} bytes, at most {max} are allowed", text.len()))
    } else {
        Ok(text.to_owned())
    }
}

/// `HH:MM`, or `HH:MM:00` as databases write it.
fn time_of_day(text: &str) -> Option<Time> {
    let text = text.strip_suffix(":00").filter(|rest| rest.len() == 5).unwrap_or(text);
    let two_digits = |part: &str| {
        if part.len() == 2 && part.bytes().all(|b| b.is_ascii_digit()) {
            part.parse::<i8>().ok()
        } else {
            None
        }
    };
    let (hour, minute) = text.split_once(':')?;
    Time::new(two_digits(hour)?, two_digits(minute)?, 0, 0).ok()
}

fn weekday_name(day: Weekday) -> &'static str {
    match day {
        Weekday::Monday => "monday",
        Weekday::Tuesday => "tuesday",
        Weekday::Wednesday => "wednesday",
        Weekday::Thursday => "thursday",
        Weekday::Friday => "friday",
        Weekday::Saturday => "saturday",
        Weekday::Sunday => "sunday",
    }
}
