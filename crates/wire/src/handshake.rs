//! The first frame of each side of a connection: who is there, and of which cluster.
//!
//! Without it a client with an old address, or a second process that shares the port, would be
//! served by the wrong cluster.

use bytes::{BufMut, BytesMut};

use crate::{Decode, Encode, PeerAddress, Reader, WireError};

/// A client's first frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientHello {
    /// The cluster that the client expects, or `None` if it takes whichever answers.
    pub cluster_id: Option<u64>,
}

/// The server's answer; a client of another cluster gets no answer, but a closed connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerHello {
    /// The cluster that answers.
    pub cluster_id: u64,
    /// The shard that answers.
    pub at: PeerAddress,
}

/// A peer's first frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerHello {
    /// The cluster that the peer belongs to.
    pub cluster_id: u64,
    /// The shard that speaks.
    pub from: PeerAddress,
    /// The shard that it means to reach.
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
        let named = reader.bool()?;
        let cluster_id = reader.u64()?;
        Ok(Self { cluster_id: named.then_some(cluster_id) })
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
