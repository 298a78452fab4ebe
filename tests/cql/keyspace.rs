//! One pair of keyspaces for the whole run, emptied before each fact.
//!
//! Creating keyspaces takes seconds and emptying a table milliseconds, so facts follow each other in one.

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

/// The store of this run, and a way into its tables.
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

/// The store without a row. It is the caller's alone as long as he keeps the second value.
pub async fn emptied() -> (CqlStore, MutexGuard<'static, ()>) {
    let alone = IN_USE.lock().await;
    let keyspace = task::spawn_blocking(|| &*KEYSPACE).await.unwrap();
    for table in &keyspace.tables {
        if table.contains("_by_") {
            // Deleted rows show in no answer, and yet they would hide what the next fact writes with an
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

/// Its name, once somebody has [`emptied`] it.
pub fn name() -> String {
    KEYSPACE.name.clone()
}

/// A way into its tables.
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
    drop_those_of_before(&session).await;
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

/// Runs before this one left theirs.
async fn drop_those_of_before(session: &Session) {
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
