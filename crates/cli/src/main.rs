//! The program `palisade`.
//!
//! Exit status: 0 success, 1 a check failed or the command could not finish, 2 wrong usage, 130
//! Ctrl-C.
#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "drives the real machine")]

mod bench;
mod compare;
mod doctor;
mod key;
mod output;
mod sim;
mod start;
mod status;
mod wal;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tikv_jemallocator::Jemalloc;

/// Under glibc's allocator, a thread's heap grows by one page and one system call at a time, and
/// mixes long-lived memory of a shard with short-lived memory. Each put cost a node a fifth more.
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
    /// Compare the two replication modes on this machine, also with a node killed (about a minute)
    Compare(compare::Arguments),
    /// Run one workload against a new cluster, or a running one
    Bench(bench::Arguments),
    /// Run one node from a config file until SIGTERM or Ctrl-C
    Start(start::Arguments),
    /// Simulate whole clusters under faults in virtual time
    Sim(sim::Arguments),
    /// Show the state of a running cluster
    Status(status::Arguments),
    /// Check what on this machine would make a node slow or unsafe
    Doctor(doctor::Arguments),
    /// Inspect a log on disk
    Wal(wal::Arguments),
    /// Create the secret of a cluster, or derive keys for its clients
    Key(key::Arguments),
}

/// Why a command failed.
#[derive(Debug)]
enum Failure {
    /// Wrong usage: exit status 2.
    Usage(String),
    /// A check failed, or the work could not be done: exit status 1.
    Failed(String),
    /// Ctrl-C: exit status 130, the shells' convention.
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
        Command::Key(arguments) => key::run(&arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Usage(message)) => {
            output::print_error(format_args!("error: {message}"));
            ExitCode::from(2)
        }
        Err(Failure::Failed(message)) => {
            output::print_error(format_args!("error: {message}"));
            ExitCode::from(1)
        }
        Err(Failure::Interrupted) => {
            output::print_error(format_args!("interrupted"));
            ExitCode::from(130)
        }
    }
}

/// Runs a command until it ends, or drops it on Ctrl-C. Dropping it stops the processes that it
/// started.
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
