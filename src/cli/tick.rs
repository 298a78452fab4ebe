//! `pushcast tick`: writes the record that an upstream cron job writes.

use consumer::{Producer, Publish};
use jiff::Timestamp;
use pushcast::{config::Config, stages::medication::clock_tick};

/// Which time.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The time that the tick stands for, RFC 3339 [default: now]
    #[arg(long, value_name = "TIME")]
    pub at: Option<Timestamp>,
}

/// Writes a tick.
pub async fn run(args: Args, config: Config) -> anyhow::Result<()> {
    let at = args.at.unwrap_or_else(Timestamp::now);
    Producer::new(&config.kafka)?.publish(clock_tick(at)).await?;
    println!("a tick for {at} was written");
    Ok(())
}
