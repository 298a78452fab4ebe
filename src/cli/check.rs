//! `pushcast check`: would it run?

use pushcast::config::Config;

/// Tells what is set. A configuration with a mistake never comes this far: all its mistakes are printed, with exit code 2.
pub async fn run(config: Config) -> anyhow::Result<()> {
    println!("configuration  fine: {}", config.redacted());
    Ok(())
}
