//! `pushcast tick`: what an upstream cron job would write.

use jiff::Timestamp;
use pushcast::config::Config;

/// Which moment.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The time that the tick stands for, RFC 3339 [default: now]
    #[arg(long, value_name = "TIME")]
    pub at: Option<Timestamp>,
}

/// Writes a tick.
pub async fn run(args: Args, config: Config) -> anyhow::Result<()> {
    let at = args.at.unwrap_or_else(Timestamp::now);
    anyhow::bail!("writing a tick for {at} on {} is not wired yet", config.kafka.bootstrap_servers)
}
