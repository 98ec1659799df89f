//! The config file of a node.

use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

use palisade_clock::ClockSource;
use palisade_control::{Bootstrap, MAX_RANGES, NodeAddress};
use palisade_shard::{LOG_RESERVE_BYTES, TestFault};
use palisade_wal::{Backend, LogOptions};
use palisade_wire::{Mode, NodeId, PeerAddress, ShardId};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::core::TURN_LOG_BYTES;

/// Everything that a node is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The cluster: the same number on all of its nodes, and on no other cluster's.
    pub cluster_id: u64,
    /// Which of `nodes` this one is.
    pub node: NodeId,
    /// Where its data lives.
    pub data_dir: PathBuf,
    /// Shards of each node, one executor thread each.
    pub shards: u16,
    /// Ranges of each mode that a new cluster is split into.
    #[serde(default = "default_ranges_per_mode")]
    pub ranges_per_mode: u16,
    /// How a new cluster's ranges are replicated.
    #[serde(default)]
    pub mode: ModeConfig,
    /// The log.
    #[serde(default)]
    pub log: LogConfig,
    /// The clock.
    #[serde(default)]
    pub clock: ClockConfig,
    /// A promise to break, in tests of the checks. Never set it where data matters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub test_fault: Option<FaultConfig>,
    /// All nodes of the cluster, in the same order on each.
    pub nodes: Vec<NodeConfig>,
}

/// Where a node is reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeConfig {
    /// Its number.
    pub node: NodeId,
    /// Its IP address.
    pub host: IpAddr,
    /// Clients of shard `s` connect to this port plus `s`.
    pub client_port: u16,
    /// Peers of shard `s` connect to this port plus `s`.
    pub peer_port: u16,
}

/// Which modes a new cluster's ranges are in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ModeConfig {
    /// All in Raft.
    Raft,
    /// All in chains.
    Chain,
    /// Half in each.
    #[default]
    Mixed,
}

/// The log of each shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogConfig {
    /// Bytes of a segment.
    pub segment_bytes: u64,
    /// Bytes that the log of one shard may take. At that point writes are refused; from a quarter
    /// of it on, or earlier if there is little to be written, what keeps the log's beginning is
    /// written anew, so that it can be cut.
    pub limit_bytes: u64,
    /// A range's state is written to the log as a checkpoint, and the entries that it holds are
    /// forgotten in memory, once the range's entries since the last one take so many bytes, and as
    /// many as that one took. With more, memory that entries leave is cold when it is used again.
    pub checkpoint_bytes: u64,
    /// How appended bytes get to the disk. It may be changed between two starts.
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

/// How appended bytes get to the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogBackend {
    /// By a sync of the page cache, which the log is mapped from.
    #[default]
    Mapped,
    /// By writes past the page cache.
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

/// How far clocks are trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClockConfig {
    /// Who says how far the wall clock is to be trusted.
    pub source: ClockSourceConfig,
    /// The wall clock is right to within this many microseconds, where the source does not say.
    /// Every commit waits for about twice as long, less what its replication takes.
    pub bound_us: u64,
    /// Messages from a clock further ahead than this many microseconds are rejected; a node whose
    /// own clock is not right to within this serves nothing.
    pub max_offset_us: u64,
}

/// Who says how far the wall clock is to be trusted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClockSourceConfig {
    /// The kernel, while it calls its clock synchronised; else `bound_us` holds.
    #[default]
    Kernel,
    /// `bound_us` always holds: where all nodes read the same clock.
    Fixed,
    /// The ClockBound daemon; while it does not vouch for the clock, the node serves nothing.
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

/// A deliberate fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FaultConfig {
    /// Reads return the version before the newest.
    StaleReads,
    /// A restart forgets the last so many entries of every group.
    ForgetOnRestart(usize),
    /// Whoever asks for a lock has it, whoever else has.
    IgnoreLocks,
    /// Reads of the latest state do not wait for pending writes.
    IgnorePendingWrites,
    /// After so many syncs of a shard's log the disk fails one.
    FailSyncAfter(u64),
}

/// Why a config can't be used. Not retryable: the message says what to change.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("cannot read the config file {path}: {source}", path = path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// The file is not TOML, or not a config.
    #[error("the config file {path} is not valid: {source}", path = path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where, and what was expected.
        source: Box<toml::de::Error>,
    },
    /// The values make no sense together.
    #[error("the config is not usable: {0}")]
    Invalid(String),
}

fn default_ranges_per_mode() -> u16 {
    6
}

/// Shards that a node may have.
const MAX_SHARDS: u16 = 256;

impl Config {
    /// Reads and checks a file.
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

    /// Fails, with what to change, if the values make no sense together.
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
        let ClockConfig { bound_us, max_offset_us, .. } = self.clock;
        if bound_us > max_offset_us {
            return Err(format!(
                "clock.bound_us ({bound_us}) must not be above clock.max_offset_us ({max_offset_us})"
            ));
        }
        self.log_options(ShardId(0)).check()
    }

    /// This node's own line in `nodes`.
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
            ahead_bytes: LOG_RESERVE_BYTES + TURN_LOG_BYTES,
            backend: self.log.backend.into(),
        }
    }

    /// Where the clients of every shard of every node connect.
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

    pub(crate) fn fault(&self) -> Option<TestFault> {
        match self.test_fault? {
            FaultConfig::StaleReads => Some(TestFault::StaleReads),
            FaultConfig::ForgetOnRestart(entries) => Some(TestFault::ForgetOnRestart { entries }),
            FaultConfig::IgnoreLocks => Some(TestFault::IgnoreLocks),
            FaultConfig::IgnorePendingWrites => Some(TestFault::IgnorePendingWrites),
            FaultConfig::FailSyncAfter(_) => None,
        }
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
    fn a_short_config_is_enough() {
        parse(GOOD).unwrap();
    }

    #[test]
    fn what_is_wrong_is_named() {
        let table = [
            ("node = 0\n        data_dir", "node = 4\n        data_dir", "node 4 exactly once"),
            ("shards = 2", "shards = 0", "shards must be between"),
            ("shards = 2", "shards = 2\n        shrads = 2", "shrads"),
            ("client_port = 7000", "client_port = 65535", "leaves no ports"),
            ("shards = 2", "shards = 2\n        ranges_per_mode = 0", "ranges_per_mode"),
            ("shards = 2", "shards = 2\n        log = { segment_bytes = 100 }", "4 KiB"),
            ("shards = 2", "shards = 2\n        mode = \"paxos\"", "paxos"),
            ("shards = 2", "shards = 2\n        clock = { bound_us = 900000 }", "max_offset_us"),
        ];
        for (from, to, expected) in table {
            assert!(GOOD.contains(from), "{from}");
            let error = parse(&GOOD.replace(from, to)).unwrap_err();
            assert!(error.contains(expected), "{expected}: {error}");
        }
    }
}
