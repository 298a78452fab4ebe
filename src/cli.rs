//! The command line: one file a command.

mod cancel;
mod check;
mod demo;
mod init;
mod inspect;
mod instance;
mod produce;
mod route;
mod run;
mod sandbox;
mod send;
mod tick;

use std::{future::Future, path::PathBuf};

use clap::{Parser, Subcommand};
use pushcast::config::Config;
use tokio_util::sync::CancellationToken;

const AFTER_HELP: &str = "\
Settings: config/default.toml lists them all. A file given with --config goes on top, and the environment on top of that:
  PUSHCAST__EXPO__RATE_PER_SECOND=300 sets expo.rate_per_second.

Exit codes: 0 done, 1 failed, 2 invalid configuration or command line.";

/// Kafka in, push notifications out.
#[derive(Debug, Parser)]
#[command(version, after_help = AFTER_HELP)]
pub struct Cli {
    /// A TOML file that goes over the defaults
    #[arg(long, value_name = "FILE", env = "PUSHCAST_CONFIG", global = true)]
    pub config: Option<PathBuf>,

    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// What pushcast can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the stages until SIGTERM or SIGINT
    Run(run::Args),
    /// Create what is missing in Kafka and in the store; change nothing that exists
    Init,
    /// Check the configuration, Kafka, the store, the providers' settings and FCM's credentials
    Check,
    /// Write lines from standard input to a topic
    Produce(produce::Args),
    /// Write a clock tick to medication-ticks
    Tick(tick::Args),
    /// Run fake push services with faults to order
    Sandbox(sandbox::Args),
    /// See it work: everything in one process, nothing to install
    Demo(demo::Args),
    /// Send one test message to one token
    Send(send::Args),
    /// Ask a running instance what it knows
    Inspect(inspect::Args),
    /// Stop what has not been sent of a post's broadcast
    Cancel(cancel::Args),
    /// Send nothing through a provider until `resume`; jobs wait in Kafka
    Pause(route::Args),
    /// Send through a provider again: after a pause, or when refused credentials have been mended
    Resume(route::Args),
    /// Send through a provider again after its brake, once somebody has looked at the dead tokens
    Release(route::Release),
}

impl Command {
    /// Whether it brings its own settings: nothing configured for production touches it.
    pub fn stands_alone(&self) -> bool {
        matches!(self, Self::Demo(_) | Self::Sandbox(_))
    }

    /// The logs that it shows unless `PUSHCAST__LOG__FILTER` says otherwise, if not those of the default
    /// settings.
    pub fn log_filter(&self) -> Option<&'static str> {
        // What it attacks on purpose is told by itself; a warning in between would tear its bars.
        matches!(self, Self::Demo(_)).then_some("error")
    }

    /// Runs it to its end. What runs for long ends in good order after `stop`; the rest is dropped.
    pub async fn run(self, config: Config, stop: CancellationToken) -> anyhow::Result<()> {
        match self {
            Self::Run(args) => run::run(args, config, stop).await,
            Self::Demo(args) => demo::run(args, config, stop).await,
            Self::Sandbox(args) => sandbox::run(args, config.kafka.partitions, stop).await,
            Self::Init => or_stop(init::run(config), &stop).await,
            Self::Check => or_stop(check::run(config), &stop).await,
            Self::Produce(args) => or_stop(produce::run(args, config), &stop).await,
            Self::Tick(args) => or_stop(tick::run(args, config), &stop).await,
            Self::Send(args) => or_stop(send::run(args, config), &stop).await,
            Self::Inspect(args) => or_stop(inspect::run(args, config), &stop).await,
            Self::Cancel(args) => or_stop(cancel::run(args, config), &stop).await,
            Self::Pause(args) => or_stop(route::pause(args, config), &stop).await,
            Self::Resume(args) => or_stop(route::resume(args, config), &stop).await,
            Self::Release(args) => or_stop(route::release(args, config), &stop).await,
        }
    }
}

async fn or_stop(
    command: impl Future<Output = anyhow::Result<()>>,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    tokio::select! {
        ended = command => ended,
        () = stop.cancelled() => anyhow::bail!("interrupted"),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_configuration_may_be_named_before_and_after_the_command() {
        for line in [["pushcast", "--config", "a.toml", "check"], ["pushcast", "check", "--config", "a.toml"]]
        {
            assert_eq!(Cli::try_parse_from(line).unwrap().config, Some("a.toml".into()));
        }
    }
}
