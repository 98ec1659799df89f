//! The log of a real node under writes of several times its limit, and while it is idle.
#![allow(clippy::disallowed_methods, reason = "tests run on the real machine")]

mod support;

use std::time::Duration;

use palisade_client::{Client, Commit, Mode};
use palisade_cluster::{Cluster, ClusterOptions, LogConfig, ModeConfig};
use support::{LOG, keys, options, pause, run};

const LIMIT_BYTES: u64 = 192 << 20;
const VALUE_BYTES: usize = 64 << 10;

/// Number of values: 32 MiB, a fifth of what the log can hold beside its reserves.
const VALUES: u32 = 512;

/// Returns the log bytes that all shards have written since they started.
async fn written_bytes(client: &Client) -> u64 {
    let nodes = client.status().await.unwrap();
    nodes.iter().flat_map(|node| &node.shards).map(|shard| shard.log_bytes).sum()
}

/// Returns the log bytes that are written in two seconds.
async fn written_in_two_seconds(client: &Client) -> u64 {
    let before = written_bytes(client).await;
    pause(Duration::from_secs(2)).await;
    written_bytes(client).await - before
}

/// Checks that an idle node stops writing to its log once the checkpoints in progress are complete.
async fn comes_to_rest(client: &Client) {
    for _ in 0..60 {
        if written_in_two_seconds(client).await < 1 << 20 {
            let written = written_in_two_seconds(client).await;
            assert!(written < 1 << 20, "{written} bytes were written at rest");
            return;
        }
    }
    panic!("the log is written to for ever");
}

#[test]
fn scenario_52_and_55_log_takes_many_times_its_limit_and_rests_when_idle() {
    run(async {
        let log = LogConfig { limit_bytes: LIMIT_BYTES, ..LOG };
        let options =
            ClusterOptions { mode: ModeConfig::Raft, nodes: 1, shards: 1, log, ..options() };
        let mut cluster = Cluster::start(options).unwrap();
        let client = cluster.wait_until_serving().await.unwrap();
        let client = client.with_timeout(Duration::from_secs(60));
        let keys = keys(&client, Mode::Raft).await;
        let key = |number: u32| {
            let mut key = keys.key(number % u32::try_from(keys.ranges()).unwrap()).to_vec();
            key.extend(number.to_be_bytes());
            key
        };
        let mut written = 0;
        while written < 3 * LIMIT_BYTES {
            let puts = (0..VALUES).map(|number| client.put(key(number), vec![7; VALUE_BYTES]));
            for put in puts.collect::<Vec<_>>() {
                put.await.unwrap();
                written += VALUE_BYTES as u64;
            }
        }
        comes_to_rest(&client).await;
        assert!(cluster.stop(0).unwrap(), "{}", cluster.last_words(0));
        cluster.start_node(0).unwrap();
        let client = cluster.wait_until_serving().await.unwrap();
        comes_to_rest(&client).await;
        for number in 0..VALUES {
            let commit = Commit::new().delete(key(number));
            client.commit(commit).await.unwrap();
        }
    });
}
