//! The way to the cluster: who we are, how it is encrypted, and how long each kind of request may take.

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
/// A page of a scan may wade through much that has expired.
const SCAN_WITHIN: Duration = Duration::from_secs(30);
/// Longer than the servers themselves try to decide (about 2 s): when we stop waiting, they have stopped too.
/// And half of the time that there is: a lost answer can still be read back.
const DECIDE_WITHIN: Duration = Duration::from_secs(DECIDED_WITHIN.as_secs() / 2);
/// `init` changes the schema, which takes servers longer than anything else, and each node must say that it
/// has heard.
pub(super) const SCHEMA_WITHIN: Duration = Duration::from_secs(60);

/// How each kind of request is executed.
pub(super) struct Profiles {
    /// Reads that somebody waits for. A slow one is asked of a second node as well.
    pub read: ExecutionProfileHandle,
    /// Writes with a timestamp of ours.
    pub write: ExecutionProfileHandle,
    /// Pages of whole tables.
    pub scan: ExecutionProfileHandle,
    /// Conditional writes. Never tried again by the driver: their answer, if it is lost, has to be read back.
    pub decide: ExecutionProfileHandle,
    /// Reads that see what conditional writes decided, the last one included.
    pub serial: ExecutionProfileHandle,
}

/// Connects to the cluster. `keyspaces` are those whose replication the driver is to know.
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

/// Why nobody lets us in: a wrong login is mended in the settings, anything else elsewhere.
fn not_connected(source: NewSessionError) -> CqlOpenError {
    if let NewSessionError::MetadataError(MetadataError::ConnectionPoolError(ConnectionPoolError::Broken {
        last_connection_error,
    })) = &source
        && let ConnectionError::ConnectionSetupRequestError(setup) = last_connection_error
    {
        match setup.get_error() {
            ConnectionSetupRequestErrorKind::MissingAuthentication => return CqlOpenError::NoLogin,
            ConnectionSetupRequestErrorKind::DbError(DbError::AuthenticationError, said) => {
                return CqlOpenError::WrongLogin { said: said.clone() };
            }
            _ => {}
        }
    }
    CqlOpenError::Away { source: Box::new(source) }
}

// === impl Profiles ===

impl Profiles {
    fn of(datacenter: &str) -> Self {
        // One datacenter decides: a write to one and a read from another one would miss each other.
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
        let second_try = PercentileSpeculativeExecutionPolicy { max_retry_count: 1, percentile: 99.0 };
        let never_again = Arc::new(FallthroughRetryPolicy::new());
        Self {
            read: within(READ_WITHIN)
                .speculative_execution_policy(Some(Arc::new(second_try)))
                .build()
                .into_handle(),
            write: within(WRITE_WITHIN).build().into_handle(),
            scan: within(SCAN_WITHIN).build().into_handle(),
            decide: within(DECIDE_WITHIN).retry_policy(never_again.clone()).build().into_handle(),
            serial: within(DECIDE_WITHIN)
                .retry_policy(never_again)
                .consistency(Consistency::LocalSerial)
                .build()
                .into_handle(),
        }
    }
}

/// All that is promised is promised within one datacenter; so of several, one has to be named.
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

/// TLS by the files of the settings; `None` without them.
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
