//! What shards of different nodes send each other.

use bytes::{BufMut, Bytes, BytesMut};
use palisade_clock::Timestamp;
use palisade_replication::{Heartbeat, SnapshotPart, chain, raft};
use palisade_wire::{Decode, Encode, RangeId, Reader, WireError};

/// A message from shard to shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerMessage {
    /// Which life of the sender this is from.
    pub session: u64,
    /// The sender's hybrid clock.
    pub sent_ts: Timestamp,
    /// The rest.
    pub body: PeerBody,
}

/// What a message is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerBody {
    /// The shards themselves.
    Hello(Hello),
    /// A Raft group.
    Raft {
        /// The range of both replicas.
        range: RangeId,
        /// What the protocol says.
        message: raft::Message,
    },
    /// A chain.
    Chain {
        /// The range of both replicas.
        range: RangeId,
        /// What the protocol says.
        message: chain::Message,
    },
    /// A snapshot on its way.
    Snapshot {
        /// The range of both replicas.
        range: RangeId,
        /// Where it stands.
        message: SnapshotMessage,
    },
    /// Up to when a replica knows everything.
    SafeTime {
        /// The range of both replicas.
        range: RangeId,
        /// The question, or the answer.
        message: SafeTimeMessage,
    },
    /// Ranges that have changed, encoded by the control plane: the receiver's map lacks something.
    Ranges(Bytes),
}

impl PeerBody {
    /// Whether it is there to be written to the receiver's log.
    pub(crate) fn is_to_be_written(&self) -> bool {
        match self {
            Self::Raft { message, .. } => message.body.has_entries(),
            Self::Chain { message, .. } => message.body.has_entries(),
            Self::Snapshot { message, .. } => matches!(message, SnapshotMessage::Part { .. }),
            Self::Hello(_) | Self::Ranges(_) | Self::SafeTime { .. } => false,
        }
    }
}

/// What two shards tell each other over and over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Of the shape in which the sender's cluster was created: another one is another cluster.
    pub shape_checksum: u32,
    /// Drawn when the sender's log was made.
    pub incarnation: u64,
    /// The incarnation under which the sender knows the receiver, durably; or 0.
    pub registered: u64,
    /// How many changes the sender's range map has seen.
    pub ranges_version: u64,
    /// For all groups that the two share.
    pub heartbeat: Heartbeat,
}

/// A snapshot on its way from one replica to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SnapshotMessage {
    /// The next part.
    Part {
        /// Tells one transfer from another.
        stream: u64,
        /// The part.
        part: SnapshotPart,
    },
    /// So many parts have arrived, in order.
    Received {
        /// The stream that this answers.
        stream: u64,
        /// How many.
        parts: u32,
        /// Whether the whole is installed, durably, or was not needed.
        done: bool,
    },
}

/// What a replica that answers reads of the past and the one that orders the writes tell each
/// other. An answer holds for ever, whichever question it answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SafeTimeMessage {
    /// Up to when is everything ordered?
    Ask,
    /// Whoever has applied all entries up to an index knows everything up to a timestamp.
    Answer {
        /// The index.
        index: u64,
        /// The timestamp.
        closed_ts: Timestamp,
    },
}

impl Encode for PeerMessage {
    fn encode(&self, out: &mut BytesMut) {
        out.put_u64_le(self.session);
        out.put_u64_le(self.sent_ts.to_bits());
        match &self.body {
            PeerBody::Raft { range, message } => {
                out.put_u8(1);
                out.put_u32_le(range.0);
                message.encode(out);
            }
            PeerBody::Chain { range, message } => {
                out.put_u8(2);
                out.put_u32_le(range.0);
                message.encode(out);
            }
            PeerBody::Hello(hello) => {
                out.put_u8(3);
                out.put_u32_le(hello.shape_checksum);
                out.put_u64_le(hello.incarnation);
                out.put_u64_le(hello.registered);
                out.put_u64_le(hello.ranges_version);
                hello.heartbeat.encode(out);
            }
            PeerBody::Snapshot { range, message } => {
                out.put_u8(4);
                out.put_u32_le(range.0);
                message.encode(out);
            }
            PeerBody::Ranges(descriptors) => {
                out.put_u8(5);
                descriptors.encode(out);
            }
            PeerBody::SafeTime { range, message } => {
                out.put_u8(6);
                out.put_u32_le(range.0);
                match message {
                    SafeTimeMessage::Ask => out.put_u8(1),
                    SafeTimeMessage::Answer { index, closed_ts } => {
                        out.put_u8(2);
                        out.put_u64_le(*index);
                        out.put_u64_le(closed_ts.to_bits());
                    }
                }
            }
        }
    }
}

impl Decode for PeerMessage {
    fn decode(reader: &mut Reader) -> Result<Self, WireError> {
        let session = reader.u64()?;
        let sent_ts = Timestamp::from_bits(reader.u64()?);
        let body = match reader.u8()? {
            1 => PeerBody::Raft {
                range: RangeId(reader.u32()?),
                message: raft::Message::decode(reader)?,
            },
            2 => PeerBody::Chain {
                range: RangeId(reader.u32()?),
                message: chain::Message::decode(reader)?,
            },
            3 => PeerBody::Hello(Hello {
                shape_checksum: reader.u32()?,
                incarnation: reader.u64()?,
                registered: reader.u64()?,
                ranges_version: reader.u64()?,
                heartbeat: Heartbeat::decode(reader)?,
            }),
            4 => PeerBody::Snapshot {
                range: RangeId(reader.u32()?),
                message: SnapshotMessage::decode(reader)?,
            },
            5 => PeerBody::Ranges(reader.bytes()?),
            6 => PeerBody::SafeTime {
                range: RangeId(reader.u32()?),
                message: match reader.u8()? {
                    1 => SafeTimeMessage::Ask,
                    2 => SafeTimeMessage::Answer {
                        index: reader.u64()?,
                        closed_ts: Timestamp::from_bits(reader.u64()?),
                    },
                    tag => return Err(WireError::UnknownTag { what: "safe time message", tag }),
                },
            },
            tag => return Err(WireError::UnknownTag { what: "peer message", tag }),
        };
        Ok(Self { session, sent_ts, body })
    }
}

impl Encode for SnapshotMessage {
    fn encode(&self, out: &mut BytesMut) {
        match self {
            Self::Part { stream, part } => {
                out.put_u8(1);
                out.put_u64_le(*stream);
                out.put_u64_le(part.index);
                out.put_u64_le(part.term);
                out.put_u32_le(part.part);
                out.put_u8(u8::from(part.last));
                part.payload.encode(out);
            }
            Self::Received { stream, parts, done } => {
                out.put_u8(2);
                out.put_u64_le(*stream);
                out.put_u32_le(*parts);
                out.put_u8(u8::from(*done));
            }
        }
    }
}

impl Decode for SnapshotMessage {
    fn decode(reader: &mut Reader) -> Result<Self, WireError> {
        let tag = reader.u8()?;
        let stream = reader.u64()?;
        match tag {
            1 => {
                let part = SnapshotPart {
                    index: reader.u64()?,
                    term: reader.u64()?,
                    part: reader.u32()?,
                    last: reader.u8()? != 0,
                    // A copy: it outlives the buffer that everything arrived in.
                    payload: Bytes::copy_from_slice(&reader.bytes()?),
                };
                Ok(Self::Part { stream, part })
            }
            2 => Ok(Self::Received { stream, parts: reader.u32()?, done: reader.u8()? != 0 }),
            tag => Err(WireError::UnknownTag { what: "snapshot message", tag }),
        }
    }
}
