//! The errors of a call.

use std::time::Duration;

use palisade_clock::Timestamp;
use palisade_wire::{MAX_SNAPSHOT_AGE_US, Outcome, Refusal, Rejection};
use thiserror::Error;

/// An error of a call.
///
/// [`ClientError::is_retryable`] and [`ClientError::is_outcome_unknown`] decide what a caller may
/// do next. A read changes nothing, with any error.
///
/// # Examples
///
/// ```no_run
/// # use palisade_client::*; async fn example(client: Client) -> Result<(), ClientError> {
/// match client.put("key", "value").await {
///     Err(error) if error.is_outcome_unknown() => println!("read the key: {error}"),
///     Err(error) if error.is_retryable() => println!("nothing was changed, try again: {error}"),
///     result => println!("written at {}", result?.commit_ts),
/// }
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The deadline passed. Retryable. The outcome of a change may be unknown: check
    /// `outcome_unknown` before you repeat it.
    #[error(
        "no answer within {after:?} ({reason}); {}",
        if *outcome_unknown { "the outcome is unknown" } else { "nothing was done" }
    )]
    Deadline {
        /// The time limit of the call.
        after: Duration,
        /// Why the last try did not succeed, such as "the shard's log is full".
        reason: &'static str,
        /// True if the request is a change, and a try of it may have taken effect: its answer is
        /// lost or still to come. False for reads, and if all tries were rejected without effect.
        outcome_unknown: bool,
    },
    /// The request was refused, and a retry within the call would not help. Sizes are checked
    /// before anything is sent. [`Rejection::is_retryable`] and [`Rejection::is_outcome_unknown`]
    /// apply: the outcome is unknown for [`Rejection::Unknown`] and [`Rejection::Expired`].
    #[error("the request was refused: {0}")]
    Rejected(#[source] Rejection),
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
    /// Too many calls of this client, or too many bytes, have no answer yet. Nothing was sent.
    /// Retryable, once some have ended.
    #[error("the client has too many calls without an answer: wait for some before the next")]
    TooManyCalls,
    /// No address answers as a node of the cluster. Only connecting fails with it. Nothing was
    /// changed. Retryable.
    #[error(
        "no node of the cluster answers at {addresses}: check the addresses, and that the nodes run"
    )]
    Unreachable {
        /// The addresses, comma-separated.
        addresses: String,
    },
    /// A node refuses the connection, or is not the expected one, and no other address answers.
    /// Only connecting fails with it. Nothing was changed. Not retryable.
    #[error("the connection is refused: {0}")]
    Refused(#[source] Refusal),
    /// The shard whose status was requested does not answer. Nothing was changed. Retryable.
    #[error("the node does not answer")]
    NodeDown,
    /// An answer is invalid, because the versions of client and cluster do not match, or the
    /// client's thread cannot start. The outcome of a change is unknown. Not retryable.
    #[error("the answer of the cluster cannot be understood: {0}")]
    Protocol(String),
    /// The operating system provides no randomness for the names of transactions. Nothing was
    /// changed. Not retryable.
    #[error("the operating system gives no randomness: {0}")]
    NoEntropy(String),
    /// The client was closed before or during the call: its `LocalSet` was dropped, or the database
    /// in this process has stopped. The outcome of a change is unknown. Not retryable with the same
    /// client.
    #[error("the client was closed")]
    Closed,
}

impl ClientError {
    /// Returns true if the same call may succeed later. Repeating a write whose outcome is unknown
    /// is not safe: the repetition is a new write. So check
    /// [`ClientError::is_outcome_unknown`] first.
    ///
    /// # Examples
    ///
    /// ```
    /// use palisade_client::ClientError;
    ///
    /// assert!(ClientError::NodeDown.is_retryable());
    /// assert!(!ClientError::SeveralRanges.is_retryable());
    /// ```
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Deadline { .. }
            | Self::Unreachable { .. }
            | Self::NodeDown
            | Self::TooManyCalls
            | Self::Aborted => true,
            Self::Rejected(rejection) => rejection.is_retryable(),
            Self::ConditionFailed { .. }
            | Self::SeveralRanges
            | Self::SnapshotTooOld { .. }
            | Self::Refused(_)
            | Self::Protocol(_)
            | Self::NoEntropy(_)
            | Self::Closed => false,
        }
    }

    /// Returns true if a change may have taken effect despite the error. Meaningless for a read.
    ///
    /// # Examples
    ///
    /// ```
    /// use palisade_client::ClientError;
    ///
    /// assert!(ClientError::Closed.is_outcome_unknown());
    /// assert!(!ClientError::SeveralRanges.is_outcome_unknown());
    /// ```
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
            | Self::Refused(_)
            | Self::NoEntropy(_)
            | Self::TooManyCalls
            | Self::NodeDown => false,
        }
    }
}

/// Returns the error for an outcome that is not of the kind that the call expects.
pub(crate) fn unexpected(outcome: &Outcome) -> ClientError {
    match outcome {
        Outcome::Rejected(rejection) => ClientError::Rejected(*rejection),
        other => ClientError::Protocol(format!("an answer of another kind: {other:?}")),
    }
}
