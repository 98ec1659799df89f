//! The errors of a call.

use std::time::Duration;

use palisade_clock::Timestamp;
use palisade_wire::{MAX_SNAPSHOT_AGE_US, Rejection};
use thiserror::Error;

/// An error of a call.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ClientError {
    /// The deadline passed. Retryable. Check `outcome_unknown` before you repeat a change.
    #[error(
        "no answer within {after:?} ({reason}); {}",
        if *outcome_unknown { "the outcome is unknown" } else { "nothing was done" }
    )]
    Deadline {
        /// The time limit of the call.
        after: Duration,
        /// Why the last try did not succeed.
        reason: &'static str,
        /// True if the request is a change that may have taken effect.
        outcome_unknown: bool,
    },
    /// The cluster refused the request, and a retry within the call would not help.
    #[error("the request was refused: {0}")]
    Rejected(Rejection),
    /// A condition did not hold. Nothing was changed. Not retryable.
    #[error("condition {condition} of the commit does not hold: nothing was changed")]
    ConditionFailed {
        /// The position of the condition in the commit, from 0.
        condition: usize,
    },
    /// The transaction has lost its locks: to an older transaction, after a change of leader, or
    /// because it was idle for too long. Nothing was written, and nothing will be.
    /// [`Client::run`](crate::Client::run) runs it again. Retryable as a new transaction.
    #[error("the transaction has lost its locks, and did nothing: run it again")]
    Aborted,
    /// The keys of a commit or transaction lie in more than one range. Nothing was changed. Not
    /// retryable.
    #[error("the keys lie in several ranges: make it several transactions")]
    SeveralRanges,
    /// No replica keeps the snapshot's versions any more. The snapshot is older than
    /// [`MAX_SNAPSHOT_AGE_US`], or its timestamp lay too far in the past when it was opened.
    /// Nothing was changed. Not retryable: open a new snapshot and read from the beginning.
    ///
    /// [`MAX_SNAPSHOT_AGE_US`]: crate::MAX_SNAPSHOT_AGE_US
    #[error(
        "the snapshot of {at_ts} is too old: a snapshot stays readable for {} s; open a new one",
        MAX_SNAPSHOT_AGE_US / 1_000_000
    )]
    SnapshotTooOld {
        /// The timestamp of the snapshot; zero if no read has set it.
        at_ts: Timestamp,
    },
    /// No address answers as a node of the cluster. Retryable.
    #[error(
        "no node of the cluster answers at {addresses}: check the addresses, and that the nodes run"
    )]
    Unreachable {
        /// The addresses, comma-separated.
        addresses: String,
    },
    /// The shard whose status was requested does not answer. Retryable.
    #[error("the node does not answer")]
    NodeDown,
    /// An answer is invalid, because the versions of client and cluster do not match, or the
    /// client's thread cannot start. Not retryable.
    #[error("the answer of the cluster cannot be understood: {0}")]
    Protocol(String),
    /// The operating system provides no randomness for the names of transactions. Nothing was
    /// changed. Not retryable.
    #[error("the operating system gives no randomness: {0}")]
    NoEntropy(String),
    /// The client was closed during the call. The outcome of a write is unknown. Not retryable.
    #[error("the client was closed")]
    Closed,
}

impl ClientError {
    /// Returns true if the same call may succeed later. Repeating a write whose outcome is unknown
    /// is not safe: the repetition is a new write.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Deadline { .. } | Self::Unreachable { .. } | Self::NodeDown | Self::Aborted => {
                true
            }
            Self::Rejected(rejection) => rejection.is_retryable(),
            Self::ConditionFailed { .. }
            | Self::SeveralRanges
            | Self::SnapshotTooOld { .. }
            | Self::Protocol(_)
            | Self::NoEntropy(_)
            | Self::Closed => false,
        }
    }

    /// Returns true if the call may have taken effect despite the error.
    pub fn is_outcome_unknown(&self) -> bool {
        match self {
            Self::Deadline { outcome_unknown, .. } => *outcome_unknown,
            Self::Rejected(rejection) => rejection.is_outcome_unknown(),
            Self::Closed | Self::Protocol(_) => true,
            Self::ConditionFailed { .. }
            | Self::Aborted
            | Self::SeveralRanges
            | Self::SnapshotTooOld { .. }
            | Self::Unreachable { .. }
            | Self::NoEntropy(_)
            | Self::NodeDown => false,
        }
    }
}
