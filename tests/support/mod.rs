//! Clusters of real processes for the whole-system tests.
#![allow(dead_code, reason = "each test uses a part of this")]

pub(crate) mod proxy;

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use palisade_client::{Client, Mode};
use palisade_cluster::{Cluster, ClusterOptions, LogBackend, LogConfig};
use palisade_history::Operation;
use palisade_load::{Keys, LoadOptions, Workload};

/// Small logs, so that many clusters fit on one machine.
pub(crate) const LOG: LogConfig = LogConfig {
    segment_bytes: 8 << 20,
    limit_bytes: 1 << 30,
    checkpoint_bytes: 1 << 20,
    backend: LogBackend::Mapped,
};

pub(crate) const KEYS: u32 = 200;
pub(crate) const BOTH_MODES: [Mode; 2] = [Mode::Raft, Mode::Chain];

pub(crate) fn options() -> ClusterOptions {
    ClusterOptions {
        log: LOG,
        shards: 2,
        ranges_per_mode: 3,
        ..ClusterOptions::new(PathBuf::from(env!("CARGO_BIN_EXE_palisade")))
    }
}

/// Starts a cluster with a fault planted in every node. Returns the cluster and a client of it.
#[cfg(feature = "planted-faults")]
pub(crate) async fn start_with_fault(fault: palisade_cluster::FaultConfig) -> (Cluster, Client) {
    let mut cluster = Cluster::start(options()).unwrap();
    cluster.wait_until_serving().await.unwrap();
    for node in 0..3 {
        cluster.stop(node).unwrap();
        cluster.set_fault(node, Some(fault));
        cluster.start_node(node).unwrap();
    }
    let client = cluster.wait_until_serving().await.unwrap();
    (cluster, client)
}

pub(crate) fn run<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(test)
}

/// Waits until a client sees all replicas of three nodes serve, for about a minute at most.
pub(crate) async fn wait_until_all_serve(client: &Client) {
    let mut nodes = Vec::new();
    for _ in 0..3_000 {
        nodes = client.status().await.unwrap();
        let mut replicas =
            nodes.iter().flat_map(|node| &node.shards).flat_map(|shard| &shard.ranges);
        if nodes.len() == 3 && replicas.all(|replica| replica.ready) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("{nodes:?}");
}

pub(crate) async fn keys(client: &Client, mode: Mode) -> Keys {
    Keys::new(&client.topology().await.unwrap(), Some(mode), KEYS).unwrap()
}

pub(crate) fn load(workload: Workload, duration: Duration) -> LoadOptions {
    LoadOptions {
        workload,
        clients: 16,
        rate: None,
        timeout: None,
        value_bytes: 256,
        warm_up: Duration::from_millis(100),
        duration,
        seed: 7,
        record: true,
    }
}

/// Writes every key, then runs a load while `disturb` acts on the cluster. Returns the history of
/// all operations.
pub(crate) async fn load_while<F: Future<Output = ()>>(
    client: &Client,
    mode: Mode,
    options: LoadOptions,
    start: Instant,
    disturb: F,
) -> Vec<Operation> {
    let keys = keys(client, mode).await;
    let history = palisade_load::preload(client, &keys, options.value_bytes, start).await.unwrap();
    let load = palisade_load::run(client, &keys, options, start, history, async |_| {});
    let (measured, ()) = tokio::join!(load, disturb);
    assert!(measured.ops > 0, "the load did nothing");
    measured.history
}

/// Reads every key once more, and appends the reads to the history.
pub(crate) async fn read_all(
    client: &Client,
    mode: Mode,
    start: Instant,
    history: &mut Vec<Operation>,
) {
    let keys = keys(client, mode).await;
    palisade_load::read_back(client, &keys, start, history).await.unwrap();
}

/// Returns the end of each node's standard error.
pub(crate) fn last_words(cluster: &Cluster) -> String {
    (0..3).map(|node| format!("node {node}: {}\n", cluster.last_words(node))).collect()
}

pub(crate) async fn pause(duration: Duration) {
    tokio::time::sleep(duration).await;
}

pub(crate) fn kill_all(cluster: &mut Cluster, nodes: u16) {
    for node in 0..nodes {
        cluster.kill(node).unwrap();
    }
}

pub(crate) fn start_all(cluster: &mut Cluster, nodes: u16) {
    for node in 0..nodes {
        cluster.start_node(node).unwrap();
    }
}
