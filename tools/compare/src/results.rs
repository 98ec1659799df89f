//! The results of a comparison: the format of `results.json`, and the medians that every table
//! shows.
//!
//! Every number has its unit in its name or its documentation. All floats are finite, because JSON
//! cannot represent any other.

use palisade_cluster::LogBackend;
use serde::{Deserialize, Serialize};

/// The results of one comparison.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Results {
    /// Version of the program that ran the comparison.
    pub tool_version: String,
    /// Commit that the program was built from, if known.
    pub commit: Option<String>,
    /// The machine that ran all servers and all clients.
    pub machine: Machine,
    /// The parameters of the comparison.
    pub settings: Settings,
    /// The runs, in the order in which they ran.
    pub runs: Vec<Run>,
}

/// The machine that a comparison ran on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// Number of processor cores that the process may use.
    pub cores: usize,
    /// Name and release of the kernel.
    pub kernel: String,
    /// Type of the file system that holds the data directories.
    pub file_system: String,
    /// One-minute load average just before the first run, in processes, not percent.
    pub other_load: f64,
    /// Properties of this machine that distort the figures, one sentence each.
    pub warnings: Vec<String>,
}

/// The parameters of a comparison.
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
    /// Error bound of the one clock that all nodes read, in microseconds; `None` if the servers
    /// were not started for the run.
    pub clock_bound_us: Option<u64>,
    /// How the nodes' logs are written to disk; `None` if the servers were not started for the run.
    pub log_backend: Option<LogBackend>,
}

/// The kind of load of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Each client sends its next operation when its last one is answered.
    ClosedLoop,
    /// Operations fall due at a fixed rate that does not depend on responses.
    OpenLoop,
    /// One node is killed under load.
    Kill,
}

impl Phase {
    /// All phases, in the order they run.
    pub const ALL: [Phase; 3] = [Phase::ClosedLoop, Phase::OpenLoop, Phase::Kill];

    /// Returns the name of the phase in running text.
    pub fn title(self) -> &'static str {
        match self {
            Phase::ClosedLoop => "closed loop",
            Phase::OpenLoop => "open loop",
            Phase::Kill => "kill",
        }
    }
}

/// One load on one mode: its parameters, its figures, and the check of its history.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// Name of the run, e.g. `closed loop 1`.
    pub name: String,
    /// The kind of load.
    pub phase: Phase,
    /// Replication mode of the ranges under load: `raft`, `chain`, or `mixed` for all ranges.
    pub mode: String,
    /// Name of the workload.
    pub workload: String,
    /// Servers in the cluster, a count.
    pub nodes: u32,
    /// Shards per server, a count.
    pub shards: u32,
    /// Concurrent clients, a count.
    pub clients: u32,
    /// Operations per second due; `None` in a closed loop.
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
    /// Operations that were due but not sent when measuring ended, a count; 0 in a closed loop.
    #[serde(default)]
    pub unsent: u64,
    /// Operations that were sent but not answered when measuring ended, a count; a closed loop has
    /// one per client.
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
    /// The part of the commit wait of puts that remained after replication, in microseconds.
    pub commit_wait_us: Latency,
    /// Latency of gets alone, in microseconds; `None` if no get succeeded.
    pub get_latency_us: Option<Latency>,
    /// Longest time without a successful put on any one range, in milliseconds; 0 if no put
    /// succeeded.
    pub unavailable_ms: f64,
    /// The kill of a node, if there was one.
    pub killed: Option<Kill>,
    /// Processor time (user and system) of all servers per operation, in microseconds; `None` if
    /// the servers were not started for the run.
    pub server_cpu_us_per_op: Option<f64>,
    /// Processor time (user and system) of the clients per operation, in microseconds.
    pub client_cpu_us_per_op: f64,
    /// Log syncs by all servers together in the measured part, a count.
    pub log_syncs: u64,
    /// Bytes written to the logs by all servers together in the measured part.
    pub log_bytes: u64,
    /// Mean log entries made durable by one sync, a count.
    pub entries_per_sync: f64,
    /// The result of the check of the recorded history.
    pub check: Check,
    /// The figures over time, in buckets of 100 ms.
    pub series: Vec<Bucket>,
    /// File name of the recorded history, if it was written.
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

/// The kill of a node.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Kill {
    /// Number of the killed node.
    pub node: u32,
    /// When it was killed, in seconds since measuring began.
    pub at_s: f64,
}

/// A check of a recorded history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// The property that is checked, e.g. `linearizable`.
    pub name: String,
    /// `ok`, `not checked`, or the violation that was found.
    pub verdict: String,
}

impl Check {
    /// Returns true if the history was checked and has the property.
    pub fn passed(&self) -> bool {
        self.verdict == "ok"
    }
}

/// The figures of 100 ms of a run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Bucket {
    /// Start of the bucket, in seconds since measuring began.
    pub at_s: f64,
    /// Operations that succeeded, per second.
    pub ops_per_s: f64,
    /// 50th percentile of latency, in microseconds; 0 if nothing succeeded.
    pub p50_us: u64,
    /// 99th percentile of latency, in microseconds; 0 if nothing succeeded.
    pub p99_us: u64,
}

/// The medians over all runs of one phase on one mode. A figure that no run has is NaN.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    /// The phase.
    pub phase: Phase,
    /// The replication mode.
    pub mode: String,
    /// Number of runs that the medians are over.
    pub runs: usize,
    /// Operations per second due in the first run; `None` in a closed loop.
    pub rate: Option<u64>,
    /// Operations per second.
    pub ops_per_s: f64,
    /// 50th percentile of latency, in microseconds.
    pub p50_us: f64,
    /// 99th percentile of latency, in microseconds.
    pub p99_us: f64,
    /// 99.9th percentile of latency, in microseconds.
    pub p999_us: f64,
    /// Longest time without a successful put on any one range, in milliseconds; `None` without a
    /// kill.
    pub gap_ms: Option<f64>,
    /// Processor time of all servers per operation, in microseconds.
    pub server_cpu_us_per_op: f64,
    /// Log syncs of all servers per second.
    pub syncs_per_s: f64,
    /// Log entries made durable by one sync.
    pub entries_per_sync: f64,
    /// Every check that did not pass, with its run, property and violation.
    pub violations: Vec<String>,
}

impl Results {
    /// Returns the modes, in the order in which they first ran.
    pub fn modes(&self) -> Vec<&str> {
        let mut modes: Vec<&str> = Vec::new();
        for run in &self.runs {
            if !modes.contains(&run.mode.as_str()) {
                modes.push(&run.mode);
            }
        }
        modes
    }

    /// Returns the runs of one phase on one mode, in the order in which they ran.
    pub fn runs_of(&self, phase: Phase, mode: &str) -> Vec<&Run> {
        self.runs.iter().filter(|run| run.phase == phase && run.mode == mode).collect()
    }

    /// Returns one summary per phase and mode that ran, ordered by phase, then by mode.
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
    /// Returns the summary of runs of the same phase and mode, or `None` if there are no runs.
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

/// Returns the median of the finite values: for an even number, the mean of the middle two.
fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.filter(|value| value.is_finite()).collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    let upper = *values.get(middle)?;
    Some(if values.len().is_multiple_of(2) { (values[middle - 1] + upper) / 2.0 } else { upper })
}

#[cfg(test)]
pub(crate) mod sample {
    //! Sample results, for tests of the code that shows results.

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
    fn results_round_trip_through_json() {
        let results = sample::all_phases();
        let json = serde_json::to_string(&results).unwrap();
        assert!(json.contains(r#""phase":"closed-loop""#), "{json}");
        assert_eq!(serde_json::from_str::<Results>(&json).unwrap(), results);
    }

    #[test]
    fn summary_takes_median_of_runs() {
        let runs = [9000.0, 30_000.0, 10_000.0].map(|ops| sample::run(Phase::Kill, "raft", ops, 1));
        let [summary]: [Summary; 1] = sample::results(runs.into()).summaries().try_into().unwrap();
        assert_eq!((summary.runs, summary.ops_per_s, summary.gap_ms), (3, 10_000.0, Some(340.0)));
    }

    #[test]
    fn median_ignores_nan_values() {
        assert_eq!(median([4.0, f64::NAN, 1.0].into_iter()), Some(2.5));
        assert_eq!(median([f64::NAN].into_iter()), None);
    }
}
