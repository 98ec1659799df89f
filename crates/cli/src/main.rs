//! The program `palisade`.
//!
//! Exit status: 0 all well, 1 a check failed or the work could not be done, 2 wrong use.
#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "drives the real machine")]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "speaks to a person")]

mod bench;
mod compare;
mod doctor;
mod sim;
mod start;
mod status;
mod wal;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tikv_jemallocator::Jemalloc;

/// glibc's heap of a thread grows by a page and a system call at a time, and spreads what a shard
/// keeps for long among what it lets go of at once: a node spent a fifth more on each put.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

/// A sharded, replicated, strictly serializable store.
#[derive(Debug, Parser)]
#[command(version, about, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Compare the two replication modes on this machine, with a kill in the middle (about a minute)
    Compare(compare::Arguments),
    /// Run one workload against a cluster that it starts, or one that runs
    Bench(bench::Arguments),
    /// Run one node from a config file, until SIGTERM
    Start(start::Arguments),
    /// Simulate whole clusters under faults, in virtual time
    Sim(sim::Arguments),
    /// Show the state of a running cluster
    Status(status::Arguments),
    /// Say what on this machine would make a node slow or unsafe
    Doctor(doctor::Arguments),
    /// Look at a log on the disk
    Wal(wal::Arguments),
}

/// How a command ends if not well.
#[derive(Debug)]
enum Failure {
    /// It was used wrongly: exit status 2.
    Usage(String),
    /// A check failed, or the work could not be done: exit status 1.
    Failed(String),
    /// Ctrl-C: exit status 130, as shells have it.
    Interrupted,
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Compare(arguments) => interruptible(compare::run(arguments)),
        Command::Bench(arguments) => interruptible(bench::run(arguments)),
        Command::Start(arguments) => start::run(&arguments),
        Command::Sim(arguments) => sim::run(&arguments),
        Command::Status(arguments) => interruptible(status::run(arguments)),
        Command::Doctor(arguments) => doctor::run(&arguments),
        Command::Wal(arguments) => wal::run(&arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Usage(message)) => {
            eprintln!("error: {message}");
            ExitCode::from(2)
        }
        Err(Failure::Failed(message)) => {
            eprintln!("error: {message}");
            ExitCode::from(1)
        }
        Err(Failure::Interrupted) => {
            eprintln!("interrupted");
            ExitCode::from(130)
        }
    }
}

/// Runs a command until its end or Ctrl-C. Dropping it stops whatever it started.
fn interruptible(command: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::Failed(format!("no runtime: {error}")))?;
    runtime.block_on(async {
        tokio::select! {
            result = command => result,
            _ = tokio::signal::ctrl_c() => Err(Failure::Interrupted),
        }
    })
}

fn failed(error: impl std::fmt::Display) -> Failure {
    Failure::Failed(error.to_string())
}
