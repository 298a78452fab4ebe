//! A contestant at work, seen from outside.
//!
//! It says `idle` before it joins its group, and `warm` and `done` with the records it has handled and the
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
const JAVA_TARGET: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/target/parallel-consumer");
const HEAP: &str = "-Xmx2g";

/// Killed when this is dropped.
pub struct Child {
    process: std::process::Child,
    says: Lines<BufReader<ChildStdout>>,
}

/// What a run came to.
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
                command.arg(worker::WORD);
                command
            }
        };
        command
            .args([contestant, &broker.address, &broker.topic, group])
            .args([u64::from(pause_ms), u64::from(IN_FLIGHT), RECORDS].map(|n| n.to_string()));
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let says = BufReader::new(process.stdout.take().unwrap()).lines();
        Self { process, says }
    }

    /// The run's figures, when it is over.
    pub fn measure(mut self) -> Figures {
        self.hear("idle");
        let idle = self.memory("VmRSS");
        let warm = self.hear("warm");
        let warm_cpu = self.cpu();
        let done = self.hear("done");
        let (cpu, peak) = (self.cpu() - warm_cpu, self.memory("VmHWM"));
        let [records, seconds] = [0, 1].map(|n| done[n] - warm[n]);
        Figures { rate: records / seconds, cpu: cpu * 1e6 / records, peak, idle }
    }

    /// Waits until it says the word, and returns the numbers that it says with it.
    pub fn hear(&mut self, word: &str) -> Vec<f64> {
        let said = self.says.by_ref().map(Result::unwrap).find(|line| line.split(' ').next() == Some(word));
        let said = said.unwrap_or_else(|| panic!("it ended before it said {word}"));
        said.split(' ').skip(1).map(|number| number.parse().unwrap()).collect()
    }

    /// Lets it end in good order, and returns what it says last.
    pub fn stop(mut self) -> Vec<String> {
        drop(self.process.stdin.take());
        let last = self.says.by_ref().map(Result::unwrap).collect();
        assert!(self.process.wait().unwrap().success(), "a stop in good order");
        last
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
        let _gone = self.process.kill();
        let _reaped = self.process.wait();
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rate, cpu, peak, idle } = self;
        write!(f, "{rate:>10.0} {cpu:>18.2} {peak:>10.0} {idle:>10.0}")
    }
}

/// The Java worker, compiled once a call.
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
