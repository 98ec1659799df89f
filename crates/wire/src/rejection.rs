//! Why requests are refused.

use bytes::{BufMut, BytesMut};
use thiserror::Error;

use crate::{
    Decode, Encode, MAX_COMMIT_BYTES, MAX_COMMIT_PARTS, MAX_KEY_BYTES, MAX_LIFETIME_US,
    MAX_VALUE_BYTES, PeerAddress, Reader, WireError,
};

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
    /// The transaction's lifetime is over, or its session had settled it: it is not run, whether or
    /// not an earlier try was. Not retryable.
    #[error("the transaction's lifetime is over: it is not run any more")]
    Expired,
    /// The transaction would expire later than a range remembers outcomes. Nothing happened. Not
    /// retryable.
    #[error("a transaction may live for {} minutes at most", MAX_LIFETIME_US / 60_000_000)]
    LifetimeTooLong,
    /// Another request was sent under the same transaction id. Not retryable.
    #[error("another request has used the same transaction id")]
    IdReused,
    /// The range has no memory left for the outcome; retry later. Nothing happened.
    #[error("the range remembers the outcomes of too many transactions: retry later")]
    TooManyOutcomes,
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
    /// What was there at the timestamp is not kept any more by this replica. Not retryable here but
    /// at a later one; another replica may still keep it.
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
            | Self::TooManyOutcomes => true,
            Self::KeySize { .. }
            | Self::ValueSize { .. }
            | Self::CommitSize { .. }
            | Self::Expired
            | Self::LifetimeTooLong
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
            Self::TooManyOutcomes => out.put_u8(13),
            Self::InvalidChange => out.put_u8(14),
            Self::NotNow => out.put_u8(15),
            Self::ClockUncertain => out.put_u8(16),
            Self::Aborted => out.put_u8(18),
            Self::Locked => out.put_u8(19),
            Self::Collected => out.put_u8(20),
            Self::NotYet => out.put_u8(21),
            Self::LifetimeTooLong => out.put_u8(22),
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
            13 => Self::TooManyOutcomes,
            14 => Self::InvalidChange,
            15 => Self::NotNow,
            16 => Self::ClockUncertain,
            17 => Self::CommitSize { parts: reader.u32()?, bytes: reader.u32()? },
            18 => Self::Aborted,
            19 => Self::Locked,
            20 => Self::Collected,
            21 => Self::NotYet,
            22 => Self::LifetimeTooLong,
            tag => return Err(WireError::UnknownTag { what: "rejection", tag }),
        })
    }
}
