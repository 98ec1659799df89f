//! Durable commits of 256-byte records: compares Palisade's log with the crate `raft-engine` and a
//! bare loop of direct writes. All are measured in one run, in turns, in the same directory.
//!
//! There are two kinds of concurrent writers. Threads that block are the kind that raft-engine
//! supports. For them, all logs but raft-engine, which has its own, use the same group commit
//! (`group_commit.rs`), so that only the logs differ. Tasks of one executor are the kind with which
//! a shard uses its log.

mod bare;
mod commits;
mod cost;
mod direct_file;
mod engine;
mod group_commit;
mod palisade;
mod recovery;
mod tasks;

use std::{alloc::System, path::PathBuf, time::Duration};

use clap::Parser;
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// The payload of every record.
const PAYLOAD: [u8; 256] = [7; 256];

#[derive(Debug, Parser)]
#[command(about = "Palisade's log beside raft-engine and a bare loop of direct writes")]
struct Arguments {
    /// Directory to write in; a temporary directory in it is removed at the end
    #[arg(long, default_value_os_t = std::env::temp_dir())]
    dir: PathBuf,
    /// Measurements of each log; medians are reported
    #[arg(long, default_value_t = 15)]
    rounds: usize,
    /// Concurrent writers
    #[arg(long, value_delimiter = ',', default_values_t = [1, 16, 64])]
    writers: Vec<usize>,
    /// Milliseconds of one measurement
    #[arg(long, default_value_t = 500)]
    millis: u64,
    /// Bytes of the log that is recovered
    #[arg(long, default_value_t = 1 << 30)]
    recovery_bytes: u64,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let dir = tempfile::tempdir_in(&arguments.dir)?;
    let duration = Duration::from_millis(arguments.millis);
    commits::measure(dir.path(), &arguments.writers, arguments.rounds, duration)?;
    cost::measure(dir.path())?;
    recovery::measure(dir.path(), arguments.recovery_bytes)
}
