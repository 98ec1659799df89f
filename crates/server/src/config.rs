//! The configuration file of a node.

use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

use palisade_clock::ClockSource;
use palisade_control::{Bootstrap, MAX_RANGES, NodeAddress};
use palisade_shard::LOG_AHEAD_BYTES;
use palisade_wal::{Backend, LogOptions};
use palisade_wire::{Mode, NodeId, PeerAddress, ShardId};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The configuration of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Id of the cluster. The same on all of its nodes, and unique among clusters.
    pub cluster_id: u64,
    /// Number of this node in `nodes`.
    pub node: NodeId,
    /// Directory of the node's data.
    pub data_dir: PathBuf,
    /// Number of shards of each node, from 1 to 256. Each runs on its own executor thread. Fixed at
    /// the first start.
    pub shards: u16,
    /// Half the number of ranges: in mode `mixed`, the number of ranges of each mode. Fixed at the
    /// first start.
    #[serde(default = "default_ranges_per_mode")]
    pub ranges_per_mode: u16,
    /// Replication mode of the ranges. Fixed at the first start.
    #[serde(default)]
    pub mode: ModeConfig,
    /// Settings of the log of each shard.
    #[serde(default)]
    pub log: LogConfig,
    /// Settings of the clock.
    #[serde(default)]
    pub clock: ClockConfig,
    /// File with the secret of the cluster, from `palisade key create`. Needed unless all nodes are
    /// on loopback addresses. With a second secret on another line, the keys of both are accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_file: Option<PathBuf>,
    /// Serve without a secret beyond loopback addresses: anyone who reaches a port may read, write
    /// and change the cluster. For networks in which that is wanted.
    #[serde(default, skip_serializing_if = "is_false")]
    pub allow_unauthenticated: bool,
    /// Address of the HTTP endpoint with `/metrics`, `/healthz` and `/readyz`. `None` for none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metrics_address: Option<SocketAddr>,
    /// A fault to plant, in tests of the checks.
    #[cfg(feature = "planted-faults")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub planted_fault: Option<crate::FaultConfig>,
    /// All nodes of the cluster, in the same order on each node.
    pub nodes: Vec<NodeConfig>,
}

/// Number and addresses of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeConfig {
    /// Number of the node.
    pub node: NodeId,
    /// IP address of the node.
    pub host: IpAddr,
    /// Clients of shard `s` connect to this port plus `s`.
    pub client_port: u16,
    /// Peers of shard `s` connect to this port plus `s`.
    pub peer_port: u16,
}

/// The replication modes of a new cluster's ranges.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ModeConfig {
    /// All ranges use Raft.
    Raft,
    /// All ranges use chains.
    Chain,
    /// Half of the ranges use Raft, half use chains.
    #[default]
    Mixed,
}

/// Settings of the log of each shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogConfig {
    /// Size of a segment, in bytes.
    pub segment_bytes: u64,
    /// Limit on the log of one shard, in bytes. Writes are refused at this size. Compaction starts
    /// at a quarter of it, or earlier when the live state is small.
    pub limit_bytes: u64,
    /// A range writes a checkpoint to the log once its entries since the last checkpoint take this
    /// many bytes, and at least as many as the last checkpoint took. Older entries then leave
    /// memory. With a larger value, that memory is no longer in the CPU caches when it is reused.
    pub checkpoint_bytes: u64,
    /// How appended bytes reach the disk. It may change at any start.
    pub backend: LogBackend,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            segment_bytes: 32 << 20,
            limit_bytes: 8 << 30,
            checkpoint_bytes: 8 << 20,
            backend: LogBackend::default(),
        }
    }
}

/// How appended bytes reach the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogBackend {
    /// The log is mapped from the page cache, which is synced.
    #[default]
    Mapped,
    /// Pages are written past the page cache.
    Direct,
}

impl From<LogBackend> for Backend {
    fn from(backend: LogBackend) -> Self {
        match backend {
            LogBackend::Mapped => Self::Mapped,
            LogBackend::Direct => Self::Direct,
        }
    }
}

/// Settings of the clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClockConfig {
    /// How the error bound of the wall clock is determined.
    pub source: ClockSourceConfig,
    /// Error bound of the wall clock where the source gives none, in microseconds. A commit is
    /// acknowledged about twice the error bound after it was ordered, less the time that
    /// replication takes.
    pub bound_us: u64,
    /// Messages from a clock further ahead than this are rejected, in microseconds. A node serves
    /// nothing while the error bound of its own clock is larger.
    pub max_offset_us: u64,
}

/// How the error bound of the wall clock is determined.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClockSourceConfig {
    /// The kernel's estimate while it reports its clock as synchronised, else `bound_us`.
    #[default]
    Kernel,
    /// Always `bound_us`. For nodes that read the same clock.
    Fixed,
    /// The ClockBound daemon's bound. While the daemon gives none, the node serves nothing.
    #[cfg(feature = "clockbound")]
    ClockBound,
}

impl From<ClockSourceConfig> for ClockSource {
    fn from(source: ClockSourceConfig) -> Self {
        match source {
            ClockSourceConfig::Kernel => Self::Kernel,
            ClockSourceConfig::Fixed => Self::Fixed,
            #[cfg(feature = "clockbound")]
            ClockSourceConfig::ClockBound => Self::ClockBound,
        }
    }
}

impl Default for ClockConfig {
    fn default() -> Self {
        Self { source: ClockSourceConfig::default(), bound_us: 250_000, max_offset_us: 500_000 }
    }
}

/// Why a configuration cannot be used. Not retryable: the message names the value to change.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the config file {path}: {source}", path = path.display())]
    Unreadable {
        /// Path of the file.
        path: PathBuf,
        /// The kernel's error.
        source: std::io::Error,
    },
    /// The file is not valid TOML, or not a configuration.
    #[error("the config file {path} is not valid: {source}", path = path.display())]
    Syntax {
        /// Path of the file.
        path: PathBuf,
        /// The parser's error, with the position and the expected value.
        source: Box<toml::de::Error>,
    },
    /// The values contradict each other or a limit.
    #[error("the config is not usable: {0}")]
    Invalid(String),
}

fn default_ranges_per_mode() -> u16 {
    6
}

fn is_false(value: &bool) -> bool {
    !value
}

/// Limit on the shards of a node.
const MAX_SHARDS: u16 = 256;

impl Config {
    /// Reads and checks a configuration file.
    ///
    /// # Errors
    ///
    /// [`ConfigError`]. Not retryable.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Unreadable { path: path.to_owned(), source })?;
        let config: Self = toml::from_str(&text).map_err(|source| ConfigError::Syntax {
            path: path.to_owned(),
            source: Box::new(source),
        })?;
        config.check().map_err(ConfigError::Invalid)?;
        Ok(config)
    }

    /// Checks the values against each other and their limits.
    ///
    /// # Errors
    ///
    /// A message that names the value to change.
    pub fn check(&self) -> Result<(), String> {
        if self.nodes.iter().filter(|node| node.node == self.node).count() != 1 {
            return Err(format!("nodes must list node {} exactly once", self.node.0));
        }
        let mut numbers: Vec<_> = self.nodes.iter().map(|node| node.node).collect();
        numbers.sort();
        numbers.dedup();
        if numbers.len() != self.nodes.len() {
            return Err("nodes must have different numbers".to_owned());
        }
        if !(1..=MAX_SHARDS).contains(&self.shards) {
            return Err(format!("shards must be between 1 and {MAX_SHARDS}"));
        }
        if self.ranges_per_mode == 0 || usize::from(self.ranges_per_mode) > MAX_RANGES / 2 {
            return Err(format!("ranges_per_mode must be between 1 and {}", MAX_RANGES / 2));
        }
        for node in &self.nodes {
            for (name, port) in [("client_port", node.client_port), ("peer_port", node.peer_port)] {
                if port == 0 || port.checked_add(self.shards - 1).is_none() {
                    return Err(format!(
                        "node {}: {name} {port} leaves no ports for {} shards",
                        node.node.0, self.shards
                    ));
                }
            }
        }
        let exposed = self.nodes.iter().find(|node| !node.host.is_loopback());
        if let (Some(node), None, false) = (exposed, &self.secret_file, self.allow_unauthenticated)
        {
            return Err(format!(
                "{} is not a loopback address, so secret_file is needed: make one with `palisade key \
                 create FILE` and copy it to all nodes, or set allow_unauthenticated = true",
                node.host
            ));
        }
        let ClockConfig { bound_us, max_offset_us, .. } = self.clock;
        if bound_us > max_offset_us {
            return Err(format!(
                "clock.bound_us ({bound_us}) must not be above clock.max_offset_us ({max_offset_us})"
            ));
        }
        self.log_options(ShardId(0)).check()
    }

    /// Returns this node's entry in `nodes`.
    pub(crate) fn own(&self) -> &NodeConfig {
        self.nodes.iter().find(|node| node.node == self.node).expect("checked when it was read")
    }

    pub(crate) fn bootstrap(&self) -> Bootstrap {
        Bootstrap {
            nodes: self.nodes.iter().map(|node| node.node).collect(),
            shards: self.shards,
            ranges_per_mode: self.ranges_per_mode,
            only: match self.mode {
                ModeConfig::Raft => Some(Mode::Raft),
                ModeConfig::Chain => Some(Mode::Chain),
                ModeConfig::Mixed => None,
            },
        }
    }

    pub(crate) fn log_options(&self, shard: ShardId) -> LogOptions {
        LogOptions {
            cluster_id: self.cluster_id,
            node: self.node.0,
            shard: shard.0,
            segment_bytes: self.log.segment_bytes,
            limit_bytes: self.log.limit_bytes,
            ahead_bytes: LOG_AHEAD_BYTES,
            backend: self.log.backend.into(),
        }
    }

    /// Returns the client addresses of every shard of every node.
    pub fn client_addresses(&self) -> Vec<NodeAddress> {
        let addresses = |node: &NodeConfig| {
            let address = |shard| SocketAddr::new(node.host, node.client_port + shard);
            NodeAddress { node: node.node, client: (0..self.shards).map(address).collect() }
        };
        self.nodes.iter().map(addresses).collect()
    }

    pub(crate) fn peer_address(&self, at: PeerAddress) -> Option<SocketAddr> {
        let node = self.nodes.iter().find(|node| node.node == at.node)?;
        Some(SocketAddr::new(node.host, node.peer_port.checked_add(at.shard.0)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
        cluster_id = 1
        node = 0
        data_dir = "/tmp/p"
        shards = 2
        [[nodes]]
        node = 0
        host = "127.0.0.1"
        client_port = 7000
        peer_port = 7100
    "#;

    fn parse(text: &str) -> Result<(), String> {
        toml::from_str::<Config>(text).map_err(|error| error.to_string())?.check()
    }

    #[test]
    fn config_with_required_fields_only_is_valid() {
        parse(GOOD).unwrap();
    }

    #[test]
    fn secret_is_needed_beyond_loopback() {
        let exposed = GOOD.replace("127.0.0.1", "10.0.0.1");
        parse(&exposed.replace("shards = 2", "shards = 2\nallow_unauthenticated = true")).unwrap();
        parse(&exposed.replace("shards = 2", "shards = 2\nsecret_file = \"/s\"")).unwrap();
        parse(&GOOD.replace("127.0.0.1", "::1")).unwrap();
    }

    #[test]
    fn config_error_names_invalid_setting() {
        let table = [
            ("node = 0\n        data_dir", "node = 4\n        data_dir", "node 4 exactly once"),
            ("shards = 2", "shards = 0", "shards must be between"),
            ("shards = 2", "shards = 2\n        shrads = 2", "shrads"),
            #[cfg(not(feature = "planted-faults"))]
            (
                "shards = 2",
                "shards = 2\n        planted_fault = \"stale-reads\"",
                "unknown field `planted_fault`",
            ),
            ("client_port = 7000", "client_port = 65535", "leaves no ports"),
            ("shards = 2", "shards = 2\n        ranges_per_mode = 0", "ranges_per_mode"),
            ("shards = 2", "shards = 2\n        log = { segment_bytes = 100 }", "4 KiB"),
            ("shards = 2", "shards = 2\n        mode = \"paxos\"", "paxos"),
            ("shards = 2", "shards = 2\n        clock = { bound_us = 900000 }", "max_offset_us"),
            ("127.0.0.1", "10.0.0.1", "secret_file"),
        ];
        for (from, to, expected) in table {
            assert!(GOOD.contains(from), "{from}");
            let error = parse(&GOOD.replace(from, to)).unwrap_err();
            assert!(error.contains(expected), "{expected}: {error}");
        }
    }
}
