//! Why a history is refused, with the operations that contradict each other.

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
    /// not identify its write.
    #[error("not a history: one value written twice: {first}, and {second}")]
    DuplicateWrite {
        /// The write that started first.
        first: Operation,
        /// The other write.
        second: Operation,
    },
    /// A read returned a value that no operation wrote.
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
    /// A read found the key absent after the key certainly had a value: a write was lost.
    #[error("lost write: {read}, after {seen}")]
    AbsentAfterWrite {
        /// The operation that wrote or read a value, and ended before the read started.
        seen: Operation,
        /// The read that found the key absent.
        read: Operation,
    },
    /// A value was read after another value had replaced it: the inner value was held strictly
    /// within the interval in which the register must have held the outer value.
    #[error("stale read: {0}")]
    StaleRead(Box<Conflict>),
    /// The register must have held two values at one instant.
    #[error("two values at once: {0}")]
    TwoValuesAtOnce(Box<Conflict>),
}

impl Violation {
    /// Returns the key whose register has the contradiction.
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

/// Two values of one key, each of which must have been written before the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conflict {
    /// The value whose interval contains the other's, or starts first.
    pub outer: ValueInterval,
    /// The other value.
    pub inner: ValueInterval,
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

/// The two operations on one value that bound the interval of that value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ValueInterval {
    /// The operation that ended first. At its end the value had been written.
    pub finished_first: Operation,
    /// The operation that started last. At its start the value had not been replaced for good.
    pub started_last: Operation,
}
