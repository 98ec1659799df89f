//! The messages that shards of different nodes exchange, and their encoding.

use bytes::{BufMut, Bytes, BytesMut};
use palisade_clock::Timestamp;
use palisade_replication::{Heartbeat, SnapshotPart, chain, raft};
use palisade_wire::{Decode, Encode, RangeId, Reader, Request, Response, WireError};

/// A message from one shard to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerMessage {
    /// The sender's session: the number of its start.
    pub session: u64,
    /// The sender's hybrid logical clock.
    pub sent_ts: Timestamp,
    /// The content.
    pub body: PeerBody,
}

/// The content of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerBody {
    /// State of the sending shard, with a heartbeat.
    Hello(Hello),
    /// A message of a Raft group.
    Raft {
        /// The range of both replicas.
        range: RangeId,
        /// The protocol's message.
        message: raft::Message,
    },
    /// A message of a chain.
    Chain {
        /// The range of both replicas.
        range: RangeId,
        /// The protocol's message.
        message: chain::Message,
    },
    /// A message of a snapshot transfer.
    Snapshot {
        /// The range of both replicas.
        range: RangeId,
        /// A part, or an acknowledgement.
        message: SnapshotMessage,
    },
    /// A message about the safe time of a range.
    SafeTime {
        /// The range of both replicas.
        range: RangeId,
        /// The question, or the answer.
        message: SafeTimeMessage,
    },
    /// Changed range descriptors, encoded, for a receiver whose range map is older.
    Ranges(Bytes),
    /// A request of a client that the sender passes on.
    Request {
        /// The session of the receiver, as the sender knows it.
        to_session: u64,
        /// The request, under an id that the sender uses once, in this and all later sessions.
        request: Request,
    },
    /// The response to a request that the receiver has passed on.
    Response(Response),
}

impl PeerBody {
    /// Returns the range that the content is about, or `None` if it is about the whole shard.
    pub(crate) fn range(&self) -> Option<RangeId> {
        match self {
            Self::Raft { range, .. }
            | Self::Chain { range, .. }
            | Self::Snapshot { range, .. }
            | Self::SafeTime { range, .. } => Some(*range),
            Self::Hello(_) | Self::Ranges(_) | Self::Request { .. } | Self::Response(_) => None,
        }
    }

    /// Removes the entries after the first one from a Raft message, as far as they take more than
    /// `max_bytes`.
    pub(crate) fn keep_entries(&mut self, max_bytes: usize) {
        if let Self::Raft { message, .. } = self {
            message.body.keep_entries(Some(max_bytes));
        }
    }

    /// Returns about how many bytes the content takes in the log of the receiver.
    pub(crate) fn log_bytes(&self) -> u64 {
        match self {
            Self::Raft { message, .. } => message.body.log_bytes(),
            Self::Chain { message, .. } => message.body.log_bytes(),
            Self::Snapshot { message: SnapshotMessage::Part { part, .. }, .. } => {
                part.payload.len() as u64
            }
            Self::Request { request, .. } => request.operation.bytes() as u64,
            Self::Hello(_)
            | Self::Ranges(_)
            | Self::Snapshot { .. }
            | Self::SafeTime { .. }
            | Self::Response(_) => 0,
        }
    }

    /// Returns true if the receiver writes the content to its log.
    pub(crate) fn is_to_be_written(&self) -> bool {
        match self {
            Self::Raft { message, .. } => message.body.has_entries(),
            Self::Chain { message, .. } => message.body.has_entries(),
            Self::Snapshot { message, .. } => matches!(message, SnapshotMessage::Part { .. }),
            // The shard decides about the room when it serves a request.
            Self::Hello(_)
            | Self::Ranges(_)
            | Self::SafeTime { .. }
            | Self::Request { .. }
            | Self::Response(_) => false,
        }
    }
}

/// State that two shards exchange periodically.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Checksum of the shape of the sender's cluster. Another shape is another cluster.
    pub shape_checksum: u32,
    /// Random number drawn when the sender's log was created.
    pub incarnation: u64,
    /// The incarnation that the sender has durably registered for the receiver, or 0.
    pub registered: u64,
    /// Number of changes in the sender's range map.
    pub ranges_version: u64,
    /// The heartbeat, for all groups that the two shards share.
    pub heartbeat: Heartbeat,
}

/// A message of a snapshot transfer from one replica to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SnapshotMessage {
    /// A part of the snapshot.
    Part {
        /// Identifies the transfer.
        stream: u64,
        /// The part.
        part: SnapshotPart,
    },
    /// Acknowledges the first `parts` parts.
    Received {
        /// The transfer that this acknowledges.
        stream: u64,
        /// Number of parts received without gaps.
        parts: u32,
        /// True if the snapshot is installed durably, or was not needed.
        done: bool,
    },
}

/// Messages between a follower that serves reads at timestamps and the replica that sequences the
/// writes. An answer never becomes invalid, so it need not match a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SafeTimeMessage {
    /// Asks for the safe time.
    Ask,
    /// With all entries up to `index` applied, the state up to `closed_ts` is complete.
    Answer {
        /// The last index that must be applied.
        index: u64,
        /// The new safe time.
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
            PeerBody::Request { to_session, request } => {
                out.put_u8(7);
                out.put_u64_le(*to_session);
                request.encode(out);
            }
            PeerBody::Response(response) => {
                out.put_u8(8);
                response.encode(out);
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
            7 => PeerBody::Request { to_session: reader.u64()?, request: Request::decode(reader)? },
            8 => PeerBody::Response(Response::decode(reader)?),
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
                    index: reader.count()?,
                    term: reader.count()?,
                    part: reader.u32()?,
                    last: reader.bool()?,
                    payload: reader.payload()?,
                };
                if part.part == 0 && part.last {
                    return Err(WireError::Invalid("a snapshot has no state"));
                }
                Ok(Self::Part { stream, part })
            }
            2 => Ok(Self::Received { stream, parts: reader.u32()?, done: reader.bool()? }),
            tag => Err(WireError::UnknownTag { what: "snapshot message", tag }),
        }
    }
}
