//! `palisade sim`: simulates the run of one seed or of many.

use std::{
    num::NonZero,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::Instant,
};

use clap::{ArgGroup, Args};
use palisade_simulator::{Failure, Parameters, Summary, Trace, explain, simulate};

use crate::{
    Failure as CommandFailure,
    output::{print_error, print_line},
};

/// Lines of the trace of a failed run that are printed by default.
const TRACE_LINES: usize = 200;

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("runs").required(true)))]
pub(crate) struct Arguments {
    /// Run one seed and print its parameters
    #[arg(long, value_name = "N", group = "runs")]
    seed: Option<u64>,
    /// Run N seeds on all cores
    #[arg(long, value_name = "N", group = "runs")]
    seeds: Option<u64>,
    /// First of the seeds that `--seeds` runs
    #[arg(long, value_name = "S", default_value_t = 0, requires = "seeds")]
    first: u64,
    /// Search the first seed that catches a planted fault, or each of them with `all`
    #[cfg(feature = "planted-faults")]
    #[arg(long, value_name = "FAULT", group = "runs")]
    planted: Option<String>,
    /// Lines of the trace to print for a run that fails
    #[arg(long, value_name = "LINES", default_value_t = TRACE_LINES)]
    trace: usize,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), CommandFailure> {
    #[cfg(feature = "planted-faults")]
    if let Some(name) = &arguments.planted {
        return search_planted(name);
    }
    match arguments.seed {
        Some(seed) => run_one(seed, arguments.trace),
        None => run_many(arguments.first, arguments.seeds.unwrap_or(1), arguments.trace),
    }
}

/// Prints the first seed that catches each planted fault of this name.
#[cfg(feature = "planted-faults")]
fn search_planted(name: &str) -> Result<(), CommandFailure> {
    let mut missed = Vec::new();
    for fault in palisade_simulator::PLANTED_FAULTS {
        if name != "all" && name != fault.name {
            continue;
        }
        match fault.search() {
            Some((seed, failure)) => {
                print_line(format_args!("{}: seed {seed}: {}", fault.name, failure.violation))?;
            }
            None => missed.push(fault.name),
        }
    }
    if missed.is_empty() {
        return Ok(());
    }
    let seeds = palisade_simulator::MAX_SEEDS;
    Err(CommandFailure::Failed(format!("not caught within {seeds} seeds: {}", missed.join(", "))))
}

fn run_one(seed: u64, lines: usize) -> Result<(), CommandFailure> {
    let parameters = Parameters::draw(seed);
    print_line(format_args!("{parameters}"))?;
    let start = Instant::now();
    match simulate(&parameters, Trace::Off) {
        Ok(summary) => {
            print_line(format_args!("{}", describe(&summary)))?;
            print_line(format_args!("took {:.2?}; everything held", start.elapsed()))?;
            Ok(())
        }
        Err(failure) => Err(explain_failure(&failure, lines)),
    }
}

fn run_many(first: u64, count: u64, lines: usize) -> Result<(), CommandFailure> {
    let (start, next, failed) = (Instant::now(), AtomicU64::new(first), AtomicBool::new(false));
    let cores = thread::available_parallelism().map_or(1, NonZero::get);
    let worker = || {
        let mut total = Total::default();
        while !failed.load(Ordering::Relaxed) {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= first.saturating_add(count) {
                break;
            }
            match simulate(&Parameters::draw(seed), Trace::Off) {
                Ok(summary) => total.add(&summary),
                Err(failure) => {
                    failed.store(true, Ordering::Relaxed);
                    return Err(failure);
                }
            }
        }
        Ok(total)
    };
    let results: Vec<_> = thread::scope(|scope| {
        let workers: Vec<_> = (0..cores).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().map(|worker| worker.join().expect("runs catch panics")).collect()
    });
    let mut total = Total::default();
    for result in results {
        match result {
            Ok(part) => total.merge(&part),
            Err(failure) => return Err(explain_failure(&failure, lines)),
        }
    }
    print_line(format_args!(
        "{} seeds from {first} on: {} simulated hours, {} operations, {} crashes, {} elections, \
         hash {:016x}",
        total.runs,
        total.simulated_us / 3_600_000_000,
        total.operations,
        total.crashes,
        total.elections,
        total.hash
    ))?;
    print_line(format_args!("took {:.1?}; everything held", start.elapsed()))?;
    Ok(())
}

#[derive(Default)]
struct Total {
    runs: u64,
    simulated_us: u64,
    operations: u64,
    crashes: u64,
    elections: u64,
    /// Wrapping sum of the hashes of all runs, so that their order does not matter.
    hash: u64,
}

impl Total {
    fn add(&mut self, summary: &Summary) {
        self.merge(&Self {
            runs: 1,
            simulated_us: summary.simulated_us,
            operations: summary.operations,
            crashes: summary.crashes,
            elections: summary.elections,
            hash: summary.hash,
        });
    }

    fn merge(&mut self, other: &Self) {
        self.runs += other.runs;
        self.simulated_us += other.simulated_us;
        self.operations += other.operations;
        self.crashes += other.crashes;
        self.elections += other.elections;
        self.hash = self.hash.wrapping_add(other.hash);
    }
}

fn describe(summary: &Summary) -> String {
    let Summary { hash, events, simulated_us, operations, crashes, elections, .. } = summary;
    let seconds = simulated_us / 1_000_000;
    format!(
        "{seconds} s of virtual time: {events} events, {operations} operations, {crashes} crashes, \
         {elections} elections\nhash {hash:016x}"
    )
}

/// Runs a failed seed again and prints its trace.
fn explain_failure(failure: &Failure, lines: usize) -> CommandFailure {
    match explain(&failure.parameters, lines) {
        Some(again) => print_error(format_args!("{again}")),
        None => {
            print_error(format_args!(
                "{failure}\nbut a second run of the seed did not fail: not deterministic"
            ));
        }
    }
    let Failure { parameters, violation, .. } = failure;
    CommandFailure::Failed(format!(
        "seed {}, commit {}: {violation}; replay with `palisade sim --seed {}`",
        parameters.seed,
        commit(),
        parameters.seed
    ))
}

/// Returns the Git commit of the working directory, or `unknown` outside a checkout.
fn commit() -> String {
    let output = std::process::Command::new("git").args(["rev-parse", "--short", "HEAD"]).output();
    let known = output.ok().filter(|output| output.status.success());
    known.map_or_else(
        || "unknown".to_owned(),
        |output| String::from_utf8_lossy(&output.stdout).trim().to_owned(),
    )
}
