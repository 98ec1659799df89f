//! Reads at timestamps that may lie in the future.
//!
//! They wait until the timestamp has passed. Until then, a commit could still be ordered below it.

use std::collections::BTreeMap;

use bytes::Bytes;
use palisade_clock::{Now, Timestamp};
use palisade_wire::{Operation, ReadKind, Rejection};

use crate::turn::RequestOrigin;

/// Reads that may wait at one shard.
const MAX_EARLY: usize = 16 * 1024;

/// Reads that wait for their timestamps to pass.
#[derive(Debug)]
pub(crate) struct EarlyReads {
    /// Reads by timestamp, then in order of arrival.
    waiting: BTreeMap<(Timestamp, u64), (RequestOrigin, Operation)>,
    next_number: u64,
    /// How far ahead a timestamp may lie, in microseconds. No clock is further ahead.
    max_ahead_us: u64,
}

impl EarlyReads {
    pub(crate) fn new(max_offset_us: u64) -> Self {
        // Two clocks may be wrong by `max_offset_us` in opposite directions. The edges of their
        // intervals may be off by as much again.
        Self { waiting: BTreeMap::new(), next_number: 0, max_ahead_us: 4 * max_offset_us }
    }

    /// Returns the operation if it need not wait; queues it and returns `None` otherwise. A
    /// snapshot read gets its timestamp here: the latest that true time may be, which is not below
    /// any acknowledged commit, because that has passed in true time.
    pub(crate) fn pass(
        &mut self,
        origin: RequestOrigin,
        mut operation: Operation,
        hasty: bool,
        now: Now,
    ) -> Result<Option<Operation>, Rejection> {
        let (Operation::Get { kind, .. } | Operation::Scan { kind, .. }) = &mut operation else {
            return Ok(Some(operation));
        };
        let certain_us = now.wall.latest_us - now.wall.earliest_us;
        match kind {
            ReadKind::Snapshot => *kind = of_now(now),
            // No timestamp that has certainly passed is this recent.
            ReadKind::Stale { max_us, .. } if *max_us <= certain_us => *kind = of_now(now),
            _ => {}
        }
        let (ReadKind::AsOf(at_ts) | ReadKind::Stale { at_least: at_ts, .. }) = *kind else {
            return Ok(Some(operation));
        };
        if now.wall.has_passed(at_ts) || hasty {
            return Ok(Some(operation));
        }
        if now.wall.until_passed_us(at_ts) > self.max_ahead_us {
            return Err(Rejection::NotYet);
        }
        if self.waiting.len() >= MAX_EARLY {
            return Err(Rejection::Overloaded);
        }
        self.next_number += 1;
        self.waiting.insert((at_ts, self.next_number), (origin, detached(operation)));
        Ok(None)
    }

    /// Removes and returns a read whose timestamp has passed.
    pub(crate) fn next(&mut self, now: Now) -> Option<(RequestOrigin, Operation)> {
        let first = self.waiting.first_entry()?;
        now.wall.has_passed(first.key().0).then(|| first.remove())
    }

    /// Returns the microseconds until the next timestamp has passed, at the earliest.
    pub(crate) fn next_us(&self, now: Now) -> Option<u64> {
        let ((at_ts, _), _) = self.waiting.first_key_value()?;
        Some(now.wall.until_passed_us(*at_ts))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

fn of_now(now: Now) -> ReadKind {
    ReadKind::AsOf(Timestamp::from_physical_us(now.wall.latest_us))
}

/// Copies the keys: a waiting read must not keep its receive buffer alive.
fn detached(operation: Operation) -> Operation {
    let copy = |bytes: &Bytes| Bytes::copy_from_slice(bytes);
    match operation {
        Operation::Get { range, key, kind } => Operation::Get { range, key: copy(&key), kind },
        Operation::Scan { mut scan, kind } => {
            scan.begin = copy(&scan.begin);
            scan.end = scan.end.as_ref().map(copy);
            Operation::Scan { scan, kind }
        }
        other => other,
    }
}
