//! Requests to FCM, parsed without copying and as strictly as FCM does: unknown names and values of another
//! type are refused.

use std::{borrow::Cow, fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{Error, IgnoredAny, MapAccess, Visitor},
};
use serde_json::value::RawValue;

use crate::{counts, wire::Text};

const PAYLOAD_MAX: usize = 4096;
const TTL_MAX: f64 = 2_419_200.0;

/// A message that FCM takes, unless its token has a fault.
#[derive(Debug)]
pub(super) struct Envelope<'a> {
    pub validate_only: bool,
    pub target: Target<'a>,
    /// Equal for two notifications that count as the same: by tag, else collapse id, else the text.
    pub identity: u64,
}

/// The recipient of a message.
#[derive(Debug)]
pub(super) enum Target<'a> {
    /// A registration token or an installation id.
    Device(Cow<'a, str>),
    /// A topic or a condition.
    Group(Cow<'a, str>),
}

impl Target<'_> {
    pub fn text(&self) -> &str {
        match self {
            Self::Device(text) | Self::Group(text) => text,
        }
    }
}

/// Why a payload is refused.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct PayloadError {
    pub field: String,
    pub why: String,
    /// FCM itself reports it, rather than the JSON layer in front of it.
    pub by_fcm: bool,
}

impl PayloadError {
    fn from_fcm(field: &str, why: impl Into<String>) -> Self {
        Self { field: field.to_owned(), why: why.into(), by_fcm: true }
    }

    /// Words serde's error as Google's JSON layer does.
    fn from_json(err: &serde_json::Error) -> Self {
        let text = err.to_string();
        let text = text.split(" at line ").next().unwrap_or_default();
        let unknown = text.strip_prefix("unknown field `").and_then(|rest| rest.split('`').next());
        let why = match unknown {
            Some(name) => format!(
                "Invalid JSON payload received. Unknown name \"{name}\" at 'message': Cannot find field."
            ),
            None if text.starts_with("Invalid value") => text.to_owned(),
            None => format!("Invalid JSON payload received. {text}"),
        };
        let field = why.split('\'').nth(1).unwrap_or("message").to_owned();
        Self { field, why, by_fcm: false }
    }
}

impl<'a> Envelope<'a> {
    /// # Errors
    /// FCM refuses the payload for any token.
    pub fn parse(body: &'a [u8]) -> Result<Self, PayloadError> {
        let not_text = |_| PayloadError {
            field: "message".to_owned(),
            why: "Invalid JSON payload received. Not UTF-8.".to_owned(),
            by_fcm: false,
        };
        // UTF-8 is checked once here; parsing bytes would check each string on its own.
        let body = str::from_utf8(body).map_err(not_text)?;
        let request: Request<'a> = serde_json::from_str(body).map_err(|err| PayloadError::from_json(&err))?;
        let message = request.message;
        let identity = message.check()?;
        Ok(Self { validate_only: request.validate_only, identity, target: message.target()? })
    }
}

/// Not documented by FCM: no token with another character is known.
pub(super) fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b":_-".contains(&byte))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Request<'a> {
    #[serde(default, alias = "validateOnly")]
    validate_only: bool,
    #[serde(borrow)]
    message: Message<'a>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "some fields are only checked for their name and type")]
struct Message<'a> {
    #[serde(borrow)]
    token: Option<Text<'a>>,
    #[serde(borrow)]
    fid: Option<Text<'a>>,
    #[serde(borrow)]
    topic: Option<Text<'a>>,
    #[serde(borrow)]
    condition: Option<Text<'a>>,
    #[serde(borrow)]
    data: Option<Entries<'a>>,
    #[serde(borrow)]
    notification: Option<Notification<'a>>,
    #[serde(borrow)]
    android: Option<Android<'a>>,
    #[serde(borrow)]
    apns: Option<Apns<'a>>,
    webpush: Option<IgnoredAny>,
    #[serde(alias = "fcmOptions")]
    fcm_options: Option<IgnoredAny>,
    name: Option<IgnoredAny>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "some fields are only checked for their name and type")]
struct Notification<'a> {
    #[serde(borrow)]
    title: Option<Text<'a>>,
    #[serde(borrow)]
    body: Option<Text<'a>>,
    image: Option<IgnoredAny>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "some fields are only checked for their name and type")]
struct Android<'a> {
    #[serde(alias = "collapseKey")]
    collapse_key: Option<IgnoredAny>,
    priority: Option<AndroidPriority>,
    #[serde(borrow)]
    ttl: Option<Text<'a>>,
    #[serde(borrow)]
    data: Option<Entries<'a>>,
    #[serde(borrow)]
    notification: Option<AndroidNotification<'a>>,
    #[serde(alias = "restrictedPackageName")]
    restricted_package_name: Option<IgnoredAny>,
    #[serde(alias = "fcmOptions")]
    fcm_options: Option<IgnoredAny>,
    #[serde(alias = "directBootOk")]
    direct_boot_ok: Option<bool>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
enum AndroidPriority {
    #[serde(rename = "NORMAL", alias = "normal")]
    Normal,
    #[serde(rename = "HIGH", alias = "high")]
    High,
}

/// The fields that a text notification has; a name that is neither here nor in [`OTHER_ANDROID_FIELDS`] is
/// refused.
#[derive(Debug, Default)]
struct AndroidNotification<'a> {
    title: Option<Text<'a>>,
    body: Option<Text<'a>>,
    tag: Option<Text<'a>>,
}

const OTHER_ANDROID_FIELDS: [&str; 26] = [
    "icon",
    "color",
    "sound",
    "click_action",
    "body_loc_key",
    "body_loc_args",
    "title_loc_key",
    "title_loc_args",
    "channel_id",
    "ticker",
    "sticky",
    "event_time",
    "local_only",
    "notification_priority",
    "default_sound",
    "default_vibrate_timings",
    "default_light_settings",
    "vibrate_timings",
    "visibility",
    "notification_count",
    "light_settings",
    "image",
    "proxy",
    "bypass_proxy_notification",
    "channelId",
    "notificationPriority",
];

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "some fields are only checked for their name and type")]
struct Apns<'a> {
    #[serde(borrow)]
    headers: Option<Entries<'a>>,
    #[serde(borrow)]
    payload: Option<&'a RawValue>,
    #[serde(alias = "fcmOptions")]
    fcm_options: Option<IgnoredAny>,
    #[serde(alias = "liveActivityToken")]
    live_activity_token: Option<IgnoredAny>,
}

impl<'a> Message<'a> {
    /// The identity of a valid message.
    fn check(&self) -> Result<u64, PayloadError> {
        if let Some(key) =
            self.data.iter().flat_map(|data| &data.0).map(|(key, _)| key).find(|key| is_reserved(key))
        {
            return Err(PayloadError::from_fcm(
                "message.data",
                format!("Invalid data payload key: {}", &**key),
            ));
        }
        let ttl = self.android.as_ref().and_then(|android| android.ttl.as_deref());
        if let Some(ttl) = ttl.filter(|ttl| !is_ttl(ttl)) {
            let why = format!(
                "Invalid value at 'message.android.ttl' \
                 (type.googleapis.com/google.protobuf.Duration), \"{ttl}\""
            );
            return Err(PayloadError { field: "message.android.ttl".to_owned(), why, by_fcm: false });
        }
        if self
            .apns
            .as_ref()
            .and_then(|apns| apns.payload)
            .is_some_and(|payload| !payload.get().starts_with('{'))
        {
            let why = "Invalid value at 'message.apns.payload' (type.googleapis.com/google.protobuf.Struct)"
                .to_owned();
            return Err(PayloadError { field: "message.apns.payload".to_owned(), why, by_fcm: false });
        }
        if self.payload() > PAYLOAD_MAX {
            return Err(PayloadError::from_fcm("message", "Android message is too big"));
        }
        Ok(self.identity())
    }

    fn target(self) -> Result<Target<'a>, PayloadError> {
        let devices = [self.token, self.fid].into_iter().flatten().map(|text| Target::Device(text.0));
        let groups = [self.topic, self.condition].into_iter().flatten().map(|text| Target::Group(text.0));
        let mut targets = devices.chain(groups);
        match (targets.next(), targets.next()) {
            (Some(target), None) => Ok(target),
            (None, _) => Err(PayloadError::from_fcm("message", "Recipient of the message is not set.")),
            (Some(_), Some(_)) => {
                let why = "Invalid value at 'message' (oneof), oneof field 'target' is already set. \
                           Cannot set another one.";
                Err(PayloadError { field: "message".to_owned(), why: why.to_owned(), by_fcm: false })
            }
        }
    }

    fn identity(&self) -> u64 {
        let shown = self.android.as_ref().and_then(|android| android.notification.as_ref());
        let tag = shown.and_then(|shown| shown.tag.as_deref()).map(Cow::Borrowed);
        let collapse_id = || self.apns.as_ref()?.headers.as_ref()?.get("apns-collapse-id");
        if let Some(id) = tag.or_else(collapse_id) {
            return counts::hash(&*id);
        }
        let common = self.notification.as_ref();
        let title = common
            .and_then(|common| common.title.as_deref())
            .or(shown.and_then(|shown| shown.title.as_deref()));
        let body = common
            .and_then(|common| common.body.as_deref())
            .or(shown.and_then(|shown| shown.body.as_deref()));
        counts::hash((title, body))
    }

    fn payload(&self) -> usize {
        let text = |text: &Option<Text>| text.as_ref().map_or(0, |text| text.len());
        let common = self.notification.as_ref().map_or(0, |common| text(&common.title) + text(&common.body));
        let android = self.android.as_ref();
        let shown = android
            .and_then(|android| android.notification.as_ref())
            .map_or(0, |shown| text(&shown.title) + text(&shown.body));
        let data = self.data.iter().chain(android.and_then(|android| android.data.as_ref()));
        common + shown + data.map(Entries::bytes).sum::<usize>()
    }
}

fn is_reserved(key: &str) -> bool {
    matches!(key, "from" | "message_type" | "notification")
        || key.starts_with("google.")
        || key.starts_with("gcm.")
}

/// `"3600s"`, at most four weeks.
fn is_ttl(text: &str) -> bool {
    let seconds = text.strip_suffix('s').and_then(|seconds| seconds.parse::<f64>().ok());
    seconds.is_some_and(|seconds| (0.0..=TTL_MAX).contains(&seconds))
}

/// A map whose values are strings, kept as raw JSON.
#[derive(Debug)]
struct Entries<'a>(Vec<(Text<'a>, &'a RawValue)>);

impl Entries<'_> {
    fn get(&self, key: &str) -> Option<Cow<'_, str>> {
        let (_, value) = self.0.iter().find(|(name, _)| name.eq_ignore_ascii_case(key))?;
        serde_json::from_str::<String>(value.get()).ok().map(Cow::Owned)
    }

    fn bytes(&self) -> usize {
        self.0.iter().map(|(key, value)| key.len() + value.get().len() - 2).sum()
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Entries<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Strings<'a>(PhantomData<&'a ()>);

        impl<'de: 'a, 'a> Visitor<'de> for Strings<'a> {
            type Value = Entries<'a>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut entries = Vec::new();
                while let Some((key, value)) = map.next_entry::<Text<'a>, &'a RawValue>()? {
                    if !value.get().starts_with('"') {
                        let index = entries.len();
                        return Err(A::Error::custom(format_args!(
                            "Invalid value at 'message.data[{index}].value' (TYPE_STRING), {}",
                            value.get()
                        )));
                    }
                    entries.push((key, value));
                }
                Ok(Entries(entries))
            }
        }

        deserializer.deserialize_map(Strings(PhantomData))
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for AndroidNotification<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields<'a>(PhantomData<&'a ()>);

        impl<'de: 'a, 'a> Visitor<'de> for Fields<'a> {
            type Value = AndroidNotification<'a>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a notification")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut found = AndroidNotification::default();
                while let Some(name) = map.next_key::<Text<'a>>()? {
                    match &*name {
                        "title" => found.title = map.next_value()?,
                        "body" => found.body = map.next_value()?,
                        "tag" => found.tag = map.next_value()?,
                        name if OTHER_ANDROID_FIELDS.contains(&name) => drop(map.next_value::<IgnoredAny>()?),
                        name => return Err(A::Error::unknown_field(name, &[])),
                    }
                }
                Ok(found)
            }
        }

        deserializer.deserialize_map(Fields(PhantomData))
    }
}

#[cfg(test)]
mod tests;
