//! One pair of keyspaces for the whole run, emptied before each test.
//!
//! Creating keyspaces takes seconds and emptying a table milliseconds, so the tests share one pair, one after
//! the other.

use std::{env, fs, sync::LazyLock};

use pushcast::{
    domain::Timestamp,
    store::{Cluster, Settings, cql::CqlStore},
};
use scylla::client::{session::Session, session_builder::SessionBuilder};
use tokio::{
    runtime::Runtime,
    sync::{Mutex, MutexGuard},
    task,
};

/// The store of this run, and a session for its tables.
struct Keyspace {
    name: String,
    store: CqlStore,
    session: Session,
    tables: Vec<String>,
    /// Connections live on a runtime that outlives each test's own.
    _runtime: Runtime,
}

static KEYSPACE: LazyLock<Keyspace> = LazyLock::new(Keyspace::create);
static IN_USE: Mutex<()> = Mutex::const_new(());

/// The store without a row. No other test uses it until the second value is dropped.
pub async fn emptied() -> (CqlStore, MutexGuard<'static, ()>) {
    let alone = IN_USE.lock().await;
    let keyspace = task::spawn_blocking(|| &*KEYSPACE).await.unwrap();
    for table in &keyspace.tables {
        if table.contains("_by_") {
            // Tombstones appear in no answer, and yet they would hide rows that the next test writes with an
            // earlier timestamp.
            keyspace.session.query_unpaged(format!("TRUNCATE {table}"), ()).await.unwrap();
            continue;
        }
        let row = keyspace.session.query_unpaged(format!("SELECT * FROM {table} LIMIT 1"), ()).await.unwrap();
        if row.into_rows_result().unwrap().rows_num() > 0 {
            keyspace.session.query_unpaged(format!("TRUNCATE {table}"), ()).await.unwrap();
        }
    }
    (keyspace.store.clone(), alone)
}

/// The name of the keyspace; creates it, so call [`emptied`] before, which does that on a blocking thread.
pub fn name() -> String {
    KEYSPACE.name.clone()
}

/// A session for the tables.
pub fn session() -> &'static Session {
    &KEYSPACE.session
}

/// The server as a cluster with this keyspace.
pub fn cluster(keyspace: &str) -> Cluster {
    Cluster { nodes: vec![address()], login: None, keyspace: keyspace.to_owned() }
}

fn address() -> String {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/.services/cassandra.address");
    env::var("PUSHCAST_TEST_CQL")
        .or_else(|_| fs::read_to_string(file))
        .map(|address| address.trim().to_owned())
        .expect("a CQL server is needed: `make services` starts one, or PUSHCAST_TEST_CQL names one")
}

impl Keyspace {
    fn create() -> Self {
        let runtime = Runtime::new().unwrap();
        let (name, store, session, tables) =
            std::thread::scope(|scope| scope.spawn(|| runtime.block_on(prepared())).join()).unwrap();
        Self { name, store, session, tables, _runtime: runtime }
    }
}

async fn prepared() -> (String, CqlStore, Session, Vec<String>) {
    let session = SessionBuilder::new().known_node(address()).build().await.unwrap();
    let cluster = cluster(&format!("t{:08x}", rand::random::<u32>()));
    let settings = Settings::default();
    drop_keyspaces_of_earlier_runs(&session).await;
    CqlStore::init(&cluster, &settings, Timestamp::now()).await.unwrap();
    let store = CqlStore::open(&cluster, &settings).await.unwrap();
    let mut tables = Vec::new();
    for keyspace in [cluster.keyspace.clone(), format!("{}_lwt", cluster.keyspace)] {
        let query = "SELECT table_name FROM system_schema.tables WHERE keyspace_name = ?";
        let rows = session.query_unpaged(query, (&keyspace,)).await.unwrap().into_rows_result().unwrap();
        let names = rows
            .rows::<(String,)>()
            .unwrap()
            .map(|row| row.unwrap().0)
            .filter(|name| name != "schema_versions");
        tables.extend(names.map(|name| format!("{keyspace}.{name}")));
    }
    (cluster.keyspace, store, session, tables)
}

async fn drop_keyspaces_of_earlier_runs(session: &Session) {
    let rows = session
        .query_unpaged("SELECT keyspace_name FROM system_schema.keyspaces", ())
        .await
        .unwrap()
        .into_rows_result()
        .unwrap();
    let is_ours = |name: &str| {
        let digits = name.strip_prefix('t').map(|rest| rest.trim_end_matches("_lwt"));
        digits.is_some_and(|digits| digits.len() == 8 && digits.bytes().all(|b| b.is_ascii_hexdigit()))
    };
    for (name,) in rows.rows::<(String,)>().unwrap().map(Result::unwrap) {
        if is_ours(&name) {
            session.query_unpaged(format!("DROP KEYSPACE {name}"), ()).await.unwrap();
        }
    }
}
