//! A cluster of node processes.

use std::{
    fs::{self, File},
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use palisade_client::{Client, ClientError, ClientOptions, Mode, NodeId, RangeStatus, Role};
use palisade_server::{ClockConfig, ClockSourceConfig, Config, LogConfig, ModeConfig, NodeConfig};
use palisade_wire::{AccessRole, ClusterSecret};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use thiserror::Error;

use crate::{cpu::CpuMeter, ports::free_ports};

/// How long a cluster may take until every range is served.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// How long a node may take to drain and end.
const STOP_TIMEOUT: Duration = Duration::from_secs(20);

/// Error bound of the clock, in microseconds. All nodes read the clock of this machine, which its
/// threads see alike to within about a microsecond.
const SHARED_CLOCK_BOUND_US: u64 = 50;

/// The parameters of a cluster.
#[derive(Clone, Debug)]
pub struct ClusterOptions {
    /// The program to run as `PROGRAM start --config FILE --stop-with-parent`.
    pub program: PathBuf,
    /// Number of nodes.
    pub nodes: u16,
    /// Number of shards of each node.
    pub shards: u16,
    /// How the ranges are replicated.
    pub mode: ModeConfig,
    /// Number of ranges in each mode.
    pub ranges_per_mode: u16,
    /// Parent of the data directories; the system's temporary directory if `None`. The data
    /// directories are removed when the cluster is dropped.
    pub data_dir: Option<PathBuf>,
    /// Settings of the log of each shard.
    pub log: LogConfig,
    /// Settings of the clocks. All nodes read the same clock.
    pub clock: ClockConfig,
    /// IP addresses of the nodes; the loopback address for nodes that have none here.
    pub hosts: Vec<IpAddr>,
    /// The secret of the cluster. Clients then have the key of an administrator.
    pub secret: Option<ClusterSecret>,
}

impl ClusterOptions {
    /// Returns options for three nodes with one shard each, and six ranges in each mode.
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
            hosts: Vec::new(),
            secret: None,
        }
    }
}

/// Why an operation on a cluster failed.
#[derive(Debug, Error)]
pub enum ClusterError {
    /// A system call on a file or a process failed.
    #[error("cannot {action}: {source}")]
    Io {
        /// The action that failed.
        action: String,
        /// The error that the kernel returned.
        source: io::Error,
    },
    /// A node ended by itself.
    #[error("node {node} ended by itself; its last words:\n{last_words}")]
    Ended {
        /// The number of the node.
        node: u16,
        /// The end of its standard error.
        last_words: String,
    },
    /// The cluster or a node did not reach the expected state in time.
    #[error("the cluster does not serve after {waited:?}: {reason}")]
    NotServing {
        /// How long the caller waited.
        waited: Duration,
        /// The condition that was not met.
        reason: String,
    },
    /// No block of free ports was found.
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
    /// Starts the nodes. Returns before they serve: see [`Cluster::wait_until_serving`].
    ///
    /// # Errors
    ///
    /// Returns [`ClusterError::NoPorts`], or [`ClusterError::Io`] if a file or a process cannot be
    /// created.
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
            host: *options.hosts.get(usize::from(number)).unwrap_or(&Ipv4Addr::LOCALHOST.into()),
            client_port: ports + 2 * number * options.shards,
            peer_port: ports + (2 * number + 1) * options.shards,
        };
        let nodes: Vec<_> = (0..options.nodes).map(node).collect();
        let secret_file = options.secret.as_ref().map(|_| dir.path().join("secret"));
        if let (Some(secret), Some(path)) = (&options.secret, &secret_file) {
            fs::write(path, secret.expose()).map_err(failed("write the secret file"))?;
        }
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
            secret_file: secret_file.clone(),
            allow_unauthenticated: false,
            metrics_address: None,
            #[cfg(feature = "planted-faults")]
            planted_fault: None,
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
    ///
    /// # Errors
    ///
    /// Returns [`ClusterError::Io`] if its files or its process cannot be created.
    ///
    /// # Panics
    ///
    /// If the node was started and has not been stopped, killed or waited for since.
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
            // The end of a node's log should be its error, not a backtrace of the executor.
            .env_remove("RUST_BACKTRACE")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .map_err(failed("start a node"))?;
        self.processes[at] = Some(child);
        Ok(())
    }

    /// Waits until every range is served by all of its replicas, and returns a connected client.
    ///
    /// # Errors
    ///
    /// Returns [`ClusterError::Ended`] if a node has ended by itself, and
    /// [`ClusterError::NotServing`] after 60 s.
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

    /// Returns what is missing until all replicas on running nodes serve, or `None` if they do.
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

    /// Returns the client addresses of all shards of all nodes.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        let nodes = self.configs[0].client_addresses();
        nodes.into_iter().flat_map(|node| node.client).collect()
    }

    /// Returns the address at which peers connect to a node's first shard.
    pub fn peer_address(&self, node: u16) -> SocketAddr {
        let own = &self.configs[usize::from(node)].nodes[usize::from(node)];
        SocketAddr::new(own.host, own.peer_port)
    }

    /// Returns options for a client that connects to no other cluster.
    pub fn client_options(&self) -> ClientOptions {
        let key = self.options.secret.as_ref().map(|secret| secret.key(AccessRole::Admin));
        let cluster_id = Some(self.configs[0].cluster_id);
        ClientOptions { cluster_id, key, ..ClientOptions::default() }
    }

    /// Returns the path of a node's config file.
    pub fn config_path(&self, node: u16) -> PathBuf {
        self.dir.path().join(format!("node-{node}.toml"))
    }

    /// Returns the directory that holds the data of all nodes.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Kills a node with SIGKILL. Does nothing if the node does not run.
    ///
    /// # Errors
    ///
    /// Returns [`ClusterError::Io`] if the process cannot be killed or waited for.
    pub fn kill(&mut self, node: u16) -> Result<(), ClusterError> {
        let Some(mut child) = self.processes[usize::from(node)].take() else { return Ok(()) };
        child.kill().map_err(failed("kill a node"))?;
        child.wait().map_err(failed("wait for a killed node")).map(drop)
    }

    /// Stops a node with SIGTERM. Returns true if it exits with success within 20 s, or does not
    /// run. A node that takes longer is killed.
    ///
    /// # Errors
    ///
    /// Returns [`ClusterError::Io`] if the process cannot be signalled or waited for.
    pub fn stop(&mut self, node: u16) -> Result<bool, ClusterError> {
        self.signal(node, Signal::TERM).map_err(failed("stop a node"))?;
        self.wait_until_stopped(node)
    }

    /// Stops all nodes with SIGTERM at once. Returns true if every one exits with success within
    /// 20 s, or does not run. A node that takes longer is killed.
    ///
    /// # Errors
    ///
    /// Returns [`ClusterError::Io`] if a process cannot be signalled or waited for.
    pub fn stop_all(&mut self) -> Result<bool, ClusterError> {
        let nodes = 0..u16::try_from(self.processes.len()).expect("nodes are numbered by u16");
        for node in nodes.clone() {
            self.signal(node, Signal::TERM).map_err(failed("stop a node"))?;
        }
        let mut all_well = true;
        for node in nodes {
            all_well &= self.wait_until_stopped(node)?;
        }
        Ok(all_well)
    }

    fn wait_until_stopped(&mut self, node: u16) -> Result<bool, ClusterError> {
        let Some(mut child) = self.processes[usize::from(node)].take() else { return Ok(true) };
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

    /// Suspends the process of a node with SIGSTOP: its connections stay open, and it answers
    /// nothing. Does nothing if the node does not run.
    ///
    /// # Errors
    ///
    /// Returns [`ClusterError::Io`] if the process cannot be signalled.
    pub fn suspend(&mut self, node: u16) -> Result<(), ClusterError> {
        self.signal(node, Signal::STOP).map_err(failed("suspend a node"))
    }

    /// Resumes a suspended node.
    ///
    /// # Errors
    ///
    /// Returns [`ClusterError::Io`] if the process cannot be signalled.
    pub fn resume(&mut self, node: u16) -> Result<(), ClusterError> {
        self.signal(node, Signal::CONT).map_err(failed("resume a node"))
    }

    fn signal(&self, node: u16, signal: Signal) -> io::Result<()> {
        let Some(child) = &self.processes[usize::from(node)] else { return Ok(()) };
        Ok(kill_process(Pid::from_child(child), signal)?)
    }

    /// Sets the fault that is planted in a node from its next start on, to test that the checks
    /// detect it.
    #[cfg(feature = "planted-faults")]
    pub fn set_fault(&mut self, node: u16, fault: Option<palisade_server::FaultConfig>) {
        self.configs[usize::from(node)].planted_fault = fault;
    }

    /// Changes the config of a node from its next start on.
    pub fn change_config(&mut self, node: u16, change: impl FnOnce(&mut Config)) {
        change(&mut self.configs[usize::from(node)]);
    }

    /// Waits until a node has ended by itself. Returns true if its exit status is success.
    ///
    /// # Errors
    ///
    /// Returns [`ClusterError::NotServing`] if the node still runs after 20 s.
    ///
    /// # Panics
    ///
    /// If the node was not started, or was stopped or killed since.
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

    /// Returns a meter of the processor time of the nodes that run now. It can be read after they
    /// end, and does not count nodes that start later.
    pub fn cpu_meter(&self) -> CpuMeter {
        CpuMeter::new(self.processes.iter().flatten().map(Child::id).collect())
    }

    /// Returns the last 2,000 bytes of a node's standard error, or an empty string if unreadable.
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
            // An error means that the process has already ended.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn failed(action: &'static str) -> impl FnOnce(io::Error) -> ClusterError {
    move |source| ClusterError::Io { action: action.to_owned(), source }
}
