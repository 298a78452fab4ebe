//! What ScyllaDB and Apache Cassandra spell differently. All of it; everything else is CQL that both
//! understand.
//!
//! Nothing here changes what a statement means. That the two also *answer* a conditional write differently
//! (ScyllaDB always sends the row along, Cassandra only when it was not applied) is no matter of spelling:
//! `decide` reads the first column only.

use scylla::{
    client::session::Session,
    errors::{DbError, ExecutionError, RequestAttemptError},
};

/// Who answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Server {
    /// ScyllaDB; the releases up to 6.2 are older than those that count years.
    Scylla { major: u32, minor: u32 },
    /// Apache Cassandra.
    Cassandra { major: u32 },
}

/// Asks a node who it is: only ScyllaDB has a table `system.versions`.
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

/// The first two numbers of a version; what can't be read counts as new.
fn numbers(version: &str) -> (u32, u32) {
    let mut numbers = version.split(['.', '-', '~']).map(|number| number.parse().unwrap_or(u32::MAX));
    (numbers.next().unwrap_or(u32::MAX), numbers.next().unwrap_or(0))
}

impl Server {
    /// The name and version that the start tells.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Scylla { .. } => "ScyllaDB",
            Self::Cassandra { .. } => "Apache Cassandra",
        }
    }

    /// What a scan of the whole table says at its end, so that it does not drive everybody's rows out of the
    /// cache.
    pub(super) fn scan(self) -> &'static str {
        match self {
            Self::Scylla { .. } => " BYPASS CACHE",
            Self::Cassandra { .. } => "",
        }
    }

    /// What a keyspace of conditional writes says at its end: the tablets of older releases knew none.
    pub(super) fn lwt_keyspace(self) -> &'static str {
        match self {
            Self::Scylla { .. } if self.has_tablets() && !self.decides_on_tablets() => {
                " AND tablets = {'enabled': false}"
            }
            _ => "",
        }
    }

    /// Options of a table whose rows are overwritten, by timestamps of ours that may lie behind the servers'
    /// clocks. `copies` is how many copies a row has.
    pub(super) fn overwritten(self, copies: u32) -> String {
        match self {
            // A deletion that is forgotten must not let an older write come back that is still on its way: a
            // day for what a consumer was late by. With one copy there is no repair that would say when to
            // forget.
            Self::Scylla { .. } => {
                let forget = if copies > 1 {
                    "tombstone_gc = {'mode': 'repair', 'propagation_delay_in_seconds': '86400'}"
                } else {
                    "tombstone_gc = {'mode': 'timeout'}"
                };
                format!("gc_grace_seconds = 864000 AND {forget} AND compaction = {}", self.compaction())
            }
            Self::Cassandra { .. } => {
                format!("gc_grace_seconds = 864000 AND compaction = {}", self.compaction())
            }
        }
    }

    /// Options of a table that is written by conditional writes only.
    pub(super) fn decided(self) -> String {
        match self {
            Self::Scylla { .. } => format!("compaction = {}", self.compaction()),
            // Each conditional write reads: few files to look into.
            Self::Cassandra { .. } => "compaction = {'class': 'LeveledCompactionStrategy'}".to_owned(),
        }
    }

    fn compaction(self) -> &'static str {
        match self {
            Self::Scylla { .. } if self.counts_years() => {
                "{'class': 'IncrementalCompactionStrategy', 'space_amplification_goal': '1.5'}"
            }
            Self::Cassandra { major } if major >= 5 => "{'class': 'UnifiedCompactionStrategy'}",
            _ => "{'class': 'SizeTieredCompactionStrategy'}",
        }
    }

    fn counts_years(self) -> bool {
        self.at_least(2019, 1)
    }

    fn has_tablets(self) -> bool {
        if self.counts_years() { self.at_least(2024, 2) } else { self.at_least(6, 0) }
    }

    fn decides_on_tablets(self) -> bool {
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
    fn tablets_are_turned_off_where_they_know_no_conditional_writes() {
        let off = |major, minor| !Server::Scylla { major, minor }.lwt_keyspace().is_empty();
        assert!(off(6, 0) && off(6, 2) && off(2024, 2) && off(2025, 1) && off(2025, 3));
        assert!(!off(5, 4) && !off(2024, 1), "there are no tablets yet");
        assert!(!off(2025, 4) && !off(2026, 1) && !off(u32::MAX, 0));
        assert_eq!(Server::Cassandra { major: 5 }.lwt_keyspace(), "");
    }

    #[test]
    fn each_server_gets_options_that_it_knows() {
        let cassandra = Server::Cassandra { major: 5 };
        assert!(!cassandra.overwritten(3).contains("tombstone_gc") && cassandra.scan().is_empty());
        assert!(
            cassandra.overwritten(3).contains("Unified")
                && !Server::Cassandra { major: 4 }.overwritten(3).contains("Unified")
        );
        let scylla = Server::Scylla { major: 2026, minor: 1 };
        assert!(scylla.overwritten(3).contains("'repair'") && !scylla.overwritten(1).contains("'repair'"));
        assert!(
            scylla.decided().contains("Incremental")
                && !Server::Scylla { major: 6, minor: 2 }.decided().contains("Incremental")
        );
    }
}
