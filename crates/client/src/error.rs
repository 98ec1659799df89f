//! How a call can fail.

use std::time::Duration;

use palisade_clock::Timestamp;
use palisade_wire::{MAX_SNAPSHOT_AGE_US, Rejection};
use thiserror::Error;

/// Why a call did not succeed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ClientError {
    /// The deadline passed. If the request may have reached a server, its outcome is unknown.
    #[error(
        "no answer within {after:?} ({reason}); {}",
        if *outcome_unknown { "the outcome is unknown" } else { "nothing was done" }
    )]
    Deadline {
        /// How long the call was given.
        after: Duration,
        /// What the last attempt met.
        reason: &'static str,
        /// Whether the request may have taken effect.
        outcome_unknown: bool,
    },
    /// The cluster refused for good.
    #[error("the request was refused: {0}")]
    Rejected(Rejection),
    /// A condition did not hold: nothing was changed.
    #[error("condition {condition} of the commit does not hold: nothing was changed")]
    ConditionFailed {
        /// Which, counted from 0.
        condition: usize,
    },
    /// The transaction has lost its locks, to an older one or with a leader. Nothing was written,
    /// nor will be. [`Client::run`](crate::Client::run) runs it again by itself.
    #[error("the transaction has lost its locks, and did nothing: run it again")]
    Aborted,
    /// The keys of a transaction lie in more than one range. Nothing was done. Not retryable.
    #[error("the keys lie in several ranges: make it several transactions")]
    SeveralRanges,
    /// No replica keeps what the snapshot saw any more: it is older than [`MAX_SNAPSHOT_AGE_US`],
    /// or was opened in the past. Nothing was done. Open a new snapshot and read from the
    /// beginning.
    ///
    /// [`MAX_SNAPSHOT_AGE_US`]: crate::MAX_SNAPSHOT_AGE_US
    #[error(
        "the snapshot of {at_ts} is too old: a snapshot stays readable for {} s; open a new one",
        MAX_SNAPSHOT_AGE_US / 1_000_000
    )]
    SnapshotTooOld {
        /// Its timestamp.
        at_ts: Timestamp,
    },
    /// None of the addresses answers as a node of the cluster. Retryable.
    #[error(
        "no node of the cluster answers at {addresses}: check the addresses, and that the nodes run"
    )]
    Unreachable {
        /// What was tried.
        addresses: String,
    },
    /// The one node that can answer does not. Retryable.
    #[error("the node does not answer")]
    NodeDown,
    /// The answer made no sense. Not retryable: the versions don't fit.
    #[error("the answer of the cluster cannot be understood: {0}")]
    Protocol(String),
    /// The operating system has no randomness to name the client's transactions with. Nothing was
    /// done. Not retryable.
    #[error("the operating system gives no randomness: {0}")]
    NoEntropy(String),
    /// The client was closed under the call. If it was a write, its outcome is unknown.
    #[error("the client was closed")]
    Closed,
}

impl ClientError {
    /// Whether the same call may succeed later. A write whose outcome is unknown is not repeated
    /// safely by calling again: that is a new write.
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

    /// Whether the call may have taken effect all the same.
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
