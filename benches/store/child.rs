//! One run, in a process of its own, and its figures.

use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};
use tokio::{task::JoinSet, time::Instant};

use crate::{
    cassandra, driver, embedded,
    process::{cpu_seconds, memory},
};

/// The argument with which the bench runs one task and prints its figures.
pub const FLAG: &str = "--worker";

/// The arguments of a run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Task {
    pub kind: Kind,
    /// A server and a keyspace (`host:port/keyspace`), or a file.
    pub location: String,
    /// How many tokens; 0 = as many as the time allows.
    pub number: u64,
    /// How many operations run at once.
    pub at_once: usize,
}

/// What is measured: registrations or scans, through the store or the driver alone.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub enum Kind {
    StoreRegisters,
    DriverRegisters,
    StoreScans,
    DriverScans,
    FileRegisters,
}

/// The results of a run.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Figures {
    /// Tokens per second.
    pub rate: f64,
    /// CPU seconds, user and system, per million of them.
    pub cpu: f64,
    /// Resident MiB at first, at a quarter, a half, three quarters and the end, and the process's peak.
    pub memory: [f64; 6],
    /// CPU seconds of the server per million of them.
    pub server_cpu: f64,
    /// Registrations per commit.
    pub per_commit: f64,
}

/// Counts and times a run.
pub struct Meter {
    begun: Instant,
    cpu: f64,
    number: u64,
    done: u64,
    memory: Vec<f64>,
}

impl Task {
    /// Runs it in a process of its own.
    pub fn run(&self) -> Figures {
        let task = serde_json::to_string(self).unwrap();
        let child = Command::new(std::env::current_exe().unwrap())
            .args([FLAG, &task])
            .stderr(Stdio::inherit())
            .output()
            .unwrap();
        assert!(child.status.success(), "{self:?}");
        serde_json::from_slice(&child.stdout).unwrap()
    }

    /// The server and the keyspace.
    pub fn server(&self) -> (&str, &str) {
        self.location.split_once('/').unwrap()
    }
}

/// Runs the task in this process and prints its figures.
pub fn main(task: &str) {
    let task: Task = serde_json::from_str(task).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    // On the runtime's worker threads, as in pushcast; the main thread only waits.
    let mut running = JoinSet::new();
    running.spawn_on(
        async move {
            match task.kind {
                Kind::StoreRegisters => cassandra::register(&task).await,
                Kind::DriverRegisters => driver::register(&task).await,
                Kind::StoreScans => cassandra::scan(&task).await,
                Kind::DriverScans => driver::scan(&task).await,
                Kind::FileRegisters => embedded::register(&task).await,
            }
        },
        runtime.handle(),
    );
    let figures = runtime.block_on(running.join_next()).unwrap().unwrap();
    println!("{}", serde_json::to_string(&figures).unwrap());
}

impl Meter {
    /// Begins now. `number` is how many tokens the run will have, where that is known.
    pub fn begin(number: u64) -> Self {
        Self {
            begun: Instant::now(),
            cpu: cpu_seconds("self"),
            number,
            done: 0,
            memory: vec![memory("self", "VmRSS")],
        }
    }

    /// Adds so many tokens to those that are done.
    pub fn count(&mut self, tokens: u64) {
        self.done += tokens;
        while self.number > 0
            && self.memory.len() < 5
            && self.done * 4 >= self.number * self.memory.len() as u64
        {
            self.memory.push(memory("self", "VmRSS"));
        }
    }

    /// How many tokens are done.
    pub fn done(&self) -> u64 {
        self.done
    }

    /// Ends now, and returns the figures.
    pub fn end(mut self) -> Figures {
        let seconds = self.begun.elapsed().as_secs_f64();
        let cpu = cpu_seconds("self") - self.cpu;
        self.memory.resize(5, memory("self", "VmRSS"));
        self.memory.push(memory("self", "VmHWM"));
        let done = self.done as f64;
        let memory = self.memory.try_into().unwrap();
        Figures { rate: done / seconds, cpu: cpu * 1e6 / done, memory, ..Figures::default() }
    }
}
