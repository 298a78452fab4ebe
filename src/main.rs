//! The operational life of pushcast: load, build, run, drain, exit code.

mod cli;

use std::{future::Future, pin::pin, process::ExitCode};

use anyhow::Context;
use clap::Parser;
use pushcast::{
    config::{Config, ConfigErrors, Environment},
    telemetry,
};
use tokio::{
    select,
    signal::unix::{Signal, SignalKind, signal},
};
use tokio_util::sync::CancellationToken;

use crate::cli::Cli;

/// A page of a broadcast is some thousand small strings; this makes and frees them in half the time of the
/// system's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The command failed. What was durable stays so.
const FAILED: u8 = 1;

/// The command line or the configuration is invalid: nothing was begun.
const INVALID: u8 = 2;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let config = match load(&cli) {
        Ok(config) => config,
        Err(mistakes) => {
            eprintln!("invalid configuration:\n{mistakes}");
            return ExitCode::from(INVALID);
        }
    };
    match run(cli, config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            eprintln!("error: {err:#}");
            ExitCode::from(FAILED)
        }
    }
}

/// The environment is read here and nowhere else.
fn load(cli: &Cli) -> Result<Config, ConfigErrors> {
    let lossy = |text: std::ffi::OsString| text.to_string_lossy().into_owned();
    let mut environment: Environment =
        std::env::vars_os().map(|(name, value)| (lossy(name), lossy(value))).collect();
    if cli.command.stands_alone() {
        // What a shell has set for production must not reach a demonstration.
        environment.retain(|name, _| name.starts_with("PUSHCAST__LOG__"));
        if let Some(filter) = cli.command.log_filter() {
            environment.entry("PUSHCAST__LOG__FILTER".to_owned()).or_insert_with(|| filter.to_owned());
        }
        return Config::load(None, &environment);
    }
    Config::load(cli.config.as_deref(), &environment)
}

fn run(cli: Cli, config: Config) -> anyhow::Result<()> {
    telemetry::init(&config.log)?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().context("starting the runtime")?;
    let ended = runtime.block_on(async {
        let (token, mut signals) = (CancellationToken::new(), Signals::listen()?);
        let command = cli.command.run(config, token.clone());
        until_stopped_twice(command, &mut signals, &token).await
    });
    // The command has joined what it started. What may be left is a thread that reads standard input, which
    // nothing ends.
    runtime.shutdown_background();
    ended
}

/// The first signal asks the command to end in good order; a second one does not wait for that.
async fn until_stopped_twice(
    command: impl Future<Output = anyhow::Result<()>>,
    signals: &mut Signals,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    let mut command = pin!(command);
    select! {
        ended = &mut command => return ended,
        name = signals.next() => tracing::info!("{name}: stopping in good order; a second signal stops at once"),
    }
    stop.cancel();
    select! {
        ended = command => ended,
        name = signals.next() => anyhow::bail!("{name} again: stopped at once; what was unfinished is done again by the next start"),
    }
}

/// The signals that end a process.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn listen() -> anyhow::Result<Self> {
        let listen = |kind| signal(kind).context("listening for signals");
        Ok(Self { interrupt: listen(SignalKind::interrupt())?, terminate: listen(SignalKind::terminate())? })
    }

    async fn next(&mut self) -> &'static str {
        select! {
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.terminate.recv() => "SIGTERM",
        }
    }
}
