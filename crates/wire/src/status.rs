//! The status that a node reports. It is requested rarely: encoded with postcard, shown as JSON.

use std::collections::BTreeMap;

use bytes::Bytes;
use palisade_clock::BoundSource;
use serde::{Deserialize, Serialize};

use crate::{Durations, Mode, NodeId, PeerAddress, RangeId, WireError, codec::decode_cold};

/// The status of a node: the reports of its shards.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// The id of the node.
    pub node: NodeId,
    /// The status of each shard, in the order of their ids.
    pub shards: Vec<ShardStatus>,
}

/// The status of one shard. Counters start at zero when the shard starts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardStatus {
    /// The address of the shard.
    pub at: PeerAddress,
    /// Whether its replicas take part in replication.
    pub admission: Admission,
    /// Syncs of the log.
    pub log_syncs: u64,
    /// Records appended to the log, of all kinds.
    pub log_entries: u64,
    /// Bytes appended to the log, including record headers.
    pub log_bytes: u64,
    /// Bytes by which the log may still grow.
    pub log_left_bytes: u64,
    /// Bytes of log that a rewrite of all data takes.
    pub state_bytes: u64,
    /// Requests received from clients.
    pub requests: u64,
    /// Rejected requests, by the name of the reason.
    pub rejections: BTreeMap<String, u64>,
    /// How long requests have spent in each stage.
    pub stages: BTreeMap<Stage, Durations>,
    /// Entries applied.
    pub applied_entries: u64,
    /// Committed entries that are not applied.
    pub unapplied_entries: u64,
    /// For how long the oldest commit of a client has waited to be applied since it was ordered
    /// here, in microseconds. 0 if there is none.
    pub oldest_commit_us: u64,
    /// Bound on the error of the wall clock, in microseconds.
    pub clock_bound_us: u64,
    /// The source of `clock_bound_us`.
    pub clock_bound_source: BoundSource,
    /// Peer messages dropped because their timestamp was too far ahead of this node's clock.
    pub clock_rejections: u64,
    /// The links to other shards.
    pub peers: Vec<PeerStatus>,
    /// The replicas on this shard.
    pub ranges: Vec<RangeStatus>,
}

/// A stage of a request, or of the work behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Stage {
    /// From the first turn that finds the request until a turn takes it. While a turn is late, the
    /// request waits before that, in the socket.
    Queue,
    /// Until the locks that others hold are free.
    LockWait,
    /// A sync of the log, which covers the entries of many requests.
    LogSync,
    /// From the moment that an entry has its place in the log until it is applied.
    Replicate,
    /// From the arrival of a read until it is answered.
    Read,
    /// Until the timestamp of an answer has passed.
    CommitWait,
}

impl Stage {
    /// Returns the name in metrics, in `snake_case`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Queue => "queue",
            Self::LockWait => "lock_wait",
            Self::LogSync => "log_sync",
            Self::Replicate => "replicate",
            Self::Read => "read",
            Self::CommitWait => "commit_wait",
        }
    }
}

/// The link to one other shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerStatus {
    /// The address of the other shard.
    pub at: PeerAddress,
    /// How long ago the latest heartbeat was sent that the peer has echoed, in microseconds. `None`
    /// if it has echoed none.
    pub silent_us: Option<u64>,
    /// The most entries of a range that the peer has not confirmed: to its Raft leader, or to the
    /// member before it in a chain.
    pub lag_entries: u64,
    /// About how many bytes these entries take.
    pub lag_bytes: u64,
}

/// Whether a shard's replicas take part in replication.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Admission {
    /// Not yet: the shard is starting, or too few peers have registered it.
    Joining,
    /// The replicas take part.
    Admitted,
    /// Never: peers know an earlier log at this address, so that log was lost.
    Refused,
}

/// The status of one replica.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RangeStatus {
    /// The id of the range.
    pub range: RangeId,
    /// How the range is replicated.
    pub mode: Mode,
    /// The role of the replica.
    pub role: Role,
    /// The Raft term, or the chain epoch.
    pub term: u64,
    /// The latest epoch of the range's membership that this replica knows.
    pub epoch: u64,
    /// Index of the last entry in the log.
    pub last_index: u64,
    /// Index of the last entry known to be committed.
    pub commit_index: u64,
    /// Raft: true if a leader is known and heard. Chain: true if the replica's links are up and all
    /// members are heard.
    pub ready: bool,
}

/// The role of a replica in its range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Raft: replicates the leader's log, or waits for a leader.
    Follower,
    /// Raft: receives the entries, and has no vote.
    Learner,
    /// Raft: requests votes.
    Candidate,
    /// Raft: sequences the writes and serves current reads.
    Leader,
    /// Chain: sequences the writes and serves strictly serializable reads.
    Head,
    /// Chain: forwards the writes to the next member.
    Middle,
    /// Chain: commits the writes and serves reads that are linearizable for one key.
    Tail,
    /// Chain: both head and tail, the only member.
    Single,
    /// Not a member: removed, or not added yet.
    Removed,
}

impl ShardStatus {
    /// Returns the encoding of [`Outcome::Status`](crate::Outcome::Status).
    pub fn to_bytes(&self) -> Bytes {
        postcard::to_stdvec(self).expect("a status always encodes").into()
    }

    /// Decodes the result of [`ShardStatus::to_bytes`].
    ///
    /// # Errors
    ///
    /// [`WireError::Cold`] if `bytes` are not a valid status. Not retryable.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, WireError> {
        decode_cold(bytes)
    }
}
