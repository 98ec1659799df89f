//! The shape in which a cluster is created is durable: a start with another shape is refused.

mod support;

use palisade_client::NodeId;
use palisade_cluster::{Cluster, ClusterOptions};
use palisade_server::{Config, ModeConfig};
use support::{options, run, start_all};

const ROWS: u32 = 2_000;

type Change = fn(&mut Config);

fn key(row: u32) -> Vec<u8> {
    // Spreads the rows over all ranges.
    row.wrapping_mul(2_654_435_761).to_be_bytes().to_vec()
}

#[test]
fn cluster_shape_change_is_refused_and_address_change_accepted() {
    run(async {
        let few = ClusterOptions { shards: 1, ranges_per_mode: 2, ..options() };
        let mut cluster = Cluster::start(few).unwrap();
        let client = cluster.wait_until_serving().await.unwrap();
        for row in 0..ROWS {
            client.put(key(row), vec![1]).await.unwrap();
        }
        drop(client);
        (0..3).for_each(|node| assert!(cluster.stop(node).unwrap()));

        let added: Change = |config| {
            let mut node = config.nodes[0].clone();
            (node.node, node.client_port, node.peer_port) = (NodeId(7), 1, 2);
            config.nodes.push(node);
        };
        let changes: [(&str, Change); 6] = [
            ("ranges_per_mode = 2", |config| config.ranges_per_mode = 4),
            ("mode = mixed", |config| config.mode = ModeConfig::Raft),
            ("node numbers = [0, 1, 2]", added),
            ("node numbers = [0, 1, 2]", |config| config.nodes.truncate(2)),
            ("node numbers = [0, 1, 2]", |config| config.nodes.swap(1, 2)),
            ("with 1 shards", |config| config.shards = 2),
        ];
        for (recorded, change) in changes {
            let mut before = None;
            cluster.change_config(0, |config| {
                before = Some(config.clone());
                change(config);
            });
            cluster.start_node(0).unwrap();
            assert!(!cluster.wait_until_ended(0).unwrap(), "{recorded} was changed");
            let words = cluster.last_words(0);
            assert!(words.contains(recorded), "{recorded}: {words}");
            cluster.change_config(0, |config| *config = before.expect("it was kept"));
        }

        // Addresses may change, and settings that are not part of the shape.
        let moved = palisade_cluster::free_ports(6).expect("some ports are free");
        for node in 0..3 {
            cluster.change_config(node, |config| {
                for (number, node) in (0..).zip(&mut config.nodes) {
                    (node.client_port, node.peer_port) =
                        (moved + 2 * number, moved + 2 * number + 1);
                }
                config.log.checkpoint_bytes *= 2;
                config.clock.max_offset_us += 1;
            });
        }
        start_all(&mut cluster, 3);
        let client = cluster.wait_until_serving().await.unwrap();
        let rows = client.scan(Vec::new(), None).all().await.unwrap();
        assert_eq!(rows.len(), ROWS as usize);
    });
}

/// A refused start must not record its shape in a shard whose log is new. Otherwise no later start
/// would be possible.
#[test]
fn cluster_shape_is_not_recorded_by_refused_startup() {
    run(async {
        let alone = ClusterOptions { nodes: 1, shards: 2, ranges_per_mode: 2, ..options() };
        let mut cluster = Cluster::start(alone).unwrap();
        cluster.wait_until_serving().await.unwrap();
        assert!(cluster.stop(0).unwrap());
        std::fs::remove_dir_all(cluster.dir().join("node-0/shard-001")).unwrap();
        for _ in 0..3 {
            cluster.change_config(0, |config| config.ranges_per_mode = 4);
            cluster.start_node(0).unwrap();
            assert!(!cluster.wait_until_ended(0).unwrap(), "the shape was changed");
            let words = cluster.last_words(0);
            assert!(words.contains("ranges_per_mode = 2"), "{words}");
        }
        cluster.change_config(0, |config| config.ranges_per_mode = 2);
        cluster.start_node(0).unwrap();
        cluster.wait_until_serving().await.unwrap();
    });
}
