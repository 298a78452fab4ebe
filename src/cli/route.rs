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

    /// The reason, which `inspect route` shows
    #[arg(long, default_value = "")]
    pub why: String,

    #[command(flatten)]
    instance: Instance,
}

/// Which route, and what has closed it.
#[derive(Debug, clap::Args)]
pub struct Release {
    #[command(flatten)]
    args: Args,

    /// What has closed the route
    #[arg(value_enum)]
    hold: Hold,
}

/// What an operator releases.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Hold {
    /// The brake: too many tokens were answered as dead
    Brake,
}

/// Nothing is sent through the provider until `resume`; jobs wait in Kafka.
pub async fn pause(args: Args, config: Config) -> anyhow::Result<()> {
    change(args, config, "pause").await
}

/// The provider's route sends again.
pub async fn resume(args: Args, config: Config) -> anyhow::Result<()> {
    change(args, config, "resume").await
}

/// The provider's route sends again after the brake.
pub async fn release(release: Release, config: Config) -> anyhow::Result<()> {
    let Hold::Brake = release.hold;
    change(release.args, config, "release").await
}

async fn change(args: Args, config: Config, action: &str) -> anyhow::Result<()> {
    let by = std::env::var("USER").unwrap_or_else(|_| "an operator".to_owned());
    let request = json!({ "by": by, "why": args.why });
    let route = args.instance.post(&config, &["route", args.provider.label(), action], &request).await?;
    println!("{route:#}");
    Ok(())
}

/// Parses a provider's name.
pub(super) fn provider(name: &str) -> Result<ProviderId, String> {
    ProviderId::from_label(name).ok_or_else(|| "expected expo or fcm".to_owned())
}
