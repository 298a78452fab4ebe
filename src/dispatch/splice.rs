//! What a message has of its own, put into a body that is JSON already.

use memchr::memchr2;

/// Appends a token as it stands inside a JSON string. Tokens have no control characters, but Expo's may hold
/// quotes and backslashes.
pub fn splice(bytes: &mut Vec<u8>, token: &str) {
    let mut rest = token.as_bytes();
    while let Some(at) = memchr2(b'"', b'\\', rest) {
        bytes.extend_from_slice(&rest[..at]);
        bytes.extend_from_slice(&[b'\\', rest[at]]);
        rest = &rest[at + 1..];
    }
    bytes.extend_from_slice(rest);
}

/// Appends a number. Not with `write!`, whose formatter shows in the profile of a broadcast.
pub fn splice_number(bytes: &mut Vec<u8>, number: i64) {
    let _memory_does_not_fail = serde_json::to_writer(bytes, &number);
}
