//! The cluster keeps serving without one of its nodes, and clients find the replicas that serve.
#![allow(clippy::disallowed_methods, reason = "tests run on the real machine")]

mod support;

use std::time::{Duration, Instant};

use palisade_client::{BlockingClient, Change, Client, Mode, NodeId, Role};
use palisade_cluster::Cluster;
use palisade_load::Workload;
use support::{KEYS, keys, load, load_while, options, pause, read_all, run};

#[test]
fn failover_raft_serves_through_leader_kill_and_restart() {
    run(async {
        let mut cluster = Cluster::start(options()).unwrap();
        let client = cluster.wait_until_serving().await.unwrap();
        let start = Instant::now();
        let options = load(Workload::Mixed { read_percent: 50 }, Duration::from_secs(4));
        let mut history = load_while(&client, Mode::Raft, options, start, async {
            pause(Duration::from_millis(700)).await;
            cluster.kill(0).unwrap();
            pause(Duration::from_millis(1_500)).await;
            cluster.start_node(0).unwrap();
        })
        .await;
        cluster.wait_until_serving().await.unwrap();
        read_all(&client, Mode::Raft, start, &mut history).await;
        let checked = palisade_history::check(&history);
        assert!(checked.is_ok(), "{}", checked.unwrap_err());
        let unknown =
            history.iter().filter(|o| o.outcome != palisade_history::Completion::Ok).count();
        assert_eq!(unknown, 0, "the client's retries bridge the election");
    });
}

#[test]
fn failover_chain_serves_without_head_and_refuses_returning_head() {
    run(async {
        let mut cluster = Cluster::start(options()).unwrap();
        let client = cluster.wait_until_serving().await.unwrap();
        let start = Instant::now();
        let options = load(Workload::Mixed { read_percent: 50 }, Duration::from_secs(4));
        let repairing = client.clone();
        let mut history = load_while(&client, Mode::Chain, options, start, async {
            pause(Duration::from_millis(700)).await;
            cluster.kill(0).unwrap();
            let ranges = repairing.topology().await.unwrap().ranges;
            for range in ranges.ranges().iter().filter(|range| range.mode == Mode::Chain) {
                let change = Change::RemoveFromChain {
                    range: range.range,
                    epoch: range.epoch,
                    node: NodeId(0),
                };
                repairing.change_ranges(&change).await.unwrap();
            }
            pause(Duration::from_millis(1_000)).await;
            cluster.start_node(0).unwrap();
        })
        .await;
        cluster.wait_until_serving().await.unwrap();
        read_all(&client, Mode::Chain, start, &mut history).await;
        let checked = palisade_history::check(&history);
        assert!(checked.is_ok(), "{}", checked.unwrap_err());

        // The removed node learns of its removal, and serves none of the chains.
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let status = client.status().await.unwrap();
            let of_node = status.iter().filter(|node| node.node == NodeId(0));
            let replicas = of_node.flat_map(|node| &node.shards).flat_map(|shard| &shard.ranges);
            let roles: Vec<_> =
                replicas.filter(|r| r.mode == Mode::Chain).map(|replica| replica.role).collect();
            if roles.len() == 3 && roles.iter().all(|role| *role == Role::Removed) {
                break;
            }
            assert!(Instant::now() < deadline, "the removed node does not learn of it: {roles:?}");
            pause(Duration::from_millis(50)).await;
        }
    });
}

#[test]
fn deadline_ends_calls_while_all_nodes_are_down() {
    run(async {
        let mut cluster = Cluster::start(options()).unwrap();
        let client = cluster.wait_until_serving().await.unwrap();
        let keys = keys(&client, Mode::Raft).await;
        let key = keys.key(KEYS - 1);
        client.put(key.clone(), "value").await.unwrap();
        for node in 0..3 {
            cluster.kill(node).unwrap();
        }
        let client = client.with_timeout(Duration::from_millis(300));
        let begin = Instant::now();
        let error = client.get(key.clone()).await.unwrap_err();
        assert!(error.is_retryable() && !error.is_outcome_unknown(), "{error}");
        let error = client.put(key, "other").await.unwrap_err();
        assert!(error.is_retryable(), "{error}");
        assert!(begin.elapsed() < Duration::from_secs(10), "a call went past its deadline");
    });
}

#[test]
fn blocking_client_works_without_async_executor() {
    let mut cluster = Cluster::start(options()).unwrap();
    run(async { drop(cluster.wait_until_serving().await.unwrap()) });
    let client = BlockingClient::connect(&cluster.addresses(), cluster.client_options()).unwrap();
    assert_eq!(client.get("a key").unwrap(), None);
    let written = client.put("a key", "a value").unwrap();
    let found = client.get("a key").unwrap().unwrap();
    assert_eq!(found.value, "a value");
    assert_eq!(found.version_ts, written.commit_ts);
    let long = vec![0; palisade_client::MAX_VALUE_BYTES + 1];
    let error = client.put("a key", long).unwrap_err();
    assert!(!error.is_retryable() && !error.is_outcome_unknown(), "{error}");
    client.put("a key", vec![1; palisade_client::MAX_VALUE_BYTES]).unwrap();
    assert_eq!(client.get("a key").unwrap().unwrap().value.len(), palisade_client::MAX_VALUE_BYTES);
}

#[test]
fn local_client_ends_its_tasks_when_dropped() {
    run(async {
        let mut cluster = Cluster::start(options()).unwrap();
        drop(cluster.wait_until_serving().await.unwrap());
        let tasks = tokio::task::LocalSet::new();
        let (addresses, options) = (cluster.addresses(), cluster.client_options());
        let client = tasks.run_until(Client::connect_local(&addresses, options)).await.unwrap();
        tasks.run_until(client.put("key", "value")).await.unwrap();
        drop(client);
        let ended = tokio::time::timeout(Duration::from_secs(20), tasks).await;
        assert!(ended.is_ok(), "connections outlive the client");
    });
}
