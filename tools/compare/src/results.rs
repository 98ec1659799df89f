//! What a comparison measured: the shape of `results.json`, and the medians every table shows.
//!
//! Every number carries its unit in its name or its documentation. All floats are finite: JSON has
//! no way to write any other.

use palisade_cluster::LogBackend;
use serde::{Deserialize, Serialize};

/// Everything one comparison found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Results {
    /// Version of the program that ran the comparison.
    pub tool_version: String,
    /// Commit the program was built from, where known.
    pub commit: Option<String>,
    /// The machine that ran all servers and all clients.
    pub machine: Machine,
    /// What was asked for.
    pub settings: Settings,
    /// The runs, in the order they ran.
    pub runs: Vec<Run>,
}

/// The machine a comparison ran on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// Processor cores that may be used, a count.
    pub cores: usize,
    /// Name and release of the kernel.
    pub kernel: String,
    /// Type of the file system that holds the data directories.
    pub file_system: String,
    /// One-minute load average just before the first run: processes, not percent.
    pub other_load: f64,
    /// What about this machine makes the figures less trustworthy, one sentence each.
    pub warnings: Vec<String>,
}

/// What a comparison was asked to do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// Servers in the cluster, a count.
    pub nodes: u32,
    /// Shards per server, a count.
    pub shards: u32,
    /// Concurrent clients, a count.
    pub clients: u32,
    /// Operations per second due in an open loop.
    pub rate: u64,
    /// Size of a written value, in bytes.
    pub value_bytes: usize,
    /// Distinct keys, a count.
    pub keys: u32,
    /// Share of reads among the operations, in percent.
    pub read_percent: u32,
    /// How far the nodes trust their clock, which is one and the same, in microseconds; none where
    /// the servers were not started for the run.
    pub clock_bound_us: Option<u64>,
    /// How the nodes' logs get to the disk; none where the servers were not started for the run.
    pub log_backend: Option<LogBackend>,
}

/// What the load does in a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// A client sends its next operation when its last one is answered.
    ClosedLoop,
    /// Operations fall due at a fixed rate, answered or not.
    OpenLoop,
    /// A replica is killed under load.
    Kill,
}

impl Phase {
    /// All phases, in the order they run.
    pub const ALL: [Phase; 3] = [Phase::ClosedLoop, Phase::OpenLoop, Phase::Kill];

    /// The phase's name in running text.
    pub fn title(self) -> &'static str {
        match self {
            Phase::ClosedLoop => "closed loop",
            Phase::OpenLoop => "open loop",
            Phase::Kill => "kill",
        }
    }
}

/// One load on one mode, from a fresh cluster to its checked history.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// Name of the run, e.g. `closed loop 1`.
    pub name: String,
    /// What the load did.
    pub phase: Phase,
    /// Replication mode: `raft` or `chain`.
    pub mode: String,
    /// Name of the workload.
    pub workload: String,
    /// Servers in the cluster, a count.
    pub nodes: u32,
    /// Shards per server, a count.
    pub shards: u32,
    /// Concurrent clients, a count.
    pub clients: u32,
    /// Operations per second due; none in a closed loop.
    pub rate: Option<u64>,
    /// Size of a written value, in bytes.
    pub value_bytes: usize,
    /// Distinct keys, a count.
    pub keys: u32,
    /// Length of the measured part, in seconds.
    pub seconds: f64,
    /// Operations that succeeded, a count.
    pub ops: u64,
    /// Operations that succeeded, per second.
    pub ops_per_s: f64,
    /// Operations that failed or whose outcome is unknown, a count.
    pub errors: u64,
    /// Operations that had fallen due when measuring ended, and were not sent: none in a closed
    /// loop.
    #[serde(default)]
    pub unsent: u64,
    /// Operations that were sent and not answered when measuring ended; a closed loop has one of
    /// each client.
    #[serde(default)]
    pub unanswered: u64,
    /// Transactions aborted by a conflict, a count.
    pub aborts: u64,
    /// Requests sent again, a count.
    pub retries: u64,
    /// Latency of all operations, in microseconds.
    pub latency_us: Latency,
    /// Latency of puts alone, in microseconds.
    pub put_latency_us: Latency,
    /// What of the commit wait replication did not hide, of the puts, in microseconds.
    pub commit_wait_us: Latency,
    /// Latency of gets alone, in microseconds; none where the workload has no gets.
    pub get_latency_us: Option<Latency>,
    /// Longest time without a successful put on any one range, in milliseconds.
    pub unavailable_ms: f64,
    /// The replica that was killed, if one was.
    pub killed: Option<Kill>,
    /// Processor time (user and system) of all servers per operation, in microseconds; none where
    /// the servers are not processes of this machine.
    pub server_cpu_us_per_op: Option<f64>,
    /// Processor time (user and system) of the clients per operation, in microseconds.
    pub client_cpu_us_per_op: f64,
    /// Log syncs by all servers together in the measured part, a count.
    pub log_syncs: u64,
    /// Written to the logs by all servers together in the measured part, in bytes.
    pub log_bytes: u64,
    /// Mean log entries made durable by one sync, a count.
    pub entries_per_sync: f64,
    /// What the check of the recorded history found.
    pub check: Check,
    /// The run over time, in buckets of 100 ms.
    pub series: Vec<Bucket>,
    /// File name of the recorded history, where it was kept.
    pub history: Option<String>,
}

/// Percentiles of a latency, all in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Latency {
    /// 50th percentile, in microseconds.
    pub p50: u64,
    /// 90th percentile, in microseconds.
    pub p90: u64,
    /// 99th percentile, in microseconds.
    pub p99: u64,
    /// 99.9th percentile, in microseconds.
    pub p999: u64,
    /// The slowest operation, in microseconds.
    pub max: u64,
}

/// The killing of a replica.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Kill {
    /// Number of the killed node.
    pub node: u32,
    /// When it was killed, in seconds since the run began.
    pub at_s: f64,
}

/// A check of a recorded history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// The property checked, e.g. `linearizable`.
    pub name: String,
    /// `ok`, or the violation that was found.
    pub verdict: String,
}

impl Check {
    /// Whether the history has the property.
    pub fn passed(&self) -> bool {
        self.verdict == "ok"
    }
}

/// What happened in 100 ms of a run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Bucket {
    /// Start of the bucket, in seconds since the run began.
    pub at_s: f64,
    /// Operations that succeeded, per second.
    pub ops_per_s: f64,
    /// 50th percentile of latency, in microseconds; 0 if nothing succeeded.
    pub p50_us: u64,
    /// 99th percentile of latency, in microseconds; 0 if nothing succeeded.
    pub p99_us: u64,
}

/// The medians over all runs of one phase on one mode. A figure no run has is NaN.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    /// The phase.
    pub phase: Phase,
    /// The replication mode.
    pub mode: String,
    /// Runs the medians are over, a count.
    pub runs: usize,
    /// Operations per second due in the first run; none in a closed loop.
    pub rate: Option<u64>,
    /// Operations per second.
    pub ops_per_s: f64,
    /// 50th percentile of latency, in microseconds.
    pub p50_us: f64,
    /// 99th percentile of latency, in microseconds.
    pub p99_us: f64,
    /// 99.9th percentile of latency, in microseconds.
    pub p999_us: f64,
    /// Longest time without a successful put on any one range, in milliseconds; only after a kill.
    pub gap_ms: Option<f64>,
    /// Processor time of all servers per operation, in microseconds.
    pub server_cpu_us_per_op: f64,
    /// Log syncs of all servers per second.
    pub syncs_per_s: f64,
    /// Log entries made durable by one sync.
    pub entries_per_sync: f64,
    /// Every failed check: run, property, violation.
    pub violations: Vec<String>,
}

impl Results {
    /// The modes, in the order they first ran.
    pub fn modes(&self) -> Vec<&str> {
        let mut modes: Vec<&str> = Vec::new();
        for run in &self.runs {
            if !modes.contains(&run.mode.as_str()) {
                modes.push(&run.mode);
            }
        }
        modes
    }

    /// The runs of one phase on one mode, in the order they ran.
    pub fn runs_of(&self, phase: Phase, mode: &str) -> Vec<&Run> {
        self.runs.iter().filter(|run| run.phase == phase && run.mode == mode).collect()
    }

    /// One summary per phase and mode that ran, by phase, then mode.
    pub fn summaries(&self) -> Vec<Summary> {
        let modes = self.modes();
        let mut summaries = Vec::new();
        for phase in Phase::ALL {
            for mode in &modes {
                summaries.extend(Summary::of(&self.runs_of(phase, mode)));
            }
        }
        summaries
    }
}

impl Summary {
    /// The summary of runs of the same phase and mode; none for no runs.
    fn of(runs: &[&Run]) -> Option<Summary> {
        let first = runs.first()?;
        let of = |figure: fn(&Run) -> f64| {
            median(runs.iter().map(|run| figure(run))).unwrap_or(f64::NAN)
        };
        Some(Summary {
            phase: first.phase,
            mode: first.mode.clone(),
            runs: runs.len(),
            rate: first.rate,
            ops_per_s: of(|run| run.ops_per_s),
            p50_us: of(|run| run.latency_us.p50 as f64),
            p99_us: of(|run| run.latency_us.p99 as f64),
            p999_us: of(|run| run.latency_us.p999 as f64),
            gap_ms: median(
                runs.iter().filter(|run| run.killed.is_some()).map(|run| run.unavailable_ms),
            ),
            server_cpu_us_per_op: of(|run| run.server_cpu_us_per_op.unwrap_or(f64::NAN)),
            syncs_per_s: of(|run| run.log_syncs as f64 / run.seconds),
            entries_per_sync: of(|run| run.entries_per_sync),
            violations: runs
                .iter()
                .filter(|run| !run.check.passed())
                .map(|run| {
                    format!(
                        "{} ({}), {}: {}",
                        run.name, run.mode, run.check.name, run.check.verdict
                    )
                })
                .collect(),
        })
    }
}

/// The middle of the finite values; of an even number, the mean of the middle two.
fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.filter(|value| value.is_finite()).collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    let upper = *values.get(middle)?;
    Some(if values.len().is_multiple_of(2) { (values[middle - 1] + upper) / 2.0 } else { upper })
}

#[cfg(test)]
pub(crate) mod sample {
    //! Made-up results, for the tests of everything that shows results.

    use super::*;

    pub(crate) fn run(phase: Phase, mode: &str, ops_per_s: f64, p99: u64) -> Run {
        let latency = Latency { p50: p99 / 4, p90: p99 / 2, p99, p999: p99 * 2, max: p99 * 10 };
        Run {
            name: format!("{} 1", phase.title()),
            phase,
            mode: mode.to_string(),
            workload: "mixed".to_string(),
            nodes: 3,
            shards: 2,
            clients: 32,
            rate: (phase != Phase::ClosedLoop).then_some(10_000),
            value_bytes: 128,
            keys: 1000,
            seconds: 2.0,
            ops: (ops_per_s * 2.0) as u64,
            ops_per_s,
            errors: 0,
            unsent: 0,
            unanswered: 0,
            aborts: 0,
            retries: 0,
            latency_us: latency,
            put_latency_us: latency,
            commit_wait_us: Latency::default(),
            get_latency_us: Some(latency),
            unavailable_ms: 340.0,
            killed: (phase == Phase::Kill).then_some(Kill { node: 2, at_s: 1.0 }),
            server_cpu_us_per_op: Some(41.5),
            client_cpu_us_per_op: 12.0,
            log_syncs: 3000,
            log_bytes: 1 << 20,
            entries_per_sync: 6.7,
            check: Check { name: "linearizable".to_string(), verdict: "ok".to_string() },
            series: (0..20_u32)
                .map(|i| {
                    let at_s = f64::from(i) / 10.0;
                    Bucket { at_s, ops_per_s, p50_us: p99 / 4, p99_us: p99 }
                })
                .collect(),
            history: None,
        }
    }

    pub(crate) fn results(runs: Vec<Run>) -> Results {
        Results {
            tool_version: "0.1.0".to_string(),
            commit: Some("abc1234".to_string()),
            machine: Machine {
                cores: 2,
                kernel: "Linux 6.1".to_string(),
                file_system: "ext4".to_string(),
                other_load: 0.25,
                warnings: Vec::new(),
            },
            settings: Settings {
                nodes: 3,
                shards: 2,
                clients: 32,
                rate: 10_000,
                value_bytes: 128,
                keys: 1000,
                read_percent: 50,
                clock_bound_us: Some(50),
                log_backend: Some(LogBackend::Direct),
            },
            runs,
        }
    }

    pub(crate) fn all_phases() -> Results {
        let runs = Phase::ALL.into_iter().flat_map(|phase| {
            [run(phase, "raft", 10_000.0, 4000), run(phase, "chain", 11_200.0, 3000)]
        });
        results(runs.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_reads_back_as_it_was_written() {
        let results = sample::all_phases();
        let json = serde_json::to_string(&results).unwrap();
        assert!(json.contains(r#""phase":"closed-loop""#), "{json}");
        assert_eq!(serde_json::from_str::<Results>(&json).unwrap(), results);
    }

    #[test]
    fn a_summary_is_the_median_of_its_runs() {
        let runs = [9000.0, 30_000.0, 10_000.0].map(|ops| sample::run(Phase::Kill, "raft", ops, 1));
        let [summary]: [Summary; 1] = sample::results(runs.into()).summaries().try_into().unwrap();
        assert_eq!((summary.runs, summary.ops_per_s, summary.gap_ms), (3, 10_000.0, Some(340.0)));
    }

    #[test]
    fn a_median_passes_over_what_is_not_a_number() {
        assert_eq!(median([4.0, f64::NAN, 1.0].into_iter()), Some(2.5));
        assert_eq!(median([f64::NAN].into_iter()), None);
    }
}
