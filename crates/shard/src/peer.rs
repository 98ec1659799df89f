//! What shards of different nodes send each other.

use bytes::{BufMut, BytesMut};
use palisade_clock::Timestamp;
use palisade_replication::{chain, raft};
use palisade_wire::{Decode, Encode, RangeId, Reader, WireError};

/// A message from replica to replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerMessage {
    /// The range of both replicas.
    pub range: RangeId,
    /// The sender's hybrid clock.
    pub sent_ts: Timestamp,
    /// The rest.
    pub body: PeerBody,
}

/// A message of either protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerBody {
    /// Of a Raft group.
    Raft(raft::Message),
    /// Of a chain.
    Chain(chain::Message),
}

impl Encode for PeerMessage {
    fn encode(&self, out: &mut BytesMut) {
        out.put_u32_le(self.range.0);
        out.put_u64_le(self.sent_ts.to_bits());
        match &self.body {
            PeerBody::Raft(message) => {
                out.put_u8(1);
                message.encode(out);
            }
            PeerBody::Chain(message) => {
                out.put_u8(2);
                message.encode(out);
            }
        }
    }
}

impl Decode for PeerMessage {
    fn decode(reader: &mut Reader) -> Result<Self, WireError> {
        let range = RangeId(reader.u32()?);
        let sent_ts = Timestamp::from_bits(reader.u64()?);
        let body = match reader.u8()? {
            1 => PeerBody::Raft(raft::Message::decode(reader)?),
            2 => PeerBody::Chain(chain::Message::decode(reader)?),
            tag => return Err(WireError::UnknownTag { what: "replication protocol", tag }),
        };
        Ok(Self { range, sent_ts, body })
    }
}
