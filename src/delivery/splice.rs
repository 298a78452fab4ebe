//! A token put into a body that is JSON already.

/// Appends a token as it stands inside a JSON string. Tokens have no control characters, but Expo's may hold quotes and
/// backslashes.
pub fn splice(bytes: &mut Vec<u8>, token: &str) {
    let is_special = |byte: &u8| matches!(byte, b'"' | b'\\');
    let mut rest = token.as_bytes();
    while let Some(at) = rest.iter().position(is_special) {
        bytes.extend_from_slice(&rest[..at]);
        bytes.extend_from_slice(&[b'\\', rest[at]]);
        rest = &rest[at + 1..];
    }
    bytes.extend_from_slice(rest);
}
