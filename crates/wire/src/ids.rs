//! Identifiers that several processes share.

use std::fmt;

use bytes::{BufMut, BytesMut};
use serde::{Deserialize, Serialize};

use crate::{Decode, Encode, Reader, WireError};

/// A node of the cluster: one process with its own data directory.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default,
)]
#[serde(transparent)]
pub struct NodeId(pub u16);

/// A shard of a node: the data, log and sockets that one core serves.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default,
)]
#[serde(transparent)]
pub struct ShardId(pub u16);

/// A range of the key space. Range 0 belongs to the control plane.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default,
)]
#[serde(transparent)]
pub struct RangeId(pub u32);

impl RangeId {
    /// The control plane's range, which holds the range map.
    pub const CONTROL: Self = Self(0);
}

/// The address of a replica: a node and one of its shards.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default,
)]
pub struct PeerAddress {
    /// The id of the node.
    pub node: NodeId,
    /// The id of the shard within the node.
    pub shard: ShardId,
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "n{}", self.0)
    }
}

impl fmt::Display for RangeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "r{}", self.0)
    }
}

impl fmt::Display for PeerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "n{}.{}", self.node.0, self.shard.0)
    }
}

/// A client's session: a random 64-bit number, so that no two sessions share an id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SessionId(pub u64);

/// Identifies a transaction. Chosen before the first try; for a commit it is the idempotency key,
/// and the same on every try.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TxnId {
    /// The session that chose the id.
    pub session: SessionId,
    /// Increases with each id of the session.
    pub sequence: u64,
}

/// How a range is replicated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Raft: an elected leader commits each entry once a majority of the voters holds it.
    Raft,
    /// Chain replication: the writes pass from the head to the tail, which commits them.
    Chain,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Raft => "raft",
            Self::Chain => "chain",
        })
    }
}

impl Encode for PeerAddress {
    fn encode(&self, out: &mut BytesMut) {
        out.put_u16_le(self.node.0);
        out.put_u16_le(self.shard.0);
    }
}

impl Decode for PeerAddress {
    fn decode(reader: &mut Reader) -> Result<Self, WireError> {
        Ok(Self { node: NodeId(reader.u16()?), shard: ShardId(reader.u16()?) })
    }
}

impl Encode for TxnId {
    fn encode(&self, out: &mut BytesMut) {
        out.put_u64_le(self.session.0);
        out.put_u64_le(self.sequence);
    }
}

impl Decode for TxnId {
    fn decode(reader: &mut Reader) -> Result<Self, WireError> {
        Ok(Self { session: SessionId(reader.u64()?), sequence: reader.u64()? })
    }
}
