//! ScyllaDB, or Apache Cassandra: the store of a deployment of any size. All instances share it.
//!
//! There are no transactions here; there are two ways to agree instead, and each table belongs to one of
//! them.
//!
//! - **The last write wins** (keyspace `<keyspace>`). Every write carries a timestamp of ours, never the
//!   server's: the version of the event, or a number that only rises. So a write may be repeated, may arrive
//!   late and may overtake another one, and the row ends the same. What must be atomic is one cell. Reads and
//!   writes ask a majority, so "write, then read" of two racing handlers makes at least one of them see the
//!   other: the protocols of `tokens` and of the due rows rest on that.
//! - **One winner** (keyspace `<keyspace>_lwt`). Conditional writes, for the claim of a dose and the progress
//!   of a broadcast. Their answer may get lost; then it is read back, never guessed (`decide`).
//!
//! **Invariant:** no read-then-write decides anything, but for routes, which people set.
//!
//! **Invariant:** one datacenter. Majorities are local; two datacenters that both take records would miss
//! each other.
//!
//! What passes by itself (a node too busy, a connection broken) is tried three times here, because one step
//! of a protocol costs less than all of them; anything longer is [`StoreError`], and the caller's to try
//! again.

mod broadcasts;
mod cas;
mod dialect;
mod doses;
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
/// For tests that let whole stages race over a row.
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
    /// When a device of very many tokens was last spoken of.
    crowd_told_at: Mutex<Option<Instant>>,
}

/// Why a store could not be opened, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum CqlOpenError {
    /// No node answers.
    #[error("no node of store.url can be connected to: {source}")]
    Away {
        /// What the driver said of the last one.
        source: Box<NewSessionError>,
    },
    /// The cluster wants to know who we are.
    #[error(
        "the cluster lets nobody in without a login: write one into store.url, scylla://user:password@host:9042/keyspace"
    )]
    NoLogin,
    /// The cluster does not know us.
    #[error(
        "the cluster refuses the user or the password of store.url (a password's special characters are written %40): {said}"
    )]
    WrongLogin {
        /// Its words. They may name the user, never the password.
        said: String,
    },
    /// TLS can't be set up.
    #[error("{path} can't be used for TLS: {source}")]
    Tls {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Which of them shall decide?
    #[error("the cluster has the datacenters {}: name one in store.datacenter, the same for all instances", found.join(", "))]
    WhichDatacenter {
        /// All of them.
        found: Vec<String>,
    },
    /// The setting names none that is there.
    #[error("store.datacenter is {named}, but the cluster has {}", found.join(", "))]
    NoSuchDatacenter {
        /// The setting.
        named: String,
        /// Those that are there.
        found: Vec<String>,
    },
    /// `pushcast init` has not run, or an older release's.
    #[error("the keyspace {keyspace} has not got schema {missing} yet: run `pushcast init`")]
    NotInitialised {
        /// The keyspace.
        keyspace: String,
        /// The first schema file that was not applied.
        missing: i32,
    },
    /// Written by a later release.
    #[error(
        "the keyspace {keyspace} was prepared by a newer pushcast (its schema is {found}, this one knows {known}): start that release"
    )]
    Newer {
        /// The keyspace.
        keyspace: String,
        /// The schema that is there.
        found: i32,
        /// The newest schema known here.
        known: i32,
    },
    /// A released schema file was edited, there or here.
    #[error(
        "schema {version} of the keyspace {keyspace} is not the one of this release: was it prepared by a build of your own?"
    )]
    Different {
        /// The keyspace.
        keyspace: String,
        /// Which file.
        version: i32,
    },
    /// A statement does not fit the tables.
    #[error("the cluster refuses a statement: {source}")]
    Statement {
        /// What it said.
        source: Box<PrepareError>,
    },
    /// Anything else.
    #[error("{context}: {source}")]
    Refused {
        /// What was asked of the cluster.
        context: String,
        /// What it said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

// === impl CqlStore ===

impl CqlStore {
    /// Connects to the cluster and checks that it has this release's schema.
    ///
    /// # Errors
    /// The cluster is away, or `pushcast init` has to run first.
    pub async fn open(cluster: &Cluster, settings: &Settings) -> Result<Self, CqlOpenError> {
        let lwt = lwt_keyspace(&cluster.keyspace);
        let (session, profiles) = session::connect(cluster, settings, [&cluster.keyspace, &lwt]).await?;
        let server =
            dialect::recognise(&session).await.map_err(|err| refused("recognise the server", err))?;
        schema::check(&session, &cluster.keyspace).await?;
        let words = statements::words(server, &cluster.keyspace, &lwt);
        let statements = Statements::prepare(&session, &profiles, &words)
            .await
            .map_err(|source| CqlOpenError::Statement { source: Box::new(source) })?;
        tracing::info!(keyspace = %cluster.keyspace, "The store is the keyspace {} of {}", cluster.keyspace, server.name());
        Ok(Self { inner: Arc::new(CqlInner { session, statements, crowd_told_at: Mutex::new(None) }) })
    }

    /// Creates what is missing: keyspaces, tables. Safe to run again, and several at once. Says what it did.
    ///
    /// # Errors
    /// The cluster is away, refuses something, or has a newer release's schema.
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

/// Where the tables of conditional writes lie.
fn lwt_keyspace(keyspace: &str) -> String {
    format!("{keyspace}_lwt")
}

fn refused(context: impl Into<String>, source: ExecutionError) -> CqlOpenError {
    CqlOpenError::Refused { context: context.into(), source: Box::new(source) }
}
