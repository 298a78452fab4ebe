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
    kafka::KafkaClient,
    world::{Phone, until, variable},
};

/// How long a process that can't start may take to end.
const FAILS_WITHIN: Duration = Duration::from_secs(30);

/// How many of the last log lines are shown when a test fails.
const LAST_LINES: usize = 60;

/// A sandbox with Kafka in one process, and the settings for a pushcast in another.
pub struct Deployment {
    pub kafka: KafkaClient,
    pub folder: TempDir,
    pub environment: Environment,
    sandbox_url: String,
    http: reqwest::Client,
    _sandbox: Process,
}

/// A child process; killed when it is dropped, unless it has ended.
pub struct Process {
    child: Child,
    /// Where its standard error goes.
    log_file: PathBuf,
}

impl Deployment {
    /// Starts the sandbox.
    pub async fn start() -> Self {
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
        let kafka = KafkaClient::connect(&environment[&variable("kafka.bootstrap_servers")]);
        let store = format!("embedded:{}", folder.path().join("push.db").display());
        // A killed member's partitions are assigned to another only when its session ends: the embedded Kafka
        // knows no static members.
        let properties = concat!(
            r#"{"session.timeout.ms":"2000","heartbeat.interval.ms":"300","#,
            r#""fetch.wait.max.ms":"5","linger.ms":"0"}"#
        );
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
            kafka,
            folder,
            environment,
            sandbox_url: fcm_url,
            http: reqwest::Client::new(),
            _sandbox: sandbox,
        }
    }

    /// Sets a setting of the processes that are started later.
    pub fn set(&mut self, key: &str, value: &str) {
        self.environment.insert(variable(key), value.to_owned());
    }

    /// Starts pushcast and waits until it is ready.
    pub async fn start_pushcast(&self) -> Process {
        let log_file = self.folder.path().join(format!("pushcast-{}.log", rand::random::<u32>()));
        let mut process = Process::start(&["run"], &self.environment, log_file, Stdio::null());
        let url = format!("http://{}/ready", self.environment[&variable("http.admin_listen")]);
        until("pushcast to be ready", async || {
            if let Some(status) = process.child.try_wait().unwrap() {
                panic!("pushcast ended with {status}: {}", process.log());
            }
            self.http.get(&url).send().await.is_ok_and(|answer| answer.status().is_success()).then_some(())
        })
        .await;
        process
    }

    pub async fn statistics(&self) -> Statistics {
        self.get("statistics").await
    }

    /// Resets the statistics and messages of the sandbox.
    pub async fn reset_sandbox(&self) {
        let answer = self.http.post(format!("{}/sandbox/reset", self.sandbox_url)).send().await.unwrap();
        assert!(answer.status().is_success());
    }

    pub async fn messages_to(&self, phone: &Phone) -> Vec<TakenMessage> {
        let messages: Vec<TakenMessage> = self.get("messages").await;
        messages.into_iter().filter(|message| message.token == phone.0).collect()
    }

    pub async fn set_faults(&self, faults: &Faults) {
        let body = serde_json::to_string(faults).unwrap();
        let put = self
            .http
            .put(format!("{}/sandbox/faults", self.sandbox_url))
            .header("content-type", "application/json");
        let answer = put.body(body).send().await.unwrap();
        assert!(answer.status().is_success(), "{}", answer.text().await.unwrap());
    }

    async fn get<T: DeserializeOwned>(&self, what: &str) -> T {
        let answer = self.http.get(format!("{}/sandbox/{what}", self.sandbox_url)).send().await.unwrap();
        serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap()
    }

    /// Waits until every record written so far is settled.
    pub async fn wait_until_settled(&self) {
        until("everything to be settled", async || self.kafka.unsettled().await.is_empty().then_some(()))
            .await;
    }
}

/// Runs `pushcast run` with settings under which it can't start; returns what it logged.
pub async fn startup_error(settings: &[(&str, &str)]) -> String {
    let folder = TempDir::new().unwrap();
    let environment = settings.iter().map(|(key, value)| (variable(key), (*value).to_owned())).collect();
    let mut process = Process::start(&["run"], &environment, folder.path().join("log"), Stdio::null());
    let deadline = Instant::now() + FAILS_WITHIN;
    loop {
        if let Some(status) = process.child.try_wait().unwrap() {
            assert_eq!(status.code(), Some(1), "{}", process.log());
            return process.log();
        }
        assert!(
            Instant::now() < deadline,
            "pushcast has not ended within {FAILS_WITHIN:?}: {}",
            process.log()
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

impl Process {
    fn start(arguments: &[&str], environment: &Environment, log_file: PathBuf, stdout: Stdio) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pushcast"));
        command.env_clear().envs(environment).args(arguments);
        command.stdin(Stdio::null()).stdout(stdout).stderr(File::create(&log_file).unwrap());
        Self { child: command.spawn().unwrap(), log_file }
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log_file).unwrap()
    }

    /// SIGKILL.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM, and waits for the graceful end; returns what it logged.
    pub async fn terminate(mut self) -> String {
        let signalled = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status().unwrap();
        assert!(signalled.success());
        let status = until("pushcast to end", async || self.child.try_wait().unwrap()).await;
        assert!(status.success(), "{status}: {}", self.log());
        self.log()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = std::fs::read_to_string(&self.log_file).unwrap_or_default();
            let last: Vec<_> = log.lines().rev().take(LAST_LINES).collect();
            eprintln!("the end of {}:", self.log_file.display());
            last.iter().rev().for_each(|line| eprintln!("    {line}"));
        }
        // It may have ended before.
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// A local address that no process listens on.
fn free_address() -> String {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}
