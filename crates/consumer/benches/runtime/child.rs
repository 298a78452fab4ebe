//! The process of a contestant.
//!
//! It prints `idle` before it joins its group, and `warm` and `done` with the records it has handled and the
//! seconds since the first of them. It ends when its standard input does.

use std::{
    fmt,
    io::{BufRead, BufReader, Lines},
    process::{ChildStdout, Command, Stdio},
    sync::OnceLock,
};

use crate::{
    IN_FLIGHT,
    broker::{Broker, RECORDS},
    process::{cpu_seconds, memory},
    worker,
};

const JAVA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/parallel-consumer/pom.xml");
/// As the pom.xml has it.
const JAVA_TARGET: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/parallel-consumer");
const HEAP: &str = "-Xmx2g";

/// Killed when this is dropped.
pub struct Child {
    process: std::process::Child,
    output: Lines<BufReader<ChildStdout>>,
}

/// The figures of a run.
#[derive(Clone, Copy, Debug)]
pub struct Figures {
    /// Records per second.
    pub rate: f64,
    /// CPU seconds, user and system, per million records.
    pub cpu: f64,
    /// Peak resident memory, MiB.
    pub peak: f64,
    /// Resident memory before it joined, MiB.
    pub idle: f64,
}

impl Child {
    pub fn start(contestant: &str, broker: &Broker, pause_ms: u32, group: &str) -> Self {
        let mut command = match contestant {
            "core" | "vertx" => java(),
            _ => {
                let mut command = Command::new(std::env::current_exe().unwrap());
                command.arg(worker::FLAG);
                command
            }
        };
        command
            .args([contestant, &broker.address, &broker.topic, group])
            .args([u64::from(pause_ms), u64::from(IN_FLIGHT), RECORDS].map(|n| n.to_string()));
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let output = BufReader::new(process.stdout.take().unwrap()).lines();
        Self { process, output }
    }

    /// Waits for the run's end, and returns its figures.
    pub fn measure(mut self) -> Figures {
        self.wait_for("idle");
        let idle = self.memory("VmRSS");
        let warm = self.wait_for("warm");
        let warm_cpu = self.cpu();
        let done = self.wait_for("done");
        let cpu = self.cpu() - warm_cpu;
        let peak = self.memory("VmHWM");
        let records = done[0] - warm[0];
        let seconds = done[1] - warm[1];
        Figures { rate: records / seconds, cpu: cpu * 1e6 / records, peak, idle }
    }

    /// Waits for a line that starts with the word, and returns the numbers behind it.
    pub fn wait_for(&mut self, word: &str) -> Vec<f64> {
        let line = self.output.by_ref().map(Result::unwrap).find(|line| line.split(' ').next() == Some(word));
        let line = line.unwrap_or_else(|| panic!("it ended before it printed {word}"));
        line.split(' ').skip(1).map(|number| number.parse().unwrap()).collect()
    }

    /// Stops it, and returns the rest of its output.
    pub fn stop(mut self) -> Vec<String> {
        drop(self.process.stdin.take());
        let rest = self.output.by_ref().map(Result::unwrap).collect();
        assert!(self.process.wait().unwrap().success(), "it stops without an error");
        rest
    }

    fn cpu(&self) -> f64 {
        cpu_seconds(&self.process.id().to_string())
    }

    fn memory(&self, what: &str) -> f64 {
        memory(&self.process.id().to_string(), what)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _killed = self.process.kill();
        let _reaped = self.process.wait();
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rate, cpu, peak, idle } = self;
        write!(f, "{rate:>10.0} {cpu:>18.2} {peak:>10.0} {idle:>10.0}")
    }
}

/// The Java worker, compiled once in a run of the bench.
fn java() -> Command {
    static COMPILED: OnceLock<()> = OnceLock::new();
    COMPILED.get_or_init(|| {
        let maven =
            ["-B", "-q", "-f", JAVA, "compile", "dependency:copy-dependencies", "-DincludeScope=runtime"];
        let compiled = Command::new("mvn").args(maven).stdout(Stdio::null()).status();
        assert!(
            compiled.is_ok_and(|compiled| compiled.success()),
            "mvn compile: Maven and a JDK 17 are needed (a runtime alone has no compiler)"
        );
    });
    let mut java = Command::new("java");
    java.args([
        HEAP,
        "-Dorg.slf4j.simpleLogger.defaultLogLevel=error",
        "-cp",
        &format!("{JAVA_TARGET}/classes:{JAVA_TARGET}/dependency/*"),
        "Worker",
    ]);
    java
}
