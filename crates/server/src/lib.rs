//! Driver of a node: executors, sockets, disks, timers.
//!
//! The only crate that names the executor. It makes no decision about data: it passes inputs to
//! [`palisade_shard::Shard`] and performs the effects that the shard returns.
//!
//! Invariants:
//! - Only a shard's own thread touches its state. Shards communicate through bounded mailboxes.
//! - Nothing on a shard's thread blocks on a disk: syncs go through the shard's ring, and another
//!   thread prepares segments.
//! - A failed sync ends the process, because the contents of the disk are unknown after it.
//! - No borrow of a shard's state is held across an await.
#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "drives the real machine")]

mod client_connections;
mod config;
mod executor;
mod framing;
mod handshake;
mod http;
mod inbox;
mod listener;
mod log_file;
mod log_progress;
mod log_sync;
mod metrics;
mod node;
mod outbound;
mod peer_connections;
mod planted;
mod secrets;
mod signal;
mod sockets;

pub use config::{
    ClockConfig, ClockSourceConfig, Config, ConfigError, LogBackend, LogConfig, ModeConfig,
    NodeConfig,
};
pub use log_file::LogFile;
pub use node::{StartError, probe_executor, run};
#[cfg(feature = "planted-faults")]
pub use planted::FaultConfig;
pub use secrets::{SecretError, read_secrets};
