//! What is said at `/sandbox/…`: the faults that can be scripted, and what the sandbox has seen.

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

/// Everything that the sandbox does wrong on purpose. The default: nothing, but for the tokens that carry a
/// telling word ([`TokenRule::words`]).
///
/// In JSON each key may be absent and then has its default; an unknown one is refused. Durations read
/// `"50ms"`, `"15m"`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Faults {
    /// Of the fake Expo.
    pub expo: ProviderFaults,
    /// Of the fake FCM.
    pub fcm: ProviderFaults,
    /// Of the OAuth endpoint that FCM's credentials come from.
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
    /// Messages allowed in any second; a request that goes beyond is answered with 429 as a whole. None = no
    /// limit.
    pub rate_limit: Option<u32>,
    /// `Retry-After` of a 429. FCM says 1 s when absent, Expo says nothing.
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::optional")]
    pub retry_after: Option<Duration>,
    /// An outage of sending.
    pub down: Option<Outage>,
    /// Every credential is refused.
    pub credentials_refused: bool,
    /// Tokens that get something else than a success. The first rule that holds decides.
    pub tokens: Vec<TokenRule>,
    /// How long a receipt is not ready. Expo only.
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

/// Requests answered with an error, whatever they ask. It lasts for `requests` or for `lasting`, whichever
/// ends first; with neither, until the faults are set anew.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Outage {
    /// How it shows.
    #[serde(skip_serializing_if = "FailureMode::is_error")]
    pub manner: FailureMode,
    /// HTTP status of the answers, where there are any.
    pub status: u16,
    /// How many requests it hits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests: Option<u64>,
    /// How long it lasts from now.
    #[serde(
        with = "jiff::fmt::serde::unsigned_duration::friendly::compact::optional",
        skip_serializing_if = "Option::is_none"
    )]
    pub lasting: Option<Duration>,
    /// The messages are taken all the same: the answer is a lie, as an ambiguous 503 or 504 can be.
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

/// How an outage shows to whoever asks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum FailureMode {
    /// The provider's own error.
    #[default]
    Error,
    /// A proxy's page in HTML.
    Html,
    /// The request is read, and no answer ever comes.
    Hang,
    /// The request is read, and then its connection is reset, with every other request that it carries.
    Reset,
    /// The answer comes a byte a second: a success if the messages are taken, else the error.
    Drip,
    /// A success that says too little: Expo leaves out the last ticket, FCM the message's name, OAuth the
    /// access token.
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
    /// What is wrong with them.
    pub fault: TokenFault,
}

impl TokenRule {
    /// The default rules: a token whose text contains `dead`, `ghost`, `foreign`, `busy`, `malformed` or
    /// `uncredentialed` has that fault. Set [`ProviderFaults::tokens`] to an empty list when tokens are
    /// random text.
    pub fn words() -> Vec<Self> {
        use TokenFault::*;
        [
            ("dead", Dead),
            ("ghost", Ghost),
            ("foreign", Foreign),
            ("busy", Busy),
            ("malformed", Malformed),
            ("uncredentialed", Uncredentialed),
        ]
        .map(|(word, fault)| Self { which: Which::Containing(word.to_owned()), fault })
        .to_vec()
    }

    /// These tokens have this fault.
    pub fn of<T: Into<String>>(fault: TokenFault, tokens: impl IntoIterator<Item = T>) -> Self {
        Self { which: Which::Tokens(tokens.into_iter().map(Into::into).collect()), fault }
    }
}

/// A choice of tokens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Which {
    /// These.
    Tokens(HashSet<String>),
    /// Those whose text contains this.
    Containing(String),
    /// That part of all tokens, between 0 and 1: always the same ones, chosen by their hash.
    Fraction(f64),
}

/// What can be wrong with a token, or with its device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum TokenFault {
    /// Gone: Expo's ticket says DeviceNotRegistered, FCM 404 UNREGISTERED.
    Dead,
    /// Gone, and Expo learns of it late: the ticket is ok, the receipt says DeviceNotRegistered. FCM just
    /// takes it.
    Ghost,
    /// Of another project: in a mixed request Expo says PUSH_TOO_MANY_EXPERIENCE_IDS, FCM 403
    /// SENDER_ID_MISMATCH.
    Foreign,
    /// Gets too many messages: FCM 429 with a QuotaFailure, Expo's receipt says MessageRateExceeded.
    Busy,
    /// Not a token: Expo refuses the request with 400, FCM says that it is not a valid registration token.
    Malformed,
    /// Its device's service refuses our key: Expo's receipt says InvalidCredentials, FCM 401
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
    /// How long an access token lives.
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required")]
    pub lifetime: Duration,
}

impl Default for OauthFaults {
    fn default() -> Self {
        Self { latency: Duration::ZERO, down: None, refused: false, lifetime: Duration::from_secs(3600) }
    }
}

/// What the sandbox has seen since its start or the last reset.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Statistics {
    /// By the fake Expo.
    pub expo: ProviderStatistics,
    /// By the fake FCM.
    pub fcm: ProviderStatistics,
    /// Receipts that Expo was asked for.
    pub receipts: ReceiptStatistics,
    /// Access tokens that the OAuth endpoint has issued.
    pub credentials_issued: u64,
}

/// What one fake provider has seen.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProviderStatistics {
    /// Messages taken, those of a lying outage included.
    pub taken: u64,
    /// How many tokens took at least one.
    pub distinct_tokens: u64,
    /// Messages taken whose token had taken the same notification before. Notifications are told apart by
    /// Expo's `tag` or `collapseId`, FCM's `android.notification.tag` or `apns-collapse-id`, else by their
    /// text.
    pub doubles: u64,
    /// What the messages were answered. A message of a request that could not be read is not in here.
    pub answers: BTreeMap<Answer, u64>,
    /// Requests that wanted to send.
    pub requests: u64,
    /// What those requests were answered, by HTTP status; 0 = nothing.
    pub statuses: BTreeMap<u16, u64>,
    /// Those that met an outage, by its manner.
    pub outages: BTreeMap<FailureMode, u64>,
    /// Those requests, by the version of HTTP.
    pub http_versions: BTreeMap<String, u64>,
    /// The most messages that arrived in any second, whatever they were answered. Exact to a ten-thousandth
    /// of a second.
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

/// What a message was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Answer {
    /// Taken.
    Ok,
    /// The token is gone.
    Dead,
    /// The token is of another project.
    Foreign,
    /// Too many messages for the device.
    Busy,
    /// Too many messages for the project.
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

/// What Expo was asked about tickets.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReceiptStatistics {
    /// Requests.
    pub requests: u64,
    /// Ticket ids in them.
    pub asked: u64,
    /// Receipts given, good and bad.
    pub given: u64,
    /// Bad ones among them.
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

/// A message that was taken, kept when [`super::Options::remember`] asks for it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TakenMessage {
    /// By whom.
    pub provider: Provider,
    /// To whom.
    pub token: String,
    /// First line, if it has one.
    pub title: Option<String>,
    /// Text, if it has one.
    pub body: Option<String>,
    /// What the app receives beside the text; null if nothing.
    pub data: Value,
    /// Android's tag.
    pub tag: Option<String>,
    /// Expo's `collapseId`, FCM's `apns-collapse-id`.
    pub collapse_id: Option<String>,
    /// The message as it was sent.
    pub raw: Value,
    /// The request's headers, without `authorization`.
    pub headers: BTreeMap<String, String>,
    /// `HTTP/1.1` or `HTTP/2.0`.
    pub http_version: String,
    /// When it arrived.
    pub received_at: Timestamp,
}

impl Which {
    pub(super) fn holds(&self, token: &str) -> bool {
        match self {
            Self::Tokens(tokens) => tokens.contains(token),
            Self::Containing(word) => token.contains(word.as_str()),
            #[expect(clippy::cast_precision_loss, reason = "a fraction of all tokens need not be exact")]
            Self::Fraction(part) => (counts::hash(token) as f64) < part * (u64::MAX as f64),
        }
    }
}

/// A text that borrows from what was sent where it can. (An `Option<Cow<str>>` never would.)
#[derive(Debug, Deserialize)]
#[serde(transparent)]
pub(super) struct Text<'a>(#[serde(borrow)] pub Cow<'a, str>);

impl Deref for Text<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}
