//! The files of `docker compose up`, checked without a container engine: the compose files against the
//! specification's schema, their settings with pushcast's own loader, their names against each other, the
//! Dockerfile against the workspace, and each metric of the dashboard and the alerts against the declared
//! ones.

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

/// A YAML or JSON file, with its anchors and merge keys resolved.
fn tree(name: &str) -> Value {
    let mut tree: serde_norway::Value =
        serde_norway::from_str(&text(name)).unwrap_or_else(|err| panic!("{name}: {err}"));
    tree.apply_merge().unwrap_or_else(|err| panic!("{name}: {err}"));
    serde_json::to_value(tree).unwrap()
}

/// The items of a list; none if it is not a list.
fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// The members of an object; none if it is not an object.
fn object(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flatten()
}
