//! The store on Cassandra.

use std::sync::Mutex;

use futures::{StreamExt, stream};
use pushcast::{
    domain::{Listeners, ProviderId, Slice},
    store::{Audience, Cluster, Registry, Settings, cql::CqlStore},
};

use crate::{
    child::{Figures, Meter, Task},
    tokens::{Names, version},
};

/// The number of parts of a broadcast, and `push.page_size`.
pub const SLICES: u32 = 64;
pub const PAGE: usize = 500;

pub fn cluster(server: &str, keyspace: &str) -> Cluster {
    Cluster { nodes: vec![server.to_owned()], login: None, keyspace: keyspace.to_owned() }
}

async fn open(task: &Task) -> CqlStore {
    let (server, keyspace) = task.server();
    CqlStore::open(&cluster(server, keyspace), &Settings::default()).await.unwrap()
}

pub async fn register(task: &Task) -> Figures {
    let store = open(task).await;
    let names = Names::new();
    let mut meter = Meter::begin(task.number);
    let done = stream::iter(0..task.number)
        .map(async |n| store.apply(&names.registered(n), version(n)).await.unwrap());
    done.buffer_unordered(task.at_once).for_each(async |()| {}).await;
    meter.count(task.number);
    meter.end()
}

pub async fn scan(task: &Task) -> Figures {
    let store = open(task).await;
    let meter = Mutex::new(Meter::begin(task.number));
    stream::iter(0..SLICES)
        .for_each_concurrent(task.at_once, async |index| {
            let mut after = None;
            loop {
                let page = store
                    .page_of_slice(
                        ProviderId::Expo,
                        Slice { index, of: SLICES },
                        &Listeners::ALL,
                        after,
                        PAGE,
                    )
                    .await
                    .unwrap();
                meter.lock().unwrap().count(page.recipients.len() as u64);
                if page.last {
                    return;
                }
                after = Some(page.end);
            }
        })
        .await;
    let meter = meter.into_inner().unwrap();
    assert_eq!(meter.done(), task.number, "every token once");
    meter.end()
}
