//! The messages between shards: heartbeats, Raft, chains, snapshots, safe times and ranges.

use palisade_shard::PeerMessage;

use crate::round_trip::message;

/// Checks `data` as a message. Returns true if it decodes.
pub fn check(data: &[u8]) -> bool {
    message::<PeerMessage>(data)
}
