//! `pushcast cancel`: what has not been sent of a broadcast is not sent any more.

use pushcast::config::Config;
use serde_json::json;

use super::instance::Instance;

/// Which broadcast.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The post's id, or the broadcast's (post:…)
    pub id: String,

    #[command(flatten)]
    instance: Instance,
}

/// Stops it, as a `cancelled` event in posts-created does.
pub async fn run(args: Args, config: Config) -> anyhow::Result<()> {
    println!("{:#}", args.instance.post(&config, &["broadcast", &args.id, "cancel"], &json!({})).await?);
    Ok(())
}
