//! Shared by the tests and benchmarks of a single shard.

use palisade_clock::Now;
use palisade_control::Bootstrap;
use palisade_replication::Planted;
use palisade_shard::{Recovered, SNAPSHOT_PART_BYTES, Shard, ShardConfig};
use palisade_wire::{Mode, NodeId, PeerAddress, ShardId};

/// Creates a cluster of one new shard, with all of its ranges in one mode.
pub(crate) fn shard_alone(mode: Mode, checkpoint_bytes: u64, now: Now) -> Shard {
    let bootstrap =
        Bootstrap { nodes: vec![NodeId(0)], shards: 1, ranges_per_mode: 1, only: Some(mode) };
    let ranges = bootstrap.range_map();
    let config = ShardConfig {
        at: PeerAddress { node: NodeId(0), shard: ShardId(0) },
        cluster_id: 1,
        nodes: Vec::new(),
        shape: Some(bootstrap),
        max_offset_us: 1_000,
        random_seed: 1,
        checkpoint_bytes,
        snapshot_part_bytes: SNAPSHOT_PART_BYTES,
        max_message_bytes: 1 << 20,
        planted: Planted::default(),
    };
    Shard::new(config, ranges, Recovered::default(), now).expect("nothing to recover")
}
