//! The consumer runtime on a real broker, beside what else there is: records per second, CPU, memory, and how
//! long a member is silent in a rebalance.
//!
//! ```text
//! cargo bench --bench runtime -- [ROUNDS] [keep] [WORD …]
//! ```
//!
//! Without words everything is measured, three rounds of it, in a quarter of an hour; else what has a word in
//! its name: `no-op`, `50ms`, `pushcast`, `loop`, `core`, `vertx`, `rebalance`. `keep` leaves the broker and
//! its records for the next call. Needs Maven and a JDK 17 for the Java side.
//!
//! **What is compared.** *pushcast*: [`consumer::Stage`], with the settings of config/default.toml.
//! *loop*: rdkafka as it comes, one record after the other. *core* and *vertx*: Confluent's
//! parallel-consumer, ordered by key, once with threads and once with timers (`benches/parallel-consumer`),
//! with its own defaults, and a heap of up to 2 GiB. All read the same records: 200 bytes in 12 partitions,
//! each with a key of its own. The handler does nothing, or takes 50 ms without work, with at most 4,096 at
//! once: 81,920 records a second is then the limit of arithmetic.
//!
//! **How.** Each run is a process of its own in a group of its own, from the beginning of the topic; the
//! order turns round by round; the figures are medians. A run warms up for five seconds (a JVM needs them) or
//! a quarter of the records, then it is measured for ten or until the records are at an end. CPU seconds and
//! peak memory (VmHWM) are the process's own as `/proc` has them; idle is what it holds before it joins. The
//! broker shares the machine, so compare within one call.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a bench ends where something fails")]

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
const CONTESTANTS: [&str; 4] = ["pushcast", "vertx", "core", "loop"];
const PARALLEL_CONSUMERS: [&str; 2] = ["vertx", "core"];
const REBALANCE: &str = "rebalance";

/// What the arguments ask for.
struct Wishes {
    rounds: usize,
    keep: bool,
    words: Vec<String>,
}

/// The runs of one contestant with one handler.
type Results = BTreeMap<(&'static str, &'static str), Vec<Figures>>;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    if let [word, arguments @ ..] = &arguments[..]
        && word == worker::WORD
    {
        return worker::main(arguments);
    }
    let wishes = Wishes::of(arguments);
    let broker = Broker::start(wishes.keep);
    if wishes.want_comparison() {
        let results = compare(&wishes, &broker);
        print_table(&results);
        print_bars(&results);
    }
    if wishes.want_rebalance() {
        rebalance::measure(&broker, "classic", wishes.rounds);
        rebalance::measure(&broker, "consumer", wishes.rounds);
    }
}

fn handlers() -> [&'static str; 2] {
    HANDLERS.map(|(handler, _)| handler)
}

fn compare(wishes: &Wishes, broker: &Broker) -> Results {
    let mut runs: Vec<_> =
        HANDLERS.iter().flat_map(|handler| CONTESTANTS.map(|contestant| (contestant, *handler))).collect();
    runs.retain(|(contestant, (handler, _))| {
        wishes.want(contestant, &CONTESTANTS) && wishes.want(handler, &handlers())
    });
    let mut results = Results::new();
    for _round in 0..wishes.rounds {
        for (contestant, (handler, pause)) in &runs {
            let figures = Child::start(contestant, broker, *pause, &broker::some_group()).measure();
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
        "handler", "who", "records/s", "CPU s per million", "peak MiB", "idle MiB"
    );
    for (handler, _) in HANDLERS {
        for contestant in CONTESTANTS {
            if let Some(figures) = median(results, handler, contestant) {
                println!("{handler:>8} {contestant:>10} {figures}");
            }
        }
    }
}

/// What we want to hold, and whether we do.
fn print_bars(results: &Results) {
    let limit = f64::from(IN_FLIGHT) / 0.05;
    for (handler, _) in HANDLERS {
        let Some(ours) = median(results, handler, "pushcast") else { continue };
        let per_partition = (ours.peak - ours.idle) / f64::from(PARTITIONS);
        bar(handler, "MiB per partition over idle", per_partition, Bar::AtMost(2.5));
        match handler {
            "no-op" => bar(handler, "records/s", ours.rate, Bar::AtLeast(350_000.0)),
            _ => bar(handler, "of the limit", ours.rate / limit, Bar::AtLeast(0.95)),
        }
        let theirs = PARALLEL_CONSUMERS.iter().filter_map(|variant| median(results, handler, variant));
        let Some(best) = theirs.max_by(|a, b| a.rate.total_cmp(&b.rate)) else { continue };
        let [rate, cpu, memory] = if handler == "no-op" {
            [Bar::AtLeast(3.0), Bar::None, Bar::None]
        } else {
            [Bar::None, Bar::AtLeast(3.0), Bar::AtLeast(10.0)]
        };
        bar(handler, "times the records/s of the best parallel-consumer", ours.rate / best.rate, rate);
        bar(handler, "times less CPU per record than it", best.cpu / ours.cpu, cpu);
        bar(handler, "times less memory than it", best.peak / ours.peak, memory);
    }
}

/// What a figure has to be.
enum Bar {
    AtLeast(f64),
    AtMost(f64),
    None,
}

fn bar(of: &str, what: &str, figure: f64, bar: Bar) {
    let (word, wanted) = match bar {
        Bar::AtLeast(least) => {
            (if figure >= least { "holds" } else { "MISSED" }, format!(" (at least {least})"))
        }
        Bar::AtMost(most) => (if figure <= most { "holds" } else { "MISSED" }, format!(" (at most {most})")),
        Bar::None => ("", String::new()),
    };
    println!("{word:>8} {of:>20} {figure:>10.2} {what}{wanted}");
}

/// Each figure's median by itself.
fn median(results: &Results, handler: &'static str, contestant: &'static str) -> Option<Figures> {
    let runs = results.get(&(handler, contestant))?;
    let of = |figure: fn(&Figures) -> f64| process::median(runs.iter().map(figure));
    Some(Figures { rate: of(|f| f.rate), cpu: of(|f| f.cpu), peak: of(|f| f.peak), idle: of(|f| f.idle) })
}

// === impl Wishes ===

impl Wishes {
    fn of(arguments: Vec<String>) -> Self {
        let mut wishes = Self { rounds: 3, keep: false, words: Vec::new() };
        for argument in arguments {
            match (argument.as_str(), argument.parse()) {
                (_, Ok(rounds)) => wishes.rounds = rounds,
                ("keep", _) => wishes.keep = true,
                (word, _) => {
                    assert!(
                        word == REBALANCE || handlers().contains(&word) || CONTESTANTS.contains(&word),
                        "what is {word}?"
                    );
                    wishes.words.push(argument);
                }
            }
        }
        wishes
    }

    /// Whether that one of its kind is wanted: it is named, or none of its kind is.
    fn want(&self, name: &str, kind: &[&str]) -> bool {
        let named: Vec<_> = self.words.iter().filter(|word| kind.contains(&word.as_str())).collect();
        named.is_empty() || named.iter().any(|word| *word == name)
    }

    fn want_comparison(&self) -> bool {
        self.words.is_empty() || self.words.iter().any(|word| word != REBALANCE)
    }

    fn want_rebalance(&self) -> bool {
        self.words.is_empty() || self.words.iter().any(|word| word == REBALANCE)
    }
}
