//! ScyllaDB, or Apache Cassandra: the store of a deployment of any size. All instances share it.
//!
//! There are no transactions here. There are two ways to agree instead, and each table belongs to one of
//! them.
//!
//! - **The last write wins** (keyspace `<keyspace>`). Every write carries a timestamp of ours, never the
//!   server's: the version of the event, or a number that only rises. So a write may be repeated, may arrive
//!   late and may overtake another one, and the row ends the same. What must be atomic is one cell. Reads and
//!   writes ask a majority, so "write, then read" of two racing handlers makes at least one of them see the
//!   other: the protocols of `tokens` and of the due rows rest on that.
//! - **Compare and set** (keyspace `<keyspace>_lwt`). Conditional writes, of which one wins, for the claim of
//!   a dose and the progress of a broadcast. Their answer may get lost; then the row is read back, never
//!   guessed (`cas`).
//!
//! **Invariant:** no result depends on a read followed by an unconditional write, except for routes, which
//! change a few times a year.
//!
//! **Invariant:** one datacenter. Majorities are local; two datacenters that both take records would miss
//! each other's writes.
//!
//! Failures that pass by themselves (a node too busy, a connection broken) are tried three times here,
//! because repeating one step of a protocol costs less than repeating all of them. What fails for longer is
//! returned as [`StoreError::Unavailable`], for the caller to try again. What no repetition mends is
//! [`StoreError::Rejected`] or [`StoreError::Corrupt`] at once; `errors` tells them apart.

mod broadcasts;
mod cas;
mod dialect;
mod doses;
mod errors;
mod execute;
mod regimens;
mod routes;
mod scan;
mod schema;
mod session;
mod statements;
mod tokens;

use std::{
    path::PathBuf,
    sync::{Arc, Mutex},
};

use scylla::{
    client::session::Session,
    errors::{ExecutionError, NewSessionError, PrepareError},
};
use tokio::time::Instant;

pub use self::schema::Applied;
use self::statements::Statements;
/// For tests that let whole stages race for a row.
#[cfg(test)]
pub(crate) use self::{broadcasts::part, cas::CasResult, doses::claim};
use super::{Cluster, DriverCounts, Settings, Store};
use crate::{domain::Timestamp, store::StoreError};

/// A store in a cluster. Clones share its connections.
#[derive(Clone)]
pub struct CqlStore {
    inner: Arc<CqlInner>,
}

struct CqlInner {
    session: Session,
    statements: Statements,
    /// When a device id that too many tokens share was last logged.
    shared_device_logged_at: Mutex<Option<Instant>>,
}

/// Why a store could not be opened, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum CqlOpenError {
    /// No node of `store.url` accepts a connection.
    #[error("no node of store.url can be connected to: {source}")]
    Unreachable {
        /// The driver's error for the last node.
        source: Box<NewSessionError>,
    },
    /// The cluster requires a login and `store.url` has none.
    #[error(
        "the cluster requires a login: write one into store.url, \
         scylla://user:password@host:9042/keyspace"
    )]
    NoLogin,
    /// The cluster refuses the login of `store.url`.
    #[error(
        "the cluster refuses the user or the password of store.url (a password's special characters are \
         written %40): {message}"
    )]
    WrongLogin {
        /// The server's message. It may name the user, never the password.
        message: String,
    },
    /// TLS can't be set up.
    #[error("{path} can't be used for TLS: {source}")]
    Tls {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The cluster has several datacenters and `store.datacenter` names none.
    #[error(
        "the cluster has the datacenters {}: name one in store.datacenter, the same for all instances",
        found.join(", ")
    )]
    WhichDatacenter {
        /// The names of all datacenters.
        found: Vec<String>,
    },
    /// `store.datacenter` names one that the cluster does not have.
    #[error("store.datacenter is {named}, but the cluster has {}", found.join(", "))]
    NoSuchDatacenter {
        /// The setting.
        named: String,
        /// The names of all datacenters.
        found: Vec<String>,
    },
    /// `pushcast init` has not run, or only that of an older release.
    #[error("the keyspace {keyspace} has not got schema {missing} yet: run `pushcast init`")]
    NotInitialised {
        /// The keyspace.
        keyspace: String,
        /// The first schema file that was not applied.
        missing: i32,
    },
    /// Prepared by a later release.
    #[error(
        "the keyspace {keyspace} was prepared by a newer pushcast (its schema is {found}, this one knows \
         {known}): start that release"
    )]
    Newer {
        /// The keyspace.
        keyspace: String,
        /// The newest schema file that was applied to it.
        found: i32,
        /// The newest schema file of this release.
        known: i32,
    },
    /// The checksum of an applied schema file differs: the file was edited, there or here.
    #[error(
        "schema {version} of the keyspace {keyspace} is not the one of this release: was it prepared by a \
         build of your own?"
    )]
    Different {
        /// The keyspace.
        keyspace: String,
        /// The number of the schema file.
        version: i32,
    },
    /// A statement does not fit the tables.
    #[error("the cluster refuses a statement: {source}")]
    Statement {
        /// The first node's error.
        source: Box<PrepareError>,
    },
    /// Any other request that failed while the store was opened.
    #[error("{context}: {source}")]
    Refused {
        /// The request.
        context: String,
        /// What the driver or the server reported.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

// === impl CqlStore ===

impl CqlStore {
    /// Connects to the cluster and checks that it has this release's schema.
    ///
    /// # Errors
    /// The cluster is unreachable or refuses us, or `pushcast init` has to run first.
    pub async fn open(cluster: &Cluster, settings: &Settings) -> Result<Self, CqlOpenError> {
        let lwt = lwt_keyspace(&cluster.keyspace);
        let (session, profiles) = session::connect(cluster, settings, [&cluster.keyspace, &lwt]).await?;
        let server =
            dialect::recognise(&session).await.map_err(|err| refused("recognise the server", err))?;
        schema::check(&session, &cluster.keyspace).await?;
        let placeholders = statements::placeholders(server, &cluster.keyspace, &lwt);
        let statements = Statements::prepare(&session, &profiles, &placeholders)
            .await
            .map_err(|source| CqlOpenError::Statement { source: Box::new(source) })?;
        tracing::info!(
            keyspace = %cluster.keyspace,
            "The store is the keyspace {} of {}", cluster.keyspace, server.name()
        );
        let shared_device_logged_at = Mutex::new(None);
        Ok(Self { inner: Arc::new(CqlInner { session, statements, shared_device_logged_at }) })
    }

    /// Creates the keyspaces and tables that are missing. Safe to run again, and several times at once.
    /// Returns what it found and what it created.
    ///
    /// # Errors
    /// The cluster is unreachable, refuses something, or has a newer release's schema.
    pub async fn init(
        cluster: &Cluster,
        settings: &Settings,
        now: Timestamp,
    ) -> Result<Vec<Applied>, CqlOpenError> {
        let lwt = lwt_keyspace(&cluster.keyspace);
        let (session, _) = session::connect(cluster, settings, [&cluster.keyspace, &lwt]).await?;
        let server =
            dialect::recognise(&session).await.map_err(|err| refused("recognise the server", err))?;
        schema::apply(&session, server, [&cluster.keyspace, &lwt], settings, now).await
    }
}

impl Store for CqlStore {
    async fn ping(&self) -> Result<(), StoreError> {
        self.inner.rows("ping", &self.inner.statements.ping, (1_i32,)).await.map(drop)
    }

    fn driver_counts(&self) -> Option<DriverCounts> {
        let metrics = self.inner.session.get_metrics();
        // A millisecond is the driver's finest measure; before the first request there is none.
        let p99_ms = metrics.get_latency_percentile_ms(99.0).unwrap_or_default();
        Some(DriverCounts {
            requests: metrics.get_requests_unpaged_num() + metrics.get_requests_manually_paged_num(),
            errors: metrics.get_errors_unpaged_num() + metrics.get_errors_manually_paged_num(),
            retries: metrics.get_retries_num(),
            timeouts: metrics.get_request_timeouts(),
            connections: metrics.get_total_connections(),
            p99: std::time::Duration::from_millis(p99_ms),
        })
    }
}

/// The keyspace of the tables of conditional writes (lightweight transactions).
fn lwt_keyspace(keyspace: &str) -> String {
    format!("{keyspace}_lwt")
}

fn refused(context: impl Into<String>, source: ExecutionError) -> CqlOpenError {
    CqlOpenError::Refused { context: context.into(), source: Box::new(source) }
}
