//! Durable commits of 256-byte records: Palisade's log beside the crate `raft-engine` and a bare
//! loop of direct writes, in one run, by turns, on the same directory.
//!
//! Two tables of commits, because there are two ways to have concurrent writers. In the first, each
//! writer is a thread that blocks, which is what raft-engine offers; all but raft-engine, which
//! brings its own, share one group commit (`group_commit.rs`), so that what differs is the log. In
//! the second, writers are tasks of one executor, which is how a shard uses its log.

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
    /// Where to write; a directory in it is removed at the end
    #[arg(long, default_value_os_t = std::env::temp_dir())]
    dir: PathBuf,
    /// How often each log is measured; medians are reported
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
