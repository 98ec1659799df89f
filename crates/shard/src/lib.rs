//! One core's share of a node: many groups over one log.
//!
//! [`Shard`] takes inputs (a request, a message, a finished sync, a tick) and answers, at the end
//! of each turn, with effects (writes, messages, replies). It is synchronous and deterministic: the
//! node's driver and the simulator run the same code.
//!
//! Invariants:
//! - A reply that acknowledges a write is given only for an entry that came back committed at the
//!   index and term under which it was ordered.
//! - A message that depends on a write leaves only after that write is durable.
//! - An answer that tells of a commit leaves only after the commit's timestamp has passed.
//! - Whatever waits for an answer is bounded, and is answered, or refused, exactly once.

mod admission;
mod commit_wait;
mod early_reads;
mod fault;
mod group;
mod peer;
mod protections;
mod recovery;
mod replay;
mod replica;
mod shard;
mod snapshot_state;
mod snapshots;
mod state_machine;
mod view;

pub use fault::TestFault;
pub use peer::{Hello, PeerBody, PeerMessage, SafeTimeMessage, SnapshotMessage};
pub use replay::{Recovered, ReplayError, Replayed, record_of};
pub use shard::{
    ConnectionId, Input, LOG_RESERVE_BYTES, LogCounters, Shard, ShardConfig, ShardEffects,
    ShardError,
};
pub use snapshot_state::SNAPSHOT_PART_BYTES;
pub use view::ReplicaView;
