//! HTTP: the admin listener (`admin`), and the health that it reports (`health`).
//!
//! `http.listen`, the registration API's address, is checked and otherwise ignored: this release has no such
//! API.

pub mod admin;
mod health;

use std::io;

use serde::Deserialize;
use tokio::net::TcpListener;

pub use self::health::{ASK_EVERY, Health, HealthReport, local_status_of};

/// `[http]` of config/default.toml.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "config/default.toml is the manual")]
pub struct Settings {
    pub listen: String,
    pub admin_listen: String,
}

/// A listener could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("can't listen on {address} ({key}): {}", reason(.source))]
pub struct CannotListen {
    /// The setting that names the address.
    pub key: &'static str,
    /// The address.
    pub address: String,
    /// The system's error.
    pub source: io::Error,
}

/// Opens the listener that the setting `key` names.
///
/// # Errors
/// The address is in use, or is not one of this machine's.
pub async fn listen(address: &str, key: &'static str) -> Result<TcpListener, CannotListen> {
    TcpListener::bind(address).await.map_err(|source| CannotListen {
        key,
        address: address.to_owned(),
        source,
    })
}

fn reason(source: &io::Error) -> String {
    match source.kind() {
        io::ErrorKind::AddrInUse => "another process listens there already".to_owned(),
        _ => source.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_port_in_use_is_reported_with_its_setting() {
        let first = listen("127.0.0.1:0", "http.admin_listen").await.unwrap();
        let address = first.local_addr().unwrap().to_string();
        let err = listen(&address, "http.admin_listen").await.unwrap_err();
        assert_eq!(
            err.to_string(),
            format!("can't listen on {address} (http.admin_listen): another process listens there already")
        );
    }
}
