//! The kinds of reads, and the claims and tokens by which a leader recognises the transactions that
//! hold its locks.

use bytes::{BufMut, BytesMut};
use palisade_clock::Timestamp;

use crate::{Decode, Encode, Reader, TxnId, WireError};

/// Identifies one try of a transaction at the leader that keeps its locks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LockClaim {
    /// The owner of the locks. Each try has its own; it differs from the commit's [`TxnId`].
    pub owner: TxnId,
    /// The start of the transaction's first try; `None` before the first grant.
    pub start_ts: Option<Timestamp>,
    /// The token of the first grant; `None` before it.
    pub token: Option<LockToken>,
}

/// Identifies the locks that one leader granted to one transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LockToken {
    /// The Raft term or chain epoch of the grant. The locks are lost in any other.
    pub term: u64,
    /// Distinguishes the transactions of a term, including those of an earlier start of the same
    /// replica.
    pub number: u64,
}

/// Returned with the first lock of a transaction, and sent with each of its later requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LockGrant {
    /// The start of the transaction's first try. In a lock conflict the lower one has priority.
    pub start_ts: Timestamp,
    /// Identifies the granted locks. A leader that does not know the token does not hold them.
    pub token: LockToken,
}

/// The locks that a read takes: on its key, or on the span of its page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Locking {
    /// The transaction that takes the locks.
    pub claim: LockClaim,
    /// True for exclusive locks, which conflict with all others. Shared locks admit each other.
    pub exclusive: bool,
}

/// The consistency of a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadKind {
    /// The latest value in the order of all commits: strictly serializable. Served by the replica
    /// that sequences the writes, once the pending writes of the key are applied.
    Latest,
    /// The latest value of one key, linearizable for that key alone: an acknowledged write of
    /// another key may be older than a pending write that this read does not see. Served by Raft's
    /// leader or the chain's tail.
    LatestOfKey,
    /// The latest value, locked for a transaction so that it can't change.
    Locking(Locking),
    /// The first read of a snapshot. The shard chooses a timestamp at or above those of all commits
    /// acknowledged so far, and the response returns it as [`Basis::AsOf`].
    Snapshot,
    /// The state at this timestamp. The read waits until the timestamp has passed, and is rejected
    /// with [`Rejection::NotYet`](crate::Rejection::NotYet) if that is too far in the future.
    AsOf(Timestamp),
    /// The state at a recent timestamp, which the replica chooses and the response returns. Served
    /// by any replica whose safe time is recent enough.
    Stale {
        /// Maximum staleness, in microseconds.
        max_us: u64,
        /// Lower bound of the timestamp: the newest one that the reader has read or written.
        at_least: Timestamp,
    },
}

/// The state that the response to a read describes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Basis {
    /// The latest state when the read was served.
    Latest,
    /// The latest state, which does not change while the transaction holds its locks.
    Locked(LockGrant),
    /// The state at this timestamp.
    AsOf(Timestamp),
}

impl LockClaim {
    /// Returns the claim with the start timestamp and the token of `grant`.
    #[must_use]
    pub fn granted(self, grant: LockGrant) -> Self {
        Self { start_ts: Some(grant.start_ts), token: Some(grant.token), ..self }
    }
}

const START: u8 = 1;
const TOKEN: u8 = 2;

impl Encode for LockClaim {
    fn encode(&self, out: &mut BytesMut) {
        self.owner.encode(out);
        let start = if self.start_ts.is_some() { START } else { 0 };
        out.put_u8(start | if self.token.is_some() { TOKEN } else { 0 });
        if let Some(ts) = self.start_ts {
            out.put_u64_le(ts.to_bits());
        }
        if let Some(token) = self.token {
            token.encode(out);
        }
    }
}

impl Encode for LockToken {
    fn encode(&self, out: &mut BytesMut) {
        out.put_u64_le(self.term);
        out.put_u64_le(self.number);
    }
}

impl Decode for LockToken {
    fn decode(reader: &mut Reader) -> Result<Self, WireError> {
        Ok(Self { term: reader.u64()?, number: reader.u64()? })
    }
}

impl Decode for LockClaim {
    fn decode(reader: &mut Reader) -> Result<Self, WireError> {
        let owner = TxnId::decode(reader)?;
        let tag = reader.u8()?;
        if tag & !(START | TOKEN) != 0 {
            return Err(WireError::UnknownTag { what: "lock claim", tag });
        }
        let start_ts =
            if tag & START != 0 { Some(Timestamp::from_bits(reader.u64()?)) } else { None };
        let token = if tag & TOKEN != 0 { Some(LockToken::decode(reader)?) } else { None };
        Ok(Self { owner, start_ts, token })
    }
}

impl Encode for LockGrant {
    fn encode(&self, out: &mut BytesMut) {
        out.put_u64_le(self.start_ts.to_bits());
        self.token.encode(out);
    }
}

impl Decode for LockGrant {
    fn decode(reader: &mut Reader) -> Result<Self, WireError> {
        let start_ts = Timestamp::from_bits(reader.u64()?);
        Ok(Self { start_ts, token: LockToken::decode(reader)? })
    }
}

impl Encode for ReadKind {
    fn encode(&self, out: &mut BytesMut) {
        match self {
            Self::Latest => out.put_u8(0),
            Self::Locking(Locking { claim, exclusive }) => {
                out.put_u8(1);
                claim.encode(out);
                out.put_u8(u8::from(*exclusive));
            }
            Self::LatestOfKey => out.put_u8(5),
            Self::Snapshot => out.put_u8(2),
            Self::AsOf(ts) => {
                out.put_u8(3);
                out.put_u64_le(ts.to_bits());
            }
            Self::Stale { max_us, at_least } => {
                out.put_u8(4);
                out.put_u64_le(*max_us);
                out.put_u64_le(at_least.to_bits());
            }
        }
    }
}

impl Decode for ReadKind {
    fn decode(reader: &mut Reader) -> Result<Self, WireError> {
        match reader.u8()? {
            0 => Ok(Self::Latest),
            1 => {
                let claim = LockClaim::decode(reader)?;
                Ok(Self::Locking(Locking { claim, exclusive: reader.bool()? }))
            }
            5 => Ok(Self::LatestOfKey),
            2 => Ok(Self::Snapshot),
            3 => Ok(Self::AsOf(Timestamp::from_bits(reader.u64()?))),
            4 => {
                let max_us = reader.u64()?;
                Ok(Self::Stale { max_us, at_least: Timestamp::from_bits(reader.u64()?) })
            }
            tag => Err(WireError::UnknownTag { what: "kind of read", tag }),
        }
    }
}

impl Encode for Basis {
    fn encode(&self, out: &mut BytesMut) {
        match self {
            Self::Latest => out.put_u8(0),
            Self::Locked(grant) => {
                out.put_u8(1);
                grant.encode(out);
            }
            Self::AsOf(ts) => {
                out.put_u8(2);
                out.put_u64_le(ts.to_bits());
            }
        }
    }
}

impl Decode for Basis {
    fn decode(reader: &mut Reader) -> Result<Self, WireError> {
        match reader.u8()? {
            0 => Ok(Self::Latest),
            1 => Ok(Self::Locked(LockGrant::decode(reader)?)),
            2 => Ok(Self::AsOf(Timestamp::from_bits(reader.u64()?))),
            tag => Err(WireError::UnknownTag { what: "basis", tag }),
        }
    }
}
