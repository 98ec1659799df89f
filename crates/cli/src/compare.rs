//! `palisade compare`.

use std::{path::PathBuf, time::Duration};

use clap::Args;
use palisade_cluster::ClusterOptions;
use palisade_compare::{CompareOptions, check_histories, table, write_all, write_results};

use crate::{
    Failure,
    bench::{BackendArgument, value_bytes},
    failed,
    output::{print_error, print_line},
};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Number of nodes of the cluster
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(3..=9))]
    nodes: u16,
    /// Number of shards of each node
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    shards: u16,
    /// Number of clients of the closed loops
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    clients: u32,
    /// Operations per second of the open loops
    #[arg(long, default_value_t = 5_000, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    rate: u64,
    /// Size of a value in bytes
    #[arg(long, default_value_t = 256, value_parser = value_bytes)]
    value_bytes: usize,
    /// Number of keys
    #[arg(long, default_value_t = 5_000, value_parser = clap::value_parser!(u32).range(1..=100_000_000))]
    keys: u32,
    /// Percentage of gets among the operations
    #[arg(long, default_value_t = 25, value_parser = clap::value_parser!(u32).range(0..=99))]
    read_percent: u32,
    /// Seconds that each run measures; the runs with a kill take twice as long
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: u64,
    /// Seed for the choice of keys
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Number of the node to kill
    #[arg(long, default_value_t = 0)]
    kill: u16,
    /// Where to create a directory for the nodes' data, which is removed at the end
    #[arg(long)]
    data_dir: Option<PathBuf>,
    /// How the nodes' logs reach the disk: mapped from the page cache, or written past it
    #[arg(long, value_enum, default_value = "mapped")]
    log_backend: BackendArgument,
    /// Directory for report.html, results.json and the histories
    #[arg(long, default_value = "palisade-compare")]
    out: PathBuf,
    /// Additional file for the results, as JSON
    #[arg(long)]
    json: Option<PathBuf>,
}

pub(crate) async fn run(arguments: Arguments) -> Result<(), Failure> {
    if arguments.kill >= arguments.nodes {
        return Err(Failure::Usage(format!(
            "there is no node {} to kill: nodes are numbered 0 to {}",
            arguments.kill,
            arguments.nodes - 1
        )));
    }
    // Fail here rather than after a minute of measurements.
    std::fs::create_dir_all(&arguments.out)
        .map_err(|error| Failure::Usage(format!("{}: {error}", arguments.out.display())))?;
    let program = std::env::current_exe().map_err(failed)?;
    let options = CompareOptions {
        cluster: ClusterOptions {
            nodes: arguments.nodes,
            shards: arguments.shards,
            data_dir: arguments.data_dir,
            log: arguments.log_backend.log(),
            ..ClusterOptions::new(program)
        },
        clients: arguments.clients,
        rate: arguments.rate,
        value_bytes: arguments.value_bytes,
        keys: arguments.keys,
        read_percent: arguments.read_percent,
        duration: Duration::from_secs(arguments.seconds),
        seed: arguments.seed,
        kill: arguments.kill,
    };
    let (mut results, finished) =
        palisade_compare::compare(&options, |line| print_error(format_args!("{line}")))
            .await
            .map_err(failed)?;
    check_histories(&mut results.runs, &finished);
    write_all(&arguments.out, &mut results, &finished).map_err(failed)?;
    if let Some(path) = &arguments.json {
        write_results(path, &results).map_err(failed)?;
    }
    print_line(format_args!("{}", table::render(&results)))?;
    if let Some(bound_us) = results.settings.clock_bound_us {
        print_line(format_args!("clocks: one for all nodes, trusted to within {bound_us} µs"))?;
    }
    print_line(format_args!("report: {}", arguments.out.join("report.html").display()))?;
    let violations: Vec<_> = results.runs.iter().filter(|run| !run.check.passed()).collect();
    match violations.first() {
        None => Ok(()),
        Some(run) => Err(Failure::Failed(format!(
            "consistency violation in {} on {}: {}",
            run.name, run.mode, run.check.verdict
        ))),
    }
}
