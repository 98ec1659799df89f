//! Runs one core's share of a node: many replication groups over one log.
//!
//! [`Shard`] takes inputs (a request, a message, a finished sync, a tick) and returns effects
//! (writes, messages, replies) at the end of each turn. It is synchronous and deterministic: the
//! node's driver and the simulator run the same code.
//!
//! Invariants:
//! - A reply acknowledges a write only if its entry came back committed at the index and term at
//!   which it was ordered.
//! - A message that depends on a write leaves only after that write is durable.
//! - A reply that reveals a commit leaves only after the commit's timestamp has passed.
//! - The number of pending requests is bounded. Each is answered or rejected exactly once.

mod admission;
mod commit_wait;
mod config;
mod drain;
mod early_reads;
mod fault;
mod forwarding;
mod group;
mod inbox;
mod log_room;
mod messages;
mod metrics;
mod pacing;
mod protections;
mod recovery;
mod replay;
mod replica;
mod runtime;
mod shard;
mod snapshot_state;
mod snapshots;
mod state_machine;
mod turn;
mod view;
mod work;

pub use config::{LogCounters, ShardConfig, ShardError};
pub use fault::TestFault;
pub use inbox::Inbox;
pub use log_room::{LOG_RESERVE_BYTES, LogRoom, LogSpace, StateSize};
pub use messages::{Hello, PeerBody, PeerMessage, SafeTimeMessage, SnapshotMessage};
pub use metrics::{RejectionStorm, SLOW_US, SlowRequest};
pub use replay::{Recovered, ReplayError, Replayed, record_of};
pub use runtime::{LOG_AHEAD_BYTES, RecoveryError, Runtime, ShardLog, TICK_US};
pub use shard::Shard;
pub use snapshot_state::SNAPSHOT_PART_BYTES;
pub use turn::{ConnectionId, Input, ShardEffects};
pub use view::ReplicaView;
pub use work::TURN_WORK;
