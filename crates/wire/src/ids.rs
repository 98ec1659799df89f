//! Names of things that several processes speak of.

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

/// A shard of a node: one core's worth of data, log and sockets.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default,
)]
#[serde(transparent)]
pub struct ShardId(pub u16);

/// A range of the key space. Range 0 is the control plane's own.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default,
)]
#[serde(transparent)]
pub struct RangeId(pub u32);

impl RangeId {
    /// The range that holds the range map itself.
    pub const CONTROL: Self = Self(0);
}

/// Where a replica lives.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default,
)]
pub struct PeerAddress {
    /// The node.
    pub node: NodeId,
    /// The shard of that node.
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

/// A client's session: drawn at random when the client starts, so that two are never the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SessionId(pub u64);

/// A transaction, named before its first send; the name is its idempotency key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TxnId {
    /// Whose.
    pub session: SessionId,
    /// Which of the session's, rising.
    pub sequence: u64,
}

/// How a range is replicated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// By a majority, with an elected leader.
    Raft,
    /// Along a chain, from its head to its tail.
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
