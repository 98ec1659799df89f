//! What clients ask, and what they are told.

use bytes::{BufMut, Bytes, BytesMut};
use palisade_clock::Timestamp;
use thiserror::Error;

use crate::{
    Basis, CommitRequest, Decode, Encode, LockClaim, MAX_COMMIT_BYTES, MAX_COMMIT_PARTS,
    MAX_KEY_BYTES, MAX_VALUE_BYTES, Page, PeerAddress, RangeId, ReadKind, Reader, ScanRequest,
    WireError, codec::put_bytes,
};

/// A request of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Names the request on its connection; the answer carries it.
    pub request_id: u64,
    /// What is asked.
    pub operation: Operation,
}

/// What a request asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// A commit of writes in one range.
    Commit {
        /// The range that holds the keys.
        range: RangeId,
        /// The writes.
        request: CommitRequest,
        /// The transaction whose locks they rely on, if any.
        claim: Option<LockClaim>,
    },
    /// A read of one key.
    Get {
        /// The range that holds the key.
        range: RangeId,
        /// The key.
        key: Bytes,
        /// Of which kind.
        kind: ReadKind,
    },
    /// A read of a page of keys.
    Scan {
        /// Which.
        scan: ScanRequest,
        /// Of which kind.
        kind: ReadKind,
    },
    /// The end of a transaction that commits nothing: its locks are let go.
    Rollback {
        /// The range that it has locks in.
        range: RangeId,
        /// The transaction.
        claim: LockClaim,
    },
    /// The range map, as this shard knows it.
    RangeMap,
    /// The state of this shard.
    Status,
    /// A change of the range map, encoded by the control plane.
    Control(Bytes),
    /// A change of who leads or replicates a range in Raft mode.
    Replicas {
        /// The range.
        range: RangeId,
        /// The change.
        change: ReplicaChange,
    },
}

/// A change of who leads or replicates a range in Raft mode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReplicaChange {
    /// The leader hands over.
    Transfer {
        /// To whom: one of the voters.
        to: PeerAddress,
    },
    /// These are the voters and learners from now on. A new voter must be a learner that has
    /// caught up.
    Members {
        /// Who votes.
        voters: Vec<PeerAddress>,
        /// Who gets the entries without a vote.
        learners: Vec<PeerAddress>,
    },
}

/// The answer to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// The request that it answers.
    pub request_id: u64,
    /// What became of it.
    pub outcome: Outcome,
}

/// What became of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The write is durable and replicated.
    Committed {
        /// The timestamp of its version.
        commit_ts: Timestamp,
        /// How long the answer waited for the timestamp to pass, in microseconds.
        waited_us: u32,
    },
    /// A condition did not hold: nothing was changed, and never will be under this id.
    ConditionFailed {
        /// Which, by its place in the request.
        condition: u16,
        /// The last commit that was looked at.
        as_of_ts: Timestamp,
    },
    /// The value of the key, if it has one, with the timestamp of its version or its delete.
    Value {
        /// What that holds for.
        basis: Basis,
        /// The timestamp; of a key that was never written, or deleted long ago, zero.
        version_ts: Timestamp,
        /// The value.
        value: Option<Bytes>,
    },
    /// A page of keys with their values.
    Page {
        /// What that holds for.
        basis: Basis,
        /// The page.
        page: Page,
    },
    /// The transaction has no locks any more, if it had any.
    RolledBack,
    /// The range map, encoded by the control plane.
    RangeMap(Bytes),
    /// The state of the shard, in postcard.
    Status(Bytes),
    /// The change is made: of the range map and of members once it is committed, of the leader
    /// once it has begun.
    ControlDone,
    /// The request was not carried out.
    Rejected(Rejection),
}

/// Why a request was not carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Rejection {
    /// This replica does not serve the range now; retry at `hint`, or elsewhere. Nothing happened.
    #[error("the replica does not lead the range")]
    NotServing {
        /// Who serves it, if known.
        hint: Option<PeerAddress>,
    },
    /// The range has no replica on this shard: fetch the range map again. Nothing happened.
    #[error("the range has no replica on this shard")]
    NotHere,
    /// A queue is full; retry later. Nothing happened.
    #[error("the shard is overloaded: retry later")]
    Overloaded,
    /// The node is shutting down; retry at another. Nothing happened.
    #[error("the node is shutting down")]
    Draining,
    /// The proposal lost its place before it was known to be committed. The outcome is unknown;
    /// a retry under the same id settles it.
    #[error("the outcome is unknown: leadership changed under the request")]
    Unknown,
    /// The log has reached its configured limit, or the disk is full; retry later, when its
    /// beginning was cut. Nothing happened.
    #[error(
        "the shard's log is full: if that lasts, raise log.limit_bytes or make room on the disk"
    )]
    LogFull,
    /// The key is empty or over the limit. Not retryable.
    #[error("a key of {bytes} bytes is not allowed (1 to {MAX_KEY_BYTES})")]
    KeySize {
        /// Its length.
        bytes: u32,
    },
    /// The value is over the limit. Not retryable.
    #[error("a value of {bytes} bytes is over the limit of {MAX_VALUE_BYTES}")]
    ValueSize {
        /// Its length.
        bytes: u32,
    },
    /// The commit has no parts, too many, or too many bytes. Not retryable: make it several.
    #[error(
        "a commit of {parts} parts and {bytes} bytes is not allowed (1 to {MAX_COMMIT_PARTS} \
         parts, {MAX_COMMIT_BYTES} bytes)"
    )]
    CommitSize {
        /// Conditions and writes.
        parts: u32,
        /// Keys and values, in bytes.
        bytes: u32,
    },
    /// The key lies outside the range: fetch the range map again. Nothing happened.
    #[error("the key is outside the range")]
    WrongRange,
    /// The transaction's outcome was settled and forgotten. Not retryable.
    #[error("the transaction is older than its session's settled ones: it is not run again")]
    Expired,
    /// Another request was sent under the same transaction id. Not retryable.
    #[error("another request has used the same transaction id")]
    IdReused,
    /// Too many sessions write to this range; retry later. Nothing happened.
    #[error("the range remembers the outcomes of too many sessions: retry later")]
    TooManySessions,
    /// The change of the range map is not allowed. Not retryable.
    #[error("the change of the range map is not allowed in its present state")]
    InvalidChange,
    /// The change of the replicas can't be made yet: another is under way, or a new voter has not
    /// caught up. Nothing happened; retry later.
    #[error("the replicas can't be changed now: another change is under way, or one lags behind")]
    NotNow,
    /// The node's clock is not right to within the bound that the cluster needs; retry at another
    /// node, or when the clock is synchronised. Nothing happened.
    #[error("the node's clock is not trusted: check its synchronisation")]
    ClockUncertain,
    /// The transaction has lost its locks: an older one needed them, leadership has changed, or
    /// it asked for nothing for too long. Nothing was written, nor will be: run it again. The same
    /// request is not retryable.
    #[error("the transaction has lost its locks, and did nothing: run it again")]
    Aborted,
    /// A lock was not free in time, or too many are held or waited for. Nothing happened, and other
    /// locks are still held; retry.
    #[error("a lock is held by others for too long, or there are too many")]
    Locked,
    /// What was there at the timestamp is not kept any more. Not retryable but at a later one.
    #[error("versions of that time are not kept any more: read at a later one")]
    Collected,
    /// The timestamp to read at lies too far in the future. Nothing happened; retry later.
    #[error("the timestamp to read at lies in the future")]
    NotYet,
}

impl Rejection {
    /// Whether the same request may succeed later or elsewhere.
    pub fn is_retryable(self) -> bool {
        match self {
            Self::NotServing { .. }
            | Self::NotHere
            | Self::Overloaded
            | Self::Draining
            | Self::Unknown
            | Self::WrongRange
            | Self::NotNow
            | Self::ClockUncertain
            | Self::Locked
            | Self::NotYet
            | Self::LogFull
            | Self::TooManySessions => true,
            Self::KeySize { .. }
            | Self::ValueSize { .. }
            | Self::CommitSize { .. }
            | Self::Expired
            | Self::IdReused
            | Self::Aborted
            | Self::Collected
            | Self::InvalidChange => false,
        }
    }

    /// Whether the request may have taken effect all the same.
    pub fn is_outcome_unknown(self) -> bool {
        matches!(self, Self::Unknown | Self::Expired)
    }
}

impl Encode for Request {
    fn encode(&self, out: &mut BytesMut) {
        out.put_u64_le(self.request_id);
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
        let request_id = reader.u64()?;
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
            3 => Operation::RangeMap,
            4 => Operation::Status,
            5 => Operation::Control(reader.bytes()?),
            6 => Operation::Replicas {
                range: RangeId(reader.u32()?),
                change: ReplicaChange::decode(reader)?,
            },
            tag => return Err(WireError::UnknownTag { what: "operation", tag }),
        };
        Ok(Self { request_id, operation })
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

impl Outcome {
    /// The timestamp of what whoever gets this answer comes to know.
    pub fn visible_ts(&self) -> Option<Timestamp> {
        match self {
            Self::Committed { commit_ts, .. } => Some(*commit_ts),
            Self::ConditionFailed { as_of_ts: ts, .. } | Self::Value { version_ts: ts, .. } => {
                Some(*ts)
            }
            Self::Page { page, .. } => Some(page.as_of_ts),
            _ => None,
        }
    }
}

impl Encode for Response {
    fn encode(&self, out: &mut BytesMut) {
        out.put_u64_le(self.request_id);
        match &self.outcome {
            Outcome::Committed { commit_ts, waited_us } => {
                out.put_u8(1);
                out.put_u64_le(commit_ts.to_bits());
                out.put_u32_le(*waited_us);
            }
            Outcome::Value { basis, version_ts, value } => {
                out.put_u8(2);
                basis.encode(out);
                out.put_u64_le(version_ts.to_bits());
                out.put_u8(u8::from(value.is_some()));
                if let Some(value) = value {
                    put_bytes(out, value);
                }
            }
            Outcome::Page { basis, page } => {
                out.put_u8(9);
                basis.encode(out);
                page.encode(out);
            }
            Outcome::RolledBack => out.put_u8(3),
            Outcome::ConditionFailed { condition, as_of_ts } => {
                out.put_u8(8);
                out.put_u16_le(*condition);
                out.put_u64_le(as_of_ts.to_bits());
            }
            Outcome::RangeMap(map) => {
                out.put_u8(4);
                put_bytes(out, map);
            }
            Outcome::Status(status) => {
                out.put_u8(5);
                put_bytes(out, status);
            }
            Outcome::ControlDone => out.put_u8(6),
            Outcome::Rejected(rejection) => {
                out.put_u8(7);
                rejection.encode(out);
            }
        }
    }
}

impl Decode for Response {
    fn decode(reader: &mut Reader) -> Result<Self, WireError> {
        let request_id = reader.u64()?;
        let outcome = match reader.u8()? {
            1 => Outcome::Committed {
                commit_ts: Timestamp::from_bits(reader.u64()?),
                waited_us: reader.u32()?,
            },
            2 => Outcome::Value {
                basis: Basis::decode(reader)?,
                version_ts: Timestamp::from_bits(reader.u64()?),
                value: if reader.bool()? { Some(reader.bytes()?) } else { None },
            },
            9 => Outcome::Page { basis: Basis::decode(reader)?, page: Page::decode(reader)? },
            3 => Outcome::RolledBack,
            8 => Outcome::ConditionFailed {
                condition: reader.u16()?,
                as_of_ts: Timestamp::from_bits(reader.u64()?),
            },
            4 => Outcome::RangeMap(reader.bytes()?),
            5 => Outcome::Status(reader.bytes()?),
            6 => Outcome::ControlDone,
            7 => Outcome::Rejected(Rejection::decode(reader)?),
            tag => return Err(WireError::UnknownTag { what: "outcome", tag }),
        };
        Ok(Self { request_id, outcome })
    }
}

impl Encode for Rejection {
    fn encode(&self, out: &mut BytesMut) {
        match *self {
            Self::NotServing { hint: None } => out.put_u8(1),
            Self::NotServing { hint: Some(address) } => {
                out.put_u8(2);
                address.encode(out);
            }
            Self::NotHere => out.put_u8(3),
            Self::Overloaded => out.put_u8(4),
            Self::Draining => out.put_u8(5),
            Self::Unknown => out.put_u8(6),
            Self::LogFull => out.put_u8(7),
            Self::KeySize { bytes } => {
                out.put_u8(8);
                out.put_u32_le(bytes);
            }
            Self::ValueSize { bytes } => {
                out.put_u8(9);
                out.put_u32_le(bytes);
            }
            Self::WrongRange => out.put_u8(10),
            Self::Expired => out.put_u8(11),
            Self::IdReused => out.put_u8(12),
            Self::TooManySessions => out.put_u8(13),
            Self::InvalidChange => out.put_u8(14),
            Self::NotNow => out.put_u8(15),
            Self::ClockUncertain => out.put_u8(16),
            Self::Aborted => out.put_u8(18),
            Self::Locked => out.put_u8(19),
            Self::Collected => out.put_u8(20),
            Self::NotYet => out.put_u8(21),
            Self::CommitSize { parts, bytes } => {
                out.put_u8(17);
                out.put_u32_le(parts);
                out.put_u32_le(bytes);
            }
        }
    }
}

impl Decode for Rejection {
    fn decode(reader: &mut Reader) -> Result<Self, WireError> {
        Ok(match reader.u8()? {
            1 => Self::NotServing { hint: None },
            2 => Self::NotServing { hint: Some(PeerAddress::decode(reader)?) },
            3 => Self::NotHere,
            4 => Self::Overloaded,
            5 => Self::Draining,
            6 => Self::Unknown,
            7 => Self::LogFull,
            8 => Self::KeySize { bytes: reader.u32()? },
            9 => Self::ValueSize { bytes: reader.u32()? },
            10 => Self::WrongRange,
            11 => Self::Expired,
            12 => Self::IdReused,
            13 => Self::TooManySessions,
            14 => Self::InvalidChange,
            15 => Self::NotNow,
            16 => Self::ClockUncertain,
            17 => Self::CommitSize { parts: reader.u32()?, bytes: reader.u32()? },
            18 => Self::Aborted,
            19 => Self::Locked,
            20 => Self::Collected,
            21 => Self::NotYet,
            tag => return Err(WireError::UnknownTag { what: "rejection", tag }),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Commit, LockGrant, Locking, NodeId, Row, SessionId, ShardId, TxnId, decode_exact};

    fn claim(start_us: Option<u64>, token: Option<u64>) -> LockClaim {
        let owner = TxnId { session: SessionId(6), sequence: 5 };
        LockClaim { owner, start_ts: start_us.map(Timestamp::from_physical_us), token }
    }

    fn put() -> Request {
        Request {
            request_id: 7,
            operation: Operation::Commit {
                range: RangeId(3),
                request: CommitRequest {
                    txn: TxnId { session: SessionId(u64::MAX), sequence: 9 },
                    settled_below: 4,
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
    fn requests_come_back_as_they_were() {
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
            requests.push(Request { request_id: 1, operation });
        }
        let rollback = Operation::Rollback { range, claim: claim(None, Some(3)) };
        let others = [rollback, Operation::RangeMap, Operation::Status, control, transfer, members];
        let stale = ReadKind::Stale { max_us: 7, at_least: Timestamp::from_physical_us(9) };
        let past = [ReadKind::AsOf(Timestamp::MAX), stale];
        let gets = kinds.chain([ReadKind::Latest, ReadKind::Snapshot]).chain(past).map(get);
        for operation in gets.chain(others) {
            requests.push(Request { request_id: u64::MAX, operation });
        }
        for request in requests {
            assert_eq!(decode_exact::<Request>(encoded(&request)).unwrap(), request);
        }
    }

    #[test]
    fn responses_come_back_as_they_were() {
        let at = PeerAddress { node: NodeId(2), shard: ShardId(1) };
        let rejections = [
            Rejection::NotServing { hint: None },
            Rejection::NotServing { hint: Some(at) },
            Rejection::NotHere,
            Rejection::Overloaded,
            Rejection::Draining,
            Rejection::Unknown,
            Rejection::LogFull,
            Rejection::KeySize { bytes: 0 },
            Rejection::ValueSize { bytes: u32::MAX },
            Rejection::WrongRange,
            Rejection::Expired,
            Rejection::IdReused,
            Rejection::TooManySessions,
            Rejection::InvalidChange,
            Rejection::NotNow,
            Rejection::ClockUncertain,
            Rejection::CommitSize { parts: 5, bytes: 6 },
            Rejection::Aborted,
            Rejection::Locked,
            Rejection::Collected,
            Rejection::NotYet,
        ];
        let grant = LockGrant { start_ts: Timestamp::from_physical_us(3), token: 4 };
        let ts = Timestamp::from_physical_us(5);
        let outcomes = [
            Outcome::Committed { commit_ts: ts, waited_us: 7 },
            Outcome::ConditionFailed { condition: 3, as_of_ts: ts },
            Outcome::Page {
                basis: Basis::Latest,
                page: Page { as_of_ts: ts, rows: Vec::new(), resume: None },
            },
            Outcome::Page {
                basis: Basis::AsOf(ts),
                page: Page {
                    as_of_ts: ts,
                    rows: vec![Row { key: "k".into(), version_ts: ts, value: "v".into() }; 2],
                    resume: Some("r".into()),
                },
            },
            Outcome::Value { basis: Basis::AsOf(ts), version_ts: ts, value: None },
            Outcome::Value { basis: Basis::Locked(grant), version_ts: ts, value: Some("v".into()) },
            Outcome::RolledBack,
            Outcome::RangeMap(Bytes::from_static(b"m")),
            Outcome::Status(Bytes::from_static(b"s")),
            Outcome::ControlDone,
        ];
        for outcome in outcomes.into_iter().chain(rejections.map(Outcome::Rejected)) {
            let response = Response { request_id: 1, outcome };
            assert_eq!(decode_exact::<Response>(encoded(&response)).unwrap(), response);
        }
    }

    #[test]
    fn every_cut_and_every_addition_is_refused() {
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
