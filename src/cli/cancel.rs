//! `pushcast cancel`: messages of a broadcast that have not been sent are not sent any more.

use pushcast::config::Config;
use serde_json::json;

use super::instance::Instance;

/// Which broadcast.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The id of the post, or of its broadcast (post:…)
    pub id: String,

    #[command(flatten)]
    instance: Instance,
}

/// Cancels it, as a `cancelled` event in posts-created does.
pub async fn run(args: Args, config: Config) -> anyhow::Result<()> {
    println!("{:#}", args.instance.post(&config, &["broadcast", &args.id, "cancel"], &json!({})).await?);
    Ok(())
}
