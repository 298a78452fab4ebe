//! `pushcast pause`, `resume` and `release`: whether a provider's route sends, for the whole deployment.

use clap::ValueEnum;
use pushcast::{config::Config, domain::ProviderId};
use serde_json::json;

use super::instance::Instance;

/// Which route, and why.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// expo or fcm
    #[arg(value_parser = provider)]
    pub provider: ProviderId,

    /// Why, for whoever looks next
    #[arg(long, default_value = "")]
    pub why: String,

    #[command(flatten)]
    instance: Instance,
}

/// Which route is released from what.
#[derive(Debug, clap::Args)]
pub struct Release {
    #[command(flatten)]
    args: Args,

    /// What holds it
    #[arg(value_enum)]
    hold: Hold,
}

/// What an operator releases after a look.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Hold {
    /// Too many tokens looked dead
    Brake,
}

/// Nothing is sent through the provider until `resume`; jobs wait in Kafka.
pub async fn pause(args: Args, config: Config) -> anyhow::Result<()> {
    wish(args, config, "pause").await
}

/// The provider's route sends again.
pub async fn resume(args: Args, config: Config) -> anyhow::Result<()> {
    wish(args, config, "resume").await
}

/// The provider's route sends again after the brake.
pub async fn release(release: Release, config: Config) -> anyhow::Result<()> {
    let Hold::Brake = release.hold;
    wish(release.args, config, "release").await
}

async fn wish(args: Args, config: Config, wish: &str) -> anyhow::Result<()> {
    let by = std::env::var("USER").unwrap_or_else(|_| "an operator".to_owned());
    let said = json!({ "by": by, "why": args.why });
    println!("{:#}", args.instance.post(&config, &["route", args.provider.label(), wish], &said).await?);
    Ok(())
}

/// Reads a provider's name.
pub(super) fn provider(name: &str) -> Result<ProviderId, String> {
    ProviderId::from_label(name).ok_or_else(|| "there are expo and fcm".to_owned())
}
