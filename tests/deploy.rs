//! What people start with `docker compose up`, checked without an engine: the compose files against the
//! specification's schema, their settings against our own loader, their names against each other, and every
//! metric that a dashboard or an alert asks for against those that exist.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "all of this file is tests"
)]

#[path = "deploy/compose.rs"]
mod compose;
#[path = "deploy/image.rs"]
mod image;
#[path = "deploy/metrics.rs"]
mod metrics;
#[path = "deploy/promql.rs"]
mod promql;
#[path = "deploy/schema.rs"]
mod schema;

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;

/// A file of the repository.
fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn text(name: &str) -> String {
    fs::read_to_string(path(name)).unwrap_or_else(|err| panic!("{name}: {err}"))
}

/// A YAML or JSON file, with its anchors put in place.
fn tree(name: &str) -> Value {
    let mut tree: serde_norway::Value =
        serde_norway::from_str(&text(name)).unwrap_or_else(|err| panic!("{name}: {err}"));
    tree.apply_merge().unwrap_or_else(|err| panic!("{name}: {err}"));
    serde_json::to_value(tree).unwrap()
}

/// The members of a list, or of nothing.
fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// The members of an object, or of nothing.
fn object(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flatten()
}
