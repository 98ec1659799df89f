//! Does every operation fit one timestamp, in an order that agrees with real time?
//!
//! # The problem
//!
//! A store that orders its transactions by commit timestamps claims more than "some order exists":
//! each operation takes effect at one timestamp, and operations that follow each other in real time
//! have rising timestamps, over all keys. A check of one key at a time does not see a violation
//! over two:
//!
//! ```text
//! put x=1   |--------------------------|          committed at 10
//! put y=1        |------|                         committed at 20
//! get x                    |----|                 answers the old value
//! ```
//!
//! Each key alone is linearizable. But `get x` began after `put y` was acknowledged, so it belongs
//! above 20, where x=1 since 10.
//!
//! # The algorithm
//!
//! The answers carry timestamps of versions, so no search is needed. The first pass gathers the
//! versions of every key. The second pass walks through the starts and ends of the operations in
//! real time, and gives each operation the lowest timestamp that fits what it saw and that is not
//! below any timestamp given to an operation that had ended when it started. The lowest choice
//! constrains later operations least, so if it fails, every choice fails. O(n log n).
//!
//! # No false alarm
//!
//! A write of unknown outcome may take effect at any time after its start, or never. Its version is
//! known only once an operation has read it. While such a delete of a key exists, an absent key is
//! accepted anywhere; while such a write exists, so is a failed condition.

mod versions;

use std::fmt;

use thiserror::Error;

use versions::Versions;

/// What an operation read of one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Saw {
    /// A value, written at this timestamp.
    Value {
        /// When it was written.
        ts: u64,
        /// The value. No value is written twice to one key.
        value: u64,
    },
    /// No value.
    Absent,
    /// Another version than the one of this timestamp: a condition on it failed.
    NotVersion {
        /// The version that was expected.
        ts: u64,
    },
}

/// At which timestamp an operation took effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// A commit at this timestamp. Its reads held just below it. Above everything that had been
    /// acknowledged when it started.
    Commit(u64),
    /// A read of the latest state: not below anything that had been acknowledged when it started.
    Latest,
    /// A read of the latest state of one key: not below anything that had been acknowledged *on its
    /// keys* when it started.
    LatestOfKey,
    /// A read at this timestamp, which is not below anything that had been acknowledged when it
    /// started.
    Fresh(u64),
    /// A read at this timestamp, however old.
    AsOf(u64),
    /// The outcome is unknown: it may take effect after its start, or never.
    Unknown,
    /// It took no effect and never will.
    Failed,
}

/// One operation on any number of keys, as its client saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TimestampedOperation {
    /// The client that issued it.
    pub process: u32,
    /// When the client sent the request.
    pub start_ns: u64,
    /// When the client had the answer, or stopped waiting for it.
    pub end_ns: u64,
    /// Where it took effect.
    pub order: Order,
    /// What it read: key and what was there.
    pub reads: Vec<(u32, Saw)>,
    /// What it wrote: key and value, or `None` for a delete.
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
        /// One version.
        first: Option<u64>,
        /// The other.
        second: Option<u64>,
        /// The operation that saw or wrote the second.
        operation: Box<TimestampedOperation>,
    },
    /// One write took effect at two timestamps: it ran twice.
    #[error("{value} was written once to k{key}, and took effect at {first} and {second}")]
    AppliedTwice {
        /// The key.
        key: u32,
        /// The value.
        value: u64,
        /// One timestamp.
        first: u64,
        /// The other.
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
    /// An operation took effect below what had been acknowledged before it started.
    #[error(
        "{operation} took effect at {ts}, and {acknowledged} was acknowledged before it started: {by}"
    )]
    BelowAcknowledged {
        /// The operation.
        operation: Box<TimestampedOperation>,
        /// Its timestamp.
        ts: u64,
        /// What had been acknowledged before.
        acknowledged: u64,
        /// The operation that has that timestamp.
        by: Box<TimestampedOperation>,
    },
    /// What an operation read was not so at any timestamp at which it may have taken effect.
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

/// What a history was found to hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CheckedTimestamps {
    /// Operations that were given a timestamp.
    pub placed: usize,
    /// Versions of all keys.
    pub versions: usize,
}

/// Decides whether every operation fits one timestamp, in an order that agrees with real time.
///
/// # Errors
///
/// The first contradiction.
pub fn check_timestamps(
    history: &[TimestampedOperation],
) -> Result<CheckedTimestamps, TimestampViolation> {
    let versions = Versions::gather(history)?;
    let mut sweep = Sweep::new(history, &versions);
    // Starts come before ends of the same instant: operations that merely touch are concurrent.
    let mut events: Vec<(u64, bool, usize)> = Vec::with_capacity(2 * history.len());
    for (at, operation) in history.iter().enumerate() {
        events.push((operation.start_ns, false, at));
        if !matches!(operation.order, Order::Unknown | Order::Failed) {
            events.push((operation.end_ns, true, at));
        }
    }
    events.sort_unstable();
    let mut placed = 0;
    for (_, is_end, at) in events {
        if is_end {
            sweep.end(at)?;
            placed += 1;
        } else {
            sweep.start(at)?;
        }
    }
    Ok(CheckedTimestamps { placed, versions: versions.len() })
}

struct Sweep<'a> {
    history: &'a [TimestampedOperation],
    versions: &'a Versions,
    /// What had been acknowledged when each operation started: of all keys, or of its own.
    floors: Vec<Floor>,
    /// The highest timestamp of an operation that has ended.
    acknowledged: Floor,
    /// The same by key.
    acknowledged_of: Vec<Floor>,
}

/// A timestamp, and the place in the history of the operation that has it.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Floor {
    ts: u64,
    by: usize,
}

impl<'a> Sweep<'a> {
    fn new(history: &'a [TimestampedOperation], versions: &'a Versions) -> Self {
        let keys =
            history.iter().flat_map(TimestampedOperation::keys).max().map_or(0, |key| key + 1);
        Self {
            history,
            versions,
            floors: vec![Floor::default(); history.len()],
            acknowledged: Floor::default(),
            acknowledged_of: vec![Floor::default(); keys as usize],
        }
    }

    fn start(&mut self, at: usize) -> Result<(), TimestampViolation> {
        let operation = &self.history[at];
        self.floors[at] = match operation.order {
            Order::LatestOfKey => {
                let floors = operation.keys().map(|key| self.acknowledged_of[key as usize]);
                floors.max().unwrap_or_default()
            }
            _ => self.acknowledged,
        };
        if operation.order == Order::Unknown {
            // If it took effect, it did so after its start.
            let seen = operation
                .writes
                .iter()
                .filter_map(|(key, value)| self.versions.written_at(*key, (*value)?));
            for ts in seen {
                self.above(at, ts)?;
            }
        }
        Ok(())
    }

    fn above(&self, at: usize, ts: u64) -> Result<(), TimestampViolation> {
        let Floor { ts: acknowledged, by } = self.floors[at];
        if ts > acknowledged {
            return Ok(());
        }
        let [operation, by] = [at, by].map(|at| Box::new(self.history[at].clone()));
        Err(TimestampViolation::BelowAcknowledged { operation, ts, acknowledged, by })
    }

    fn end(&mut self, at: usize) -> Result<(), TimestampViolation> {
        let operation = &self.history[at];
        let floor = self.floors[at].ts;
        let ts = match operation.order {
            Order::Commit(ts) => {
                self.above(at, ts)?;
                // Its own writes replace what it read.
                self.exactly(operation, ts - 1)?;
                ts
            }
            Order::Fresh(ts) => {
                if ts < floor {
                    self.above(at, ts)?;
                }
                self.exactly(operation, ts)?;
                ts
            }
            Order::AsOf(ts) => {
                self.exactly(operation, ts)?;
                ts
            }
            Order::Latest | Order::LatestOfKey => self.lowest(operation, floor)?,
            Order::Unknown | Order::Failed => unreachable!("they have no end"),
        };
        let acknowledged = Floor { ts, by: at };
        self.acknowledged = self.acknowledged.max(acknowledged);
        for key in operation.keys() {
            let known = &mut self.acknowledged_of[key as usize];
            *known = (*known).max(acknowledged);
        }
        Ok(())
    }

    fn exactly(&self, operation: &TimestampedOperation, ts: u64) -> Result<(), TimestampViolation> {
        for (key, saw) in &operation.reads {
            if self.versions.first_fit(operation, *key, *saw, ts) != Some(ts) {
                return Err(no_fit(operation, *key, ts));
            }
        }
        Ok(())
    }

    /// The lowest timestamp from `floor` on at which everything was as it was read.
    fn lowest(
        &self,
        operation: &TimestampedOperation,
        floor: u64,
    ) -> Result<u64, TimestampViolation> {
        let mut ts = floor;
        loop {
            let before = ts;
            for (key, saw) in &operation.reads {
                let fit = self.versions.first_fit(operation, *key, *saw, ts);
                ts = fit.ok_or_else(|| no_fit(operation, *key, ts))?;
            }
            if ts == before {
                return Ok(ts);
            }
        }
    }
}

fn no_fit(operation: &TimestampedOperation, key: u32, from: u64) -> TimestampViolation {
    let operation = Box::new(operation.clone());
    TimestampViolation::NoTimestampFits { operation, key, from }
}

impl TimestampedOperation {
    /// The keys that it read or wrote, repeated ones too.
    fn keys(&self) -> impl Iterator<Item = u32> + '_ {
        let reads = self.reads.iter().map(|(key, _)| *key);
        reads.chain(self.writes.iter().map(|(key, _)| *key))
    }
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
