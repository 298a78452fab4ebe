//! Puts the fields that differ between messages into a body that is JSON already.

use memchr::memchr2;

/// Appends a token, escaped for the inside of a JSON string. Tokens have no control characters, but Expo's
/// may hold quotes and backslashes.
pub fn splice(bytes: &mut Vec<u8>, token: &str) {
    let mut rest = token.as_bytes();
    while let Some(at) = memchr2(b'"', b'\\', rest) {
        bytes.extend_from_slice(&rest[..at]);
        bytes.extend_from_slice(&[b'\\', rest[at]]);
        rest = &rest[at + 1..];
    }
    bytes.extend_from_slice(rest);
}

/// Appends a number. Not with `write!`: its formatter takes a visible part of a broadcast's CPU time.
pub fn splice_number(bytes: &mut Vec<u8>, number: i64) {
    let _infallible = serde_json::to_writer(bytes, &number);
}
