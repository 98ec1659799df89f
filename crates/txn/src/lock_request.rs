//! Requests to the lock table, and their results.

use palisade_clock::Timestamp;
use palisade_wire::TxnId;
use thiserror::Error;

use crate::lock_spans::{Span, Strength};

/// The age of a transaction. The smaller value is older, and takes precedence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Priority {
    /// When the transaction's first try began.
    pub start_ts: Timestamp,
    /// Decides between transactions with the same `start_ts`.
    pub txn: TxnId,
}

/// A request for locks, which are granted all together.
#[derive(Clone, Debug)]
pub struct LockRequest {
    /// Identifies the request in [`LockEvent`]s. Chosen by the caller, and unique among the waiting
    /// requests.
    pub ticket: u64,
    /// Decides which request waits, and which transaction is wounded.
    pub priority: Priority,
    /// True if `priority.txn` keeps the locks after the grant. False if the caller only needs the
    /// moment at which no conflicting lock is held: the grant then leaves no lock.
    pub keeps: bool,
    /// The spans to lock, none of them empty. [`LockTable::request`](crate::LockTable::request)
    /// sorts them.
    pub wants: Vec<(Span, Strength)>,
    /// When waiting ends, in microseconds of the monotonic clock.
    pub deadline_us: u64,
}

/// The end of a request that had to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockEvent {
    /// The locks are granted.
    Granted,
    /// The transaction has lost all its locks and requests: an older one took them, or it was
    /// released.
    Wounded,
    /// The deadline has passed. Locks that the transaction holds are unchanged.
    TimedOut,
}

/// The reason why a transaction gets no locks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum LockError {
    /// The transaction has lost its locks. Not retryable: it must be run again from its beginning.
    #[error("the transaction has lost its locks")]
    Lost,
    /// There are too many transactions, locks or waiting requests. Retryable.
    #[error("the lock table is full")]
    Full,
}
