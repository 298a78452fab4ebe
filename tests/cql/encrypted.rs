//! TLS: the nodes' certificates are checked against `store.ca_file`.

use std::env;

use pushcast::store::{
    Settings, Store as _,
    cql::{CqlOpenError, CqlStore},
};
use tempfile::TempDir;

use crate::keyspace::{self, emptied};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_is_trusted_if_the_authority_of_ca_file_signed_its_certificate() {
    let (_, _alone) = emptied().await;
    let of_services = concat!(env!("CARGO_MANIFEST_DIR"), "/.services/cassandra/ca.pem").to_owned();
    let ca_file = env::var("PUSHCAST_TEST_CQL_CA").unwrap_or(of_services);
    let settings = Settings { ca_file, ..Settings::default() };
    let store = CqlStore::open(&keyspace::cluster(&keyspace::name()), &settings).await.unwrap();
    store.ping().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_is_not_trusted_by_another_authority() {
    let (_, _alone) = emptied().await;
    let folder = TempDir::new().unwrap();
    let open = async |pem: &str| {
        let file = folder.path().join("ca.pem");
        std::fs::write(&file, pem).unwrap();
        let settings = Settings { ca_file: file.display().to_string(), ..Settings::default() };
        CqlStore::open(&keyspace::cluster(&keyspace::name()), &settings)
            .await
            .err()
            .expect("it must not trust the node")
    };
    let refusal = open(OTHER_AUTHORITY).await;
    assert!(matches!(refusal, CqlOpenError::Unreachable { .. }), "{refusal}");
    let refusal = open("no certificate").await;
    assert!(
        matches!(refusal, CqlOpenError::Tls { .. }) && refusal.to_string().contains("ca.pem"),
        "{refusal}"
    );
}

/// The certificate of an authority that has signed no node's.
const OTHER_AUTHORITY: &str = "-----BEGIN CERTIFICATE-----
MIIBTzCB9qADAgECAghzRY7p6adZrzAKBggqhkjOPQQDAjATMREwDwYDVQQDEwhz
dHJhbmdlcjAgFw0yNjExMjEwNjA0NDVaGA8yMTI2MTAyODA2MDQ0NVowEzERMA8G
A1UEAxMIc3RyYW5nZXIwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAARxtDGntHdf
Dus6n3MOrOMQJEumM0floRV6el+DPj6hpLxX1+myxRi4g1PpvD7Y2b0n4Ysm6FRq
p9MEDqRVPfatozIwMDAdBgNVHQ4EFgQUW5I8iNE+H5pVPF8eJApQBvaxkpgwDwYD
VR0RBAgwBocEfwAAATAKBggqhkjOPQQDAgNIADBFAiBBeqILPaZ0x1GSbUsrw7sE
XCY0e1DqEGISRB3BzQsTCQIhAKNqgtZd86w0qpp1MgyWIB/U4EfHOMGsoKtsxl6Z
wfsc
-----END CERTIFICATE-----\n";
