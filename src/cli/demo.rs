//! `pushcast demo`: all of pushcast in one process, under faults, with everything checked at the end.
//!
//! Kafka is librdkafka's mock cluster, the store is SQLite in memory, Expo and FCM are the sandbox; between
//! them run the stages of `pushcast run`, with settings from environment variables. `scenario` defines what
//! is published, `script` when and under which faults, `expected` the result, and `verify` compares it with
//! what is found. What is expected follows from what was published alone.

mod expected;
mod keep;
mod measure;
mod scenario;
mod screen;
mod script;
mod table;
mod verify;
mod watch;
mod world;

use std::time::Duration;

use anyhow::{Context, bail};
use jiff::Timestamp;
use pushcast::config::Config;
use tokio::{select, time::timeout};
use tokio_util::sync::CancellationToken;

use self::{
    screen::Screen,
    script::Runner,
    table::ReportTable,
    verify::{Mismatch, verify},
    watch::Watch,
    world::{RunningWorld, World},
};

/// The whole script. Up to a minute of it is spent waiting for the full minute at which doses are due.
const DEADLINE: Duration = Duration::from_secs(85);

/// What to do at the end.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Keep it running after the script, and print commands to paste into a shell
    #[arg(long)]
    pub keep: bool,
}

/// Runs the script, or until `stop`. Fails if what is found is not what follows from what was published.
pub async fn run(args: Args, _: Config, stop: CancellationToken) -> anyhow::Result<()> {
    let screen = Screen::new();
    let (world, mut running) = World::start(args.keep).await?;
    let ended = select! {
        ended = show(&world, &screen, &args) => ended,
        failure = running.ended_early() => Err(failure),
        () = stop.cancelled() => Err(anyhow::anyhow!("interrupted")),
    };
    let ended = match ended {
        Ok(verified) if args.keep => keep_running(&world, &mut running, &stop).await.and(verified),
        Ok(verified) => verified,
        Err(err) => Err(err),
    };
    running.stop().await;
    world.stop().await;
    ended
}

/// Runs the script and prints the report. `Ok(Err(_))` = it ran to the end, and something does not agree.
async fn show(world: &World, screen: &Screen, args: &Args) -> anyhow::Result<anyhow::Result<()>> {
    let watch = Watch::new(world);
    let runner = Runner::new(world, &watch, screen);
    let script = async {
        match timeout(DEADLINE, runner.run()).await {
            Ok(ended) => ended.map(|()| None),
            Err(_) => Ok(Some(runner.waiting_for())),
        }
    };
    let unfinished = select! {
        ended = script => ended?,
        never = watch.poll_forever() => match never {},
    };
    let expected = runner.expected();
    let found = runner.found().await?;
    let measured = runner.measured();
    let mut mismatches = verify(&expected, &found);
    if let Some(condition) = unfinished {
        let found = format!("still waiting for {condition}");
        mismatches.insert(
            0,
            Mismatch { about: "the end".to_owned(), expected: format!("within {DEADLINE:?}"), found },
        );
    }
    println!(
        "{}",
        ReportTable {
            world,
            expected: &expected,
            found: &found,
            measured: &measured,
            samples: &watch.seen().samples
        }
        .table()
    );
    if args.keep {
        let program = std::env::current_exe().context("finding this program")?;
        println!("\n{}", keep::lines(world, &program, Timestamp::now()));
    }
    Ok(report(&mismatches))
}

fn report(mismatches: &[Mismatch]) -> anyhow::Result<()> {
    if mismatches.is_empty() {
        println!(
            "The sandbox's counts, the rows of the store and pushcast's own topics agree with the records \
             that were published."
        );
        return Ok(());
    }
    for mismatch in mismatches {
        println!("MISMATCH  {mismatch}");
    }
    bail!("{} things do not agree with the records that were published", mismatches.len())
}

/// Keeps everything running until `stop`, and prints every push.
async fn keep_running(
    world: &World,
    running: &mut RunningWorld,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    println!("Running until Ctrl-C.");
    select! {
        never = keep::print_pushes(world) => match never {},
        failure = running.ended_early() => Err(failure),
        () = stop.cancelled() => Ok(()),
    }
}
