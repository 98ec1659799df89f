//! Decides whether every operation fits one timestamp, in an order that agrees with real time.
//!
//! # The problem
//!
//! A store that orders its transactions by commit timestamps claims more than that some order
//! exists. Each operation takes effect at one timestamp, and operations that follow each other in
//! real time have rising timestamps, over all keys. A check of one key at a time misses a violation
//! over two:
//!
//! ```text
//! put x=1   |--------------------------|          committed at 10
//! put y=1        |------|                         committed at 20
//! get x                    |----|                 returns the old value
//! ```
//!
//! Each key alone is linearizable. But `get x` began after `put y` was acknowledged, so its
//! timestamp must be at least 20, where x has been 1 since 10.
//!
//! # The algorithm
//!
//! The responses carry the timestamps of versions, so no search is needed. The first pass gathers
//! the versions of every key. The second pass visits the starts and ends of the operations in real
//! time. If the response carries the operation's own timestamp, the operation must fit that one.
//! Otherwise it gets the lowest timestamp that fits its reads and that is not below the timestamp
//! of any operation that ended before it started. A lower timestamp constrains later operations
//! less, so if the lowest one fails, every choice fails. The check takes O(n log n).
//!
//! # No false alarm
//!
//! A write of unknown outcome may take effect at any time after its start, or never, and its
//! version is known only if an operation has read it. So a read of an absent key is accepted at any
//! timestamp if a delete of unknown outcome started before the read ended. In the same way, a
//! failed condition is accepted if any write of unknown outcome did.

mod operation;
mod versions;

pub use operation::{CheckedTimestamps, Order, Saw, TimestampViolation, TimestampedOperation};

use versions::Versions;

/// Decides whether every operation fits one timestamp, in an order that agrees with real time.
///
/// # Errors
///
/// Returns the first contradiction found.
pub fn check_timestamps(
    history: &[TimestampedOperation],
) -> Result<CheckedTimestamps, TimestampViolation> {
    let versions = Versions::gather(history)?;
    let mut sweep = Sweep::new(history, &versions);
    // At one instant, starts sort before ends: operations that touch are concurrent.
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
    /// For each operation, the highest timestamp acknowledged before it started, over all keys or
    /// over its own.
    floors: Vec<Floor>,
    /// The highest timestamp of any operation that has ended.
    acknowledged: Floor,
    /// For each key, the highest timestamp of an operation on it that has ended.
    acknowledged_of: Vec<Floor>,
}

/// A timestamp, and the index in the history of the operation that has it.
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
            // If the operation took effect, it did so after its start.
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
                // Reads hold just below the commit, because its own writes replace what it read.
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

    /// Returns the lowest timestamp from `floor` on at which all reads of the operation hold.
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
    /// Returns the keys that the operation read or wrote. A key may repeat.
    fn keys(&self) -> impl Iterator<Item = u32> + '_ {
        let reads = self.reads.iter().map(|(key, _)| *key);
        reads.chain(self.writes.iter().map(|(key, _)| *key))
    }
}
