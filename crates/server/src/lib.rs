//! The driver of a node: executors, sockets, disks, timers.
//!
//! The only crate that names the executor. It decides nothing about the data: it feeds
//! [`palisade_shard::Shard`] and does what that asks for.
//!
//! Invariants:
//! - A shard's state is touched by its own thread alone; between shards there are only bounded
//!   mailboxes.
//! - Nothing on a shard's thread waits for a disk: syncs run through the shard's ring, segments
//!   are prepared elsewhere.
//! - A failed sync ends the process: after it nobody knows what the disk holds.
//! - No borrow of a shard's state is held across an await.
#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "drives the real machine")]

mod clients;
mod config;
mod core;
mod inbox;
mod log_file;
mod log_progress;
mod log_sync;
mod node;
mod outbound;
mod peers;
mod signal;

pub use config::{
    ClockConfig, ClockSourceConfig, Config, ConfigError, FaultConfig, LogBackend, LogConfig,
    ModeConfig, NodeConfig,
};
pub use log_file::LogFile;
pub use node::{StartError, probe_executor, run};
