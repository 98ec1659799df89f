//! The information by which a client routes requests: the nodes' addresses and the range map.

use std::net::SocketAddr;

use bytes::Bytes;
use palisade_clock::Timestamp;
use palisade_wire::{NodeId, PeerAddress, WireError, decode_cold};
use serde::{Deserialize, Serialize};

use crate::RangeMap;

/// The addresses for clients of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeAddress {
    /// The id of the node.
    pub node: NodeId,
    /// One address per shard, in the order of the shards.
    pub client: Vec<SocketAddr>,
}

/// A cluster, as one of its shards knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Topology {
    /// The id of the cluster.
    pub cluster_id: u64,
    /// The nodes, with their addresses for clients.
    pub nodes: Vec<NodeAddress>,
    /// The range map.
    pub ranges: RangeMap,
    /// The reading of the shard's clock for this topology, or `None` if its error bound is too
    /// large. Clients compute the expiry of their requests from it.
    pub now_ts: Option<Timestamp>,
}

impl Topology {
    /// Returns the address for clients of a shard, or `None` if the shard is unknown.
    pub fn client_address(&self, at: PeerAddress) -> Option<SocketAddr> {
        let node = self.nodes.iter().find(|node| node.node == at.node)?;
        node.client.get(usize::from(at.shard.0)).copied()
    }

    /// Encodes the topology for a response.
    pub fn to_bytes(&self) -> Bytes {
        postcard::to_stdvec(self).expect("a topology always encodes").into()
    }

    /// Decodes the output of [`Topology::to_bytes`].
    ///
    /// # Errors
    ///
    /// [`WireError`] if the bytes are no topology. Not retryable.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, WireError> {
        let topology: Self = decode_cold(bytes)?;
        topology.ranges.check()?;
        Ok(topology)
    }
}
