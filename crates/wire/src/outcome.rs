//! Responses to client requests.

use bytes::{BufMut, Bytes, BytesMut};
use palisade_clock::Timestamp;

use crate::{Basis, Decode, Encode, Page, Reader, Rejection, WireError, codec::put_bytes};

/// The response to a [`Request`](crate::Request).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// The id of the request.
    pub request_id: u64,
    /// The outcome of the request.
    pub outcome: Outcome,
}

/// The outcome of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The commit took effect. It is durable and replicated.
    Committed {
        /// The timestamp of the versions that it wrote.
        commit_ts: Timestamp,
        /// How long the response waited for `commit_ts` to pass, in microseconds.
        waited_us: u32,
    },
    /// A condition did not hold. Nothing was changed, and no retry under this id will change it.
    ConditionFailed {
        /// Index of the condition in the request.
        condition: u16,
        /// The timestamp of the range's last commit when the conditions were evaluated.
        as_of_ts: Timestamp,
    },
    /// The value of a key, with the timestamp of its version or tombstone.
    Value {
        /// The state that was read.
        basis: Basis,
        /// The timestamp of the version or tombstone. If the replica keeps neither: zero for
        /// [`Basis::AsOf`], otherwise the horizon of the garbage collection.
        version_ts: Timestamp,
        /// The value, or `None` if the key has none.
        value: Option<Bytes>,
    },
    /// A page of a scan.
    Page {
        /// The state that was read.
        basis: Basis,
        /// The rows, and where to resume.
        page: Page,
    },
    /// This replica holds no locks for the claim of the request.
    RolledBack,
    /// The versions at the requested timestamp are protected from garbage collection.
    VersionsKept,
    /// The range map, encoded by the control plane.
    RangeMap(Bytes),
    /// The state of the shard, as encoded by [`ShardStatus`](crate::ShardStatus::to_bytes).
    Status(Bytes),
    /// The change of the range map, or the first entry of a change of the members, is committed.
    /// Or a leadership transfer has begun.
    ControlDone,
    /// The request was rejected.
    Rejected(Rejection),
}

impl Outcome {
    /// Returns the timestamp of the state that this outcome reveals, or `None` if it reveals none.
    /// The response must wait until that timestamp has passed.
    pub fn visible_ts(&self) -> Option<Timestamp> {
        match self {
            Self::Committed { commit_ts, .. } => Some(*commit_ts),
            Self::Value { basis: Basis::AsOf(at_ts), .. } => Some(*at_ts),
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
            Outcome::VersionsKept => out.put_u8(10),
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
            10 => Outcome::VersionsKept,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{LockGrant, LockToken, NodeId, PeerAddress, Row, ShardId, decode_exact};

    #[test]
    fn response_encoding_round_trips() {
        let at = PeerAddress { node: NodeId(2), shard: ShardId(1) };
        let rejections = [
            Rejection::NotServing { hint: None },
            Rejection::NotServing { hint: Some(at) },
            Rejection::NotHere,
            Rejection::Overloaded,
            Rejection::Draining,
            Rejection::Unknown,
            Rejection::LogFull,
            Rejection::StateTooLarge,
            Rejection::KeySize { bytes: 0 },
            Rejection::ValueSize { bytes: u32::MAX },
            Rejection::WrongRange,
            Rejection::Expired,
            Rejection::IdReused,
            Rejection::TooManyOutcomes,
            Rejection::LifetimeTooLong,
            Rejection::InvalidChange,
            Rejection::NotNow,
            Rejection::ClockUncertain,
            Rejection::CommitSize { parts: 5, bytes: 6 },
            Rejection::Aborted,
            Rejection::Locked,
            Rejection::Collected,
            Rejection::NotYet,
        ];
        let token = LockToken { term: 7, number: 4 };
        let grant = LockGrant { start_ts: Timestamp::from_physical_us(3), token };
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
            Outcome::VersionsKept,
            Outcome::RangeMap(Bytes::from_static(b"m")),
            Outcome::Status(Bytes::from_static(b"s")),
            Outcome::ControlDone,
        ];
        for outcome in outcomes.into_iter().chain(rejections.map(Outcome::Rejected)) {
            let response = Response { request_id: 1, outcome };
            let mut out = BytesMut::new();
            response.encode(&mut out);
            assert_eq!(decode_exact::<Response>(out.freeze()).unwrap(), response);
        }
    }
}
