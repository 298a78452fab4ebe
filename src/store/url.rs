//! `store.url`: which store, and its address.

use std::path::PathBuf;

use percent_encoding::percent_decode_str;
use secrecy::{ExposeSecret, SecretString};

use super::Settings;

/// The kind of store and its address.
#[derive(Clone, Debug)]
pub enum StoreUrl {
    /// SQLite in memory: lost when the process ends.
    Memory,
    /// SQLite in this file.
    File(PathBuf),
    /// ScyllaDB or Cassandra.
    Cql(Cluster),
}

/// A cluster that speaks CQL.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// Some of its nodes, `host:port`; the driver discovers the others through them.
    pub nodes: Vec<String>,
    /// `None` = the cluster requires no login.
    pub login: Option<Login>,
    /// The keyspace; the tables of conditional writes are in a second one, `<keyspace>_lwt`.
    pub keyspace: String,
}

/// The login of `store.url`.
#[derive(Clone, Debug)]
pub struct Login {
    /// The name of the role in the cluster.
    pub user: String,
    /// The password of that role, percent-decoded.
    pub password: SecretString,
}

/// The URL names no store. Shows no part of the URL: it may hold a password.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidStoreUrl {
    /// The part behind `scylla://` is malformed.
    #[error("expected scylla://[user:password@]host[:port][,host[:port]]/keyspace: {0}")]
    Cluster(&'static str),
    /// The scheme is unknown, or the path of a file is missing.
    #[error(
        "expected embedded:memory, embedded:/path/to/file or \
         scylla://[user:password@]host:9042[,host:9042]/keyspace"
    )]
    Unknown,
}

const PORT: u16 = 9042;

/// Names are at most 48 characters long, and ours gets `_lwt` at its end.
const KEYSPACE_MAX: usize = 44;

impl Settings {
    /// Reads `url`.
    ///
    /// # Errors
    /// The URL is malformed.
    pub fn location(&self) -> Result<StoreUrl, InvalidStoreUrl> {
        let url = self.url.expose_secret();
        if let Some(rest) = url.strip_prefix("scylla://") {
            return Cluster::parse(rest).map(StoreUrl::Cql).map_err(InvalidStoreUrl::Cluster);
        }
        match url.split_once(':') {
            Some(("embedded", "memory")) => Ok(StoreUrl::Memory),
            Some(("embedded", path)) if !path.is_empty() => Ok(StoreUrl::File(path.into())),
            _ => Err(InvalidStoreUrl::Unknown),
        }
    }
}

// === impl Cluster ===

impl Cluster {
    fn parse(text: &str) -> Result<Self, &'static str> {
        // A password may hold any character, so the last @ ends it; no host and no keyspace holds one.
        let (login, address) = match text.rsplit_once('@') {
            Some((login, address)) => (Some(Login::parse(login)?), address),
            None => (None, text),
        };
        let (nodes, keyspace) = address.split_once('/').ok_or("the keyspace is missing")?;
        let is_allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
        let starts_with_letter = keyspace.bytes().next().is_some_and(|b| b.is_ascii_lowercase());
        if !starts_with_letter || keyspace.len() > KEYSPACE_MAX || !keyspace.bytes().all(is_allowed) {
            return Err("a keyspace is up to 44 of a-z, 0-9 and _, and begins with a letter");
        }
        let nodes = nodes.split(',').map(node).collect::<Result<_, _>>()?;
        Ok(Self { nodes, login, keyspace: keyspace.to_owned() })
    }
}

impl Login {
    fn parse(text: &str) -> Result<Self, &'static str> {
        let (user, password) = text.split_once(':').ok_or("a user needs a password: user:password@")?;
        let decoded = |text| {
            percent_decode_str(text).decode_utf8().map_err(|_| "the user or the password is not UTF-8")
        };
        Ok(Self {
            user: decoded(user)?.into_owned(),
            password: SecretString::from(decoded(password)?.into_owned()),
        })
    }
}

/// `host:port`, with CQL's default port if there is none.
fn node(text: &str) -> Result<String, &'static str> {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => {
            (host, port.parse().map_err(|_| "a port is a number up to 65535")?)
        }
        _ => (text, PORT),
    };
    let in_brackets = host.starts_with('[') && host.ends_with(']');
    if host.is_empty() || port == 0 || (host.contains(':') && !in_brackets) || host.contains(['/', '?', ' '])
    {
        return Err("a node is host or host:port");
    }
    Ok(format!("{host}:{port}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn location(url: &str) -> Result<StoreUrl, InvalidStoreUrl> {
        Settings { url: url.into(), ..Settings::default() }.location()
    }

    fn cluster(url: &str) -> Cluster {
        match location(url) {
            Ok(StoreUrl::Cql(cluster)) => cluster,
            other => panic!("{url}: {other:?}"),
        }
    }

    #[test]
    fn a_store_is_in_memory_in_a_file_or_in_a_cluster() {
        assert!(matches!(location("embedded:memory"), Ok(StoreUrl::Memory)));
        assert!(matches!(
            location("embedded:/var/lib/push.db"),
            Ok(StoreUrl::File(path)) if path.ends_with("push.db")
        ));
        for url in ["", "embedded:", "embedded", "memory", "postgres://db/push", "scylla:/db/push"] {
            assert_eq!(location(url).err(), Some(InvalidStoreUrl::Unknown), "{url:?}");
        }
    }

    #[test]
    fn a_cluster_has_nodes_and_a_keyspace_and_maybe_a_login() {
        let plain = cluster("scylla://db,10.0.0.2:19042,[::1]:9043,[::2]/push");
        assert_eq!(plain.nodes, ["db:9042", "10.0.0.2:19042", "[::1]:9043", "[::2]:9042"]);
        assert_eq!(plain.keyspace, "push");
        assert!(plain.login.is_none());
        let login = cluster("scylla://ann:p%40ss:w/o@rd@db/push").login.unwrap();
        assert_eq!((login.user.as_str(), login.password.expose_secret()), ("ann", "p@ss:w/o@rd"));
        assert!(!format!("{:?}", cluster("scylla://ann:secret@db/push")).contains("secret"));
    }

    #[test]
    fn a_malformed_cluster_is_refused_without_being_shown() {
        for address in [
            "db",
            "db/",
            "/push",
            "db:0/push",
            "db:x/push",
            "::1/push",
            "db/Push",
            "db/1push",
            "ann@db/push",
            "db/push?x=1",
        ] {
            let refusal = location(&format!("scylla://{address}")).expect_err(address);
            assert!(matches!(refusal, InvalidStoreUrl::Cluster(_)), "{address}: {refusal}");
        }
        assert!(location(&format!("scylla://db/{}", "a".repeat(45))).is_err());
    }
}
