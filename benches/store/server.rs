//! A Cassandra that only the bench uses, and the tokens in it.

use std::{
    path::PathBuf,
    process::{Command, Stdio},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use futures::{StreamExt, stream};
use pushcast::{
    domain::Timestamp,
    store::{Settings, cql::CqlStore},
};
use scylla::client::{session::Session, session_builder::SessionBuilder};
use tokio::{runtime::Runtime, time::sleep};

use crate::{
    AT_ONCE, cassandra,
    process::cpu_seconds,
    tokens::{Names, version},
};

/// Is stopped when it is dropped, unless `keep` is set.
pub struct Server {
    address: String,
    runtime: Runtime,
    session: Session,
    keep: bool,
}

impl Server {
    pub fn start(keep: bool) -> Self {
        services("up");
        let address = std::fs::read_to_string(state().join("cassandra.address")).unwrap().trim().to_owned();
        let runtime = Runtime::new().unwrap();
        let session = runtime.block_on(SessionBuilder::new().known_node(&address).build()).unwrap();
        Self { address, runtime, session, keep }
    }

    /// CPU seconds that the server has used.
    pub fn cpu_seconds(&self) -> f64 {
        cpu_seconds(std::fs::read_to_string(state().join("cassandra.pid")).unwrap().trim())
    }

    /// Creates an empty keyspace; returns its location.
    pub fn keyspace(&self, name: &str) -> String {
        self.runtime.block_on(async {
            for name in [name.to_owned(), format!("{name}_lwt")] {
                self.session.query_unpaged(format!("DROP KEYSPACE IF EXISTS {name}"), ()).await.unwrap();
            }
            CqlStore::init(&cassandra::cluster(&self.address, name), &Settings::default(), Timestamp::now())
                .await
                .unwrap();
        });
        format!("{}/{name}", self.address)
    }

    /// The location of a keyspace with so many tokens.
    pub fn filled(&self, tokens: u64) -> String {
        let name = format!("bench_{tokens}");
        if self.runtime.block_on(self.is_filled(&name)) {
            return format!("{}/{name}", self.address);
        }
        let location = self.keyspace(&name);
        self.runtime.block_on(self.fill(&name, tokens));
        location
    }

    async fn is_filled(&self, keyspace: &str) -> bool {
        let query =
            "SELECT table_name FROM system_schema.tables WHERE keyspace_name = ? AND table_name = 'filled'";
        let found = self.session.query_unpaged(query, (keyspace,)).await.unwrap();
        found.into_rows_result().unwrap().rows_num() > 0
    }

    async fn fill(&self, keyspace: &str, tokens: u64) {
        let insert =
            format!("INSERT INTO {keyspace}.tokens (push_token, st) VALUES (?, ?) USING TIMESTAMP ?");
        let insert = self.session.prepare(insert).await.unwrap();
        let names = Names::new();
        let done = AtomicU64::new(0);
        stream::iter(0..tokens)
            .for_each_concurrent(AT_ONCE, async |n| {
                let version = version(n);
                let row = (names.token(n), names.state(n, version), version.as_i64());
                // A small server is overloaded at times.
                while self.session.execute_unpaged(&insert, &row).await.is_err() {
                    sleep(Duration::from_millis(200)).await;
                }
                let done = done.fetch_add(1, Ordering::Relaxed) + 1;
                if done.is_multiple_of(tokens.div_ceil(10)) {
                    eprintln!("{done} of {tokens} tokens are in Cassandra");
                }
            })
            .await;
        self.session
            .query_unpaged(format!("CREATE TABLE {keyspace}.filled (nothing int PRIMARY KEY)"), ())
            .await
            .unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if !self.keep {
            services("down");
        }
    }
}

/// The folder of the server and its data.
fn state() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/target/bench-services"))
}

fn services(command: &str) {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/services");
    let ended = Command::new(script)
        .args([command, "cassandra"])
        .env("SERVICES_STATE", state())
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert!(ended.success(), "scripts/services {command}");
}
