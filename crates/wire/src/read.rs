//! What kinds of reads there are, and how a transaction that takes locks is known to the leader
//! which keeps them.

use bytes::{BufMut, BytesMut};
use palisade_clock::Timestamp;

use crate::{Decode, Encode, Reader, TxnId, WireError};

/// A transaction, as its client names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LockClaim {
    /// Which: another for each try. Not the id that it commits under.
    pub owner: TxnId,
    /// When its first try began, if that is known already.
    pub start_ts: Option<Timestamp>,
    /// What the leader gave it with its first lock, if it has any.
    pub token: Option<LockToken>,
}

/// Names the locks that a leader gave to a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LockToken {
    /// The Raft term or chain epoch in which they were given. In any other they are lost.
    pub term: u64,
    /// Tells the transactions of a term apart, also those of an earlier start of the same replica.
    pub number: u64,
}

/// What a transaction gets with its first lock, and shows with every request that follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LockGrant {
    /// When its first try began.
    pub start_ts: Timestamp,
    /// Proves that the locks are those that were given: a leader that does not know it has lost
    /// them.
    pub token: LockToken,
}

/// A read that locks what it reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Locking {
    /// For whom.
    pub claim: LockClaim,
    /// Whether others may not read it, either.
    pub exclusive: bool,
}

/// What a read is to be like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadKind {
    /// Of the latest value, in the order of all commits: strictly serializable. Answered by the
    /// replica that sequences the writes, once the pending writes of the key are applied.
    Latest,
    /// Of the latest value of one key, linearizable for that key alone: an acknowledged write of
    /// another key may be older than a pending write that this does not see. Answered by Raft's
    /// leader or the chain's tail.
    LatestOfKey,
    /// Of the latest value, for a transaction, which keeps it from changing.
    Locking(Locking),
    /// At a timestamp not before whatever was acknowledged until now, which the answer tells: the
    /// first read of a snapshot.
    Snapshot,
    /// At this timestamp.
    AsOf(Timestamp),
    /// At a timestamp that is not further in the past than this many microseconds, and which the
    /// answer tells: at any replica that knows enough.
    Stale {
        /// How stale.
        max_us: u64,
        /// Not before this: what the reader has seen or written itself.
        at_least: Timestamp,
    },
}

/// What an answer to a read holds for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Basis {
    /// The moment of the read: it was the latest.
    Latest,
    /// As long as the transaction has its locks, which it shows this for.
    Locked(LockGrant),
    /// The moment of this timestamp.
    AsOf(Timestamp),
}

impl LockClaim {
    /// The same transaction, with what it was given.
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
