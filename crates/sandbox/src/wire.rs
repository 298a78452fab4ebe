//! The JSON of `/sandbox/…`: the faults that can be set, and what the sandbox has counted.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashSet},
    ops::Deref,
    time::Duration,
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::counts;

/// Everything that the sandbox does wrong on purpose. By default only tokens that contain one of the token
/// words ([`TokenRule::words`]) have a fault.
///
/// In JSON each key may be absent and then has its default; an unknown one is refused. Durations are written
/// `"50ms"`, `"15m"`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Faults {
    /// Faults of the fake Expo.
    pub expo: ProviderFaults,
    /// Faults of the fake FCM.
    pub fcm: ProviderFaults,
    /// Faults of the OAuth endpoint that issues FCM's access tokens.
    pub oauth: OauthFaults,
}

/// What one fake provider does wrong.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ProviderFaults {
    /// Time between a request and its answer. Messages are counted when they arrive, not when they are
    /// answered.
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required")]
    pub latency: Duration,
    /// Messages allowed in any second; a request that exceeds it is answered with 429 as a whole. None = no
    /// limit.
    pub rate_limit: Option<u32>,
    /// `Retry-After` of a 429. None = 1 s from FCM, no header from Expo.
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::optional")]
    pub retry_after: Option<Duration>,
    /// An outage of sending.
    pub down: Option<Outage>,
    /// Every credential is refused.
    pub credentials_refused: bool,
    /// Tokens with faults. The first rule that matches decides.
    pub tokens: Vec<TokenRule>,
    /// Time from a ticket until its receipt is ready. Expo only.
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required")]
    pub receipt_delay: Duration,
    /// An outage of receipts. Expo only.
    pub receipts_down: Option<Outage>,
}

impl Default for ProviderFaults {
    fn default() -> Self {
        Self {
            latency: Duration::ZERO,
            rate_limit: None,
            retry_after: None,
            down: None,
            credentials_refused: false,
            tokens: TokenRule::words(),
            receipt_delay: Duration::ZERO,
            receipts_down: None,
        }
    }
}

/// Every request fails, whatever it contains. It lasts for `requests` or for `lasting`, whichever ends first;
/// with neither, until the faults are set again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Outage {
    /// How the requests fail.
    #[serde(skip_serializing_if = "FailureMode::is_error")]
    pub manner: FailureMode,
    /// HTTP status of the answers, where there are any.
    pub status: u16,
    /// How many requests fail.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests: Option<u64>,
    /// How long it lasts from now.
    #[serde(
        with = "jiff::fmt::serde::unsigned_duration::friendly::compact::optional",
        skip_serializing_if = "Option::is_none"
    )]
    pub lasting: Option<Duration>,
    /// The messages are taken although the requests fail, as behind an ambiguous 503 or 504.
    pub take_anyway: bool,
    /// `Retry-After` of the answers.
    #[serde(
        with = "jiff::fmt::serde::unsigned_duration::friendly::compact::optional",
        skip_serializing_if = "Option::is_none"
    )]
    pub retry_after: Option<Duration>,
}

impl Default for Outage {
    fn default() -> Self {
        Self {
            manner: FailureMode::Error,
            status: 503,
            requests: None,
            lasting: None,
            take_anyway: false,
            retry_after: None,
        }
    }
}

/// How a request fails in an outage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum FailureMode {
    /// The provider's own error.
    #[default]
    Error,
    /// The HTML error page of a proxy.
    Html,
    /// The request is read and never answered.
    Hang,
    /// The request is read, then its connection is reset, with every other request on it.
    Reset,
    /// The answer arrives at one byte a second: a success if the messages are taken, else the error.
    Drip,
    /// A success that is incomplete: Expo omits the last ticket, FCM the message's name, OAuth the access
    /// token.
    Short,
}

impl FailureMode {
    fn is_error(&self) -> bool {
        *self == Self::Error
    }
}

/// Which tokens have which fault: `{"containing":"dead","fault":"dead"}`, `{"fraction":0.02,"fault":"dead"}`,
/// `{"tokens":["…"],"fault":"busy"}`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TokenRule {
    /// Which tokens.
    #[serde(flatten)]
    pub which: Which,
    /// The fault that they have.
    pub fault: TokenFault,
}

impl TokenRule {
    /// The default rules, by token word: a token that contains `dead`, `ghost`, `foreign`, `busy`,
    /// `malformed` or `uncredentialed` has that fault. Set [`ProviderFaults::tokens`] to an empty list when
    /// tokens are random text.
    pub fn words() -> Vec<Self> {
        use TokenFault::*;
        [
            ("dead", Dead),
            ("ghost", DeadOnReceipt),
            ("foreign", Foreign),
            ("busy", Busy),
            ("malformed", Malformed),
            ("uncredentialed", Uncredentialed),
        ]
        .map(|(word, fault)| Self { which: Which::Containing(word.to_owned()), fault })
        .to_vec()
    }

    /// A rule that gives exactly these tokens this fault.
    pub fn of<T: Into<String>>(fault: TokenFault, tokens: impl IntoIterator<Item = T>) -> Self {
        Self { which: Which::Tokens(tokens.into_iter().map(Into::into).collect()), fault }
    }
}

/// A choice of tokens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Which {
    /// Exactly these.
    Tokens(HashSet<String>),
    /// Those whose text contains this.
    Containing(String),
    /// This fraction of all tokens, between 0 and 1: always the same ones, chosen by their hash.
    Fraction(f64),
}

/// What can be wrong with a token, or with its device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum TokenFault {
    /// Not registered: Expo's ticket has DeviceNotRegistered, FCM answers 404 UNREGISTERED.
    Dead,
    /// Not registered, which Expo finds out late: the ticket is ok, the receipt has DeviceNotRegistered. FCM,
    /// which has no receipts, takes the message.
    #[serde(rename = "ghost")]
    DeadOnReceipt,
    /// Of another project: Expo answers a mixed request with PUSH_TOO_MANY_EXPERIENCE_IDS, FCM answers 403
    /// SENDER_ID_MISMATCH.
    Foreign,
    /// Over the rate of one device: Expo's receipt has MessageRateExceeded, FCM answers 429 with a
    /// QuotaFailure.
    Busy,
    /// Not a token: Expo answers the whole request with 400, FCM answers 400 INVALID_ARGUMENT.
    Malformed,
    /// APNs or Web Push refuses the app's credentials: Expo's receipt has InvalidCredentials, FCM answers 401
    /// THIRD_PARTY_AUTH_ERROR.
    Uncredentialed,
}

/// What the OAuth endpoint does wrong.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct OauthFaults {
    /// Time between a request and its answer.
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required")]
    pub latency: Duration,
    /// An outage; its answers are Google's JSON errors, which have no `access_token`.
    pub down: Option<Outage>,
    /// The service account is refused: 400 `invalid_grant`.
    pub refused: bool,
    /// How long an access token is valid.
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required")]
    pub lifetime: Duration,
}

impl Default for OauthFaults {
    fn default() -> Self {
        Self { latency: Duration::ZERO, down: None, refused: false, lifetime: Duration::from_secs(3600) }
    }
}

/// What the sandbox has counted since its start or the last reset.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Statistics {
    /// Messages sent to Expo.
    pub expo: ProviderStatistics,
    /// Messages sent to FCM.
    pub fcm: ProviderStatistics,
    /// Receipts requested from Expo.
    pub receipts: ReceiptStatistics,
    /// Access tokens that the OAuth endpoint has issued.
    pub credentials_issued: u64,
}

/// What one fake provider has counted.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProviderStatistics {
    /// Messages taken, those of an [`Outage::take_anyway`] included.
    pub taken: u64,
    /// Tokens that took at least one message.
    pub distinct_tokens: u64,
    /// Messages taken whose token had taken the same notification before. Two notifications are the same if
    /// they agree in Expo's `tag` or `collapseId`, FCM's `android.notification.tag` or `apns-collapse-id`,
    /// or, with none of these, in their text. In JSON: `doubles`.
    #[serde(rename = "doubles")]
    pub duplicates: u64,
    /// Messages by their answer, without those of a request that could not be parsed.
    pub answers: BTreeMap<Answer, u64>,
    /// Requests to send.
    pub requests: u64,
    /// Those requests by the HTTP status of the answer; 0 = not answered.
    pub statuses: BTreeMap<u16, u64>,
    /// Those requests that fell into an outage, by its failure mode.
    pub outages: BTreeMap<FailureMode, u64>,
    /// Those requests by the version of HTTP.
    pub http_versions: BTreeMap<String, u64>,
    /// The most messages that arrived in any second, whatever the answer. Exact to a ten-thousandth of a
    /// second.
    pub peak_per_second: u64,
    /// When the first message arrived.
    pub first_at: Option<Timestamp>,
    /// When the last message arrived.
    pub last_at: Option<Timestamp>,
}

impl ProviderStatistics {
    /// Messages with that answer.
    pub fn answered(&self, answer: Answer) -> u64 {
        self.answers.get(&answer).copied().unwrap_or_default()
    }
}

/// How a message was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Answer {
    /// Taken.
    Ok,
    /// The token is not registered.
    Dead,
    /// The token is of another project.
    Foreign,
    /// The rate of the device is exceeded.
    Busy,
    /// The rate of the project is exceeded.
    Throttled,
    /// The request or the payload is wrong.
    Invalid,
    /// The credentials are refused.
    CredentialsRefused,
    /// An outage.
    Down,
}

impl Answer {
    pub(super) const ALL: [Self; 8] = [
        Self::Ok,
        Self::Dead,
        Self::Foreign,
        Self::Busy,
        Self::Throttled,
        Self::Invalid,
        Self::CredentialsRefused,
        Self::Down,
    ];
}

/// Requests for receipts.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReceiptStatistics {
    /// Requests, answered or not.
    pub requests: u64,
    /// Ticket ids in the requests that were answered.
    pub asked: u64,
    /// Receipts returned, errors included.
    pub given: u64,
    /// Receipts returned with an error.
    pub bad: u64,
}

/// A fake provider.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Provider {
    /// Expo.
    Expo,
    /// FCM.
    Fcm,
}

/// A message that was taken, as kept by [`Options::remember`](crate::Options::remember).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TakenMessage {
    /// The fake that took it.
    pub provider: Provider,
    /// The recipient; of a message to FCM perhaps a topic or a condition.
    pub token: String,
    /// The title, from `notification` or `android.notification` with FCM.
    pub title: Option<String>,
    /// The text, from the same place.
    pub body: Option<String>,
    /// `data`; null if there is none.
    pub data: Value,
    /// Expo's `tag`, FCM's `android.notification.tag`.
    pub tag: Option<String>,
    /// Expo's `collapseId`, FCM's `apns-collapse-id`.
    pub collapse_id: Option<String>,
    /// The message as it was sent: with FCM, what is in `message`.
    pub raw: Value,
    /// The request's headers, without `authorization`.
    pub headers: BTreeMap<String, String>,
    /// `HTTP/1.1` or `HTTP/2.0`.
    pub http_version: String,
    /// When the request was read.
    pub received_at: Timestamp,
}

impl Which {
    pub(super) fn matches(&self, token: &str) -> bool {
        match self {
            Self::Tokens(tokens) => tokens.contains(token),
            Self::Containing(word) => token.contains(word.as_str()),
            #[expect(clippy::cast_precision_loss, reason = "a fraction of all tokens need not be exact")]
            Self::Fraction(part) => (counts::hash(token) as f64) < part * (u64::MAX as f64),
        }
    }
}

/// A text that borrows from the request where it can. (serde makes an owned one of an `Option<Cow<str>>`.)
#[derive(Debug, Deserialize)]
#[serde(transparent)]
pub(super) struct Text<'a>(#[serde(borrow)] pub Cow<'a, str>);

impl Deref for Text<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}
