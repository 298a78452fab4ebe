//! `store.url`: which store, and where it is.

use std::path::PathBuf;

use secrecy::ExposeSecret;

use super::Settings;

/// Where the store is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreUrl {
    /// SQLite in memory: gone with the process.
    Memory,
    /// SQLite in this file.
    File(PathBuf),
}

/// The URL names no store that this build has. Shows no part of the URL: it may hold a password.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidStoreUrl {
    /// ScyllaDB and Cassandra.
    #[error("scylla:// is not available in this build yet; use embedded:/path/to/file, or embedded:memory to try things out")]
    NotInThisBuild,
    /// Anything else.
    #[error("expected embedded:memory or embedded:/path/to/file")]
    Unknown,
}

impl Settings {
    /// Reads `url`.
    ///
    /// # Errors
    /// This build has no such store.
    pub fn location(&self) -> Result<StoreUrl, InvalidStoreUrl> {
        match self.url.expose_secret().split_once(':') {
            Some(("embedded", "memory")) => Ok(StoreUrl::Memory),
            Some(("embedded", path)) if !path.is_empty() => Ok(StoreUrl::File(path.into())),
            Some(("scylla", _)) => Err(InvalidStoreUrl::NotInThisBuild),
            _ => Err(InvalidStoreUrl::Unknown),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_is_in_memory_in_a_file_or_not_in_this_build() {
        let location = |url: &str| Settings { url: url.into(), replication_factor: 0 }.location();
        assert_eq!(location("embedded:memory"), Ok(StoreUrl::Memory));
        assert_eq!(location("embedded:/var/lib/push.db"), Ok(StoreUrl::File("/var/lib/push.db".into())));
        assert_eq!(location("scylla://a:b@db:9042/push"), Err(InvalidStoreUrl::NotInThisBuild));
        for url in ["", "embedded:", "embedded", "memory", "postgres://db/push"] {
            assert_eq!(location(url), Err(InvalidStoreUrl::Unknown), "{url:?}");
        }
    }
}
