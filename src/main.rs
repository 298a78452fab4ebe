//! The operational life of pushcast: configuration, log, build, run, drain, exit code.

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

/// A page of a broadcast is some thousand small strings; mimalloc allocates and frees them in half the time
/// of the system's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Exit code: the command failed. What it had made durable stays.
const FAILED: u8 = 1;

/// Exit code: the command line or the configuration is invalid. Nothing was started.
const INVALID: u8 = 2;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let config = match load(&cli) {
        Ok(config) => config,
        Err(errors) => {
            eprintln!("invalid configuration:\n{errors}");
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
        // Settings that a shell exports for production must not reach the demo or the sandbox.
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
        let stop = CancellationToken::new();
        let mut signals = Signals::listen()?;
        let command = cli.command.run(config, stop.clone());
        until_stopped_twice(command, &mut signals, &stop).await
    });
    // The command has joined its tasks. A thread that is blocked reading standard input may be left; it
    // cannot be ended, so the runtime does not wait for it.
    runtime.shutdown_background();
    ended
}

/// The first signal lets the command drain; the second one ends it at once.
async fn until_stopped_twice(
    command: impl Future<Output = anyhow::Result<()>>,
    signals: &mut Signals,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    let mut command = pin!(command);
    select! {
        ended = &mut command => return ended,
        name = signals.next() => tracing::info!("Received {name}, draining; a second signal stops at once"),
    }
    stop.cancel();
    select! {
        ended = command => ended,
        name = signals.next() => anyhow::bail!(
            "received {name} while draining: stopped at once; unfinished work is repeated after the next \
             start"
        ),
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
