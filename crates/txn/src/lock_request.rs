//! What is asked of the lock table, and what it answers.

use palisade_clock::Timestamp;
use palisade_wire::TxnId;
use thiserror::Error;

use crate::segments::{Span, Strength};

/// Who comes first: the one with the smaller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Priority {
    /// When its first try began.
    pub start_ts: Timestamp,
    /// Tells those of the same time apart.
    pub txn: TxnId,
}

/// What is asked for.
#[derive(Clone, Debug)]
pub struct LockRequest {
    /// Names it towards the caller.
    pub ticket: u64,
    /// Who waits for whom.
    pub priority: Priority,
    /// Whether the locks are kept once they are granted, by `priority.txn`. Who needs them for a
    /// moment only, keeps none.
    pub keeps: bool,
    /// What is asked for.
    pub wants: Vec<(Span, Strength)>,
    /// When the waiting ends, by the monotonic clock.
    pub deadline_us: u64,
}

/// How a request that had to wait has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockEvent {
    /// It has its locks.
    Granted,
    /// Its transaction has none any more.
    Wounded,
    /// It waited as long as it might. Nothing else has changed.
    TimedOut,
}

/// Why a transaction gets no locks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum LockError {
    /// It had locks, and has lost them: it can only be run again.
    #[error("the transaction has lost its locks")]
    Lost,
    /// There are too many locks, or too many who wait.
    #[error("the lock table is full")]
    Full,
}
