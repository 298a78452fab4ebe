//! The consumer runtime on a real broker, beside its alternatives: records per second, CPU, memory, and how
//! long a member reads nothing in a rebalance.
//!
//! ```text
//! cargo bench -p pushcast-consumer --bench runtime -- [ROUNDS] [keep] [FILTER …]
//! ```
//!
//! Without filters everything is measured, in three rounds, which takes a quarter of an hour; else what is
//! named: `no-op`, `50ms`, `stage`, `loop`, `core`, `vertx`, `rebalance`. `keep` leaves the broker and its
//! records for the next call. Needs Maven and a JDK 17 for the Java side.
//!
//! **What is compared.** *stage*: [`consumer::Stage`], with its default settings. *loop*: rdkafka with its
//! defaults, one record after the other. *core* and *vertx*: Confluent's parallel-consumer, ordered by key,
//! once with threads and once with timers (`benches/parallel-consumer`), with its own defaults, and a heap of
//! up to 2 GiB. All read the same records: 200 bytes in 12 partitions, each with a key of its own. The
//! handler does nothing, or waits for 50 ms, with at most 4,096 records at once: then 81,920 records a second
//! is the limit.
//!
//! **How.** Each run is a process of its own in a group of its own, from the beginning of the topic; the
//! order alternates between rounds; the figures are medians. A run warms up for five seconds (a JVM needs
//! them) or a quarter of the records, then it is measured for ten seconds or until the records end. CPU
//! seconds and peak memory (VmHWM) are the process's own from `/proc`; idle is its memory before it joins.
//! The broker shares the machine, so compare only within one call.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a bench stops where something fails")]

use std::collections::BTreeMap;

#[path = "runtime/broker.rs"]
mod broker;
#[path = "runtime/child.rs"]
mod child;
#[path = "../../../benches/figures/process.rs"]
mod process;
#[path = "runtime/rebalance.rs"]
mod rebalance;
#[path = "runtime/worker.rs"]
mod worker;

use broker::Broker;
use child::{Child, Figures};

const PARTITIONS: i32 = 12;
const IN_FLIGHT: u32 = 4_096;
const HANDLERS: [(&str, u32); 2] = [("no-op", 0), ("50ms", 50)];
const CONTESTANTS: [&str; 4] = ["stage", "vertx", "core", "loop"];
const PARALLEL_CONSUMERS: [&str; 2] = ["vertx", "core"];
const REBALANCE: &str = "rebalance";

/// The arguments.
struct Options {
    rounds: usize,
    keep: bool,
    filters: Vec<String>,
}

/// The runs by handler and contestant.
type Results = BTreeMap<(&'static str, &'static str), Vec<Figures>>;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    if let [first, arguments @ ..] = &arguments[..]
        && first == worker::FLAG
    {
        return worker::main(arguments);
    }
    let options = Options::parse(arguments);
    let broker = Broker::start(options.keep);
    if options.with_comparison() {
        let results = compare(&options, &broker);
        print_table(&results);
        print_targets(&results);
    }
    if options.with_rebalance() {
        rebalance::measure(&broker, "classic", options.rounds);
        rebalance::measure(&broker, "consumer", options.rounds);
    }
}

fn handlers() -> [&'static str; 2] {
    HANDLERS.map(|(handler, _)| handler)
}

fn compare(options: &Options, broker: &Broker) -> Results {
    let mut runs: Vec<_> =
        HANDLERS.iter().flat_map(|handler| CONTESTANTS.map(|contestant| (contestant, *handler))).collect();
    runs.retain(|(contestant, (handler, _))| {
        options.selects(contestant, &CONTESTANTS) && options.selects(handler, &handlers())
    });
    let mut results = Results::new();
    for _round in 0..options.rounds {
        for (contestant, (handler, pause)) in &runs {
            let figures = Child::start(contestant, broker, *pause, &broker::new_group()).measure();
            eprintln!("{handler:>8} {contestant:>10} {figures}");
            results.entry((*handler, *contestant)).or_default().push(figures);
        }
        runs.reverse();
    }
    results
}

fn print_table(results: &Results) {
    println!(
        "{:>8} {:>10} {:>10} {:>18} {:>10} {:>10}",
        "handler", "contestant", "records/s", "CPU s per million", "peak MiB", "idle MiB"
    );
    for (handler, _) in HANDLERS {
        for contestant in CONTESTANTS {
            if let Some(figures) = median(results, handler, contestant) {
                println!("{handler:>8} {contestant:>10} {figures}");
            }
        }
    }
}

/// The targets of the runtime, and whether it reaches them.
fn print_targets(results: &Results) {
    let limit = f64::from(IN_FLIGHT) / 0.05;
    for (handler, _) in HANDLERS {
        let Some(ours) = median(results, handler, "stage") else { continue };
        let per_partition = (ours.peak - ours.idle) / f64::from(PARTITIONS);
        print_target(handler, "MiB per partition over idle", per_partition, Target::AtMost(2.5));
        match handler {
            "no-op" => print_target(handler, "records/s", ours.rate, Target::AtLeast(350_000.0)),
            _ => print_target(handler, "of the limit", ours.rate / limit, Target::AtLeast(0.95)),
        }
        let theirs = PARALLEL_CONSUMERS.iter().filter_map(|variant| median(results, handler, variant));
        let Some(best) = theirs.max_by(|a, b| a.rate.total_cmp(&b.rate)) else { continue };
        let [rate, cpu, memory] = if handler == "no-op" {
            [Target::AtLeast(3.0), Target::None, Target::None]
        } else {
            [Target::None, Target::AtLeast(3.0), Target::AtLeast(10.0)]
        };
        print_target(
            handler,
            "times the records/s of the best parallel-consumer",
            ours.rate / best.rate,
            rate,
        );
        print_target(handler, "times less CPU per record than it", best.cpu / ours.cpu, cpu);
        print_target(handler, "times less memory than it", best.peak / ours.peak, memory);
    }
}

/// What a figure should be.
enum Target {
    AtLeast(f64),
    AtMost(f64),
    None,
}

fn print_target(of: &str, what: &str, figure: f64, target: Target) {
    let (state, target) = match target {
        Target::AtLeast(least) => {
            (if figure >= least { "reached" } else { "MISSED" }, format!(" (at least {least})"))
        }
        Target::AtMost(most) => {
            (if figure <= most { "reached" } else { "MISSED" }, format!(" (at most {most})"))
        }
        Target::None => ("", String::new()),
    };
    println!("{state:>8} {of:>20} {figure:>10.2} {what}{target}");
}

/// The median of each figure by itself.
fn median(results: &Results, handler: &'static str, contestant: &'static str) -> Option<Figures> {
    let runs = results.get(&(handler, contestant))?;
    let of = |figure: fn(&Figures) -> f64| process::median(runs.iter().map(figure));
    Some(Figures { rate: of(|f| f.rate), cpu: of(|f| f.cpu), peak: of(|f| f.peak), idle: of(|f| f.idle) })
}

// === impl Options ===

impl Options {
    fn parse(arguments: Vec<String>) -> Self {
        let mut options = Self { rounds: 3, keep: false, filters: Vec::new() };
        for argument in arguments {
            match (argument.as_str(), argument.parse()) {
                (_, Ok(rounds)) => options.rounds = rounds,
                ("keep", _) => options.keep = true,
                (filter, _) => {
                    assert!(
                        filter == REBALANCE || handlers().contains(&filter) || CONTESTANTS.contains(&filter),
                        "unknown filter {filter}"
                    );
                    options.filters.push(argument);
                }
            }
        }
        options
    }

    /// Whether one of a kind is measured: it is named, or none of its kind is.
    fn selects(&self, name: &str, kind: &[&str]) -> bool {
        let named: Vec<_> = self.filters.iter().filter(|filter| kind.contains(&filter.as_str())).collect();
        named.is_empty() || named.iter().any(|filter| *filter == name)
    }

    fn with_comparison(&self) -> bool {
        self.filters.is_empty() || self.filters.iter().any(|filter| filter != REBALANCE)
    }

    fn with_rebalance(&self) -> bool {
        self.filters.is_empty() || self.filters.iter().any(|filter| filter == REBALANCE)
    }
}
