//! `palisade bench`.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Args, ValueEnum};
use palisade_client::{ClientOptions, Mode};
use palisade_cluster::{ClusterOptions, Floor, LogBackend, LogConfig, ModeConfig};
use palisade_compare::{
    Servers, Trial, check_histories,
    results::{Phase, Results, Settings},
    run_trial, write_history_file, write_results,
};
use palisade_load::Workload;

use crate::{Failure, failed, key, output::print_line};

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum ModeArgument {
    Raft,
    Chain,
    Mixed,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum WorkloadArgument {
    Put,
    Get,
    /// Gets that are linearizable for their key alone; a chain serves them at its tail
    GetByKey,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum BackendArgument {
    Mapped,
    Direct,
}

impl BackendArgument {
    /// Returns the default log settings with this backend.
    pub(crate) fn log(self) -> LogConfig {
        let backend = match self {
            Self::Mapped => LogBackend::Mapped,
            Self::Direct => LogBackend::Direct,
        };
        LogConfig { backend, ..LogConfig::default() }
    }
}

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Operation that the clients run
    #[arg(long, value_enum, default_value = "put")]
    workload: WorkloadArgument,
    /// Ranges under load; a new cluster has all its ranges in this mode
    #[arg(long, value_enum, default_value = "raft")]
    mode: ModeArgument,
    /// Number of clients of the closed loop
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    clients: u32,
    /// Operations per second of an open loop, which replaces the closed loop
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    rate: Option<u64>,
    /// Time limit of an operation in milliseconds, from when it was due: later ones are errors
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=600_000))]
    timeout_ms: Option<u64>,
    /// Seconds to measure
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: u64,
    /// Size of a value in bytes
    #[arg(long, default_value_t = 256, value_parser = value_bytes)]
    value_bytes: usize,
    /// Number of keys; each is written once before the run
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=100_000_000))]
    keys: u32,
    /// Seed for the choice of keys
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Client addresses of a running cluster to use, comma-separated
    #[arg(long, value_delimiter = ',', conflicts_with_all = ["nodes", "shards", "data_dir"])]
    connect: Vec<SocketAddr>,
    /// File with a key from `palisade key derive`, for a running cluster that has a secret
    #[arg(long, requires = "connect")]
    key_file: Option<PathBuf>,
    /// Number of nodes to start
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=9))]
    nodes: u16,
    /// Number of shards of each node
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    shards: u16,
    /// Where to create a directory for the nodes' data, which is removed at the end
    #[arg(long)]
    data_dir: Option<PathBuf>,
    /// How the nodes' logs reach the disk: mapped from the page cache, or written past it
    #[arg(long, value_enum, default_value = "mapped", conflicts_with = "connect")]
    log_backend: BackendArgument,
    /// File for the results, as JSON
    #[arg(long)]
    json: Option<PathBuf>,
    /// File for the history, as JSON lines; every operation is recorded and the history is checked
    #[arg(long)]
    history: Option<PathBuf>,
}

pub(crate) fn value_bytes(text: &str) -> Result<usize, String> {
    let bytes: usize = text.parse().map_err(|_| "not a number".to_owned())?;
    if !(8..=palisade_client::MAX_VALUE_BYTES).contains(&bytes) {
        return Err(format!("must be from 8 to {}", palisade_client::MAX_VALUE_BYTES));
    }
    Ok(bytes)
}

pub(crate) async fn run(arguments: Arguments) -> Result<(), Failure> {
    let trial = Trial {
        name: "bench".to_owned(),
        phase: if arguments.rate.is_some() { Phase::OpenLoop } else { Phase::ClosedLoop },
        mode: match arguments.mode {
            ModeArgument::Raft => Some(Mode::Raft),
            ModeArgument::Chain => Some(Mode::Chain),
            ModeArgument::Mixed => None,
        },
        workload: match arguments.workload {
            WorkloadArgument::Put => Workload::Put,
            WorkloadArgument::Get => Workload::Get,
            WorkloadArgument::GetByKey => Workload::GetByKey,
        },
        clients: arguments.clients,
        rate: arguments.rate,
        timeout: arguments.timeout_ms.map(Duration::from_millis),
        value_bytes: arguments.value_bytes,
        keys: arguments.keys,
        duration: Duration::from_secs(arguments.seconds),
        kill: None,
        seed: arguments.seed,
        record: arguments.history.is_some(),
    };
    let program = std::env::current_exe().map_err(failed)?;
    let data_dir = arguments.data_dir.clone().unwrap_or_else(std::env::temp_dir);
    let machine = palisade_compare::machine(&data_dir);
    let mut clock_bound_us = None;
    let floor = match arguments.connect.is_empty() {
        true => Some(Floor::measure(&data_dir).map_err(failed)?),
        false => None,
    };
    let servers = if arguments.connect.is_empty() {
        let cluster = ClusterOptions {
            nodes: arguments.nodes,
            shards: arguments.shards,
            mode: match arguments.mode {
                ModeArgument::Raft => ModeConfig::Raft,
                ModeArgument::Chain => ModeConfig::Chain,
                ModeArgument::Mixed => ModeConfig::Mixed,
            },
            data_dir: arguments.data_dir,
            log: arguments.log_backend.log(),
            ..ClusterOptions::new(program)
        };
        clock_bound_us = Some(cluster.clock.bound_us);
        Servers::start(cluster).map_err(failed)?
    } else {
        let key = key::read(arguments.key_file.as_deref())?;
        let options = ClientOptions { key, ..ClientOptions::default() };
        Servers::Running(arguments.connect, options)
    };
    let finished = run_trial(servers, &trial).await.map_err(failed)?;
    let mut runs = vec![finished.run.clone()];
    if let Some(path) = &arguments.history {
        check_histories(&mut runs, std::slice::from_ref(&finished));
        write_history_file(path, &finished.history).map_err(failed)?;
    }
    print(&runs[0], clock_bound_us)?;
    if let Some(floor) = floor {
        let Floor { sync_us, round_trip_us } = floor;
        print_line(format_args!(
            "this machine: {sync_us} µs for a sync of 4 KiB, {round_trip_us} µs for a round trip over \
             the loopback to another core; p50 is {:.1} times one sync and two round trips",
            runs[0].latency_us.p50 as f64 / floor.commit_us().max(1) as f64
        ))?;
    }
    let failure = (trial.record && !runs[0].check.passed())
        .then(|| format!("consistency violation: {}", runs[0].check.verdict));
    if let Some(path) = &arguments.json {
        let run = &runs[0];
        let settings = Settings {
            nodes: run.nodes,
            shards: run.shards,
            clients: run.clients,
            rate: run.rate.unwrap_or(0),
            value_bytes: run.value_bytes,
            keys: run.keys,
            read_percent: if run.workload == "put" { 0 } else { 100 },
            clock_bound_us,
            log_backend: clock_bound_us.map(|_| arguments.log_backend.log().backend),
        };
        let results = Results {
            tool_version: env!("CARGO_PKG_VERSION").to_owned(),
            commit: None,
            machine,
            settings,
            runs,
        };
        write_results(path, &results).map_err(failed)?;
    }
    failure.map_or(Ok(()), |message| Err(Failure::Failed(message)))
}

fn print(run: &palisade_compare::results::Run, clock_bound_us: Option<u64>) -> Result<(), Failure> {
    let us = |us: u64| format!("{:.2} ms", us as f64 / 1_000.0);
    let latency = run.latency_us;
    print_line(format_args!(
        "{} on {}: {:.0} operations/s ({} in {:.1} s, {} errors, {} retries)",
        run.workload, run.mode, run.ops_per_s, run.ops, run.seconds, run.errors, run.retries
    ))?;
    print_line(format_args!(
        "when measuring ended: {} operations were due and not sent, {} sent and not answered",
        run.unsent, run.unanswered
    ))?;
    print_line(format_args!(
        "latency: p50 {}, p90 {}, p99 {}, p99.9 {}, max {}",
        us(latency.p50),
        us(latency.p90),
        us(latency.p99),
        us(latency.p999),
        us(latency.max)
    ))?;
    let server = run.server_cpu_us_per_op.map_or("unknown".to_owned(), |us| format!("{us:.1} µs"));
    print_line(format_args!(
        "CPU per operation: servers {server}, clients {:.1} µs; {} syncs, {:.1} entries per sync, \
         {:.0} log bytes per operation",
        run.client_cpu_us_per_op,
        run.log_syncs,
        run.entries_per_sync,
        run.log_bytes as f64 / run.ops.max(1) as f64
    ))?;
    if let Some(bound_us) = clock_bound_us {
        let wait = run.commit_wait_us;
        print_line(format_args!(
            "clocks: one for all nodes, trusted to within {bound_us} µs; commits waited for it {} µs \
             (p50), {} µs (p99) beyond their replication",
            wait.p50, wait.p99
        ))?;
    }
    if run.check.verdict != "not checked" {
        print_line(format_args!("check: {} {}", run.check.name, run.check.verdict))?;
    }
    Ok(())
}
