//! pushcast as an operator runs it: the binary, in a process that can be killed, beside the sandbox and its
//! Kafka in another one.

use std::{
    fs::File,
    io::{BufRead as _, BufReader},
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use pushcast::config::Environment;
use sandbox::{Faults, Statistics, TakenMessage};
use serde::de::DeserializeOwned;
use tempfile::TempDir;
use tokio::time::Instant;

use crate::{
    neighbour::Neighbour,
    world::{Phone, until, variable},
};

/// How long a process that can't start may take to say so.
const GIVES_UP_WITHIN: Duration = Duration::from_secs(30);

/// What a process said before its story failed: so many lines are shown.
const LAST_LINES: usize = 60;

/// A sandbox with Kafka in one process, and the settings for a pushcast in another.
pub struct Town {
    pub neighbour: Neighbour,
    pub folder: TempDir,
    pub environment: Environment,
    sandbox_url: String,
    http: reqwest::Client,
    _sandbox: Process,
}

/// A process of ours; killed at the latest when it is dropped.
pub struct Process {
    child: Child,
    /// Where its standard error goes.
    log: PathBuf,
}

impl Town {
    /// Starts the sandbox.
    pub async fn begins() -> Self {
        let folder = TempDir::new().unwrap();
        let credentials = folder.path().join("service-account.json");
        let arguments =
            ["sandbox", "--listen", "127.0.0.1:0", "--kafka", "--credentials", credentials.to_str().unwrap()];
        let mut sandbox = Process::start(
            &arguments,
            &Environment::new(),
            folder.path().join("sandbox.log"),
            Stdio::piped(),
        );
        let mut environment = Environment::new();
        for line in BufReader::new(sandbox.child.stdout.take().unwrap()).lines() {
            let line = line.unwrap();
            let Some((name, value)) = line.split_once('=') else { continue };
            environment.insert(name.to_owned(), value.to_owned());
            if environment.contains_key(&variable("kafka.bootstrap_servers")) {
                break;
            }
        }
        let fcm_url = environment[&variable("fcm.url")].clone();
        let neighbour = Neighbour::at(&environment[&variable("kafka.bootstrap_servers")]);
        let store = format!("embedded:{}", folder.path().join("push.db").display());
        // A killed member is missed only when its session ends; a real Kafka knows static members, this one
        // does not.
        let properties = r#"{"session.timeout.ms":"2000","heartbeat.interval.ms":"300","fetch.wait.max.ms":"5","linger.ms":"0"}"#;
        for (key, value) in [
            ("kafka.properties", properties),
            ("kafka.commit_every", "100ms"),
            ("store.url", &store),
            ("http.admin_listen", &free_address()),
            ("expo.receipt_delay", "100ms"),
            ("medication.tick_every", "0s"),
            ("fcm.ramp_up", "0s"),
        ] {
            environment.insert(variable(key), value.to_owned());
        }
        Self {
            neighbour,
            folder,
            environment,
            sandbox_url: fcm_url,
            http: reqwest::Client::new(),
            _sandbox: sandbox,
        }
    }

    /// Sets a setting of the pushcasts to come.
    pub fn set(&mut self, key: &str, value: &str) {
        self.environment.insert(variable(key), value.to_owned());
    }

    /// Starts pushcast and waits until it is ready.
    pub async fn pushcast(&self) -> Process {
        let log = self.folder.path().join(format!("pushcast-{}.log", rand::random::<u32>()));
        let mut process = Process::start(&["run"], &self.environment, log, Stdio::null());
        let url = format!("http://{}/ready", self.environment[&variable("http.admin_listen")]);
        until("pushcast to be ready", async || {
            if let Some(status) = process.child.try_wait().unwrap() {
                panic!("pushcast ended with {status}: {}", process.said());
            }
            self.http.get(&url).send().await.is_ok_and(|answer| answer.status().is_success()).then_some(())
        })
        .await;
        process
    }

    pub async fn statistics(&self) -> Statistics {
        self.asks("statistics").await
    }

    /// The sandbox forgets what it has seen.
    pub async fn forgets(&self) {
        let answer = self.http.post(format!("{}/sandbox/reset", self.sandbox_url)).send().await.unwrap();
        assert!(answer.status().is_success());
    }

    pub async fn messages_to(&self, phone: &Phone) -> Vec<TakenMessage> {
        let messages: Vec<TakenMessage> = self.asks("messages").await;
        messages.into_iter().filter(|message| message.token == phone.0).collect()
    }

    pub async fn faults(&self, faults: &Faults) {
        let body = serde_json::to_string(faults).unwrap();
        let put = self
            .http
            .put(format!("{}/sandbox/faults", self.sandbox_url))
            .header("content-type", "application/json");
        let answer = put.body(body).send().await.unwrap();
        assert!(answer.status().is_success(), "{}", answer.text().await.unwrap());
    }

    async fn asks<T: DeserializeOwned>(&self, what: &str) -> T {
        let answer = self.http.get(format!("{}/sandbox/{what}", self.sandbox_url)).send().await.unwrap();
        serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap()
    }

    /// Waits until everything is settled.
    pub async fn settles(&self) {
        until("everything to be settled", async || self.neighbour.unsettled().await.is_empty().then_some(()))
            .await;
    }
}

/// Runs `pushcast run` where it can't start, and gives back what it said.
pub async fn fails(settings: &[(&str, &str)]) -> String {
    let folder = TempDir::new().unwrap();
    let environment = settings.iter().map(|(key, value)| (variable(key), (*value).to_owned())).collect();
    let mut process = Process::start(&["run"], &environment, folder.path().join("log"), Stdio::null());
    let deadline = Instant::now() + GIVES_UP_WITHIN;
    loop {
        if let Some(status) = process.child.try_wait().unwrap() {
            assert_eq!(status.code(), Some(1), "{}", process.said());
            return process.said();
        }
        assert!(
            Instant::now() < deadline,
            "it has not given up within {GIVES_UP_WITHIN:?}: {}",
            process.said()
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

impl Process {
    fn start(arguments: &[&str], environment: &Environment, log: PathBuf, stdout: Stdio) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pushcast"));
        command.env_clear().envs(environment).args(arguments);
        command.stdin(Stdio::null()).stdout(stdout).stderr(File::create(&log).unwrap());
        Self { child: command.spawn().unwrap(), log }
    }

    /// What it has said so far.
    pub fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    /// Signal 9.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Signal 15: ends in good order. What it said.
    pub async fn ends(mut self) -> String {
        let killed = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status().unwrap();
        assert!(killed.success());
        let status = until("pushcast to end", async || self.child.try_wait().unwrap()).await;
        assert!(status.success(), "{status}: {}", self.said());
        self.said()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let said = std::fs::read_to_string(&self.log).unwrap_or_default();
            let last: Vec<_> = said.lines().rev().take(LAST_LINES).collect();
            eprintln!("{} said at last:", self.log.display());
            last.iter().rev().for_each(|line| eprintln!("    {line}"));
        }
        // It may have ended before.
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// An address of this machine that nobody listens on.
fn free_address() -> String {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}
