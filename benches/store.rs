//! The stores: what they cost over their bare drivers, and what a file of SQLite holds.
//!
//! ```text
//! cargo bench --bench store -- [ROUNDS [TOKENS]] [keep] [WORD …]
//! ```
//!
//! Without words everything is measured: three rounds, a million tokens. Else what is named: `registrations`,
//! `scan`, `embedded`. `keep` leaves the server and its million for the next call. Needs Java 17, and Maven
//! the first time.
//!
//! **registrations**: new tokens, each with a user and a device, through the store on Apache Cassandra;
//! beside it the bare driver, which asks the same statements in the same order with the same consistency, and
//! decides nothing. Both 64 at once.
//!
//! **scan**: all tokens in 64 slices, through the store in pages of 500; beside it the driver's own pager
//! over the same ranges, with as many rows a page. One slice after the other, and four at once.
//!
//! **embedded**: registrations into a file that holds the tokens already, each answered when it is on the
//! disk; by how many ask at once. How many share a commit, and with it a flush, is counted in SQLite's log.
//!
//! Each run is a process of its own; the order turns round by round; the figures are medians. CPU and memory
//! are the process's own, as `/proc` has them, with the server's CPU beside it. The server shares the
//! machine, so compare within one call.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a bench ends where something fails")]

#[path = "store/child.rs"]
mod child;
#[path = "store/driver.rs"]
mod driver;
#[path = "store/embedded.rs"]
mod embedded;
#[path = "store/ours.rs"]
mod ours;
#[path = "figures/process.rs"]
mod process;
#[path = "store/server.rs"]
mod server;
#[path = "store/tokens.rs"]
mod tokens;

use std::collections::BTreeMap;

use child::{Figures, Kind, Task};
use server::Server;

const AT_ONCE: usize = 64;
const REGISTRATIONS: u64 = 10_000;
const WORDS: [&str; 3] = ["registrations", "scan", "embedded"];

/// What the arguments ask for.
struct Wishes {
    rounds: usize,
    tokens: u64,
    keep: bool,
    words: Vec<String>,
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    if let [word, task] = &arguments[..]
        && word == child::WORD
    {
        return child::main(task);
    }
    let wishes = Wishes::of(arguments);
    if wishes.want("registrations") || wishes.want("scan") {
        let server = Server::start(wishes.keep);
        if wishes.want("registrations") {
            registrations(&wishes, &server);
        }
        if wishes.want("scan") {
            scan(&wishes, &server);
        }
    }
    if wishes.want("embedded") {
        embedded(&wishes);
    }
}

fn registrations(wishes: &Wishes, server: &Server) {
    let keyspace = server.keyspace("bench_registrations");
    let task = |kind| Task { kind, place: keyspace.clone(), number: REGISTRATIONS, at_once: AT_ONCE };
    let contestants = [("store", task(Kind::StoreRegisters)), ("driver", task(Kind::DriverRegisters))];
    let results = compare(wishes.rounds, &contestants, Some(server));
    println!("\nregistrations, {AT_ONCE} at once on Cassandra");
    println!("{:>14} {:>10} {:>18} {:>16}", "", "a second", "CPU s per million", "of the server");
    for (who, _) in &contestants {
        let of = |figure: fn(&Figures) -> f64| middle(&results[who], figure);
        println!("{who:>14} {:>10.0} {:>18.0} {:>16.0}", of(|f| f.rate), of(|f| f.cpu), of(|f| f.server_cpu));
    }
    bar(
        "of what the bare driver does",
        middle(&results["store"], |f| f.rate) / middle(&results["driver"], |f| f.rate),
        0.8,
    );
}

fn scan(wishes: &Wishes, server: &Server) {
    let keyspace = server.filled(wishes.tokens);
    for at_once in [1, 4] {
        let task = |kind| Task { kind, place: keyspace.clone(), number: wishes.tokens, at_once };
        let contestants = [("store", task(Kind::StoreScans)), ("driver", task(Kind::DriverScans))];
        let results = compare(wishes.rounds, &contestants, Some(server));
        println!("\n{} tokens in slices, {at_once} at once on Cassandra", wishes.tokens);
        let memory = ["at first", "25 %", "50 %", "75 %", "100 %", "peak"];
        print!("{:>14} {:>10} {:>18} {:>16}   MiB", "", "a second", "CPU s per million", "of the server");
        println!("{}", memory.map(|moment| format!("{moment:>9}")).concat());
        for (who, _) in &contestants {
            let of = |figure: fn(&Figures) -> f64| middle(&results[who], figure);
            print!(
                "{who:>14} {:>10.0} {:>18.2} {:>16.2}      ",
                of(|f| f.rate),
                of(|f| f.cpu),
                of(|f| f.server_cpu)
            );
            println!(
                "{}",
                (0..memory.len())
                    .map(|n| format!("{:>9.1}", middle(&results[who], |f| f.memory[n])))
                    .collect::<String>()
            );
        }
        let runs = &results["store"];
        bar(
            "of what the bare driver does",
            middle(runs, |f| f.rate) / middle(&results["driver"], |f| f.rate),
            0.8,
        );
        // From the first quarter on: buffers and connections are there then.
        bar("MiB at a quarter, of the peak", middle(runs, |f| f.memory[1] / f.memory[5]), 0.9);
    }
}

fn embedded(wishes: &Wishes) {
    let store = embedded::Filled::new(wishes.tokens);
    let contestants: Vec<(String, Task)> = [1, 4, 16, 64, 256, 1_024]
        .map(|at_once| {
            (
                format!("{at_once} at once"),
                Task { kind: Kind::FileRegisters, place: store.place(), number: 0, at_once },
            )
        })
        .into();
    let contestants: Vec<(&str, Task)> =
        contestants.iter().map(|(who, task)| (who.as_str(), task.clone())).collect();
    let results = compare(wishes.rounds, &contestants, None);
    println!("\ndurable registrations in a file that holds {} tokens", wishes.tokens);
    println!(
        "{:>14} {:>10} {:>18} {:>16} {:>10}",
        "", "a second", "CPU s per million", "of them a commit", "peak MiB"
    );
    for (who, _) in &contestants {
        let of = |figure: fn(&Figures) -> f64| middle(&results[who], figure);
        let [rate, cpu, shared, peak] =
            [of(|f| f.rate), of(|f| f.cpu), of(|f| f.a_commit), of(|f| f.memory[5])];
        println!("{who:>14} {rate:>10.0} {cpu:>18.0} {shared:>16.1} {peak:>10.1}");
    }
    let best = contestants.iter().map(|(who, _)| middle(&results[who], |f| f.rate)).fold(0.0, f64::max);
    bar("registrations/s at best", best, 10_000.0);
}

/// The runs of each, in turns. The first round, which warms the server up, does not count.
fn compare<'a>(
    rounds: usize,
    contestants: &[(&'a str, Task)],
    server: Option<&Server>,
) -> BTreeMap<&'a str, Vec<Figures>> {
    let mut results: BTreeMap<&str, Vec<Figures>> = BTreeMap::new();
    let mut order: Vec<_> = contestants.iter().collect();
    for round in 0..=rounds {
        for (who, task) in &order {
            let before = server.map(Server::cpu_seconds);
            let mut figures = task.run();
            if let (Some(server), Some(before)) = (server, before) {
                figures.server_cpu = (server.cpu_seconds() - before) * 1e6 / task.number as f64;
            }
            eprintln!(
                "round {round} of {rounds}: {:?}, {} at once: {:.0}/s",
                task.kind, task.at_once, figures.rate
            );
            let runs = results.entry(who).or_default();
            if round > 0 {
                runs.push(figures);
            }
        }
        order.reverse();
    }
    results
}

fn middle(runs: &[Figures], figure: impl Fn(&Figures) -> f64) -> f64 {
    process::median(runs.iter().map(figure))
}

fn bar(what: &str, figure: f64, least: f64) {
    println!(
        "{:>14} {figure:>10.2} {what} (at least {least})",
        if figure >= least { "holds" } else { "MISSED" }
    );
}

// === impl Wishes ===

impl Wishes {
    fn of(arguments: Vec<String>) -> Self {
        let numbers: Vec<u64> = arguments.iter().filter_map(|argument| argument.parse().ok()).collect();
        let mut words: Vec<String> =
            arguments.into_iter().filter(|argument| argument.parse::<u64>().is_err()).collect();
        let keep = words.iter().any(|word| word == "keep");
        words.retain(|word| word != "keep");
        assert!(words.iter().all(|word| WORDS.contains(&word.as_str())), "what is one of {words:?}?");
        let rounds = numbers.first().map_or(3, |rounds| usize::try_from(*rounds).unwrap().max(1));
        Self { rounds, tokens: numbers.get(1).copied().unwrap_or(1_000_000), keep, words }
    }

    fn want(&self, word: &str) -> bool {
        self.words.is_empty() || self.words.iter().any(|wanted| wanted == word)
    }
}
