//! What a node tells of itself. Cold: encoded with postcard, shown as JSON.

use bytes::Bytes;
use palisade_clock::Voucher;
use serde::{Deserialize, Serialize};

use crate::{Mode, NodeId, PeerAddress, RangeId, WireError};

/// The state of a node: what its shards told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// The node.
    pub node: NodeId,
    /// Its shards, in order.
    pub shards: Vec<ShardStatus>,
}

/// The state of one shard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardStatus {
    /// Where.
    pub at: PeerAddress,
    /// Whether its replicas take part.
    pub admission: Admission,
    /// Syncs of the log since the start.
    pub log_syncs: u64,
    /// Entries written to the log since the start.
    pub log_entries: u64,
    /// Bytes appended to the log since the start, record headers included.
    pub log_bytes: u64,
    /// Bytes that the log may still grow by.
    pub log_left_bytes: u64,
    /// Requests answered since the start.
    pub requests: u64,
    /// The wall clock is right to within so many microseconds, as far as the node knows.
    pub clock_bound_us: u64,
    /// Who says so.
    pub clock_voucher: Voucher,
    /// Messages dropped because their sender's clock was too far ahead.
    pub clock_rejections: u64,
    /// The replicas on this shard.
    pub ranges: Vec<RangeStatus>,
}

/// Whether a shard's replicas take part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Admission {
    /// Not yet: its start, or its first contact with its peers, is under way.
    Joining,
    /// They do.
    Admitted,
    /// They never will: its peers know another log at this address, which was lost.
    Refused,
}

/// The state of one replica.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RangeStatus {
    /// The range.
    pub range: RangeId,
    /// How it is replicated.
    pub mode: Mode,
    /// What the replica does in it.
    pub role: Role,
    /// The Raft term, or the chain epoch.
    pub term: u64,
    /// The epoch of the installed membership.
    pub epoch: u64,
    /// Index of the last entry in the log.
    pub last_index: u64,
    /// Index of the last entry known to be committed.
    pub commit_index: u64,
    /// Whether the replica can do its part now.
    pub ready: bool,
}

/// What a replica does in its range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Raft: follows a leader, or waits for one.
    Follower,
    /// Raft: gets the entries, and has no vote.
    Learner,
    /// Raft: asks for votes.
    Candidate,
    /// Raft: orders the writes and serves the reads.
    Leader,
    /// Chain: orders the writes.
    Head,
    /// Chain: passes them on.
    Middle,
    /// Chain: commits the writes and serves the reads.
    Tail,
    /// Chain: head and tail in one.
    Single,
    /// No member any more, or not yet.
    Removed,
}

impl ShardStatus {
    /// The encoding in a response.
    pub fn to_bytes(&self) -> Bytes {
        postcard::to_stdvec(self).expect("a status always encodes").into()
    }

    /// Reads what [`ShardStatus::to_bytes`] wrote.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, WireError> {
        Ok(postcard::from_bytes(bytes)?)
    }
}
