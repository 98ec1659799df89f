//! One run: a load on one mode, with a node killed in the middle if requested.

use std::{
    cell::{Cell, RefCell},
    net::SocketAddr,
    time::{Duration, Instant},
};

use palisade_client::{Change, Client, ClientError, ClientOptions, Mode, NodeId, NodeStatus};
use palisade_cluster::{Cluster, ClusterError, ClusterOptions};
use palisade_history::Operation;
use palisade_load::{Keys, LoadError, LoadOptions, Measured, Moment, Percentiles, Workload};
use thiserror::Error;
use tokio::task::LocalSet;

use crate::results::{Bucket, Check, Kill, Latency, Phase, Run};

const WARM_UP: Duration = Duration::from_millis(500);

/// How long the repair of the chains may take.
const REPAIR_TIMEOUT: Duration = Duration::from_secs(30);

/// The parameters of a run.
#[derive(Clone, Debug)]
pub struct Trial {
    /// The name of the run.
    pub name: String,
    /// The kind of run.
    pub phase: Phase,
    /// The mode of the ranges under load; all ranges if `None`.
    pub mode: Option<Mode>,
    /// The operations that the clients send.
    pub workload: Workload,
    /// Number of clients of a closed loop.
    pub clients: u32,
    /// Operations per second of an open loop; `None` for a closed loop.
    pub rate: Option<u64>,
    /// Time limit of an operation, from when it was due. `None` for that of the client.
    pub timeout: Option<Duration>,
    /// Size of a value, in bytes.
    pub value_bytes: usize,
    /// Number of keys.
    pub keys: u32,
    /// How long to measure.
    pub duration: Duration,
    /// The node to kill after 40 % of the measured time, if any.
    pub kill: Option<u16>,
    /// Seeds the choice of keys and of puts or gets.
    pub seed: u64,
    /// Whether to keep the history.
    pub record: bool,
}

/// The servers of a run.
#[derive(Debug)]
pub enum Servers {
    /// Processes that were started for the run.
    Started(Box<Cluster>),
    /// The client addresses of a cluster that is already running, and how to connect.
    Running(Vec<SocketAddr>, ClientOptions),
}

/// A run that finished.
#[derive(Clone, Debug)]
pub struct Finished {
    /// The figures. The history is not checked yet.
    pub run: Run,
    /// Every operation, if recording was requested.
    pub history: Vec<Operation>,
}

/// Why a run did not finish.
#[derive(Debug, Error)]
pub enum TrialError {
    /// The cluster did not start or serve, or a node could not be killed.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// The keys could not be written before the load, or read back after it.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A request outside the load failed.
    #[error("the cluster does not answer: {0}")]
    Client(#[from] ClientError),
    /// The cluster has no range in the mode, or the number of keys is 0.
    #[error("the cluster has no range in mode {0}, or no keys were asked for")]
    NoRange(String),
}

impl Servers {
    /// Starts the processes of a cluster.
    ///
    /// # Errors
    ///
    /// Returns [`TrialError::Cluster`] if the processes cannot be started.
    pub fn start(options: ClusterOptions) -> Result<Self, TrialError> {
        Ok(Self::Started(Box::new(Cluster::start(options)?)))
    }
}

/// Runs and measures a load. Everything, including the connections of the load, runs on the thread
/// that polls this future.
///
/// # Errors
///
/// Returns [`TrialError::Cluster`] if the cluster does not serve in time, [`TrialError::NoRange`]
/// if there is nothing to load, and otherwise the error of the request that failed.
pub async fn run_trial(servers: Servers, trial: &Trial) -> Result<Finished, TrialError> {
    LocalSet::new().run_until(run(servers, trial)).await
}

async fn run(servers: Servers, trial: &Trial) -> Result<Finished, TrialError> {
    let (mut cluster, addresses, options) = match servers {
        Servers::Started(mut cluster) => {
            cluster.wait_until_serving().await?;
            let (addresses, options) = (cluster.addresses(), cluster.client_options());
            (Some(cluster), addresses, options)
        }
        Servers::Running(addresses, options) => (None, addresses, options),
    };
    let client = Client::connect_local(&addresses, options).await?;
    let topology = client.topology().await?;
    let mode_name = trial.mode.map_or("mixed".to_owned(), |mode| mode.to_string());
    let keys = Keys::new(&topology, trial.mode, trial.keys)
        .ok_or_else(|| TrialError::NoRange(mode_name.clone()))?;
    let start = Instant::now();
    let mut preloaded = palisade_load::preload(&client, &keys, trial.value_bytes, start).await?;
    if !trial.record {
        preloaded.clear();
    }

    let options = LoadOptions {
        workload: trial.workload,
        clients: trial.clients,
        rate: trial.rate,
        timeout: trial.timeout,
        value_bytes: trial.value_bytes,
        warm_up: WARM_UP,
        duration: trial.duration,
        seed: trial.seed,
        record: trial.record,
    };
    let [before, after] = [const { RefCell::new(Vec::new()) }; 2];
    let retries_before = client.stats().retries;
    let meter = cluster.as_ref().map(|cluster| cluster.cpu_meter());
    let [servers_cpu_us, own_cpu_us] = [Cell::new([0; 2]), Cell::new([0; 2])];
    let on = async |moment| {
        let begins = moment == Moment::MeasuringBegins;
        if begins {
            *before.borrow_mut() = client.status().await.unwrap_or_default();
        }
        let at = usize::from(moment == Moment::MeasuringEnds);
        let note = |cell: &Cell<[u64; 2]>, us| {
            let mut values = cell.get();
            values[at] = us;
            cell.set(values);
        };
        if let Some(meter) = &meter {
            note(&servers_cpu_us, meter.cpu_us());
        }
        note(&own_cpu_us, palisade_cluster::own_cpu_us());
        if !begins {
            *after.borrow_mut() = client.status().await.unwrap_or_default();
        }
    };
    let load = palisade_load::run(&client, &keys, options, start, preloaded, on);
    let killed = Cell::new(None);
    let kill = async {
        if let (Some(node), Some(cluster)) = (trial.kill, cluster.as_mut()) {
            let at = WARM_UP + trial.duration.mul_f64(0.4);
            tokio::time::sleep(at).await;
            killed.set(Some(Kill { node: u32::from(node), at_s: (at - WARM_UP).as_secs_f64() }));
            if let Some(meter) = &meter {
                // Take the last reading of the node before it is killed.
                meter.cpu_us();
            }
            cluster.kill(node)?;
            repair_chains(&client, node).await?;
        }
        Ok::<_, TrialError>(())
    };
    let (mut measured, killing) = tokio::join!(load, kill);
    killing?;
    let cpu_us = |cell: &Cell<[u64; 2]>| (cell.get()[1] - cell.get()[0]) as f64;
    let ops = measured.ops.max(1) as f64;
    let totals = Totals::between(&before.into_inner(), &after.into_inner());
    let mut history = std::mem::take(&mut measured.history);
    if trial.record {
        palisade_load::read_back(&client, &keys, start, &mut history).await?;
    }
    let run = Run {
        name: trial.name.clone(),
        phase: trial.phase,
        mode: mode_name,
        workload: trial.workload.name().to_owned(),
        nodes: u32::try_from(topology.nodes.len()).unwrap_or(u32::MAX),
        shards: topology.nodes.first().map_or(0, |node| node.client.len() as u32),
        clients: trial.clients,
        rate: trial.rate,
        value_bytes: trial.value_bytes,
        keys: trial.keys,
        seconds: measured.seconds,
        ops: measured.ops,
        ops_per_s: measured.ops as f64 / measured.seconds,
        errors: measured.errors,
        unsent: measured.backlog.unsent,
        unanswered: measured.backlog.unanswered,
        aborts: 0,
        retries: client.stats().retries - retries_before,
        latency_us: latency(measured.latency_us),
        put_latency_us: latency(measured.put_latency_us),
        commit_wait_us: latency(measured.commit_wait_us),
        get_latency_us: measured.get_latency_us.map(latency),
        unavailable_ms: measured.longest_gap.map_or(0.0, |gap| gap.as_secs_f64() * 1_000.0),
        killed: killed.get(),
        server_cpu_us_per_op: meter.map(|_| cpu_us(&servers_cpu_us) / ops),
        client_cpu_us_per_op: cpu_us(&own_cpu_us) / ops,
        log_syncs: totals.syncs,
        log_bytes: totals.bytes,
        entries_per_sync: totals.entries as f64 / totals.syncs.max(1) as f64,
        check: Check { name: "linearizable".to_owned(), verdict: "not checked".to_owned() },
        series: series(&measured),
        history: None,
    };
    Ok(Finished { run, history })
}

/// Does the operator's part of a chain's repair, because no failure detector does it: removes a
/// node that is known to be dead from every chain, and waits until each change of the range map is
/// applied.
async fn repair_chains(client: &Client, dead: u16) -> Result<(), ClientError> {
    let node = NodeId(dead);
    let deadline = Instant::now() + REPAIR_TIMEOUT;
    let ranges = client.topology().await?.ranges;
    let chains = ranges.ranges().iter().filter(|range| {
        range.mode == Mode::Chain && range.members.iter().any(|member| member.node == node)
    });
    let changes: Vec<_> = chains
        .map(|range| Change::RemoveFromChain { range: range.range, epoch: range.epoch, node })
        .collect();
    let mut repairs = tokio::task::JoinSet::new();
    for change in changes {
        let client = client.with_timeout(deadline - Instant::now());
        repairs.spawn(async move { client.change_ranges(&change).await });
    }
    while let Some(repaired) = repairs.join_next().await {
        match repaired.expect("a repair does not panic") {
            // A retry is rejected if an earlier try was applied.
            Ok(()) | Err(ClientError::Rejected(palisade_client::Rejection::InvalidChange)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

struct Totals {
    syncs: u64,
    entries: u64,
    bytes: u64,
}

impl Totals {
    /// Returns the work done between two status reports, over the nodes that are in both.
    fn between(before: &[NodeStatus], after: &[NodeStatus]) -> Self {
        let mut totals = Self { syncs: 0, entries: 0, bytes: 0 };
        for node in after {
            let Some(earlier) = before.iter().find(|earlier| earlier.node == node.node) else {
                continue;
            };
            for (now, then) in node.shards.iter().zip(&earlier.shards) {
                totals.syncs += now.log_syncs - then.log_syncs;
                totals.entries += now.log_entries - then.log_entries;
                totals.bytes += now.log_bytes - then.log_bytes;
            }
        }
        totals
    }
}

fn latency(percentiles: Percentiles) -> Latency {
    let Percentiles { p50, p90, p99, p999, max } = percentiles;
    Latency { p50, p90, p99, p999, max }
}

fn series(measured: &Measured) -> Vec<Bucket> {
    let bucket = |bucket: &palisade_load::TimeBucket| Bucket {
        at_s: bucket.at_s,
        ops_per_s: bucket.ops_per_s,
        p50_us: bucket.latency_us.p50,
        p99_us: bucket.latency_us.p99,
    };
    measured.series.iter().map(bucket).collect()
}
