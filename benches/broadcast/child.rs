//! Processes of the bench, each pinned to a core.

use std::{
    io::{BufRead as _, BufReader, Lines},
    path::Path,
    process::{ChildStdout, Command, Stdio},
};

use consumer::mock::Broker;
use pushcast::{config::Environment, events::topics};

use crate::{
    bare,
    process::{cpu_seconds, memory},
};

/// The core of the sender.
pub const SENDER: &str = "0";
/// The core of the sandbox and Kafka.
pub const RECEIVERS: &str = "1";
pub const KAFKA: &str = "kafka";
const PARTITIONS: i32 = 64;

/// A child process; killed when this is dropped.
pub struct Child {
    process: std::process::Child,
    stdout: Lines<BufReader<ChildStdout>>,
}

/// What this binary does when it is started as a child.
pub fn with_role(role: &str) -> Option<fn(&[String])> {
    match role {
        KAFKA => Some(|_| kafka()),
        bare::ROLE => Some(bare::main),
        _ => None,
    }
}

/// Prints its address as a setting, and serves until it is killed.
fn kafka() {
    let broker = Broker::start(topics::ALL.map(|topic| (topic, PARTITIONS))).unwrap();
    println!("PUSHCAST__KAFKA__BOOTSTRAP_SERVERS={}", broker.bootstrap_servers());
    loop {
        std::thread::park();
    }
}

impl Child {
    pub fn pushcast(core: &str, arguments: &[&str], environment: &Environment) -> Self {
        Self::start(core, env!("CARGO_BIN_EXE_pushcast").as_ref(), arguments, environment)
    }

    /// This binary again.
    pub fn own(core: &str, arguments: &[&str]) -> Self {
        Self::start(core, &std::env::current_exe().unwrap(), arguments, &Environment::new())
    }

    fn start(core: &str, program: &Path, arguments: &[&str], environment: &Environment) -> Self {
        let mut command = Command::new("taskset");
        command
            .args(["--cpu-list", core])
            .arg(program)
            .args(arguments)
            .envs(environment)
            .stdout(Stdio::piped())
            .stdin(Stdio::null());
        let mut process = command.spawn().unwrap();
        let stdout = BufReader::new(process.stdout.take().unwrap()).lines();
        Self { process, stdout }
    }

    /// The next lines of its standard output.
    pub fn lines(&mut self, lines: usize) -> Vec<String> {
        self.stdout.by_ref().take(lines).map(Result::unwrap).collect()
    }

    /// CPU seconds, user and system.
    pub fn cpu(&self) -> f64 {
        cpu_seconds(&self.process.id().to_string())
    }

    /// Peak resident memory, MiB.
    pub fn peak(&self) -> f64 {
        memory(&self.process.id().to_string(), "VmHWM")
    }

    pub fn terminate(&self) {
        let sent = Command::new("kill").args(["-TERM", &self.process.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    pub fn has_ended(&mut self) -> bool {
        self.process.try_wait().unwrap().is_some()
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ended = self.process.kill();
        let _reaped = self.process.wait();
    }
}
