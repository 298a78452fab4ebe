//! How large a notification may be. APNs and FCM take 4096 bytes, and every message of our providers ends at
//! one of them.

use std::borrow::Cow;

use super::PayloadRefused;

/// The most bytes that title, body and data may have together.
pub const PAYLOAD_MAX: usize = 4096;

/// Bytes left for what the provider adds to our text on its way to APNs. How these are counted is published
/// nowhere, so a text that has to be cut anyway is cut this much shorter.
const WRAPPER: usize = 256;

const ELLIPSIS: &str = "…";

/// The body's text, cut so that it fits beside `others` bytes of title and data.
///
/// Text may be cut: the user reads the rest in the app. Data may not: the app would read a different value.
///
/// # Errors
/// Title and data alone are too large.
pub fn fit(text: &str, others: usize) -> Result<Cow<'_, str>, PayloadRefused> {
    if others + text.len() <= PAYLOAD_MAX - WRAPPER {
        return Ok(Cow::Borrowed(text));
    }
    if others > PAYLOAD_MAX - ELLIPSIS.len() {
        return Err(PayloadRefused {
            reason: format!("title and data have {others} bytes, {PAYLOAD_MAX} are allowed with the body"),
        });
    }
    let room = (PAYLOAD_MAX - WRAPPER).saturating_sub(others).max(ELLIPSIS.len());
    if text.len() <= room {
        return Ok(Cow::Borrowed(text));
    }
    Ok(Cow::Owned(format!("{}{ELLIPSIS}", &text[..text.floor_char_boundary(room - ELLIPSIS.len())])))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_short_text_stays_and_a_long_one_is_cut_on_a_character() {
        assert_eq!(fit("Ping", 100).unwrap(), "Ping");
        let cut = fit(&"ü".repeat(3000), 101).unwrap().into_owned();
        assert!(cut.ends_with("ü…"));
        assert_eq!(cut.len() + 101, PAYLOAD_MAX - WRAPPER);
    }

    #[test]
    fn data_that_leaves_no_room_is_refused() {
        assert_eq!(fit("Ping", PAYLOAD_MAX - 3).unwrap(), "…");
        assert!(fit("Ping", PAYLOAD_MAX - 2).unwrap_err().reason.contains("4094 bytes"));
    }

    proptest! {
        #[test]
        fn whatever_fits_stays_below_the_limit(text in "\\PC{0,3000}", others in 0..5000_usize) {
            if let Ok(fitted) = fit(&text, others) {
                prop_assert!(fitted.len() + others <= PAYLOAD_MAX);
                prop_assert!(fitted == text || text.starts_with(fitted.trim_end_matches('…')));
            }
        }
    }
}
