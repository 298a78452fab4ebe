//! Rows that no release wrote: reading them fails with an error that names the row.

use pushcast::{
    domain::{BroadcastId, ProviderId, RegimenId},
    store::{Broadcasts, Doses, Routes, StoreError},
};

use crate::keyspace::{self, emptied};

async fn execute(statement: &str) {
    let statement = statement.replace("$push", &keyspace::name());
    keyspace::session().query_unpaged(statement, ()).await.unwrap();
}

fn corrupt_row(failure: StoreError) -> String {
    match failure {
        StoreError::Corrupt { context, .. } => context,
        other => panic!("not corrupt: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_label_that_is_not_known_is_corrupt() {
    let (store, _alone) = emptied().await;
    execute(
        "INSERT INTO $push.routes (provider, state, since, set_by, detail) VALUES ('fcm', 'ajar', 0, '', '')",
    )
    .await;
    let failure = store.route(ProviderId::Fcm).await.unwrap_err();
    assert_eq!(corrupt_row(failure), "table routes, key fcm");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_column_without_a_value_is_corrupt() {
    let (store, _alone) = emptied().await;
    execute(
        "INSERT INTO $push_lwt.broadcast_plans (broadcast_id, parts, created_at) VALUES ('post:p1', 1, 0)",
    )
    .await;
    let failure = store.broadcast(&BroadcastId::new("post:p1")).await.unwrap_err();
    assert_eq!(corrupt_row(failure), "table broadcast_plans, key post:p1");
    execute("INSERT INTO $push.regimens (regimen_id) VALUES ('r1')").await;
    let failure = store.regimen(&RegimenId::new("r1")).await.unwrap_err();
    assert_eq!(corrupt_row(failure), "table regimens, key r1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_is_too_long_is_rejected() {
    let (store, _alone) = emptied().await;
    let failure = store.regimen(&RegimenId::new("r".repeat(70_000))).await.unwrap_err();
    assert!(matches!(failure, StoreError::Rejected { .. }), "{failure:?}");
}
