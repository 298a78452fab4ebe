//! `pushcast sandbox`: fake Expo and FCM.

use std::net::SocketAddr;

use pushcast::stream::Stop;

/// What to fake, and where.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where the fake services listen
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8085")]
    pub listen: SocketAddr,

    /// Run an embedded Kafka broker too
    #[arg(long)]
    pub kafka: bool,
}

/// Serves until `stop`.
pub async fn run(args: Args, _stop: Stop) -> anyhow::Result<()> {
    let Args { listen, kafka } = args;
    anyhow::bail!("the sandbox on {listen} (with Kafka: {kafka}) is not wired yet")
}
