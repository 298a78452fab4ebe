//! `pushcast init` of a new keyspace, several times at once.

use pushcast::{
    domain::Timestamp,
    store::{
        Settings, Store as _,
        cql::{CqlOpenError, CqlStore},
    },
};
use tokio::task::JoinSet;

use crate::keyspace::{self, emptied};

/// A name that the next run recognises as a test's and drops.
fn unused() -> String {
    format!("t{:08x}", rand::random::<u32>())
}

async fn drop_both(name: &str) {
    for keyspace in [name.to_owned(), format!("{name}_lwt")] {
        keyspace::session().query_unpaged(format!("DROP KEYSPACE IF EXISTS {keyspace}"), ()).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_keyspace_may_be_initialised_several_times_at_once() {
    let (_, _alone) = emptied().await;
    let name = unused();
    let cluster = keyspace::cluster(&name);
    let before =
        CqlStore::open(&cluster, &Settings::default()).await.err().expect("there is no such keyspace");
    assert!(matches!(before, CqlOpenError::NotInitialised { .. }), "{before}");

    let mut at_once = JoinSet::new();
    for _ in 0..4 {
        let cluster = cluster.clone();
        at_once.spawn(async move { CqlStore::init(&cluster, &Settings::default(), Timestamp::now()).await });
    }
    for ended in at_once.join_all().await {
        let report: Vec<_> = ended.unwrap().iter().map(ToString::to_string).collect();
        assert_eq!(report.len(), 3, "two keyspaces and a file: {report:?}");
    }

    let store = CqlStore::open(&cluster, &Settings::default()).await.unwrap();
    store.ping().await.unwrap();
    let again = CqlStore::init(&cluster, &Settings::default(), Timestamp::now()).await.unwrap();
    assert!(
        again.iter().all(|applied| applied.to_string().ends_with("is there, left as it is")),
        "{again:?}"
    );
    keyspace::session().await_schema_agreement().await.unwrap();
    drop_both(&name).await;
}
