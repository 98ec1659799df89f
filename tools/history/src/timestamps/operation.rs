//! Recorded operations that take their place by timestamps, and contradictions between them.

use std::fmt;

use thiserror::Error;

/// The result of reading one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Saw {
    /// A value.
    Value {
        /// The timestamp at which it was written.
        ts: u64,
        /// The value. No value is written twice to one key.
        value: u64,
    },
    /// No value.
    Absent,
    /// Any version but the one at this timestamp: a condition on that version failed.
    NotVersion {
        /// The timestamp of the version that the condition expected.
        ts: u64,
    },
}

/// How an operation is placed in the order of timestamps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// A commit at this timestamp, which is above everything acknowledged before it started. Its
    /// reads hold just below the timestamp.
    Commit(u64),
    /// A read of the latest state, not below anything acknowledged before it started.
    Latest,
    /// A read of the latest state of one key, not below anything acknowledged *on its keys* before
    /// it started.
    LatestOfKey,
    /// A read at this timestamp, which is not below anything acknowledged before it started.
    Fresh(u64),
    /// A read at this timestamp, which may be arbitrarily old.
    AsOf(u64),
    /// The outcome is unknown: the operation may take effect at any time after its start, or never.
    Unknown,
    /// The operation took no effect and never will.
    Failed,
}

/// One operation on any number of keys, as its client saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TimestampedOperation {
    /// The client that issued the operation.
    pub process: u32,
    /// When the client sent the request, in nanoseconds.
    pub start_ns: u64,
    /// When the client received the response or stopped waiting for it, in nanoseconds.
    pub end_ns: u64,
    /// How it is placed in the order of timestamps.
    pub order: Order,
    /// What it read: each key, with the result.
    pub reads: Vec<(u32, Saw)>,
    /// What it wrote: each key, with the value, or `None` for a delete.
    pub writes: Vec<(u32, Option<u64>)>,
}

/// The first contradiction found in a history of timestamped operations.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum TimestampViolation {
    /// A key has two versions at one timestamp.
    #[error("k{key} has two versions at {ts}: {first:?} and {second:?}, as {operation} shows")]
    TwoVersions {
        /// The key.
        key: u32,
        /// The timestamp.
        ts: u64,
        /// The value of the first version; `None` is a delete.
        first: Option<u64>,
        /// The value of the other version.
        second: Option<u64>,
        /// The operation that read or wrote the other version.
        operation: Box<TimestampedOperation>,
    },
    /// One write took effect at two timestamps: it ran twice.
    #[error("{value} was written once to k{key}, and took effect at {first} and {second}")]
    AppliedTwice {
        /// The key.
        key: u32,
        /// The value.
        value: u64,
        /// The first timestamp found.
        first: u64,
        /// The other timestamp.
        second: u64,
    },
    /// A value was read that no operation wrote.
    #[error("k{key} had {value}, which was never written, as {reader} shows")]
    Unwritten {
        /// The key.
        key: u32,
        /// The value.
        value: u64,
        /// The operation that read it.
        reader: Box<TimestampedOperation>,
    },
    /// A value was read whose write was reported to have had no effect.
    #[error("k{key} had {value}, whose write failed for good: {writer}")]
    FailedButSeen {
        /// The key.
        key: u32,
        /// The value.
        value: u64,
        /// The operation that wrote it.
        writer: Box<TimestampedOperation>,
    },
    /// An operation took effect below a timestamp that was acknowledged before it started.
    #[error(
        "{operation} took effect at {ts}, and {acknowledged} was acknowledged before it started: {by}"
    )]
    BelowAcknowledged {
        /// The operation.
        operation: Box<TimestampedOperation>,
        /// Its timestamp.
        ts: u64,
        /// The highest timestamp that was acknowledged before the operation started.
        acknowledged: u64,
        /// The operation that has that timestamp.
        by: Box<TimestampedOperation>,
    },
    /// The reads of an operation do not hold at any timestamp at which it may have taken effect.
    #[error(
        "{operation} fits no timestamp: at or after {from} k{key} was never again as it was read"
    )]
    NoTimestampFits {
        /// The operation.
        operation: Box<TimestampedOperation>,
        /// The key.
        key: u32,
        /// The lowest timestamp that the rest of the operation allows.
        from: u64,
    },
}

/// The contents of a history that passed the check, as counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CheckedTimestamps {
    /// Operations that took effect for certain, and so got a timestamp.
    pub placed: usize,
    /// Versions of all keys.
    pub versions: usize,
}

impl fmt::Display for TimestampedOperation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { process, start_ns, end_ns, order, reads, writes } = self;
        write!(f, "process {process} [{start_ns}, {end_ns} ns] {order:?}")?;
        for (key, saw) in reads {
            match saw {
                Saw::Value { ts, value } => write!(f, ", read k{key} = {value} of {ts}")?,
                Saw::Absent => write!(f, ", found k{key} absent")?,
                Saw::NotVersion { ts } => write!(f, ", found k{key} not of {ts}")?,
            }
        }
        for (key, value) in writes {
            match value {
                Some(value) => write!(f, ", wrote {value} to k{key}")?,
                None => write!(f, ", deleted k{key}")?,
            }
        }
        Ok(())
    }
}
