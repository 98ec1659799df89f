//! A node that answers nothing, although its connections stay open, does not stop the clients.
#![allow(clippy::disallowed_methods, reason = "tests run on the real machine")]

mod support;

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use palisade_client::{Client, Mode, NodeId, Role};
use palisade_cluster::{Cluster, ClusterOptions, ModeConfig};
use support::{keys, options, pause, proxy::Proxy, run};

/// Number of clients. Each has connections of its own.
const CLIENTS: u32 = 16;

/// The longest gap between two successful puts of a client. The measured gaps are below a second;
/// the limit is far above, because other processes may take the processors.
const MAX_GAP: Duration = Duration::from_secs(6);

/// Returns the node that leads the most ranges.
async fn busiest_leader(client: &Client) -> NodeId {
    let mut leads = BTreeMap::new();
    for node in client.status().await.unwrap() {
        let ranges = node.shards.iter().flat_map(|shard| &shard.ranges);
        leads.insert(ranges.filter(|range| range.role == Role::Leader).count(), node.node);
    }
    leads.into_values().next_back().expect("there are nodes")
}

/// Puts values one after another until `until`. Returns the longest time without a success.
async fn longest_gap(
    client: &Client,
    mut key: impl FnMut() -> Vec<u8>,
    until: Instant,
) -> Duration {
    let (mut last, mut gap) = (Instant::now(), Duration::ZERO);
    while Instant::now() < until {
        let written = client.put(key(), "value").await;
        gap = gap.max(last.elapsed());
        if written.is_ok() {
            last = Instant::now();
        }
    }
    gap.max(last.elapsed())
}

#[test]
fn scenario_50_puts_continue_while_leaders_process_is_suspended() {
    run(async {
        let options = ClusterOptions { mode: ModeConfig::Raft, ..options() };
        let mut cluster = Cluster::start(options).unwrap();
        let client = cluster.wait_until_serving().await.unwrap();
        let keys = keys(&client, Mode::Raft).await;
        let silent = busiest_leader(&client).await;
        let addresses = cluster.addresses();
        let at_silent = addresses[usize::from(silent.0) * addresses.len() / 3];
        let until = Instant::now() + Duration::from_secs(5);
        let mut gaps = Vec::new();
        for number in 0..CLIENTS {
            // Half of the clients know the address of the silent node alone.
            let known = if number % 2 == 0 { vec![at_silent] } else { addresses.clone() };
            let client = Client::connect(&known, cluster.client_options()).await.unwrap();
            let (keys, mut next) = (keys.clone(), number);
            gaps.push(tokio::spawn(async move {
                let key = || {
                    next += CLIENTS;
                    keys.key(next % keys.count()).to_vec()
                };
                longest_gap(&client, key, until).await
            }));
        }
        pause(Duration::from_secs(1)).await;
        cluster.suspend(silent.0).unwrap();
        let mut longest = Duration::ZERO;
        for gap in gaps {
            longest = longest.max(gap.await.unwrap());
        }
        assert!(longest < MAX_GAP, "a client made no put for {longest:?}");
        cluster.resume(silent.0).unwrap();
        cluster.wait_until_serving().await.unwrap();
    });
}

/// The kernel sends again on a connection that lost packets, but waits for longer each time: for up
/// to two minutes. Another connection works at once.
#[test]
fn peers_reconnect_if_their_connection_forwards_nothing() {
    run(async {
        let options = ClusterOptions { mode: ModeConfig::Raft, shards: 1, ..options() };
        let mut cluster = Cluster::start(options).unwrap();
        cluster.wait_until_serving().await.unwrap();
        // Node 0 sends to the others through proxies.
        let proxies = [1, 2].map(|node| Proxy::start(cluster.peer_address(node)));
        cluster.stop(0).unwrap();
        cluster.change_config(0, |config| {
            for (node, proxy) in [1, 2].into_iter().zip(&proxies) {
                config.nodes[node].peer_port = proxy.port;
            }
        });
        cluster.start_node(0).unwrap();
        let client = cluster.wait_until_serving().await.unwrap();
        proxies.iter().for_each(Proxy::silence);
        pause(Duration::from_millis(500)).await;
        // Now every commit needs what node 0 sends to node 1.
        cluster.kill(2).unwrap();
        let (client, keys) =
            (client.with_timeout(Duration::from_secs(30)), keys(&client, Mode::Raft).await);
        for key in 0..u32::try_from(keys.ranges()).unwrap() {
            client.put(keys.key(key), "value").await.unwrap();
        }
    });
}
