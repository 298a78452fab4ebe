//! `pushcast init`: topics, first offsets, tables and marks.

use pushcast::config::Config;

/// Creates what is missing.
pub async fn run(config: Config) -> anyhow::Result<()> {
    anyhow::bail!("creating topics on {} is not wired yet", config.kafka.bootstrap_servers)
}
