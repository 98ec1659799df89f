//! What a client needs to find its way: the nodes' addresses and the range map.

use std::net::SocketAddr;

use bytes::Bytes;
use palisade_clock::Timestamp;
use palisade_wire::{NodeId, PeerAddress, WireError};
use serde::{Deserialize, Serialize};

use crate::RangeMap;

/// Where a node's clients connect.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeAddress {
    /// The node.
    pub node: NodeId,
    /// One address per shard, in their order.
    pub client: Vec<SocketAddr>,
}

/// A cluster, as one of its shards knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Topology {
    /// The cluster.
    pub cluster_id: u64,
    /// Its nodes.
    pub nodes: Vec<NodeAddress>,
    /// Its ranges.
    pub ranges: RangeMap,
    /// What the shard's clock showed when it was asked, unless that is too unsure. Clients tell
    /// from it when their requests expire.
    pub now_ts: Option<Timestamp>,
}

impl Topology {
    /// Where clients of a shard connect.
    pub fn client_address(&self, at: PeerAddress) -> Option<SocketAddr> {
        let node = self.nodes.iter().find(|node| node.node == at.node)?;
        node.client.get(usize::from(at.shard.0)).copied()
    }

    /// The encoding in a response.
    pub fn to_bytes(&self) -> Bytes {
        postcard::to_stdvec(self).expect("a topology always encodes").into()
    }

    /// Reads what [`Topology::to_bytes`] wrote.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, WireError> {
        Ok(postcard::from_bytes(bytes)?)
    }
}
