//! Acknowledged writes survive kills, restarts and failed syncs.
#![allow(clippy::disallowed_methods, reason = "tests run on the real machine")]

mod support;

use std::time::{Duration, Instant};

use palisade_client::Client;
use palisade_cluster::{Cluster, ClusterOptions, LogBackend, LogConfig};
use palisade_load::Workload;
use support::{
    BOTH_MODES, LOG, keys, kill_all, last_words, load, load_while, options, pause, read_all, run,
    start_all,
};

#[test]
fn durability_acknowledged_puts_survive_kill_of_all_nodes() {
    kill_all_under_load(LogBackend::Mapped);
}

#[test]
fn durability_direct_io_puts_survive_kill_of_all_nodes() {
    kill_all_under_load(LogBackend::Direct);
}

fn kill_all_under_load(backend: LogBackend) {
    run(async {
        let log = LogConfig { backend, ..LOG };
        let mut cluster = Cluster::start(ClusterOptions { log, ..options() }).unwrap();
        cluster.wait_until_serving().await.unwrap();
        for mode in BOTH_MODES {
            let start = Instant::now();
            // Calls that the kill interrupts end by this timeout, with an unknown outcome.
            let client = Client::connect(&cluster.addresses(), cluster.client_options())
                .await
                .unwrap()
                .with_timeout(Duration::from_secs(5));
            let options = load(Workload::Put, Duration::from_secs(1));
            let mut history = load_while(&client, mode, options, start, async {
                pause(Duration::from_millis(700)).await;
                kill_all(&mut cluster, 3);
            })
            .await;
            let acknowledged =
                history.iter().filter(|o| o.outcome == palisade_history::Completion::Ok).count();
            assert!(acknowledged > 500, "only {acknowledged} puts came before the kill");
            start_all(&mut cluster, 3);
            let client = cluster.wait_until_serving().await.unwrap();
            read_all(&client, mode, start, &mut history).await;
            let checked = palisade_history::check(&history);
            assert!(checked.is_ok(), "{mode}: {}", checked.unwrap_err());
        }
    });
}

#[test]
fn durability_drained_node_rejoins_without_data_loss() {
    run(async {
        let mut cluster = Cluster::start(options()).unwrap();
        let client = cluster.wait_until_serving().await.unwrap();
        for mode in BOTH_MODES {
            let start = Instant::now();
            let options = load(Workload::Mixed { read_percent: 30 }, Duration::from_secs(2));
            let mut history = load_while(&client, mode, options, start, async {
                pause(Duration::from_millis(500)).await;
                let ended_well = cluster.stop(1).unwrap();
                assert!(ended_well, "the node did not drain: {}", cluster.last_words(1));
                cluster.start_node(1).unwrap();
            })
            .await;
            cluster.wait_until_serving().await.unwrap();
            read_all(&client, mode, start, &mut history).await;
            let checked = palisade_history::check(&history);
            assert!(checked.is_ok(), "{mode}: {}", checked.unwrap_err());
        }
    });
}

/// Turns with many large writes need segments faster than they are prepared. The shard must wait
/// for segments between turns, never within one.
#[test]
fn log_largest_writes_succeed_when_segment_preallocation_lags() {
    run(async {
        let mut cluster = Cluster::start(options()).unwrap();
        let client = cluster.wait_until_serving().await.unwrap();
        for mode in BOTH_MODES {
            let keys = keys(&client, mode).await;
            let mut writers = tokio::task::JoinSet::new();
            for writer in 0..64 {
                let (client, key) =
                    (client.with_timeout(Duration::from_secs(60)), keys.key(writer));
                writers.spawn(async move {
                    let value = vec![writer as u8; palisade_client::MAX_VALUE_BYTES];
                    client.put(key, value).await
                });
            }
            while let Some(written) = writers.join_next().await {
                let written = written.unwrap();
                assert!(written.is_ok(), "{mode}: {written:?}\n{}", last_words(&cluster));
            }
            for writer in 0..64 {
                let found = client.get(keys.key(writer)).await.unwrap().unwrap();
                assert_eq!(found.value[0], writer as u8);
            }
        }
    });
}

/// Writes 400 MiB to each node, whose logs are limited to 128 MiB per shard. All nodes are
/// restarted after each round.
#[test]
fn log_compaction_sustains_writes_beyond_limit_bytes() {
    const WRITERS: u32 = 8;
    const WRITES: usize = 400;
    const VALUE_BYTES: usize = 32 * 1024;
    run(async {
        let log = LogConfig { limit_bytes: 128 << 20, ..LOG };
        let mut cluster = Cluster::start(ClusterOptions { log, ..options() }).unwrap();
        let mut client = cluster.wait_until_serving().await.unwrap();
        for (round, mode) in [BOTH_MODES, BOTH_MODES].concat().into_iter().enumerate() {
            let keys = keys(&client, mode).await;
            let mut writers = tokio::task::JoinSet::new();
            for writer in 0..WRITERS {
                let client = client.with_timeout(Duration::from_secs(60));
                let key = keys.key(writer);
                writers.spawn(async move {
                    for write in 0..WRITES {
                        client.put(key.clone(), vec![(round + write) as u8; VALUE_BYTES]).await?;
                        // The versions of the last second are part of the state, which must fit
                        // into the log.
                        pause(Duration::from_millis(15)).await;
                    }
                    Ok::<_, palisade_client::ClientError>(())
                });
            }
            while let Some(written) = writers.join_next().await {
                let written = written.unwrap();
                assert!(written.is_ok(), "{mode}: {written:?}\n{}", last_words(&cluster));
            }
            kill_all(&mut cluster, 3);
            start_all(&mut cluster, 3);
            client = cluster.wait_until_serving().await.unwrap();
            for writer in 0..WRITERS {
                let found = client.get(keys.key(writer)).await.unwrap().unwrap();
                assert_eq!(found.value[0], (round + WRITES - 1) as u8);
            }
        }
    });
}
