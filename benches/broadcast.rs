//! Broadcasts with the rate limit off, beside bare loops that post the same bodies; and reminders while a
//! broadcast runs at its limit.
//!
//! ```text
//! cargo bench --bench broadcast -- [ROUNDS [TOKENS]] [NAME …]
//! ```
//!
//! Without names everything is measured: five rounds, a million tokens, in a quarter of an hour. Else what is
//! named: `expo`, `fcm`, `latency`, `scale`, `urgent`. Needs Linux (`taskset`, `/proc`) and two cores.
//!
//! The sender has core 0 for itself: pushcast with its store in a file, alternating with the bare loop. The
//! sandbox and an embedded Kafka with 64 partitions, a process each, share core 1. The order changes from
//! round to round; figures are medians over the rounds, and ratios are medians of each round's ratio.
//! Messages per second are counted between the first and the last that reach the sandbox; seconds are from
//! the post's record to the outcome's; CPU is that of the sender over this time, peak memory (VmHWM) that
//! since its start.
//!
//! - **expo**: a broadcast to all, with bodies compressed or not and receipts requested or not. The bare loop
//!   is reqwest with as many requests in flight, which splices each body from a template and parses the
//!   tickets with serde; `grouped` has bodies as pushcast posts them (equal messages share an object),
//!   `single` has an object for each message.
//! - **fcm**: the same with a tenth of the tokens; the bare loop is one reqwest client over HTTP/2.
//! - **latency**: both with a provider that takes 50 ms to answer.
//! - **scale**: a tenth of the tokens, then all of them.
//! - **urgent**: doses while broadcasts use up both providers' default rates, from the tick's record to the
//!   provider's answer, through both topics.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a bench ends where something fails")]

#[path = "broadcast/bare.rs"]
mod bare;
#[path = "broadcast/child.rs"]
mod child;
#[path = "figures/process.rs"]
mod process;
#[path = "broadcast/sender.rs"]
mod sender;
#[path = "broadcast/urgent.rs"]
mod urgent;
#[path = "broadcast/world.rs"]
mod world;

use std::fmt;

use bare::Bare;
use process::median;
use sender::Sender;
use world::World;

const NAMES: [&str; 5] = ["expo", "fcm", "latency", "scale", "urgent"];
/// Settings of Expo's client.
const PLAIN: [(&str, &str); 2] = [("expo.gzip", "false"), ("expo.receipts", "false")];
const GZIP: [(&str, &str); 2] = [("expo.gzip", "true"), ("expo.receipts", "false")];
const RECEIPTS: [(&str, &str); 2] = [("expo.gzip", "false"), ("expo.receipts", "true")];
const BOTH: [(&str, &str); 2] = [("expo.gzip", "true"), ("expo.receipts", "true")];

struct Arguments {
    rounds: usize,
    tokens: u64,
    /// What to measure; empty = everything.
    names: Vec<String>,
}

/// The results of one broadcast, or of one run of a bare loop.
#[derive(Clone, Copy, Debug)]
pub struct Figures {
    /// Messages per second at the provider.
    pub rate: f64,
    /// From the post to its outcome.
    pub seconds: f64,
    /// CPU seconds, user and system, per 100,000 messages.
    pub cpu: f64,
    /// Peak resident memory of the sender so far, MiB.
    pub peak: f64,
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    if let [role, arguments @ ..] = &arguments[..]
        && let Some(child) = child::with_role(role)
    {
        return child(arguments);
    }
    let arguments = Arguments::parse(arguments);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(measure(&arguments));
}

async fn measure(arguments: &Arguments) {
    let world = World::start().await;
    let Arguments { rounds, tokens, .. } = *arguments;
    if arguments.include("expo") {
        heading("Expo, no latency");
        let names = ["pushcast", "pushcast, gzip", "pushcast, receipts", "pushcast, gzip and receipts"];
        for (name, settings) in names.into_iter().zip([PLAIN, GZIP, RECEIPTS, BOTH]) {
            let gzip = settings[0].1;
            let bare = ["grouped", "single"].map(|bodies| Bare { provider: "expo", bodies, gzip });
            let bare = if settings[1].1 == "false" { &bare[..] } else { &[] };
            compare(&world, name, ("expo", tokens), &settings, bare, rounds).await;
        }
    }
    if arguments.include("fcm") {
        heading("FCM, no latency");
        let bare = Bare { provider: "fcm", bodies: "single", gzip: "false" };
        compare(&world, "pushcast", ("fcm", tokens / 10), &[], &[bare], rounds).await;
    }
    if arguments.include("latency") {
        world.latency("50ms").await;
        heading("50 ms latency");
        compare(&world, "Expo", ("expo", tokens), &PLAIN, &[], rounds).await;
        compare(&world, "FCM", ("fcm", tokens / 10), &[], &[], rounds).await;
        world.latency("0s").await;
    }
    if arguments.include("scale") {
        heading("Expo, by size");
        for tokens in [tokens / 10, tokens] {
            compare(&world, &format!("{tokens} tokens"), ("expo", tokens), &BOTH, &[], rounds).await;
        }
    }
    if arguments.include("urgent") {
        urgent::measure(&world).await;
    }
}

/// Broadcasts alternating with runs of the bare loops; prints their medians.
async fn compare(
    world: &World,
    name: &str,
    (provider, tokens): (&'static str, u64),
    settings: &[(&str, &str)],
    bare: &[Bare],
    rounds: usize,
) {
    let sender = Sender::start(world, provider, tokens, settings).await;
    let mut ours = Vec::new();
    let mut theirs = vec![Vec::new(); bare.len()];
    for round in 0..rounds {
        if round % 2 == 0 {
            ours.push(sender.broadcast(world).await);
        }
        for (bare, theirs) in bare.iter().zip(&mut theirs) {
            theirs.push(bare::run(world, *bare, tokens).await);
        }
        if round % 2 == 1 {
            ours.push(sender.broadcast(world).await);
        }
    }
    sender.end().await;
    row(name, &ours);
    for (bare, theirs) in bare.iter().zip(&theirs) {
        row(
            &format!("  bare loop, {}{}", bare.bodies, if bare.gzip == "true" { ", gzip" } else { "" }),
            theirs,
        );
        // Round by round: the machine's speed changes between them.
        let ratio = median(ours.iter().zip(theirs).map(|(ours, theirs)| ours.cpu / theirs.cpu));
        println!(
            "    CPU per message, pushcast : bare = {ratio:.2}; messages per CPU second {:.2}",
            1.0 / ratio
        );
    }
}

fn heading(name: &str) {
    println!(
        "\n{name:<30} {:>12} {:>9} {:>20} {:>10}",
        "messages/s", "seconds", "CPU s per 100,000", "peak MiB"
    );
}

fn row(name: &str, rounds: &[Figures]) {
    let of = |field: fn(&Figures) -> f64| median(rounds.iter().map(field));
    println!(
        "{name:<30} {}",
        Figures {
            rate: of(|f| f.rate),
            seconds: of(|f| f.seconds),
            cpu: of(|f| f.cpu),
            peak: of(|f| f.peak)
        }
    );
}

impl Arguments {
    fn parse(arguments: Vec<String>) -> Self {
        let (numbers, names): (Vec<_>, Vec<_>) =
            arguments.into_iter().partition(|argument| argument.parse::<u64>().is_ok());
        let unknown = names.iter().find(|name| !NAMES.contains(&name.as_str()));
        assert!(unknown.is_none(), "{unknown:?} is none of {NAMES:?}");
        let mut numbers = numbers.iter().map(|number| number.parse().unwrap());
        let rounds = numbers.next().map_or(5, |rounds| usize::try_from(rounds).unwrap());
        Self { rounds, tokens: numbers.next().unwrap_or(1_000_000), names }
    }

    fn include(&self, name: &str) -> bool {
        self.names.is_empty() || self.names.iter().any(|included| included == name)
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rate, seconds, cpu, peak } = self;
        write!(f, "{rate:>12.0} {seconds:>9.2} {cpu:>20.3} {peak:>10.0}")
    }
}
