//! Requests of clients.

use bytes::{BufMut, Bytes, BytesMut};
use palisade_clock::Timestamp;

use crate::{
    CommitRequest, Decode, Encode, LockClaim, PeerAddress, RangeId, ReadKind, Reader, ScanRequest,
    WireError, codec::put_bytes,
};

/// A client's request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Identifies the request on its connection. The response carries the same id.
    pub request_id: u64,
    /// How long the client waits for the response from when it sends the request, in microseconds.
    /// A shard may reject the request as overloaded after that. `u32::MAX` for no limit.
    pub limit_us: u32,
    /// True if a shard that does not serve the request may pass it on to the one that does: the
    /// client cannot reach that one.
    pub may_forward: bool,
    /// The requested operation.
    pub operation: Operation,
}

impl Request {
    /// Returns a request without a time limit, which must not be passed on.
    pub fn new(request_id: u64, operation: Operation) -> Self {
        Self { request_id, limit_us: u32::MAX, may_forward: false, operation }
    }
}

/// An operation that a client requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Commits writes in one range.
    Commit {
        /// The range that holds all keys.
        range: RangeId,
        /// The conditions and writes.
        request: CommitRequest,
        /// The claim of the transaction whose locks the commit relies on, if any.
        claim: Option<LockClaim>,
    },
    /// Reads one key.
    Get {
        /// The range that holds the key.
        range: RangeId,
        /// The key.
        key: Bytes,
        /// The consistency of the read.
        kind: ReadKind,
    },
    /// Reads a page of keys.
    Scan {
        /// The span and the size of the page.
        scan: ScanRequest,
        /// The consistency of the read.
        kind: ReadKind,
    },
    /// Ends a transaction without a commit, and releases its locks.
    Rollback {
        /// The range in which it holds locks.
        range: RangeId,
        /// The claim of the transaction.
        claim: LockClaim,
    },
    /// Protects the versions that a read at this timestamp sees, in every range of this shard, from
    /// garbage collection for a few seconds.
    KeepVersions {
        /// The timestamp of the client's oldest open snapshot.
        at_ts: Timestamp,
    },
    /// Fetches the range map that this shard knows.
    RangeMap,
    /// Fetches the status of this shard.
    Status,
    /// Changes the range map. The control plane defines the encoding.
    Control(Bytes),
    /// Changes the leader or the members of a range in Raft mode.
    Replicas {
        /// The range.
        range: RangeId,
        /// The change.
        change: ReplicaChange,
    },
}

impl Operation {
    /// Returns the bytes of its keys and values.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Commit { request, .. } => request.commit.bytes(),
            Self::Get { key, .. } => key.len(),
            Self::Scan { scan, .. } => scan.begin.len() + scan.end.as_ref().map_or(0, Bytes::len),
            Self::Control(change) => change.len(),
            _ => 0,
        }
    }

    /// Returns true if only administrators may request it.
    pub fn is_administrative(&self) -> bool {
        matches!(self, Self::Control(_) | Self::Replicas { .. })
    }
}

/// A change of the leader or the members of a range in Raft mode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReplicaChange {
    /// Transfers leadership.
    Transfer {
        /// The next leader: one of the voters.
        to: PeerAddress,
    },
    /// Replaces the voters and learners. A new voter must be a learner that has caught up.
    Members {
        /// The replicas that vote.
        voters: Vec<PeerAddress>,
        /// The replicas that receive the entries, and do not vote.
        learners: Vec<PeerAddress>,
    },
}

impl Encode for Request {
    fn encode(&self, out: &mut BytesMut) {
        out.put_u64_le(self.request_id);
        out.put_u32_le(self.limit_us);
        out.put_u8(u8::from(self.may_forward));
        match &self.operation {
            Operation::Commit { range, request, claim } => {
                out.put_u8(1);
                out.put_u32_le(range.0);
                request.encode(out);
                out.put_u8(u8::from(claim.is_some()));
                if let Some(claim) = claim {
                    claim.encode(out);
                }
            }
            Operation::Get { range, key, kind } => {
                out.put_u8(2);
                out.put_u32_le(range.0);
                put_bytes(out, key);
                kind.encode(out);
            }
            Operation::Scan { scan, kind } => {
                out.put_u8(7);
                scan.encode(out);
                kind.encode(out);
            }
            Operation::Rollback { range, claim } => {
                out.put_u8(8);
                out.put_u32_le(range.0);
                claim.encode(out);
            }
            Operation::KeepVersions { at_ts } => {
                out.put_u8(9);
                out.put_u64_le(at_ts.to_bits());
            }
            Operation::RangeMap => out.put_u8(3),
            Operation::Status => out.put_u8(4),
            Operation::Control(change) => {
                out.put_u8(5);
                put_bytes(out, change);
            }
            Operation::Replicas { range, change } => {
                out.put_u8(6);
                out.put_u32_le(range.0);
                change.encode(out);
            }
        }
    }
}

impl Decode for Request {
    fn decode(reader: &mut Reader) -> Result<Self, WireError> {
        let (request_id, limit_us) = (reader.u64()?, reader.u32()?);
        let may_forward = reader.bool()?;
        let operation = match reader.u8()? {
            1 => Operation::Commit {
                range: RangeId(reader.u32()?),
                request: CommitRequest::decode(reader)?,
                claim: if reader.bool()? { Some(LockClaim::decode(reader)?) } else { None },
            },
            2 => Operation::Get {
                range: RangeId(reader.u32()?),
                key: reader.bytes()?,
                kind: ReadKind::decode(reader)?,
            },
            7 => Operation::Scan {
                scan: ScanRequest::decode(reader)?,
                kind: ReadKind::decode(reader)?,
            },
            8 => Operation::Rollback {
                range: RangeId(reader.u32()?),
                claim: LockClaim::decode(reader)?,
            },
            9 => Operation::KeepVersions { at_ts: Timestamp::from_bits(reader.u64()?) },
            3 => Operation::RangeMap,
            4 => Operation::Status,
            5 => Operation::Control(reader.bytes()?),
            6 => Operation::Replicas {
                range: RangeId(reader.u32()?),
                change: ReplicaChange::decode(reader)?,
            },
            tag => return Err(WireError::UnknownTag { what: "operation", tag }),
        };
        Ok(Self { request_id, limit_us, may_forward, operation })
    }
}

impl Encode for ReplicaChange {
    fn encode(&self, out: &mut BytesMut) {
        match self {
            Self::Transfer { to } => {
                out.put_u8(1);
                to.encode(out);
            }
            Self::Members { voters, learners } => {
                out.put_u8(2);
                for list in [voters, learners] {
                    out.put_u16_le(u16::try_from(list.len()).expect("members are few"));
                    for member in list {
                        member.encode(out);
                    }
                }
            }
        }
    }
}

impl Decode for ReplicaChange {
    fn decode(reader: &mut Reader) -> Result<Self, WireError> {
        match reader.u8()? {
            1 => Ok(Self::Transfer { to: PeerAddress::decode(reader)? }),
            2 => {
                let mut list = || {
                    let count = reader.u16()?;
                    (0..count).map(|_| PeerAddress::decode(reader)).collect::<Result<Vec<_>, _>>()
                };
                Ok(Self::Members { voters: list()?, learners: list()? })
            }
            tag => Err(WireError::UnknownTag { what: "replica change", tag }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Commit, LockToken, Locking, NodeId, SessionId, ShardId, TxnId, decode_exact};

    fn claim(start_us: Option<u64>, number: Option<u64>) -> LockClaim {
        let token = number.map(|number| LockToken { term: 3, number });
        let owner = TxnId { session: SessionId(6), sequence: 5 };
        LockClaim { owner, start_ts: start_us.map(Timestamp::from_physical_us), token }
    }

    fn put() -> Request {
        Request {
            request_id: 7,
            limit_us: 1_000_000,
            may_forward: true,
            operation: Operation::Commit {
                range: RangeId(3),
                request: CommitRequest {
                    txn: TxnId { session: SessionId(u64::MAX), sequence: 9 },
                    settled_below: 4,
                    expires_ts: Timestamp::from_physical_us(5),
                    commit: Commit::new().put("key", "value"),
                },
                claim: Some(claim(Some(8), Some(9))),
            },
        }
    }

    fn encoded(message: &impl Encode) -> Bytes {
        let mut out = BytesMut::new();
        message.encode(&mut out);
        out.freeze()
    }

    #[test]
    fn request_encoding_round_trips() {
        let get = |kind| Operation::Get { range: RangeId(1), key: Bytes::from_static(b"k"), kind };
        let claims = [claim(None, None), claim(Some(1), None), claim(Some(1), Some(0))];
        let locking = |(claim, exclusive)| ReadKind::Locking(Locking { claim, exclusive });
        let kinds = claims.into_iter().zip([true, false, true]).map(locking);
        let control = Operation::Control(Bytes::from_static(b"c"));
        let at = |node| PeerAddress { node: NodeId(node), shard: ShardId(1) };
        let range = RangeId(9);
        let transfer = Operation::Replicas { range, change: ReplicaChange::Transfer { to: at(4) } };
        let (voters, learners) = (vec![at(1), at(2)], vec![at(3)]);
        let members =
            Operation::Replicas { range, change: ReplicaChange::Members { voters, learners } };
        let mut requests = vec![put()];
        for (end, backward) in [(None, false), (Some("e".into()), true)] {
            let scan = ScanRequest { range, begin: "b".into(), end, backward, max_rows: 9 };
            let operation = Operation::Scan { scan, kind: ReadKind::Latest };
            requests.push(Request::new(1, operation));
        }
        let rollback = Operation::Rollback { range, claim: claim(None, Some(3)) };
        let keep = Operation::KeepVersions { at_ts: Timestamp::from_physical_us(9) };
        let others =
            [rollback, keep, Operation::RangeMap, Operation::Status, control, transfer, members];
        let stale = ReadKind::Stale { max_us: 7, at_least: Timestamp::from_physical_us(9) };
        let past = [ReadKind::AsOf(Timestamp::MAX), stale];
        let gets = kinds
            .chain([ReadKind::Latest, ReadKind::LatestOfKey, ReadKind::Snapshot])
            .chain(past)
            .map(get);
        for operation in gets.chain(others) {
            requests.push(Request::new(u64::MAX, operation));
        }
        for request in requests {
            assert_eq!(decode_exact::<Request>(encoded(&request)).unwrap(), request);
        }
    }

    #[test]
    fn request_with_missing_or_extra_bytes_is_refused() {
        let whole = encoded(&put());
        for len in 0..whole.len() {
            assert!(matches!(
                decode_exact::<Request>(whole.slice(..len)),
                Err(WireError::Truncated { .. })
            ));
        }
        let mut longer = BytesMut::from(&whole[..]);
        longer.put_u8(0);
        assert_eq!(decode_exact::<Request>(longer.freeze()), Err(WireError::TrailingBytes(1)));
    }
}
