//! Real node processes on this machine: started, killed, restarted, and never left behind.
//!
//! Each node is an operating system process with a data directory and loopback sockets of its own.
//! Its standard input is a pipe from this process: when that closes, however this process ended,
//! the node stops.
#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "drives real processes")]

mod cluster;
mod cpu;
mod floor;
mod ports;

pub use cluster::{Cluster, ClusterError, ClusterOptions};
pub use cpu::{CpuMeter, own_cpu_us};
pub use floor::{Floor, median_sync_us};
pub use palisade_server::{
    ClockConfig, ClockSourceConfig, FaultConfig, LogBackend, LogConfig, ModeConfig,
};
pub use ports::free_ports;
