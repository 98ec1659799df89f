//! A client that reaches one node alone.
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "tests run on the real machine"
)]

mod support;

use std::{collections::BTreeSet, time::Duration};

use palisade_client::{Client, ClientOptions, Commit, Expected};
use palisade_cluster::{Cluster, ClusterOptions};
use support::{BOTH_MODES, keys, options, run, wait_until_all_serve};

/// A port on which no node listens.
const CLOSED_PORT: u16 = 1;

/// Node 0 names closed ports of the others, so its clients reach it alone. It passes on what other
/// nodes lead.
#[test]
fn client_of_one_node_reaches_all_ranges() {
    run(async {
        let mut cluster = Cluster::start(ClusterOptions { shards: 1, ..options() }).unwrap();
        cluster.wait_until_serving().await.unwrap();
        let addresses = cluster.addresses();
        cluster.stop(0).unwrap();
        cluster.change_config(0, |config| {
            for node in &mut config.nodes[1..] {
                node.client_port = CLOSED_PORT;
            }
        });
        cluster.start_node(0).unwrap();
        let all = Client::connect(&addresses[1..], cluster.client_options()).await.unwrap();
        wait_until_all_serve(&all).await;
        let options = ClientOptions { timeout: Duration::from_secs(5), ..cluster.client_options() };
        let client = Client::connect(&addresses[..1], options).await.unwrap();
        for mode in BOTH_MODES {
            let keys = keys(&all, mode).await;
            let ranges: BTreeSet<_> = (0..keys.count()).map(|key| keys.range_of(key)).collect();
            assert!(ranges.len() > 2, "{mode}");
            for key in 0..keys.count() {
                let key = keys.key(key);
                client.put(key.clone(), "value").await.unwrap();
                assert_eq!(client.get(key.clone()).await.unwrap().unwrap().value, "value");
                assert_eq!(all.get(key).await.unwrap().unwrap().value, "value");
            }
            let key = keys.key(0);
            let moved = client.run(async |tx| {
                tx.get_for_update(key.clone()).await?;
                tx.put(key.clone(), "moved")
            });
            moved.await.unwrap();
            let held = Commit::new().expect(key.clone(), Expected::Value("moved".into()));
            client.commit(held.put(key, "again")).await.unwrap();
        }
    });
}
