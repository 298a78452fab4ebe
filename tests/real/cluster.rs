//! Brokers for one test, which it may stop, kill and freeze without disturbing the others.

use std::{
    fs::{self, File},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use tempfile::TempDir;

use crate::{broker::Broker, relay::signal, world::until};

/// A broker starts within seconds; several at once, beside other tests, need more.
const START_TIMEOUT: Duration = Duration::from_secs(240);
/// A starting broker does not answer; after this it is asked again.
const ASK_TIMEOUT: Duration = Duration::from_secs(5);

/// One or more brokers, each of them a controller too. They are killed when this is dropped.
pub struct Cluster {
    pub broker: Broker,
    nodes: Vec<Node>,
    _folder: TempDir,
}

/// A broker, whether it runs or not.
struct Node {
    folder: PathBuf,
    address: String,
    process: Option<Child>,
}

impl Cluster {
    /// So many brokers, which is the replication factor of topics too.
    pub fn start(brokers: usize) -> Self {
        let folder = TempDir::new().unwrap();
        let ports: Vec<_> = (0..brokers).map(|_| (some_port(), some_port())).collect();
        let voters: Vec<_> = ports
            .iter()
            .zip(1..)
            .map(|((_, controller), id)| format!("{id}@127.0.0.1:{controller}"))
            .collect();
        let template =
            fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/kafka/server.properties"))
                .unwrap();
        let nodes = ports.iter().zip(1..).map(|((port, controller_port), id)| {
            let folder = folder.path().join(id.to_string());
            fs::create_dir(&folder).unwrap();
            let template = template
                .replace("{{port}}", &port.to_string())
                .replace("{{controller_port}}", &controller_port.to_string())
                .replace("{{folder}}", folder.to_str().unwrap());
            // Of two lines for a property the last one counts.
            let overrides = [
                ("node.id", id.to_string()),
                ("controller.quorum.voters", voters.join(",")),
                ("default.replication.factor", brokers.to_string()),
                ("offsets.topic.replication.factor", brokers.to_string()),
                ("min.insync.replicas", brokers.div_ceil(2).to_string()),
                // The default: an outage must be shorter than that.
                ("group.consumer.session.timeout.ms", "45000".to_owned()),
                // A killed broker can't join again before its session has ended. Several on one machine
                // need a longer one.
                ("broker.session.timeout.ms", if brokers == 1 { "3000" } else { "18000" }.to_owned()),
            ];
            let overrides: String =
                overrides.iter().map(|(name, value)| format!("{name}={value}\n")).collect();
            fs::write(folder.join("server.properties"), template + "\n" + &overrides).unwrap();
            Node { folder, address: format!("127.0.0.1:{port}"), process: None }
        });
        let nodes: Vec<_> = nodes.collect();
        let addresses: Vec<_> = nodes.iter().map(|node| node.address.clone()).collect();
        let mut cluster = Self { broker: Broker { address: addresses.join(",") }, nodes, _folder: folder };
        for node in &mut cluster.nodes {
            node.start();
        }
        (0..brokers).for_each(|node| cluster.wait_until_back(node));
        cluster
    }

    /// Ends a broker gracefully.
    pub fn stop(&mut self, node: usize) {
        let mut process = self.nodes[node].process.take().unwrap();
        signal("TERM", process.id());
        until("the broker has ended", START_TIMEOUT, || process.try_wait().unwrap());
    }

    /// `kill -9`.
    pub fn kill(&mut self, node: usize) {
        self.nodes[node].process.take().into_iter().for_each(kill);
    }

    /// Suspends its process: connections stay open, and no request is answered.
    pub fn freeze(&self, node: usize) {
        signal("STOP", self.nodes[node].process.as_ref().unwrap().id());
    }

    pub fn thaw(&self, node: usize) {
        signal("CONT", self.nodes[node].process.as_ref().unwrap().id());
    }

    /// Starts a broker again that was stopped or killed, on its data.
    pub fn start_again(&mut self, node: usize) {
        self.nodes[node].start();
        self.wait_until_back(node);
    }

    /// Waits until the broker answers, and the cluster knows it.
    fn wait_until_back(&self, node: usize) {
        let Node { address, folder, .. } = &self.nodes[node];
        let broker = Broker { address: address.clone() };
        let brokers = self.nodes.len();
        until(&format!("the broker in {} answers", folder.display()), START_TIMEOUT, || {
            (broker.brokers(ASK_TIMEOUT) == Some(brokers)).then_some(())
        });
    }
}

impl Node {
    fn start(&mut self) {
        let log = || File::options().create(true).append(true).open(self.folder.join("log")).unwrap();
        let mut command = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/services"));
        command.arg("broker").arg(&self.folder).stdin(Stdio::null()).stdout(log()).stderr(log());
        self.process = Some(command.spawn().unwrap());
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if thread::panicking() {
            for Node { folder, .. } in &self.nodes {
                let log = fs::read_to_string(folder.join("log")).unwrap_or_default();
                let lines: Vec<_> = log.lines().collect();
                eprintln!(
                    "--- broker in {}\n{}",
                    folder.display(),
                    lines[lines.len().saturating_sub(20)..].join("\n")
                );
            }
        }
        self.nodes.iter_mut().filter_map(|node| node.process.take()).for_each(kill);
    }
}

fn kill(mut process: Child) {
    process.kill().unwrap();
    process.wait().unwrap();
}

/// A free port below the ephemeral ones: it has to be free again when the broker is started again.
fn some_port() -> u16 {
    let ports = std::iter::repeat_with(|| rand::random_range(20_000..32_000));
    ports.take(100).find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok()).expect("a free port")
}
