//! `pushcast produce TOPIC`: for those without kcat.

use pushcast::config::Config;

/// Where to write.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The topic
    pub topic: String,

    /// What separates a key from its value in a line; without it lines have no key
    #[arg(long, value_name = "TEXT")]
    pub key_separator: Option<String>,
}

/// Writes each line of standard input as a record, and returns when Kafka has acknowledged the last one.
pub async fn run(args: Args, config: Config) -> anyhow::Result<()> {
    let Args { topic, key_separator } = args;
    let keys = if key_separator.is_some() { "with" } else { "without" };
    anyhow::bail!("writing lines {keys} keys to {topic} on {} is not wired yet", config.kafka.bootstrap_servers)
}
