//! The first frames of a connection, which identify the cluster and the shards at both ends.
//!
//! Without them, a client with an outdated address could be served by the wrong cluster. So could a
//! client that reaches a second process on a shared port.

use bytes::{BufMut, BytesMut};

use crate::{Decode, Encode, PeerAddress, Reader, WireError};

/// A client's first frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientHello {
    /// The cluster that the client expects, or `None` if it accepts any cluster.
    pub cluster_id: Option<u64>,
}

/// The server's answer to a [`ClientHello`]. If the client expects another cluster, the server
/// closes the connection without an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerHello {
    /// The server's cluster.
    pub cluster_id: u64,
    /// The shard that serves this connection.
    pub at: PeerAddress,
}

/// A peer's first frame. It gets no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerHello {
    /// The peer's cluster.
    pub cluster_id: u64,
    /// The shard that opened the connection.
    pub from: PeerAddress,
    /// The shard that it expects at the other end.
    pub to: PeerAddress,
}

impl Encode for ClientHello {
    fn encode(&self, out: &mut BytesMut) {
        out.put_u8(u8::from(self.cluster_id.is_some()));
        out.put_u64_le(self.cluster_id.unwrap_or(0));
    }
}

impl Decode for ClientHello {
    fn decode(reader: &mut Reader) -> Result<Self, WireError> {
        match (reader.bool()?, reader.u64()?) {
            (true, cluster_id) => Ok(Self { cluster_id: Some(cluster_id) }),
            (false, 0) => Ok(Self { cluster_id: None }),
            (false, _) => Err(WireError::NotZero("a cluster id that is not given")),
        }
    }
}

impl Encode for ServerHello {
    fn encode(&self, out: &mut BytesMut) {
        out.put_u64_le(self.cluster_id);
        self.at.encode(out);
    }
}

impl Decode for ServerHello {
    fn decode(reader: &mut Reader) -> Result<Self, WireError> {
        Ok(Self { cluster_id: reader.u64()?, at: PeerAddress::decode(reader)? })
    }
}

impl Encode for PeerHello {
    fn encode(&self, out: &mut BytesMut) {
        out.put_u64_le(self.cluster_id);
        self.from.encode(out);
        self.to.encode(out);
    }
}

impl Decode for PeerHello {
    fn decode(reader: &mut Reader) -> Result<Self, WireError> {
        Ok(Self {
            cluster_id: reader.u64()?,
            from: PeerAddress::decode(reader)?,
            to: PeerAddress::decode(reader)?,
        })
    }
}
