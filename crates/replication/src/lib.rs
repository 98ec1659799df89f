//! Replication: two protocols behind one contract.
//!
//! [`raft`] replicates by a majority under an elected leader; [`chain`] along a chain from head to
//! tail. Both take the inputs of [`Protocol`] and answer with [`Effects`]. They are synchronous
//! and deterministic: time, randomness and messages are handed in, and nothing here sends, writes
//! or waits. [`Peers`] watches the shards that the other replicas live on, for all groups at once.
//!
//! Invariants, of both modes:
//! - An entry is handed out as committed once, in index order, and no replica ever hands out
//!   another one at the same index.
//! - What was handed out as committed by any replica survives the crash of any minority (Raft) or
//!   of all but one member (chain), with the loss of everything that was not synced.
//! - A read that was let through sees every write that was acknowledged before the read began.
//!
//! `raft` and `chain` do not know each other, and neither knows what its entries mean.

pub mod chain;
mod codec;
mod contract;
mod entry_log;
mod fault;
mod members;
mod peers;
mod quorum;
pub mod raft;

pub use contract::{
    After, Append, Context, Effects, Entry, EntryKind, Membership, Protocol, RecoveredGroup,
    RecoveredSnapshot, Refusal, Send, SnapshotPart,
};
pub use fault::ProtocolFault;
pub use members::Members;
pub use peers::{Heartbeat, PeerTiming, Peers, Revocation, Revoked};
