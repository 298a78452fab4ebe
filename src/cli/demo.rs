//! `pushcast demo`: all of it in one process, and the promises attacked while you watch.
//!
//! Kafka is librdkafka's mock cluster, the store is SQLite in memory, Expo and FCM are the sandbox; between
//! them runs what `pushcast run` runs, with settings that come the way that everybody's come. `scenario` says
//! what is published, `acts` when and under which attacks, `expected` what must come of it, and `verify`
//! whether it did. What is expected follows from what was published alone.

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
    verify::{Disagreement, verify},
    watch::Watch,
    world::{RunningWorld, World},
};

/// What is not done by then is told as not done. A minute of it may be the wait for the doses' minute.
const DEADLINE: Duration = Duration::from_secs(85);

/// How it ends.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Leave it running, and print lines to paste into a shell
    #[arg(long)]
    pub keep: bool,
}

/// Runs until it has shown everything, or until `stop`. It fails if what was found is not what must come of
/// what was published.
pub async fn run(args: Args, _: Config, stop: CancellationToken) -> anyhow::Result<()> {
    let screen = Screen::new();
    let (world, mut running) = World::start(args.keep).await?;
    let ended = select! {
        ended = show(&world, &screen, &args) => ended,
        broken = running.broken() => Err(broken),
        () = stop.cancelled() => Err(anyhow::anyhow!("interrupted")),
    };
    let ended = match ended {
        Ok(verdict) if args.keep => stay(&world, &mut running, &stop).await.and(verdict),
        Ok(verdict) => verdict,
        Err(err) => Err(err),
    };
    running.stop().await;
    world.end().await;
    ended
}

/// The demonstration. `Ok(Err(_))` = it went to its end, and something does not agree.
async fn show(world: &World, screen: &Screen, args: &Args) -> anyhow::Result<anyhow::Result<()>> {
    let watch = Watch::new(world);
    let play = Runner::new(world, &watch, screen);
    let acts = async {
        match timeout(DEADLINE, play.all()).await {
            Ok(ended) => ended.map(|()| None),
            Err(_) => Ok(Some(play.doing())),
        }
    };
    let late = select! {
        ended = acts => ended?,
        never = watch.keep_looking() => match never {},
    };
    let (expected, found, measured) = (play.expected(), play.found().await?, play.measured());
    let mut disagreements = verify(&expected, &found);
    if let Some(doing) = late {
        let found = format!("it still waited for {doing}");
        disagreements.insert(
            0,
            Disagreement { about: "the end".to_owned(), expected: format!("within {DEADLINE:?}"), found },
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
    Ok(judge(&disagreements))
}

fn judge(disagreements: &[Disagreement]) -> anyhow::Result<()> {
    if disagreements.is_empty() {
        println!(
            "What the sandbox counted, what the store holds and what pushcast published agree with what was published."
        );
        return Ok(());
    }
    for disagreement in disagreements {
        println!("DISAGREEMENT  {disagreement}");
    }
    bail!("{} things do not agree with what was published", disagreements.len())
}

/// Stays until `stop`, and shows every push.
async fn stay(world: &World, running: &mut RunningWorld, stop: &CancellationToken) -> anyhow::Result<()> {
    println!("It goes on running until Ctrl-C.");
    select! {
        never = keep::show_pushes(world) => match never {},
        broken = running.broken() => Err(broken),
        () = stop.cancelled() => Ok(()),
    }
}
