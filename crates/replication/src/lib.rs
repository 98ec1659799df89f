//! Replication: two protocols behind one contract.
//!
//! [`raft`] replicates to a majority under an elected leader, and [`chain`] along a chain from head
//! to tail. Both implement [`Protocol`] and return [`Effects`]. They are synchronous and
//! deterministic: the caller passes in time, randomness and messages, and this crate does not send,
//! write or wait. [`Peers`] monitors the shards of the other replicas, for all groups at once.
//!
//! Invariants of both protocols:
//! - An entry is handed out as committed once, in index order. No replica ever hands out a
//!   different entry at the same index.
//! - An entry that any replica handed out as committed survives the crash of any minority (Raft) or
//!   of all but one member (chain), even if the crashed replicas lose everything that was not
//!   synced.
//! - A read that was released sees every write that was acknowledged before the read began.
//!
//! `raft` and `chain` do not depend on each other, and neither interprets the payload of commands.

pub mod chain;
mod codec;
mod contract;
mod entry_log;
mod fault;
mod liveness;
mod members;
mod quorum;
pub mod raft;

pub use contract::{
    After, Append, Context, Effects, Entry, EntryKind, Membership, Outgoing, Protocol,
    RECORD_OVERHEAD_BYTES, RecoveredGroup, RecoveredSnapshot, Refusal, SnapshotPart,
};
pub use fault::{Planted, ProtocolFault};
pub use liveness::{Heartbeat, PeerTiming, Peers, Revocation, Revoked};
pub use members::Members;
