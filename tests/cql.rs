//! The contract of every store, tested against the CQL store on a real server: the one that `make services`
//! starts, or one that PUSHCAST_TEST_CQL names (`host:port`). Without one these tests fail: a suite that
//! skips proves nothing.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

#[path = "cql/corrupt.rs"]
mod corrupt;
#[path = "cql/encrypted.rs"]
mod encrypted;
#[path = "cql/faults.rs"]
mod faults;
#[path = "cql/keyspace.rs"]
mod keyspace;
#[path = "cql/login.rs"]
mod login;
#[path = "cql/million.rs"]
mod million;
#[path = "cql/prepared.rs"]
mod prepared;
#[path = "cql/proxy.rs"]
mod proxy;
#[path = "contract/suite.rs"]
mod suite;

use keyspace::emptied;

mod contract {
    use super::*;
    suite::contract!(emptied);
}
