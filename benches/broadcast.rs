//! Broadcasts with the rate limit off, beside bare loops that post the same bodies; and reminders while a
//! broadcast runs at its limit.
//!
//! ```text
//! cargo bench --bench broadcast -- [ROUNDS [TOKENS]] [WORD …]
//! ```
//!
//! Without words everything is measured: five rounds, a million tokens, in a quarter of an hour. Else what is
//! named: `expo`, `fcm`, `latency`, `scale`, `urgent`. Needs Linux (`taskset`, `/proc`) and two cores.
//!
//! The sender has core 0 for itself: pushcast with its store on a file, and in its turn the bare loop. The
//! sandbox and an embedded Kafka with 64 partitions, a process each, share core 1. The order turns round by
//! round, the figures are medians, ratios those of the rounds' own. Messages per second are those between the
//! sandbox's first and its last; seconds are from the post's record to the outcome's; CPU is the sender's own
//! over that time, peak memory (VmHWM) its own since its start.
//!
//! **expo**: a broadcast to all, with bodies compressed or not and receipts asked for or not; the bare loop
//! is reqwest with as many requests at once, which splices each body from a template and parses the tickets
//! with serde; once with bodies as pushcast posts them (messages that say the same share an object), once
//! with an object for each message. **fcm**: the same with a tenth of the tokens; the bare loop is one
//! reqwest client over HTTP/2. **latency**: both with a provider that takes 50 ms. **scale**: a tenth of the
//! tokens beside all of them. **urgent**: doses while both providers' default rates are used up by
//! broadcasts, from the tick's record to the provider's answer, through both topics on the way.

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

const WORDS: [&str; 5] = ["expo", "fcm", "latency", "scale", "urgent"];
/// Switches of Expo's client, as settings.
const PLAIN: [(&str, &str); 2] = [("expo.gzip", "false"), ("expo.receipts", "false")];
const GZIP: [(&str, &str); 2] = [("expo.gzip", "true"), ("expo.receipts", "false")];
const RECEIPTS: [(&str, &str); 2] = [("expo.gzip", "false"), ("expo.receipts", "true")];
const BOTH: [(&str, &str); 2] = [("expo.gzip", "true"), ("expo.receipts", "true")];

/// What the arguments ask for.
struct Wishes {
    rounds: usize,
    tokens: u64,
    words: Vec<String>,
}

/// What one broadcast, or one run of a bare loop, came to.
#[derive(Clone, Copy, Debug)]
pub struct Figures {
    /// Messages per second at the provider.
    pub rate: f64,
    /// From the order to its outcome.
    pub seconds: f64,
    /// CPU seconds, user and system, per 100,000 messages.
    pub cpu: f64,
    /// Peak resident memory of the sender so far, MiB.
    pub peak: f64,
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    if let [word, arguments @ ..] = &arguments[..]
        && let Some(child) = child::named(word)
    {
        return child(arguments);
    }
    let wishes = Wishes::of(arguments);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(measure(&wishes));
}

async fn measure(wishes: &Wishes) {
    let world = World::start().await;
    let Wishes { rounds, tokens, .. } = *wishes;
    if wishes.want("expo") {
        heading("Expo, no latency");
        let names = ["pushcast", "pushcast, gzip", "pushcast, receipts", "pushcast, gzip and receipts"];
        for (name, settings) in names.into_iter().zip([PLAIN, GZIP, RECEIPTS, BOTH]) {
            let gzip = settings[0].1;
            let bare = ["grouped", "single"].map(|bodies| Bare { provider: "expo", bodies, gzip });
            let bare = if settings[1].1 == "false" { &bare[..] } else { &[] };
            compare(&world, name, ("expo", tokens), &settings, bare, rounds).await;
        }
    }
    if wishes.want("fcm") {
        heading("FCM, no latency");
        let bare = Bare { provider: "fcm", bodies: "single", gzip: "false" };
        compare(&world, "pushcast", ("fcm", tokens / 10), &[], &[bare], rounds).await;
    }
    if wishes.want("latency") {
        world.latency("50ms").await;
        heading("50 ms latency");
        compare(&world, "Expo", ("expo", tokens), &PLAIN, &[], rounds).await;
        compare(&world, "FCM", ("fcm", tokens / 10), &[], &[], rounds).await;
        world.latency("0s").await;
    }
    if wishes.want("scale") {
        heading("Expo, by size");
        for tokens in [tokens / 10, tokens] {
            compare(&world, &format!("{tokens} tokens"), ("expo", tokens), &BOTH, &[], rounds).await;
        }
    }
    if wishes.want("urgent") {
        urgent::measure(&world).await;
    }
}

/// Broadcasts and runs of the bare loop in turn; their medians.
async fn compare(
    world: &World,
    name: &str,
    (provider, tokens): (&'static str, u64),
    settings: &[(&str, &str)],
    bare: &[Bare],
    rounds: usize,
) {
    let sender = Sender::start(world, provider, tokens, settings).await;
    let (mut ours, mut theirs) = (Vec::new(), vec![Vec::new(); bare.len()]);
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
        // Of each round by itself: the machine's speed changes between them.
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

impl Wishes {
    fn of(arguments: Vec<String>) -> Self {
        let (numbers, words): (Vec<_>, Vec<_>) =
            arguments.into_iter().partition(|argument| argument.parse::<u64>().is_ok());
        let strange = words.iter().find(|word| !WORDS.contains(&word.as_str()));
        assert!(strange.is_none(), "{strange:?} is none of {WORDS:?}");
        let mut numbers = numbers.iter().map(|number| number.parse().unwrap());
        let rounds = numbers.next().map_or(5, |rounds| usize::try_from(rounds).unwrap());
        Self { rounds, tokens: numbers.next().unwrap_or(1_000_000), words }
    }

    fn want(&self, word: &str) -> bool {
        self.words.is_empty() || self.words.iter().any(|wanted| wanted == word)
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rate, seconds, cpu, peak } = self;
        write!(f, "{rate:>12.0} {seconds:>9.2} {cpu:>20.3} {peak:>10.0}")
    }
}
