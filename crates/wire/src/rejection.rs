//! Why requests are rejected.

use bytes::{BufMut, BytesMut};
use thiserror::Error;

use crate::{
    Decode, Encode, MAX_COMMIT_BYTES, MAX_COMMIT_PARTS, MAX_KEY_BYTES, MAX_LIFETIME_US,
    MAX_VALUE_BYTES, PeerAddress, Reader, WireError,
};

/// Why a request was rejected. Unless stated otherwise, the request had no effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Rejection {
    /// This replica does not serve the request now. Retryable at `hint`, or at another replica.
    #[error("the replica does not lead the range")]
    NotServing {
        /// The replica that serves it, if known.
        hint: Option<PeerAddress>,
    },
    /// The range has no replica on this shard. Retryable after fetching the range map again.
    #[error("the range has no replica on this shard")]
    NotHere,
    /// A queue is full. Retryable later.
    #[error("the shard is overloaded: retry later")]
    Overloaded,
    /// The node is shutting down. Retryable at another node.
    #[error("the node is shutting down")]
    Draining,
    /// The outcome is unknown: leadership changed while the entry was in flight, or an earlier try
    /// of the commit is still in flight. Retrying a commit under the same id returns its outcome.
    #[error("the outcome is unknown: leadership changed under the request")]
    Unknown,
    /// The log has reached its configured limit, or the disk is full. Retryable later, once
    /// checkpoints have released segments of the log. Writes are slowed down before.
    #[error(
        "the shard's log is full: if that lasts, raise log.limit_bytes or make room on the disk"
    )]
    LogFull,
    /// The state of the shard's ranges has reached what its log can hold, so commits that write
    /// values are refused. Deletes are accepted. Not retryable: delete data, or raise
    /// `log.limit_bytes`.
    #[error(
        "the shard's state has reached what its log can hold: delete data or raise log.limit_bytes"
    )]
    StateTooLarge,
    /// The key is empty or longer than [`MAX_KEY_BYTES`]. Not retryable.
    #[error("a key of {bytes} bytes is not allowed (1 to {MAX_KEY_BYTES})")]
    KeySize {
        /// The length in bytes.
        bytes: u32,
    },
    /// The value is longer than [`MAX_VALUE_BYTES`]. Not retryable.
    #[error("a value of {bytes} bytes is over the limit of {MAX_VALUE_BYTES}")]
    ValueSize {
        /// The length in bytes.
        bytes: u32,
    },
    /// The commit has no parts, too many parts, or too many bytes. Not retryable: split it.
    #[error(
        "a commit of {parts} parts and {bytes} bytes is not allowed (1 to {MAX_COMMIT_PARTS} \
         parts, {MAX_COMMIT_BYTES} bytes)"
    )]
    CommitSize {
        /// The number of conditions and writes.
        parts: u32,
        /// The total size of keys and values, in bytes.
        bytes: u32,
    },
    /// The key lies outside the range. Retryable after fetching the range map again.
    #[error("the key is outside the range")]
    WrongRange,
    /// The commit has expired, or its session has settled it. This try had no effect, but an
    /// earlier one may have taken effect. Not retryable.
    #[error("the transaction's lifetime is over: it is not run any more")]
    Expired,
    /// The commit would expire more than [`MAX_LIFETIME_US`] from now, which is longer than ranges
    /// remember outcomes. Not retryable.
    #[error("a transaction may live for {} minutes at most", MAX_LIFETIME_US / 60_000_000)]
    LifetimeTooLong,
    /// A different commit was sent under the same transaction id. Not retryable.
    #[error("another request has used the same transaction id")]
    IdReused,
    /// The range remembers too many outcomes to add another. Retryable later.
    #[error("the range remembers the outcomes of too many transactions: retry later")]
    TooManyOutcomes,
    /// The change of the range map can't be decoded, or is invalid in the map's current state. Not
    /// retryable.
    #[error("the change of the range map is not allowed in its present state")]
    InvalidChange,
    /// The change of the replicas can't be made yet: another one is pending, or a replica that it
    /// needs is not live or has not caught up. Retryable later.
    #[error("the replicas can't be changed now: another change is under way, or one lags behind")]
    NotNow,
    /// The error bound of the node's clock exceeds the cluster's limit. Retryable at another node,
    /// or once the clock is synchronised.
    #[error("the node's clock is not trusted: check its synchronisation")]
    ClockUncertain,
    /// The transaction has lost its locks: an older one took them, leadership changed, or it was
    /// idle for too long. Nothing was or will be written. The request is not retryable; run the
    /// transaction again.
    #[error("the transaction has lost its locks, and did nothing: run it again")]
    Aborted,
    /// A lock was not granted in time, or the lock table is full. The transaction keeps the locks
    /// that it holds. Retryable.
    #[error("a lock is held by others for too long, or there are too many")]
    Locked,
    /// This replica has collected versions that a read at the timestamp needs, or can't protect so
    /// old a timestamp. Not retryable here. Another replica may still have the versions; otherwise
    /// read at a later timestamp.
    #[error("versions of that time are not kept any more: read at a later one")]
    Collected,
    /// The timestamp of the read lies too far in the future. Retryable later.
    #[error("the timestamp to read at lies in the future")]
    NotYet,
    /// Only administrators may change ranges, members and modes. Not retryable.
    #[error("only the key of an administrator allows this change")]
    NotPermitted,
}

impl Rejection {
    /// Returns true if the same request may succeed later or at another replica. False for
    /// [`Rejection::Collected`], although another replica may still have the versions.
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
            Self::StateTooLarge
            | Self::KeySize { .. }
            | Self::ValueSize { .. }
            | Self::CommitSize { .. }
            | Self::Expired
            | Self::LifetimeTooLong
            | Self::IdReused
            | Self::Aborted
            | Self::Collected
            | Self::NotPermitted
            | Self::InvalidChange => false,
        }
    }

    /// Returns a name without parameters, for counters.
    pub fn name(self) -> &'static str {
        match self {
            Self::NotServing { .. } => "not_serving",
            Self::NotHere => "not_here",
            Self::Overloaded => "overloaded",
            Self::Draining => "draining",
            Self::Unknown => "unknown",
            Self::LogFull => "log_full",
            Self::StateTooLarge => "state_too_large",
            Self::KeySize { .. } => "key_size",
            Self::ValueSize { .. } => "value_size",
            Self::CommitSize { .. } => "commit_size",
            Self::WrongRange => "wrong_range",
            Self::Expired => "expired",
            Self::LifetimeTooLong => "lifetime_too_long",
            Self::IdReused => "id_reused",
            Self::TooManyOutcomes => "too_many_outcomes",
            Self::InvalidChange => "invalid_change",
            Self::NotNow => "not_now",
            Self::ClockUncertain => "clock_uncertain",
            Self::Aborted => "aborted",
            Self::Locked => "locked",
            Self::Collected => "collected",
            Self::NotYet => "not_yet",
            Self::NotPermitted => "not_permitted",
        }
    }

    /// Returns true if this or an earlier try of the request may have taken effect.
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
            Self::StateTooLarge => out.put_u8(23),
            Self::NotPermitted => out.put_u8(24),
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
            23 => Self::StateTooLarge,
            24 => Self::NotPermitted,
            tag => return Err(WireError::UnknownTag { what: "rejection", tag }),
        })
    }
}
