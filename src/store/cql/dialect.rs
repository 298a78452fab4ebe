//! Where the CQL of ScyllaDB and of Apache Cassandra differs. All of it is here; everything else is CQL that
//! both understand.
//!
//! Nothing here changes the meaning of a statement. The two also *answer* a conditional write differently
//! (ScyllaDB always sends the row along, Cassandra only when it was not applied): `cas` reads the first
//! column only.

use scylla::{
    client::session::Session,
    errors::{DbError, ExecutionError, RequestAttemptError},
};

/// The kind of server and its release.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Server {
    /// ScyllaDB; the releases up to 6.2 are older than those that are numbered by years (2019.1 and on).
    Scylla { major: u32, minor: u32 },
    /// Apache Cassandra.
    Cassandra { major: u32 },
}

/// Asks a node for its kind and release: only ScyllaDB has a table `system.versions`.
pub(super) async fn recognise(session: &Session) -> Result<Server, ExecutionError> {
    match session.query_unpaged("SELECT version FROM system.versions WHERE key = 'local'", ()).await {
        Ok(found) => {
            let (major, minor) = numbers(&first_text(found));
            Ok(Server::Scylla { major, minor })
        }
        Err(ExecutionError::LastAttemptError(RequestAttemptError::DbError(DbError::Invalid, _))) => {
            let found = session
                .query_unpaged("SELECT release_version FROM system.local WHERE key = 'local'", ())
                .await?;
            Ok(Server::Cassandra { major: numbers(&first_text(found)).0 })
        }
        Err(err) => Err(err),
    }
}

fn first_text(answer: scylla::response::query_result::QueryResult) -> String {
    answer
        .into_rows_result()
        .ok()
        .and_then(|rows| rows.first_row::<(String,)>().ok())
        .map_or_else(String::new, |(text,)| text)
}

/// The first two numbers of a version; one that can't be parsed counts as the newest.
fn numbers(version: &str) -> (u32, u32) {
    let mut numbers = version.split(['.', '-', '~']).map(|number| number.parse().unwrap_or(u32::MAX));
    (numbers.next().unwrap_or(u32::MAX), numbers.next().unwrap_or(0))
}

impl Server {
    /// The name that is logged at the start.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Scylla { .. } => "ScyllaDB",
            Self::Cassandra { .. } => "Apache Cassandra",
        }
    }

    /// The end of a statement that scans a whole table, so that the scan does not evict other rows from the
    /// cache.
    pub(super) fn scan(self) -> &'static str {
        match self {
            Self::Scylla { .. } => " BYPASS CACHE",
            Self::Cassandra { .. } => "",
        }
    }

    /// The end of the statement that creates the keyspace of conditional writes: tablets of older releases do
    /// not support them.
    pub(super) fn lwt_keyspace(self) -> &'static str {
        match self {
            Self::Scylla { .. } if self.has_tablets() && !self.has_lwt_on_tablets() => {
                " AND tablets = {'enabled': false}"
            }
            _ => "",
        }
    }

    /// Options of a table whose rows are overwritten, with timestamps of ours that may be behind the servers'
    /// clocks. `replication_factor` is the keyspace's.
    pub(super) fn overwritten(self, replication_factor: u32) -> String {
        match self {
            // A tombstone must not be purged while an older write that it deletes is still on its way: a day
            // for records that a consumer handles late. With one replica there is no repair that would tell
            // when to purge.
            Self::Scylla { .. } => {
                let tombstone_gc = if replication_factor > 1 {
                    "tombstone_gc = {'mode': 'repair', 'propagation_delay_in_seconds': '86400'}"
                } else {
                    "tombstone_gc = {'mode': 'timeout'}"
                };
                format!("gc_grace_seconds = 864000 AND {tombstone_gc} AND compaction = {}", self.compaction())
            }
            Self::Cassandra { .. } => {
                format!("gc_grace_seconds = 864000 AND compaction = {}", self.compaction())
            }
        }
    }

    /// Options of a table that is written by conditional writes only.
    pub(super) fn lwt_table(self) -> String {
        match self {
            Self::Scylla { .. } => format!("compaction = {}", self.compaction()),
            // Each conditional write reads the row first: fewer files to read it from.
            Self::Cassandra { .. } => "compaction = {'class': 'LeveledCompactionStrategy'}".to_owned(),
        }
    }

    fn compaction(self) -> &'static str {
        match self {
            Self::Scylla { .. } if self.is_numbered_by_years() => {
                "{'class': 'IncrementalCompactionStrategy', 'space_amplification_goal': '1.5'}"
            }
            Self::Cassandra { major } if major >= 5 => "{'class': 'UnifiedCompactionStrategy'}",
            _ => "{'class': 'SizeTieredCompactionStrategy'}",
        }
    }

    fn is_numbered_by_years(self) -> bool {
        self.at_least(2019, 1)
    }

    fn has_tablets(self) -> bool {
        if self.is_numbered_by_years() { self.at_least(2024, 2) } else { self.at_least(6, 0) }
    }

    fn has_lwt_on_tablets(self) -> bool {
        self.at_least(2025, 4)
    }

    fn at_least(self, major: u32, minor: u32) -> bool {
        matches!(self, Self::Scylla { major: is, minor: and } if (is, and) >= (major, minor))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_read_from_the_left() {
        assert_eq!(numbers("5.0.6"), (5, 0));
        assert_eq!(numbers("2025.4.0-0.20251118.abc"), (2025, 4));
        assert_eq!(numbers("5.1-beta1"), (5, 1));
        assert_eq!(numbers("6.2~rc1"), (6, 2));
        assert_eq!(numbers("trunk"), (u32::MAX, 0));
    }

    #[test]
    fn tablets_are_turned_off_where_they_support_no_conditional_writes() {
        let off = |major, minor| !Server::Scylla { major, minor }.lwt_keyspace().is_empty();
        assert!(off(6, 0) && off(6, 2) && off(2024, 2) && off(2025, 1) && off(2025, 3));
        assert!(!off(5, 4) && !off(2024, 1), "these have no tablets");
        assert!(!off(2025, 4) && !off(2026, 1) && !off(u32::MAX, 0));
        assert_eq!(Server::Cassandra { major: 5 }.lwt_keyspace(), "");
    }

    #[test]
    fn each_server_gets_options_that_it_supports() {
        let cassandra = Server::Cassandra { major: 5 };
        assert!(!cassandra.overwritten(3).contains("tombstone_gc") && cassandra.scan().is_empty());
        assert!(
            cassandra.overwritten(3).contains("Unified")
                && !Server::Cassandra { major: 4 }.overwritten(3).contains("Unified")
        );
        let scylla = Server::Scylla { major: 2026, minor: 1 };
        assert!(scylla.overwritten(3).contains("'repair'") && !scylla.overwritten(1).contains("'repair'"));
        assert!(
            scylla.lwt_table().contains("Incremental")
                && !Server::Scylla { major: 6, minor: 2 }.lwt_table().contains("Incremental")
        );
    }
}
