//! The command line: one file per command.

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
Settings: config/default.toml lists them all. A file given with --config overrides it, and the environment
overrides both: PUSHCAST__EXPO__RATE_PER_SECOND=300 sets expo.rate_per_second.

Exit codes: 0 done, 1 failed, 2 invalid configuration or command line.";

/// Kafka in, push notifications out.
#[derive(Debug, Parser)]
#[command(version, after_help = AFTER_HELP)]
pub struct Cli {
    /// A TOML file that overrides the default settings
    #[arg(long, value_name = "FILE", env = "PUSHCAST_CONFIG", global = true)]
    pub config: Option<PathBuf>,

    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the stages until SIGTERM or SIGINT, then drain
    Run(run::Args),
    /// Create the topics, offsets and tables that are missing; change nothing that exists
    Init,
    /// Check the configuration, Kafka, the store, the providers' settings and FCM's credentials
    Check,
    /// Write lines from standard input to a topic
    Produce(produce::Args),
    /// Write a clock tick to medication-ticks
    Tick(tick::Args),
    /// Run fake push services whose faults can be set
    Sandbox(sandbox::Args),
    /// Show pushcast at work under faults: everything in one process, nothing to install
    Demo(demo::Args),
    /// Send one test message to one token
    Send(send::Args),
    /// Show what a running instance knows of a token, user, broadcast, dose or route
    Inspect(inspect::Args),
    /// Cancel a post's broadcast: messages not sent yet are not sent
    Cancel(cancel::Args),
    /// Stop sending through a provider until `resume`; its jobs wait in Kafka
    Pause(route::Args),
    /// Send through a provider again after a pause, or after refused credentials were replaced
    Resume(route::Args),
    /// Send through a provider again after its brake; look at the dead tokens first
    Release(route::Release),
}

impl Command {
    /// Whether it ignores the configured settings, so that it cannot touch anything in production.
    pub fn stands_alone(&self) -> bool {
        matches!(self, Self::Demo(_) | Self::Sandbox(_))
    }

    /// Its own default for `PUSHCAST__LOG__FILTER`, if it has one.
    pub fn log_filter(&self) -> Option<&'static str> {
        // The demo reports the faults that it causes; warnings about them would break its progress bars.
        matches!(self, Self::Demo(_)).then_some("error")
    }

    /// Runs the command until it ends. After `stop` a long-running command drains; any other is dropped.
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

/// Fails at `stop`, for commands that have nothing to drain.
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
