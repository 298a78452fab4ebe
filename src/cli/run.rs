//! `pushcast run`: the stages, until a signal.

use anyhow::Context;
use jiff::Timestamp;
use pushcast::{
    app::{App, Stages},
    config::Config,
    store::{Doses, StoreUrl, cql::CqlStore, embedded::EmbeddedStore},
};
use tokio_util::sync::CancellationToken;

/// What to run.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only these stages, separated by commas; "delivery" and "delivery.expo" include all stages below
    /// [default: all]
    #[arg(long, value_name = "STAGES")]
    pub stages: Option<Stages>,
}

/// Runs the stages until `stop`, and drains.
pub async fn run(args: Args, config: Config, stop: CancellationToken) -> anyhow::Result<()> {
    tracing::info!(config = %config.redacted(), "Starting pushcast {}", env!("CARGO_PKG_VERSION"));
    let stages = args.stages.unwrap_or_else(Stages::all);
    match open(&config).await? {
        OpenStore::Embedded(store) => {
            // No other process can use it, so it is initialised here; a shared store is by `pushcast init`.
            store.init_marks(Timestamp::now()).await?;
            App::new(config, store, stages).run(stop).await
        }
        OpenStore::Cql(store) => App::new(config, store, stages).run(stop).await,
    }
}

/// The store that is configured.
pub enum OpenStore {
    /// A file or memory that this process alone uses.
    Embedded(EmbeddedStore),
    /// A cluster that all processes share.
    Cql(CqlStore),
}

/// Opens the store that the settings name.
pub async fn open(config: &Config) -> anyhow::Result<OpenStore> {
    Ok(match config.store.location()? {
        StoreUrl::Memory => OpenStore::Embedded(EmbeddedStore::memory().context("store.url")?),
        StoreUrl::File(path) => OpenStore::Embedded(EmbeddedStore::open(&path).context("store.url")?),
        StoreUrl::Cql(cluster) => {
            OpenStore::Cql(CqlStore::open(&cluster, &config.store).await.context("store.url")?)
        }
    })
}
