//! A small deployment: the broker, the fake providers, a store in a file, and pushcast's binary.

use std::{
    collections::BTreeMap,
    env,
    fs::{self, File},
    io::Write,
    path::PathBuf,
    process::{Child, Command, ExitStatus, Output, Stdio},
    thread,
    time::Duration,
};

use rand::{SeedableRng as _, rngs::StdRng};
use sandbox::{Options, Sandbox};
use tempfile::TempDir;
use tokio::time::Instant;

use crate::broker::{Broker, TopicsLock};

/// The parts of the deployment, and the settings of its pushcast processes.
pub struct World {
    pub broker: Broker,
    _lock: TopicsLock,
    pub sandbox: Sandbox,
    pub group_prefix: String,
    settings: BTreeMap<String, String>,
    folder: TempDir,
}

/// `pushcast run`, killed when this is dropped.
pub struct Running(Child);

impl World {
    /// A broker without topics, providers that have seen nothing, an empty store.
    pub async fn empty(settings: &[(&str, &str)]) -> Self {
        let (broker, lock) = Broker::without_topics().await;
        let folder = TempDir::new().unwrap();
        let sandbox = Sandbox::start(Options::remembering()).await.unwrap();
        let credentials = folder.path().join("credentials.json");
        fs::write(&credentials, sandbox.service_account()).unwrap();
        // Groups outlive the test; one with a new name has no offsets.
        let group_prefix = format!("real-{:08x}", rand::random::<u32>());
        let mut world =
            Self { broker, _lock: lock, sandbox, group_prefix, settings: BTreeMap::new(), folder };
        let store = format!("embedded:{}", world.folder.path().join("push.db").display());
        for (name, value) in [
            ("KAFKA__BOOTSTRAP_SERVERS", world.broker.address.clone()),
            ("KAFKA__GROUP_PREFIX", world.group_prefix.clone()),
            ("STORE__URL", store),
            ("EXPO__URL", world.sandbox.expo_url()),
            ("FCM__URL", world.sandbox.fcm_url()),
            ("FCM__CREDENTIALS_FILE", credentials.display().to_string()),
            ("HTTP__ADMIN_LISTEN", String::new()),
        ] {
            world.settings.insert(format!("PUSHCAST__{name}"), value);
        }
        for (name, value) in settings {
            world.settings.insert(format!("PUSHCAST__{name}"), (*value).to_owned());
        }
        world
    }

    /// Runs a command of pushcast to its end.
    pub fn pushcast(&self, arguments: &[&str]) -> Output {
        self.command(arguments).stdin(Stdio::null()).output().unwrap()
    }

    /// The same with one setting changed.
    pub fn pushcast_with(&self, name: &str, value: &str, arguments: &[&str]) -> Output {
        self.command(arguments).env(format!("PUSHCAST__{name}"), value).stdin(Stdio::null()).output().unwrap()
    }

    /// Writes records without keys, with `pushcast produce`.
    pub fn produce(&self, topic: &str, lines: &[String]) {
        let mut producer =
            self.command(&["produce", topic]).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        producer.stdin.take().unwrap().write_all(lines.join("\n").as_bytes()).unwrap();
        let ended = producer.wait_with_output().unwrap();
        assert!(ended.status.success(), "produce: {}", String::from_utf8_lossy(&ended.stderr));
    }

    /// Starts `pushcast run`. All processes append their logs to one file.
    pub fn start(&self) -> Running {
        self.start_with(&[])
    }

    /// The same with settings of its own.
    pub fn start_with(&self, settings: &[(&str, &str)]) -> Running {
        let log = File::options().create(true).append(true).open(self.log_file()).unwrap();
        let mut command = self.command(&["run"]);
        command.envs(settings.iter().map(|(name, value)| (format!("PUSHCAST__{name}"), value)));
        Running(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap())
    }

    /// The lines that all processes have logged so far.
    pub fn log(&self) -> Vec<String> {
        fs::read_to_string(self.log_file()).unwrap_or_default().lines().map(str::to_owned).collect()
    }

    /// The consumer group of a stage.
    pub fn group(&self, stage: &str) -> String {
        format!("{}.{stage}", self.group_prefix)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pushcast"));
        command.env_clear().envs(&self.settings).args(arguments).current_dir(self.folder.path());
        command
    }

    fn log_file(&self) -> PathBuf {
        self.folder.path().join("log")
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if thread::panicking() {
            let lines = self.log();
            eprintln!(
                "--- the end of pushcast's log\n{}",
                lines[lines.len().saturating_sub(60)..].join("\n")
            );
        }
    }
}

impl Running {
    /// SIGKILL.
    pub fn kill(mut self) {
        assert!(!self.has_ended(), "pushcast has ended unasked");
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    /// SIGTERM, and waits for its end.
    pub fn stop(mut self) -> ExitStatus {
        assert!(!self.has_ended(), "pushcast has ended unasked");
        assert!(Command::new("kill").arg(self.0.id().to_string()).status().unwrap().success());
        until("pushcast has ended", Duration::from_secs(45), || self.0.try_wait().unwrap())
    }

    fn has_ended(&mut self) -> bool {
        self.0.try_wait().unwrap().is_some()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Decides when processes are killed. `REAL_SEED` repeats the decisions of a run.
pub fn seeded_random(what_for: &str) -> StdRng {
    let seed = env::var("REAL_SEED").map_or_else(|_| rand::random(), |seed| seed.parse().unwrap());
    println!("REAL_SEED={seed} for {what_for}");
    StdRng::seed_from_u64(seed)
}

/// Polls until there is a value; fails with `what` if that takes too long.
pub fn until<T>(what: &str, within: Duration, mut poll: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(value) = poll() {
            return value;
        }
        assert!(started.elapsed() < within, "not within {within:?}: {what}");
        thread::sleep(Duration::from_millis(50));
    }
}
