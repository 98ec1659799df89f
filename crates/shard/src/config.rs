//! Configuration of a shard and of its replicas, and why a shard cannot start.

use palisade_control::{Bootstrap, NodeAddress, ShapeChanged};
use palisade_replication::Planted;
use palisade_wire::{PeerAddress, WireError};
use thiserror::Error;

use crate::{TestFault, log_room::LogRoom};

/// Configuration of a shard, fixed at its start.
#[derive(Clone, Debug)]
pub struct ShardConfig {
    /// This shard's address.
    pub at: PeerAddress,
    /// Identifies the cluster in the range map that clients receive.
    pub cluster_id: u64,
    /// The cluster's nodes and their client addresses, for the range map that clients receive.
    pub nodes: Vec<NodeAddress>,
    /// The parameters that the first range map was made from; `None` for an embedded database.
    pub shape: Option<Bootstrap>,
    /// How far ahead a remote clock may be before its messages are dropped, in microseconds. Client
    /// requests are rejected while the error bound of this clock exceeds the same limit.
    pub max_offset_us: u64,
    /// Seeds random choices such as election timeouts, and the incarnation of a new log.
    pub random_seed: u64,
    /// Log growth in bytes after which a group's state is written as a checkpoint.
    pub checkpoint_bytes: u64,
    /// Log that is kept for replication's own writes, in bytes. The other limits of the log follow
    /// from it. Production uses [`LOG_RESERVE_BYTES`](crate::LOG_RESERVE_BYTES).
    pub log_reserve_bytes: u64,
    /// Target size of one part of a checkpoint or snapshot, in bytes.
    pub snapshot_part_bytes: usize,
    /// Payload in one Raft message beyond the message's first entry, in bytes.
    pub max_message_bytes: usize,
    /// Work that a turn may do, in units. Production uses [`TURN_WORK`](crate::TURN_WORK).
    pub turn_work: u32,
    /// A rule to break, in tests.
    pub planted: Planted<TestFault>,
}

/// Settings that all replicas of a shard share.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ReplicaConfig {
    pub(crate) me: PeerAddress,
    /// Log growth in bytes after which a checkpoint is due.
    pub(crate) checkpoint_bytes: u64,
    /// Target size of a snapshot part, in bytes.
    pub(crate) part_bytes: usize,
    /// Payload in one Raft message beyond the message's first entry, in bytes.
    pub(crate) max_message_bytes: usize,
    pub(crate) planted: Planted<TestFault>,
}

impl ShardConfig {
    /// Returns the settings that the shard's replicas share.
    pub(crate) fn of_replicas(&self) -> ReplicaConfig {
        ReplicaConfig {
            me: self.at,
            checkpoint_bytes: self.checkpoint_bytes,
            part_bytes: self.snapshot_part_bytes,
            max_message_bytes: self.max_message_bytes,
            planted: self.planted,
        }
    }
}

/// Why a shard cannot start from its recovered log. Not retryable.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ShardError {
    /// A recovered command, snapshot or shard record cannot be decoded by this build.
    #[error("the log holds a command that this build cannot read: {0}")]
    Command(#[from] WireError),
    /// The cluster was created with another shape than the configured one.
    #[error(transparent)]
    ShapeChanged(#[from] ShapeChanged),
}

/// Counters of the log, set by the driver.
#[derive(Clone, Copy, Debug, Default)]
pub struct LogCounters {
    /// Syncs since the start.
    pub syncs: u64,
    /// Bytes appended since the start.
    pub bytes: u64,
    /// What can still be appended.
    pub room: LogRoom,
}
