//! `pushcast demo`: all of it in one process.

use pushcast::{config::Config, stream::Stop};

/// How much of it.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// How many devices hear of the demonstration's post
    #[arg(long, value_name = "NUMBER", default_value_t = 10_000)]
    pub devices: u32,
}

/// Runs until it has shown everything, or until `stop`.
pub async fn run(args: Args, _config: Config, _stop: Stop) -> anyhow::Result<()> {
    anyhow::bail!("the demonstration with {} devices is not wired yet", args.devices)
}
