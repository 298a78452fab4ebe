//! `pushcast send TOKEN`: does this phone ring?

use anyhow::Context;
use pushcast::{config::Config, domain::Token};

/// What to send to whom.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The device token
    pub token: String,

    /// The notification's title
    #[arg(long, default_value = "Test from pushcast")]
    pub title: String,

    /// The notification's text
    #[arg(long, default_value = "This device can be reached.")]
    pub body: String,
}

/// Sends one message past Kafka and the store, and tells what the provider said.
pub async fn run(args: Args, _config: Config) -> anyhow::Result<()> {
    let Args { token, title, body } = args;
    let token = Token::parse(&token).context("a token looks like ExponentPushToken[…], or is one of FCM's")?;
    anyhow::bail!("sending {title:?}, {body:?} to {token} through {} is not wired yet", token.kind().provider())
}
