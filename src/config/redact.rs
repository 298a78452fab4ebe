//! Values for logs and error messages: complete, unless they are secrets or contain one.

use toml::Value;

const HIDDEN: &str = "\"[redacted]\"";

/// The value of that key without secrets.
pub(super) fn redacted(key: &str, value: &Value) -> String {
    match (key, value) {
        (_, Value::String(text)) if text.is_empty() => "\"\"".to_owned(),
        ("expo.access_token" | "fcm.private_key", _) => HIDDEN.to_owned(),
        ("kafka.properties", Value::Table(properties)) => {
            let pairs = properties.iter().map(|(name, value)| format!("{name} = {}", property(name, value)));
            format!("{{ {} }}", pairs.collect::<Vec<_>>().join(", "))
        }
        // Any text may be a URL, and a URL may contain a password.
        (_, Value::String(text)) => format!("\"{}\"", without_userinfo(text)),
        (_, value) => value.to_string(),
    }
}

/// librdkafka has dozens of names for credentials, and plugins have their own: a name that looks like one
/// counts as one.
fn property(name: &str, value: &Value) -> String {
    let secret =
        ["password", "secret", "token", "pem", "key", "jaas", "sasl.username", "sasl.oauthbearer.config"];
    let harmless =
        name.ends_with(".location") || name.ends_with(".mechanisms") || name.ends_with(".mechanism");
    if !harmless && secret.iter().any(|word| name.contains(word)) {
        HIDDEN.to_owned()
    } else {
        value.to_string()
    }
}

/// `scheme://user:password@host` without the user and the password.
fn without_userinfo(text: &str) -> String {
    let Some((scheme, rest)) = text.split_once("://") else { return text.to_owned() };
    // A password may contain an unescaped '/' or '@', so the last '@' counts.
    match rest.rsplit_once('@') {
        Some((_, host)) => format!("{scheme}://[redacted]@{host}"),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_shown_without_its_password() {
        assert_eq!(
            redacted("store.url", &Value::from("scylla://ann:p@ss/word@db:9042/push")),
            "\"scylla://[redacted]@db:9042/push\""
        );
        assert_eq!(redacted("fcm.url", &Value::from("https://a.example")), "\"https://a.example\"");
    }

    #[test]
    fn a_property_named_like_a_credential_is_hidden() {
        let properties: Value = toml::toml! {
            "sasl.password" = "s3cret"
            "ssl.key.pem" = "s3cret"
            "sasl.mechanisms" = "PLAIN"
            "ssl.key.location" = "/etc/key.pem"
        }
        .into();
        let shown = redacted("kafka.properties", &properties);
        assert!(!shown.contains("s3cret"), "{shown}");
        assert!(shown.contains("PLAIN") && shown.contains("/etc/key.pem"), "{shown}");
    }
}
