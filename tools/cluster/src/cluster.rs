//! A cluster of processes.

use std::{
    fs::{self, File},
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use palisade_client::{Client, ClientError, ClientOptions, Mode, NodeId, RangeStatus, Role};
use palisade_server::{
    ClockConfig, ClockSourceConfig, Config, FaultConfig, LogConfig, ModeConfig, NodeConfig,
};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use thiserror::Error;

use crate::{cpu::CpuMeter, ports::free_ports};

/// How long a cluster may take until every range is served.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// How long a node may take to drain.
const STOP_TIMEOUT: Duration = Duration::from_secs(20);

/// How far the clock is trusted: all nodes read that of this machine, and the threads of one
/// machine see it alike to within a microsecond or so.
const SHARED_CLOCK_BOUND_US: u64 = 50;

/// What cluster to start.
#[derive(Clone, Debug)]
pub struct ClusterOptions {
    /// The program to run as `PROGRAM start --config FILE --stop-with-parent`.
    pub program: PathBuf,
    /// Nodes.
    pub nodes: u16,
    /// Shards of each node.
    pub shards: u16,
    /// How the ranges are replicated.
    pub mode: ModeConfig,
    /// Ranges of each mode.
    pub ranges_per_mode: u16,
    /// Where the data directories are made; the system's temporary directory if `None`. Removed
    /// when the cluster is dropped.
    pub data_dir: Option<PathBuf>,
    /// The log of each shard.
    pub log: LogConfig,
    /// The clocks: one and the same, in fact.
    pub clock: ClockConfig,
}

impl ClusterOptions {
    /// Three nodes of one shard each, half of the ranges in each mode.
    pub fn new(program: PathBuf) -> Self {
        Self {
            program,
            nodes: 3,
            shards: 1,
            mode: ModeConfig::Mixed,
            ranges_per_mode: 6,
            data_dir: None,
            log: LogConfig::default(),
            clock: ClockConfig {
                source: ClockSourceConfig::Fixed,
                bound_us: SHARED_CLOCK_BOUND_US,
                ..ClockConfig::default()
            },
        }
    }
}

/// Why a cluster can't be had.
#[derive(Debug, Error)]
pub enum ClusterError {
    /// The file system or the process table refused.
    #[error("cannot {action}: {source}")]
    Io {
        /// What was tried.
        action: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A node ended by itself.
    #[error("node {node} ended by itself; its last words:\n{last_words}")]
    Ended {
        /// Which.
        node: u16,
        /// The end of its log.
        last_words: String,
    },
    /// The cluster did not come up.
    #[error("the cluster does not serve after {waited:?}: {reason}")]
    NotServing {
        /// How long it was given.
        waited: Duration,
        /// What is missing.
        reason: String,
    },
    /// No free ports.
    #[error("no block of free ports was found on the loopback address")]
    NoPorts,
}

/// Node processes; all are killed when this is dropped.
#[derive(Debug)]
pub struct Cluster {
    options: ClusterOptions,
    dir: TempDir,
    configs: Vec<Config>,
    processes: Vec<Option<Child>>,
}

impl Cluster {
    /// Starts the nodes. They may not serve yet: see [`Cluster::wait_until_serving`].
    pub fn start(options: ClusterOptions) -> Result<Self, ClusterError> {
        let parent = options.data_dir.clone().unwrap_or_else(std::env::temp_dir);
        fs::create_dir_all(&parent).map_err(failed("create the data directory"))?;
        let dir = tempfile::Builder::new()
            .prefix("palisade-cluster-")
            .tempdir_in(&parent)
            .map_err(failed("create the data directory"))?;
        let ports = free_ports(2 * options.nodes * options.shards).ok_or(ClusterError::NoPorts)?;
        let node = |number: u16| NodeConfig {
            node: NodeId(number),
            host: IpAddr::V4(Ipv4Addr::LOCALHOST),
            client_port: ports + 2 * number * options.shards,
            peer_port: ports + (2 * number + 1) * options.shards,
        };
        let nodes: Vec<_> = (0..options.nodes).map(node).collect();
        let cluster_id = fastrand::u64(1..1 << 48);
        let config = |number: u16| Config {
            cluster_id,
            node: NodeId(number),
            data_dir: dir.path().join(format!("node-{number}")),
            shards: options.shards,
            ranges_per_mode: options.ranges_per_mode,
            mode: options.mode,
            log: options.log,
            clock: options.clock,
            test_fault: None,
            nodes: nodes.clone(),
        };
        let configs = (0..options.nodes).map(config).collect();
        let processes = (0..options.nodes).map(|_| None).collect();
        let mut cluster = Self { options, dir, configs, processes };
        for number in 0..cluster.options.nodes {
            cluster.start_node(number)?;
        }
        Ok(cluster)
    }

    /// Starts a node that does not run.
    pub fn start_node(&mut self, node: u16) -> Result<(), ClusterError> {
        let at = usize::from(node);
        assert!(self.processes[at].is_none(), "node {node} runs already");
        let config = toml::to_string(&self.configs[at]).expect("a config always encodes");
        let path = self.dir.path().join(format!("node-{node}.toml"));
        fs::write(&path, config).map_err(failed("write a config file"))?;
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log_path(node))
            .map_err(failed("create a node's log file"))?;
        let child = Command::new(&self.options.program)
            .arg("start")
            .arg("--config")
            .arg(&path)
            .arg("--stop-with-parent")
            // A node's last words should be what went wrong, not where in the executor.
            .env_remove("RUST_BACKTRACE")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .map_err(failed("start a node"))?;
        self.processes[at] = Some(child);
        Ok(())
    }

    /// Waits until every range is served by all of its replicas.
    pub async fn wait_until_serving(&mut self) -> Result<Client, ClusterError> {
        let start = Instant::now();
        let mut reason = "no node answers".to_owned();
        let options = ClientOptions { timeout: Duration::from_secs(1), ..self.client_options() };
        let mut client = None;
        while start.elapsed() < START_TIMEOUT {
            self.check_running()?;
            if client.is_none() {
                client = Client::connect(&self.addresses(), options).await.ok();
            }
            match &client {
                Some(client) => match self.missing(client).await {
                    Ok(None) => return Ok(client.with_timeout(self.client_options().timeout)),
                    Ok(Some(missing)) => reason = missing,
                    Err(error) => reason = error.to_string(),
                },
                None => reason = "no node answers".to_owned(),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Err(ClusterError::NotServing { waited: START_TIMEOUT, reason })
    }

    /// What is missing until every range is served by all replicas on running nodes.
    async fn missing(&self, client: &Client) -> Result<Option<String>, ClientError> {
        let nodes = client.status().await?;
        let running = self.processes.iter().flatten().count();
        if nodes.len() < running {
            return Ok(Some(format!("{} of {running} nodes answer", nodes.len())));
        }
        let replicas: Vec<&RangeStatus> =
            nodes.iter().flat_map(|node| &node.shards).flat_map(|shard| &shard.ranges).collect();
        for descriptor in client.topology().await?.ranges.ranges() {
            let of_range = || replicas.iter().filter(|replica| replica.range == descriptor.range);
            let led = match descriptor.mode {
                Mode::Raft => of_range().any(|replica| replica.role == Role::Leader),
                Mode::Chain => of_range().any(|r| matches!(r.role, Role::Head | Role::Single)),
            };
            let ready = of_range().all(|replica| replica.ready || replica.role == Role::Removed);
            if !led || !ready {
                return Ok(Some(format!("range {} is not served", descriptor.range.0)));
            }
        }
        Ok(None)
    }

    fn check_running(&mut self) -> Result<(), ClusterError> {
        for (node, process) in self.processes.iter_mut().enumerate() {
            let Some(child) = process else { continue };
            if child.try_wait().map_err(failed("look after a node"))?.is_some() {
                let node = u16::try_from(node).expect("nodes are numbered by u16");
                return Err(ClusterError::Ended { node, last_words: self.last_words(node) });
            }
        }
        Ok(())
    }

    /// Where clients connect.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        let nodes = self.configs[0].client_addresses();
        nodes.into_iter().flat_map(|node| node.client).collect()
    }

    /// Where peers of a node's first shard connect.
    pub fn peer_address(&self, node: u16) -> SocketAddr {
        let own = &self.configs[usize::from(node)].nodes[usize::from(node)];
        SocketAddr::new(own.host, own.peer_port)
    }

    /// Options of a client that insists on this cluster.
    pub fn client_options(&self) -> ClientOptions {
        ClientOptions { cluster_id: Some(self.configs[0].cluster_id), ..ClientOptions::default() }
    }

    /// The file that holds a node's config.
    pub fn config_path(&self, node: u16) -> PathBuf {
        self.dir.path().join(format!("node-{node}.toml"))
    }

    /// Where the data of all nodes is.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Kills a node with SIGKILL.
    pub fn kill(&mut self, node: u16) -> Result<(), ClusterError> {
        let Some(mut child) = self.processes[usize::from(node)].take() else { return Ok(()) };
        child.kill().map_err(failed("kill a node"))?;
        child.wait().map_err(failed("wait for a killed node")).map(drop)
    }

    /// Stops a node with SIGTERM, and tells whether it ended well.
    pub fn stop(&mut self, node: u16) -> Result<bool, ClusterError> {
        let Some(mut child) = self.processes[usize::from(node)].take() else { return Ok(true) };
        kill_process(Pid::from_child(&child), Signal::TERM)
            .map_err(io::Error::from)
            .map_err(failed("stop a node"))?;
        let deadline = Instant::now() + STOP_TIMEOUT;
        while Instant::now() < deadline {
            if let Some(status) = child.try_wait().map_err(failed("wait for a node"))? {
                return Ok(status.success());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        child.kill().map_err(failed("kill a node"))?;
        child.wait().map_err(failed("wait for a killed node"))?;
        Ok(false)
    }

    /// Makes a node break a promise from its next start on. For tests of the checks.
    pub fn set_fault(&mut self, node: u16, fault: Option<FaultConfig>) {
        self.configs[usize::from(node)].test_fault = fault;
    }

    /// Changes the configuration with which a node is started next.
    pub fn change_config(&mut self, node: u16, change: impl FnOnce(&mut Config)) {
        change(&mut self.configs[usize::from(node)]);
    }

    /// Waits until a node has ended by itself, and returns whether it ended well.
    pub fn wait_until_ended(&mut self, node: u16) -> Result<bool, ClusterError> {
        let at = usize::from(node);
        let child = self.processes[at].as_mut().expect("the node was started");
        let deadline = Instant::now() + STOP_TIMEOUT;
        while Instant::now() < deadline {
            if let Some(status) = child.try_wait().map_err(failed("wait for a node"))? {
                self.processes[at] = None;
                return Ok(status.success());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let reason = format!("node {node} still runs");
        Err(ClusterError::NotServing { waited: STOP_TIMEOUT, reason })
    }

    /// Tells the processor time of the nodes that run now, also while nodes come and go.
    pub fn cpu_meter(&self) -> CpuMeter {
        CpuMeter::new(self.processes.iter().flatten().map(Child::id).collect())
    }

    /// The end of what a node wrote to its standard error.
    pub fn last_words(&self, node: u16) -> String {
        let log = fs::read(self.log_path(node)).unwrap_or_default();
        let tail = log.len().saturating_sub(2_000);
        String::from_utf8_lossy(&log[tail..]).into_owned()
    }

    fn log_path(&self, node: u16) -> PathBuf {
        self.dir.path().join(format!("node-{node}.log"))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for child in self.processes.iter_mut().flatten() {
            // A process that can't be killed or waited for is gone already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn failed(action: &'static str) -> impl FnOnce(io::Error) -> ClusterError {
    move |source| ClusterError::Io { action: action.to_owned(), source }
}
