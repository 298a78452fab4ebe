//! The schema: numbered files, applied by `pushcast init`, checked at each start.
//!
//! `schema_versions` lists the files that were applied. A file's statements are run one by one and may be run
//! again, so an `init` that was cut short is simply called again.
//!
//! **Several at once.** Two nodes of Cassandra that are asked to create the same table at the same time
//! create two of them, under one name, and do not recover from it; each node checks `IF NOT EXISTS` on its
//! own. So every change goes to one node, the same one from every `init`: it applies them one after the
//! other, and the second finds the table there. (ScyllaDB agrees on schema changes in the whole cluster.)
//! What is not covered is an `init` that can't reach that node while another one can.

use std::{collections::HashMap, fmt};

use scylla::{
    client::session::Session,
    policies::load_balancing::{NodeIdentifier, SingleTargetLoadBalancingPolicy},
    statement::unprepared::Statement,
};
use sha2::{Digest, Sha256};

use super::{
    CqlOpenError,
    dialect::Server,
    refused, session,
    statements::{fill, placeholders},
};
use crate::{domain::Timestamp, store::Settings};

/// File n + 1. Append only.
const FILES: [(&str, &str); 1] = [("0001_first.cql", include_str!("../../../schemas/cql/0001_first.cql"))];

/// The highest replication factor that `store.replication_factor = 0` leads to.
const REPLICAS_MAX: usize = 3;

/// A keyspace or a schema file, and whether `init` created it or found it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    what: String,
    now: bool,
}

impl fmt::Display for Applied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:24} {}", self.what, if self.now { "created" } else { "is there, left as it is" })
    }
}

/// Checks that exactly this release's files are applied.
pub(super) async fn check(session: &Session, keyspace: &str) -> Result<(), CqlOpenError> {
    let not_initialised = |missing| CqlOpenError::NotInitialised { keyspace: keyspace.to_owned(), missing };
    if !has_table(session, keyspace, "schema_versions").await? {
        return Err(not_initialised(1));
    }
    let found = versions(session, keyspace).await?;
    match compare(&found, &FILES) {
        SchemaState::Fits => Ok(()),
        SchemaState::Missing(version) => Err(not_initialised(version)),
        SchemaState::Newer(found) => {
            Err(CqlOpenError::Newer { keyspace: keyspace.to_owned(), found, known: number(FILES.len()) })
        }
        SchemaState::Different(version) => {
            Err(CqlOpenError::Different { keyspace: keyspace.to_owned(), version })
        }
    }
}

/// Creates the keyspaces, if there are none, and applies the files that are missing.
pub(super) async fn apply(
    session: &Session,
    server: Server,
    [push, lwt]: [&str; 2],
    settings: &Settings,
    now: Timestamp,
) -> Result<Vec<Applied>, CqlOpenError> {
    let replicas = replicas(settings.replication_factor, smallest_datacenter(session));
    let mut report = Vec::new();
    for (keyspace, options) in [(push, ""), (lwt, server.lwt_keyspace())] {
        let is_new = !has_keyspace(session, keyspace).await?;
        if is_new {
            let replication =
                format!("{{'class': 'NetworkTopologyStrategy', 'replication_factor': {replicas}}}");
            let create =
                format!("CREATE KEYSPACE IF NOT EXISTS {keyspace} WITH replication = {replication}{options}");
            run(session, &create).await?;
        }
        report.push(Applied { what: format!("keyspace {keyspace}"), now: is_new });
    }
    let create = format!(
        "CREATE TABLE IF NOT EXISTS {push}.schema_versions \
         (version int PRIMARY KEY, applied_at bigint, checksum text)"
    );
    run(session, &create).await?;
    let mut placeholders = placeholders(server, push, lwt);
    placeholders.insert("overwritten", server.overwritten(replicas));
    placeholders.insert("decided", server.lwt_table());

    let found = versions(session, push).await?;
    let missing = match compare(&found, &FILES) {
        SchemaState::Fits => number(FILES.len()) + 1,
        SchemaState::Missing(version) => version,
        SchemaState::Newer(found) => {
            return Err(CqlOpenError::Newer { keyspace: push.to_owned(), found, known: number(FILES.len()) });
        }
        SchemaState::Different(version) => {
            return Err(CqlOpenError::Different { keyspace: push.to_owned(), version });
        }
    };
    for (version, (name, text)) in (1..).zip(FILES) {
        if version >= missing {
            for statement in statements(text) {
                run(session, &fill(&placeholders, &statement)).await?;
            }
            // Last: a version that is recorded is complete.
            let record = format!(
                "INSERT INTO {push}.schema_versions (version, applied_at, checksum) VALUES (?, ?, ?)"
            );
            let values = (version, now.as_microsecond(), checksum(text));
            session
                .query_unpaged(record, values)
                .await
                .map_err(|err| refused(format!("record that {name} is applied"), err))?;
        }
        report.push(Applied { what: format!("schema {name}"), now: version >= missing });
    }
    Ok(report)
}

/// The files that were applied to a keyspace, compared with those of this release.
#[derive(Debug, PartialEq, Eq)]
enum SchemaState {
    Fits,
    /// This file, and those after it.
    Missing(i32),
    Newer(i32),
    Different(i32),
}

fn compare(found: &HashMap<i32, String>, files: &[(&str, &str)]) -> SchemaState {
    if let Some(newest) = found.keys().max().filter(|newest| **newest > number(files.len())) {
        return SchemaState::Newer(*newest);
    }
    for (version, (_, text)) in (1..).zip(files) {
        match found.get(&version) {
            None => return SchemaState::Missing(version),
            Some(sum) if *sum != checksum(text) => return SchemaState::Different(version),
            Some(_) => {}
        }
    }
    SchemaState::Fits
}

/// The statements of a file: separated by semicolons, without comments.
fn statements(file: &str) -> Vec<String> {
    let bare: Vec<&str> = file.lines().filter(|line| !line.trim_start().starts_with("--")).collect();
    bare.join("\n")
        .split(';')
        .map(str::trim)
        .filter(|statement| !statement.is_empty())
        .map(str::to_owned)
        .collect()
}

fn checksum(text: &str) -> String {
    base16ct::lower::encode_string(&Sha256::digest(text)[..8])
}

/// How many nodes the smallest datacenter has: it too must hold all replicas.
fn smallest_datacenter(session: &Session) -> usize {
    let state = session.get_cluster_state();
    let mut nodes: HashMap<Option<&str>, usize> = HashMap::new();
    for node in state.get_nodes_info() {
        *nodes.entry(node.datacenter.as_deref()).or_default() += 1;
    }
    nodes.into_values().min().unwrap_or(1)
}

fn replicas(replication_factor: i32, nodes: usize) -> u32 {
    match u32::try_from(replication_factor) {
        Ok(set @ 1..) => set,
        _ => u32::try_from(nodes.clamp(1, REPLICAS_MAX)).unwrap_or(1),
    }
}

async fn has_keyspace(session: &Session, keyspace: &str) -> Result<bool, CqlOpenError> {
    let query = "SELECT keyspace_name FROM system_schema.keyspaces WHERE keyspace_name = ?";
    let found =
        session.query_unpaged(query, (keyspace,)).await.map_err(|err| refused("read the keyspaces", err))?;
    Ok(found.into_rows_result().is_ok_and(|rows| rows.rows_num() > 0))
}

async fn has_table(session: &Session, keyspace: &str, table: &str) -> Result<bool, CqlOpenError> {
    let query = "SELECT table_name FROM system_schema.tables WHERE keyspace_name = ? AND table_name = ?";
    let found = session
        .query_unpaged(query, (keyspace, table))
        .await
        .map_err(|err| refused("read the tables", err))?;
    Ok(found.into_rows_result().is_ok_and(|rows| rows.rows_num() > 0))
}

async fn versions(session: &Session, keyspace: &str) -> Result<HashMap<i32, String>, CqlOpenError> {
    let unreadable = |source: Box<dyn std::error::Error + Send + Sync>| CqlOpenError::Refused {
        context: "read schema_versions".to_owned(),
        source,
    };
    let found = session
        .query_unpaged(format!("SELECT version, checksum FROM {keyspace}.schema_versions"), ())
        .await
        .map_err(|err| refused("read schema_versions", err))?;
    let rows = found.into_rows_result().map_err(|err| unreadable(err.into()))?;
    let rows = rows.rows::<(i32, String)>().map_err(|err| unreadable(err.into()))?;
    rows.collect::<Result<_, _>>().map_err(|err| unreadable(err.into()))
}

/// Changes the schema, by the one node that all changes go to.
async fn run(session: &Session, text: &str) -> Result<(), CqlOpenError> {
    let mut statement = Statement::new(text);
    statement.set_request_timeout(Some(session::SCHEMA_WITHIN));
    let state = session.get_cluster_state();
    let nodes = state.get_nodes_info().iter().map(|node| (node.host_id, node.is_connected()));
    statement.set_load_balancing_policy(
        first_of(nodes).map(|id| SingleTargetLoadBalancingPolicy::new(NodeIdentifier::HostId(id), None)),
    );
    let begin = text.split(" (").next().unwrap_or_default();
    session.query_unpaged(statement, ()).await.map(drop).map_err(|err| refused(begin, err))
}

/// The node that every process picks that sees the same nodes: the one with the smallest id, of those that
/// are connected.
fn first_of<Id: Ord>(nodes: impl Iterator<Item = (Id, bool)>) -> Option<Id> {
    nodes.filter_map(|(id, is_connected)| is_connected.then_some(id)).min()
}

fn number(files: usize) -> i32 {
    i32::try_from(files).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO: [(&str, &str); 2] = [("0001", "one"), ("0002", "two")];

    fn found(versions: &[(i32, &str)]) -> HashMap<i32, String> {
        versions.iter().map(|(version, text)| (*version, checksum(text))).collect()
    }

    #[test]
    fn a_keyspace_fits_misses_a_file_is_newer_or_has_another_schema() {
        assert_eq!(compare(&found(&[(1, "one"), (2, "two")]), &TWO), SchemaState::Fits);
        assert_eq!(compare(&found(&[]), &TWO), SchemaState::Missing(1));
        assert_eq!(compare(&found(&[(1, "one")]), &TWO), SchemaState::Missing(2));
        assert_eq!(compare(&found(&[(1, "one"), (2, "two"), (3, "three")]), &TWO), SchemaState::Newer(3));
        assert_eq!(compare(&found(&[(1, "edited"), (2, "two")]), &TWO), SchemaState::Different(1));
    }

    #[test]
    fn a_file_is_cut_at_its_semicolons() {
        assert_eq!(
            statements("-- a; comment\nCREATE a (\n    -- b\n    c);\n\nCREATE d;\n"),
            ["CREATE a (\n    c)", "CREATE d"]
        );
        assert!(FILES.iter().all(|(_, text)| {
            statements(text).iter().all(|statement| statement.contains(" IF NOT EXISTS $"))
        }));
    }

    #[test]
    fn files_are_numbered_and_every_file_is_applied() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/schemas/cql");
        let mut names: Vec<String> = std::fs::read_dir(folder)
            .unwrap()
            .map(|file| file.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, FILES.map(|(name, _)| name));
        assert!((1..).zip(FILES).all(|(n, (name, _))| name.starts_with(&format!("{n:04}_"))));
    }

    #[test]
    fn the_same_node_is_picked_in_whatever_order_the_nodes_come() {
        assert_eq!(first_of([(3, true), (1, false), (2, true)].into_iter()), Some(2), "1 can't be reached");
        assert_eq!(first_of([(2, true), (3, true), (1, false)].into_iter()), Some(2));
        assert_eq!(first_of([(1, false)].into_iter()), None);
    }

    #[test]
    fn there_are_no_more_replicas_than_nodes() {
        assert_eq!([0, 1, 2, 3, 9].map(|nodes| replicas(0, nodes)), [1, 1, 2, 3, 3]);
        assert_eq!([replicas(1, 9), replicas(5, 9)], [1, 5]);
    }

    /// Keyspaces hold checksums of this form already.
    #[test]
    fn a_checksum_is_the_first_eight_bytes_of_sha_256_in_hexadecimal() {
        assert_eq!(checksum("one"), "7692c3ad3540bb80");
    }
}
