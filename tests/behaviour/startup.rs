//! What a process that can't start reports: the setting at fault, and the way out.

use consumer::mock::Broker;
use pushcast::{store::embedded::EmbeddedStore, topology};

use crate::process::startup_error;

#[tokio::test(flavor = "multi_thread")]
async fn an_address_in_use_is_reported_with_its_setting() {
    let broker = topology::embedded_broker(16).unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let error = startup_error(&[
        ("kafka.bootstrap_servers", &broker.bootstrap_servers()),
        ("store.url", "embedded:memory"),
        ("http.admin_listen", &address),
    ])
    .await;
    assert!(
        error.contains(&format!(
            "can't listen on {address} (http.admin_listen): another process listens there already"
        )),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unreachable_kafka_is_reported_with_its_settings() {
    let error = startup_error(&[
        ("kafka.bootstrap_servers", "127.0.0.1:1"),
        ("store.url", "embedded:memory"),
        ("http.admin_listen", ""),
    ])
    .await;
    assert!(error.contains("no Kafka broker answers at 127.0.0.1:1"), "{error}");
    assert!(error.contains("check bootstrap_servers"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_topics_are_reported_with_the_command_that_creates_them() {
    let broker = Broker::start([("posts-created", 1)]).unwrap();
    let error = startup_error(&[
        ("kafka.bootstrap_servers", &broker.bootstrap_servers()),
        ("store.url", "embedded:memory"),
        ("http.admin_listen", ""),
    ])
    .await;
    assert!(error.contains("Kafka has no dead-letters, device-tokens"), "{error}");
    assert!(error.contains("run `pushcast init`") && !error.contains("posts-created,"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_in_use_is_reported_with_its_process_and_the_way_out() {
    let broker = topology::embedded_broker(16).unwrap();
    let folder = tempfile::TempDir::new().unwrap();
    let path = folder.path().join("push.db");
    let _ours = EmbeddedStore::open(&path).unwrap();
    let error = startup_error(&[
        ("kafka.bootstrap_servers", &broker.bootstrap_servers()),
        ("store.url", &format!("embedded:{}", path.display())),
        ("http.admin_listen", ""),
    ])
    .await;
    assert!(error.contains(&format!("in use by process {}", std::process::id())), "{error}");
    assert!(error.contains("store.url of its own"), "{error}");
}
