//! Shared by the tests and benchmarks of a single shard.
#![allow(dead_code, reason = "each test uses a part of this")]

use palisade_clock::Now;
use palisade_control::Bootstrap;
use palisade_replication::Planted;
use palisade_shard::{
    LOG_RESERVE_BYTES, Recovered, SNAPSHOT_PART_BYTES, Shard, ShardConfig, TURN_WORK,
};
use palisade_wire::{Mode, NodeId, PeerAddress, ShardId};

/// Returns the shape of a cluster of one shard, with all of its ranges in one mode.
pub(crate) fn bootstrap(mode: Mode) -> Bootstrap {
    Bootstrap { nodes: vec![NodeId(0)], shards: 1, ranges_per_mode: 1, only: Some(mode) }
}

/// Returns the configuration of the only shard of a cluster.
pub(crate) fn config(bootstrap: &Bootstrap) -> ShardConfig {
    ShardConfig {
        at: PeerAddress { node: NodeId(0), shard: ShardId(0) },
        cluster_id: 1,
        nodes: Vec::new(),
        shape: Some(bootstrap.clone()),
        max_offset_us: 1_000,
        random_seed: 1,
        checkpoint_bytes: 1 << 20,
        log_reserve_bytes: LOG_RESERVE_BYTES,
        snapshot_part_bytes: SNAPSHOT_PART_BYTES,
        max_message_bytes: 1 << 20,
        turn_work: TURN_WORK,
        planted: Planted::default(),
    }
}

/// Creates a cluster of one new shard, with all of its ranges in one mode.
pub(crate) fn shard_alone(mode: Mode, checkpoint_bytes: u64, now: Now) -> Shard {
    let bootstrap = bootstrap(mode);
    let config = ShardConfig { checkpoint_bytes, ..config(&bootstrap) };
    Shard::new(config, bootstrap.range_map(), Recovered::default(), now)
        .expect("nothing to recover")
}
