//! What the answers of all providers have in common: how long they ask us to wait, and texts that may be
//! logged.

use std::{error::Error, time::Duration};

use jiff::fmt::rfc2822::DateTimeParser;

use crate::domain::{Timestamp, Token};

/// A date may be past already, by a clock behind ours.
const RETRY_AFTER_MIN: Duration = Duration::from_secs(1);
/// Characters of a provider's text that are logged and stored.
const TEXT_MAX: usize = 300;

/// How long a `Retry-After` header asks us to wait, in its two forms: seconds, or an HTTP date. `None` where
/// there is none or it is neither. A second at least; `retry` limits a long one.
pub fn retry_after(value: Option<&str>, now: Timestamp) -> Option<Duration> {
    let value = value?.trim();
    let wait = if !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit()) {
        // More digits than a number holds mean "very long".
        value.parse().map_or(Duration::MAX, Duration::from_secs)
    } else {
        let at = DateTimeParser::new().parse_timestamp(value).ok()?;
        Duration::try_from(at.duration_since(now)).unwrap_or_default()
    };
    Some(wait.max(RETRY_AFTER_MIN))
}

/// A provider's text as it may be logged and stored: one line, at most 300 characters, every token
/// replaced.
///
/// Tokens of the request are replaced by their hash. What looks like an Expo token is blanked even if it is
/// none of the request's, for Expo may write a token in another form than we do.
pub fn redacted<'a>(text: &str, tokens: impl IntoIterator<Item = &'a Token>) -> String {
    let mut text = text.to_owned();
    for token in tokens {
        if text.contains(token.as_str()) {
            text = text.replace(token.as_str(), &format!("<{}>", token.hash()));
        }
    }
    let text = blank_expo_tokens(&text);
    let mut line = String::with_capacity(text.len().min(TEXT_MAX));
    for word in text.split_whitespace() {
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    match line.char_indices().nth(TEXT_MAX) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

/// An error and its chain of causes, in one line.
pub fn causes(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        line.push_str(": ");
        line.push_str(&error.to_string());
        cause = error.source();
    }
    line
}

fn blank_expo_tokens(text: &str) -> String {
    const OPENING: &str = "PushToken[";
    let mut blanked = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find(OPENING) {
        let inside = start + OPENING.len();
        blanked.push_str(&rest[..inside]);
        blanked.push('…');
        rest = rest[inside..].find(']').map_or("", |end| &rest[inside + end..]);
    }
    blanked + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Timestamp {
        "2026-11-20T08:00:00Z".parse().unwrap()
    }

    #[test]
    fn retry_after_is_seconds_or_a_date_and_a_second_at_least() {
        for (value, seconds) in [
            (Some("30"), Some(30)),
            (Some(" 7 "), Some(7)),
            (Some("0"), Some(1)),
            (Some("99999"), Some(99_999)),
            (Some("99999999999999999999999"), Some(u64::MAX)),
            (Some("Fri, 20 Nov 2026 08:02:00 GMT"), Some(120)),
            (Some("Fri, 20 Nov 2026 07:00:00 GMT"), Some(1)),
            (Some("Sun, 20 Dec 2026 08:00:00 GMT"), Some(30 * 24 * 3600)),
            (Some("soon"), None),
            (Some("-5"), None),
            (Some(""), None),
            (None, None),
        ] {
            assert_eq!(retry_after(value, now()).map(|wait| wait.as_secs()), seconds, "{value:?}");
        }
    }

    #[test]
    fn a_redacted_text_holds_no_token_and_stays_on_one_line() {
        let ours = Token::parse(&"Fcm_0".repeat(20)).unwrap();
        let text = format!("\"ExponentPushToken[secret]\" and\n\t{} and ExpoPushToken[other", ours.as_str());
        assert_eq!(
            redacted(&text, [&ours]),
            format!("\"ExponentPushToken[…]\" and <{}> and ExpoPushToken[…", ours.hash())
        );
        assert_eq!(redacted(&"ü".repeat(1000), []).chars().count(), TEXT_MAX + 1);
    }
}
