//! The connection to the cluster: login, TLS, and how long each kind of request may take.

use std::{path::Path, sync::Arc, time::Duration};

use rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use scylla::{
    client::{
        execution_profile::{ExecutionProfile, ExecutionProfileHandle},
        session::Session,
        session_builder::SessionBuilder,
    },
    errors::{
        ConnectionError, ConnectionPoolError, ConnectionSetupRequestErrorKind, DbError, MetadataError,
        NewSessionError,
    },
    policies::{
        load_balancing::DefaultPolicy, retry::FallthroughRetryPolicy,
        speculative_execution::PercentileSpeculativeExecutionPolicy,
    },
    statement::{Consistency, SerialConsistency},
};
use secrecy::ExposeSecret;

use super::CqlOpenError;
use crate::store::{Cluster, DECIDED_WITHIN, Settings};

const CONNECT_WITHIN: Duration = Duration::from_secs(5);
const READ_WITHIN: Duration = Duration::from_secs(2);
const WRITE_WITHIN: Duration = Duration::from_secs(5);
/// A page of a scan may have to skip many expired rows.
const SCAN_WITHIN: Duration = Duration::from_secs(30);
/// Longer than the servers themselves try a conditional write (about 2 s): when we stop waiting, they have
/// stopped too. And half of the time that the operation has: a lost answer can still be read back.
const CAS_WITHIN: Duration = Duration::from_secs(DECIDED_WITHIN.as_secs() / 2);
/// `init` changes the schema, which takes servers longer than anything else, and waits until all nodes agree
/// on it.
pub(super) const SCHEMA_WITHIN: Duration = Duration::from_secs(60);

/// How each kind of request is executed.
pub(super) struct Profiles {
    /// Reads of single rows and pages. A slow one is sent to a second node as well.
    pub read: ExecutionProfileHandle,
    /// Writes with a timestamp of ours.
    pub write: ExecutionProfileHandle,
    /// Pages of whole tables.
    pub scan: ExecutionProfileHandle,
    /// Conditional writes. Never tried again by the driver: if their answer is lost, the row is read back.
    pub cas: ExecutionProfileHandle,
    /// Reads that see every conditional write that was done, the latest one included.
    pub serial: ExecutionProfileHandle,
}

/// Connects to the cluster. `keyspaces` are those whose metadata the driver fetches, for their replication.
pub(super) async fn connect(
    cluster: &Cluster,
    settings: &Settings,
    keyspaces: [&str; 2],
) -> Result<(Session, Profiles), CqlOpenError> {
    let profiles = Profiles::of(&settings.datacenter);
    let mut builder = SessionBuilder::new()
        .known_nodes(&cluster.nodes)
        .connection_timeout(CONNECT_WITHIN)
        .schema_agreement_timeout(SCHEMA_WITHIN)
        .keyspaces_to_fetch(keyspaces)
        .default_execution_profile_handle(profiles.read.clone())
        .tls_context(tls(settings)?);
    if let Some(login) = &cluster.login {
        builder = builder.user(&login.user, login.password.expose_secret());
    }
    let session = builder.build().await.map_err(not_connected)?;
    one_datacenter(&session, &settings.datacenter)?;
    Ok((session, profiles))
}

/// Why no connection was made: a missing or wrong login is corrected in the settings, anything else
/// elsewhere.
fn not_connected(source: NewSessionError) -> CqlOpenError {
    if let NewSessionError::MetadataError(MetadataError::ConnectionPoolError(ConnectionPoolError::Broken {
        last_connection_error,
    })) = &source
        && let ConnectionError::ConnectionSetupRequestError(setup) = last_connection_error
    {
        match setup.get_error() {
            ConnectionSetupRequestErrorKind::MissingAuthentication => return CqlOpenError::NoLogin,
            ConnectionSetupRequestErrorKind::DbError(DbError::AuthenticationError, message) => {
                return CqlOpenError::WrongLogin { message: message.clone() };
            }
            _ => {}
        }
    }
    CqlOpenError::Unreachable { source: Box::new(source) }
}

// === impl Profiles ===

impl Profiles {
    fn of(datacenter: &str) -> Self {
        // One datacenter only: a read in one would miss a write in another one.
        let mut balancing = DefaultPolicy::builder();
        if !datacenter.is_empty() {
            balancing = balancing.prefer_datacenter(datacenter.to_owned());
        }
        let within = |timeout| {
            ExecutionProfile::builder()
                .load_balancing_policy(balancing.clone().build())
                .consistency(Consistency::LocalQuorum)
                .serial_consistency(Some(SerialConsistency::LocalSerial))
                .request_timeout(Some(timeout))
        };
        let speculative = PercentileSpeculativeExecutionPolicy { max_retry_count: 1, percentile: 99.0 };
        let no_retries = Arc::new(FallthroughRetryPolicy::new());
        Self {
            read: within(READ_WITHIN)
                .speculative_execution_policy(Some(Arc::new(speculative)))
                .build()
                .into_handle(),
            write: within(WRITE_WITHIN).build().into_handle(),
            scan: within(SCAN_WITHIN).build().into_handle(),
            cas: within(CAS_WITHIN).retry_policy(no_retries.clone()).build().into_handle(),
            serial: within(CAS_WITHIN)
                .retry_policy(no_retries)
                .consistency(Consistency::LocalSerial)
                .build()
                .into_handle(),
        }
    }
}

/// Every guarantee holds within one datacenter; so of several, `store.datacenter` has to name one.
fn one_datacenter(session: &Session, named: &str) -> Result<(), CqlOpenError> {
    let state = session.get_cluster_state();
    let mut found: Vec<String> =
        state.get_nodes_info().iter().filter_map(|node| node.datacenter.clone()).collect();
    found.sort();
    found.dedup();
    match named {
        "" if found.len() > 1 => Err(CqlOpenError::WhichDatacenter { found }),
        "" => Ok(()),
        _ if found.iter().any(|datacenter| datacenter == named) => Ok(()),
        _ => Err(CqlOpenError::NoSuchDatacenter { named: named.to_owned(), found }),
    }
}

/// TLS with the files of the settings; `None` = `store.ca_file` is not set.
fn tls(settings: &Settings) -> Result<Option<Arc<ClientConfig>>, CqlOpenError> {
    if settings.ca_file.is_empty() {
        return Ok(None);
    }
    let mut roots = RootCertStore::empty();
    for authority in certificates(&settings.ca_file)? {
        roots.add(authority).map_err(|source| unusable(&settings.ca_file, source))?;
    }
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|source| unusable(&settings.ca_file, source))?
        .with_root_certificates(roots);
    let config = if settings.certificate_file.is_empty() {
        config.with_no_client_auth()
    } else {
        let key = PrivateKeyDer::from_pem_file(&settings.key_file)
            .map_err(|source| unusable(&settings.key_file, source))?;
        config
            .with_client_auth_cert(certificates(&settings.certificate_file)?, key)
            .map_err(|source| unusable(&settings.certificate_file, source))?
    };
    Ok(Some(Arc::new(config)))
}

fn certificates(file: &str) -> Result<Vec<CertificateDer<'static>>, CqlOpenError> {
    let read = || CertificateDer::pem_file_iter(file)?.collect::<Result<Vec<_>, _>>();
    match read() {
        Ok(found) if found.is_empty() => Err(unusable(file, "there is no certificate in it")),
        read => read.map_err(|source| unusable(file, source)),
    }
}

fn unusable(file: &str, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> CqlOpenError {
    CqlOpenError::Tls { path: Path::new(file).to_owned(), source: source.into() }
}
