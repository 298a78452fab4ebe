//! `pushcast run`: the stages, until a signal.

use anyhow::Context;
use pushcast::{
    app::{App, Stages},
    config::Config,
    store::{StoreUrl, embedded::EmbeddedStore},
    stream::Stop,
};

/// What to run.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only these stages, separated by commas; "delivery" and "delivery.expo" mean all below them [default: all]
    #[arg(long, value_name = "STAGES")]
    pub stages: Option<Stages>,
}

/// Runs the stages until `stop`, and drains.
pub async fn run(args: Args, config: Config, stop: Stop) -> anyhow::Result<()> {
    tracing::info!(config = %config.redacted(), "Starting pushcast {}", env!("CARGO_PKG_VERSION"));
    let store = open(&config)?;
    App::new(config, store, args.stages.unwrap_or_else(Stages::all)).run(stop.token()).await
}

/// Opens the store that the settings name.
pub fn open(config: &Config) -> anyhow::Result<EmbeddedStore> {
    match config.store.location()? {
        StoreUrl::Memory => EmbeddedStore::memory(),
        StoreUrl::File(path) => EmbeddedStore::open(&path),
    }
    .context("store.url")
}
