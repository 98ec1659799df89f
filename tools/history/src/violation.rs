//! Why a history is refused, told by the operations that cannot all be true.

use std::fmt;

use thiserror::Error;

use crate::record::Operation;

/// The first contradiction found in a history. Its message names the key, the values, the processes
/// and the times.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Violation {
    /// The recording is at fault: an operation that succeeded ends before it starts.
    #[error("not a history: {operation} ends before it starts")]
    EndsBeforeStart {
        /// The operation with reversed times.
        operation: Operation,
    },
    /// The recording is at fault: one value was written twice to one key, so that a read of it does
    /// not tell which write it saw.
    #[error("not a history: one value written twice: {first}, and {second}")]
    DuplicateWrite {
        /// The write that started first.
        first: Operation,
        /// The other one.
        second: Operation,
    },
    /// A read returned a value that nobody wrote.
    #[error("read of a value never written: {read}")]
    ReadOfUnwritten {
        /// The read.
        read: Operation,
    },
    /// A read returned a value whose write was reported to have had no effect.
    #[error("read of a failed write: {read}, but {write}")]
    ReadOfFailedWrite {
        /// The read.
        read: Operation,
        /// The failed write of that value.
        write: Operation,
    },
    /// A read ended before the write of the value it returned had started.
    #[error("read from the future: {read}, before {write}")]
    ReadBeforeWrite {
        /// The read.
        read: Operation,
        /// The later write of that value.
        write: Operation,
    },
    /// A read found the key absent after a value was certainly there: a write is lost.
    #[error("lost write: {read}, after {seen}")]
    AbsentAfterWrite {
        /// The operation that had ended, having written or read a value, before the read started.
        seen: Operation,
        /// The read that found the key absent.
        read: Operation,
    },
    /// A value came back after another one had replaced it: the inner value was written and held
    /// while the register must have held the outer one throughout.
    #[error("stale read: {0}")]
    StaleRead(Box<Conflict>),
    /// There is an instant at which the register must have held two values.
    #[error("two values at once: {0}")]
    TwoValuesAtOnce(Box<Conflict>),
}

impl Violation {
    /// The key on whose register the contradiction was found.
    pub fn key(&self) -> u32 {
        match self {
            Self::EndsBeforeStart { operation } => operation.key,
            Self::DuplicateWrite { first, .. } => first.key,
            Self::ReadOfUnwritten { read }
            | Self::ReadOfFailedWrite { read, .. }
            | Self::ReadBeforeWrite { read, .. }
            | Self::AbsentAfterWrite { read, .. } => read.key,
            Self::StaleRead(conflict) | Self::TwoValuesAtOnce(conflict) => {
                conflict.outer.finished_first.key
            }
        }
    }
}

/// Two values of one key, each of which would have to be written before the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conflict {
    /// The value whose time contains the other's, or began first.
    pub outer: Span,
    /// The other value.
    pub inner: Span,
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { outer, inner } = self;
        write!(
            f,
            "({}) ended before ({}) began, yet ({}) ended before ({}) began",
            outer.finished_first, inner.started_last, inner.finished_first, outer.started_last
        )
    }
}

/// The two operations on one value that bound the time of that value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// The operation that ended first: from then on the value had been written.
    pub finished_first: Operation,
    /// The operation that started last: until then the value was not replaced for good.
    pub started_last: Operation,
}
