//! Runs real node processes on this machine: starts, kills and restarts them, and leaves none
//! behind.
//!
//! Each node is an operating system process with its own data directory and loopback sockets. Its
//! standard input is a pipe from this process. The node stops when the pipe closes, which happens
//! however this process ends.
#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "drives real processes")]

mod cluster;
mod cpu;
mod floor;
mod ports;

pub use cluster::{Cluster, ClusterError, ClusterOptions};
pub use cpu::{CpuMeter, own_cpu_us};
pub use floor::{Floor, median_sync_us};
#[cfg(feature = "planted-faults")]
pub use palisade_server::FaultConfig;
pub use palisade_server::{ClockConfig, ClockSourceConfig, LogBackend, LogConfig, ModeConfig};
pub use ports::free_ports;
