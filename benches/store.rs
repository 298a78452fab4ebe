//! The overhead of the stores over their drivers alone, and the throughput of an SQLite file.
//!
//! ```text
//! cargo bench --bench store -- [ROUNDS [TOKENS]] [keep] [SCENARIO …]
//! ```
//!
//! The scenarios are `registrations`, `scan` and `embedded`; without one all are run. The default is three
//! rounds and a million tokens. `keep` leaves the server and its million for the next call. Needs Java 17,
//! and Maven the first time.
//!
//! **registrations**: new tokens, each with a user and a device, through the store on Apache Cassandra;
//! compared with the driver alone, which executes the same statements in the same order with the same
//! consistency, and evaluates no answer. Both with 64 at once.
//!
//! **scan**: all tokens in 64 slices, through the store in pages of 500; compared with the driver's own pager
//! over the same ranges, with as many rows per page. One slice after the other, and four at once.
//!
//! **embedded**: registrations into a file that holds the tokens already, each acknowledged when it is on the
//! disk; by the number of concurrent callers. How many share a commit, and with it a flush, is counted in
//! SQLite's write-ahead log.
//!
//! Each run is a process of its own; the order is reversed after each round; the figures are medians. CPU and
//! memory are the process's own, from `/proc`, with the server's CPU beside it. The server shares the
//! machine, so compare within one call.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a bench ends where something fails")]

#[path = "store/cassandra.rs"]
mod cassandra;
#[path = "store/child.rs"]
mod child;
#[path = "store/driver.rs"]
mod driver;
#[path = "store/embedded.rs"]
mod embedded;

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
const SCENARIOS: [&str; 3] = ["registrations", "scan", "embedded"];

/// The arguments of the command line.
struct Arguments {
    rounds: usize,
    tokens: u64,
    keep: bool,
    scenarios: Vec<String>,
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    if let [flag, task] = &arguments[..]
        && flag == child::FLAG
    {
        return child::main(task);
    }
    let arguments = Arguments::parse(arguments);
    if arguments.include("registrations") || arguments.include("scan") {
        let server = Server::start(arguments.keep);
        if arguments.include("registrations") {
            registrations(&arguments, &server);
        }
        if arguments.include("scan") {
            scan(&arguments, &server);
        }
    }
    if arguments.include("embedded") {
        embedded(&arguments);
    }
}

fn registrations(arguments: &Arguments, server: &Server) {
    let keyspace = server.keyspace("bench_registrations");
    let task = |kind| Task { kind, location: keyspace.clone(), number: REGISTRATIONS, at_once: AT_ONCE };
    let tasks = [("store", task(Kind::StoreRegisters)), ("driver", task(Kind::DriverRegisters))];
    let results = compare(arguments.rounds, &tasks, Some(server));
    println!("\nregistrations, {AT_ONCE} at once on Cassandra");
    println!("{:>14} {:>10} {:>18} {:>16}", "", "per second", "CPU s per million", "of the server");
    for (name, _) in &tasks {
        let of = |figure: fn(&Figures) -> f64| median(&results[name], figure);
        println!(
            "{name:>14} {:>10.0} {:>18.0} {:>16.0}",
            of(|f| f.rate),
            of(|f| f.cpu),
            of(|f| f.server_cpu)
        );
    }
    check(
        "of the rate of the driver alone",
        median(&results["store"], |f| f.rate) / median(&results["driver"], |f| f.rate),
        0.8,
    );
}

fn scan(arguments: &Arguments, server: &Server) {
    let keyspace = server.filled(arguments.tokens);
    for at_once in [1, 4] {
        let task = |kind| Task { kind, location: keyspace.clone(), number: arguments.tokens, at_once };
        let tasks = [("store", task(Kind::StoreScans)), ("driver", task(Kind::DriverScans))];
        let results = compare(arguments.rounds, &tasks, Some(server));
        println!("\n{} tokens in slices, {at_once} at once on Cassandra", arguments.tokens);
        let memory = ["at first", "25 %", "50 %", "75 %", "100 %", "peak"];
        print!("{:>14} {:>10} {:>18} {:>16}   MiB", "", "per second", "CPU s per million", "of the server");
        println!("{}", memory.map(|moment| format!("{moment:>9}")).concat());
        for (name, _) in &tasks {
            let of = |figure: fn(&Figures) -> f64| median(&results[name], figure);
            print!(
                "{name:>14} {:>10.0} {:>18.2} {:>16.2}      ",
                of(|f| f.rate),
                of(|f| f.cpu),
                of(|f| f.server_cpu)
            );
            println!(
                "{}",
                (0..memory.len())
                    .map(|n| format!("{:>9.1}", median(&results[name], |f| f.memory[n])))
                    .collect::<String>()
            );
        }
        let runs = &results["store"];
        check(
            "of the rate of the driver alone",
            median(runs, |f| f.rate) / median(&results["driver"], |f| f.rate),
            0.8,
        );
        // From the first quarter on: buffers and connections exist then.
        check("MiB at a quarter, of the peak", median(runs, |f| f.memory[1] / f.memory[5]), 0.9);
    }
}

fn embedded(arguments: &Arguments) {
    let store = embedded::Filled::new(arguments.tokens);
    let task = |at_once| Task { kind: Kind::FileRegisters, location: store.location(), number: 0, at_once };
    let tasks: Vec<(String, Task)> =
        [1, 4, 16, 64, 256, 1_024].map(|at_once| (format!("{at_once} at once"), task(at_once))).into();
    let tasks: Vec<(&str, Task)> = tasks.iter().map(|(name, task)| (name.as_str(), task.clone())).collect();
    let results = compare(arguments.rounds, &tasks, None);
    println!("\ndurable registrations in a file that holds {} tokens", arguments.tokens);
    println!(
        "{:>14} {:>10} {:>18} {:>16} {:>10}",
        "", "per second", "CPU s per million", "per commit", "peak MiB"
    );
    for (name, _) in &tasks {
        let of = |figure: fn(&Figures) -> f64| median(&results[name], figure);
        let rate = of(|f| f.rate);
        let cpu = of(|f| f.cpu);
        let per_commit = of(|f| f.per_commit);
        let peak = of(|f| f.memory[5]);
        println!("{name:>14} {rate:>10.0} {cpu:>18.0} {per_commit:>16.1} {peak:>10.1}");
    }
    let best = tasks.iter().map(|(name, _)| median(&results[name], |f| f.rate)).fold(0.0, f64::max);
    check("registrations/s at best", best, 10_000.0);
}

/// Runs the tasks in turns. The first round, which warms the server up, is not counted.
fn compare<'a>(
    rounds: usize,
    tasks: &[(&'a str, Task)],
    server: Option<&Server>,
) -> BTreeMap<&'a str, Vec<Figures>> {
    let mut results: BTreeMap<&str, Vec<Figures>> = BTreeMap::new();
    let mut order: Vec<_> = tasks.iter().collect();
    for round in 0..=rounds {
        for (name, task) in &order {
            let before = server.map(Server::cpu_seconds);
            let mut figures = task.run();
            if let (Some(server), Some(before)) = (server, before) {
                figures.server_cpu = (server.cpu_seconds() - before) * 1e6 / task.number as f64;
            }
            eprintln!(
                "round {round} of {rounds}: {:?}, {} at once: {:.0}/s",
                task.kind, task.at_once, figures.rate
            );
            let runs = results.entry(name).or_default();
            if round > 0 {
                runs.push(figures);
            }
        }
        order.reverse();
    }
    results
}

fn median(runs: &[Figures], figure: impl Fn(&Figures) -> f64) -> f64 {
    process::median(runs.iter().map(figure))
}

/// Prints a figure and whether it reaches the least that is acceptable.
fn check(name: &str, figure: f64, least: f64) {
    println!(
        "{:>14} {figure:>10.2} {name} (at least {least})",
        if figure >= least { "holds" } else { "MISSED" }
    );
}

// === impl Arguments ===

impl Arguments {
    fn parse(arguments: Vec<String>) -> Self {
        let numbers: Vec<u64> = arguments.iter().filter_map(|argument| argument.parse().ok()).collect();
        let mut names: Vec<String> =
            arguments.into_iter().filter(|argument| argument.parse::<u64>().is_err()).collect();
        let keep = names.iter().any(|name| name == "keep");
        names.retain(|name| name != "keep");
        let are_known = names.iter().all(|name| SCENARIOS.contains(&name.as_str()));
        assert!(are_known, "the scenarios are {SCENARIOS:?}, not {names:?}");
        let rounds = numbers.first().map_or(3, |rounds| usize::try_from(*rounds).unwrap().max(1));
        let tokens = numbers.get(1).copied().unwrap_or(1_000_000);
        Self { rounds, tokens, keep, scenarios: names }
    }

    /// Whether a scenario is to be run.
    fn include(&self, scenario: &str) -> bool {
        self.scenarios.is_empty() || self.scenarios.iter().any(|name| name == scenario)
    }
}
