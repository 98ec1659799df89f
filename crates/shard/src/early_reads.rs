//! Reads at timestamps that may still lie in the future: they wait until the timestamp has passed,
//! because until then somebody might commit below it.

use std::collections::BTreeMap;

use bytes::Bytes;
use palisade_clock::{Now, Timestamp};
use palisade_wire::{Operation, Outcome, ReadKind, Rejection};

use crate::replica::Asker;

/// Reads that may wait.
const MAX_EARLY: usize = 16 * 1024;

/// Reads that wait for their timestamps.
#[derive(Debug)]
pub(crate) struct EarlyReads {
    /// By timestamp, and in the order of their coming.
    waiting: BTreeMap<(Timestamp, u64), (Asker, Operation)>,
    next_number: u64,
    /// How far ahead a timestamp may lie: no clock of the cluster is further ahead.
    max_ahead_us: u64,
}

impl EarlyReads {
    pub(crate) fn new(max_offset_us: u64) -> Self {
        // Of two clocks, each may be off by this much, in different directions, and so may the
        // edges of what they show.
        Self { waiting: BTreeMap::new(), next_number: 0, max_ahead_us: 4 * max_offset_us }
    }

    /// Hands an operation on, unless it has to wait. A read that leaves the timestamp to the cluster
    /// gets one: not before whatever was acknowledged until now, which has passed everywhere.
    pub(crate) fn pass(
        &mut self,
        asker: Asker,
        mut operation: Operation,
        hasty: bool,
        now: Now,
    ) -> Result<Option<Operation>, Outcome> {
        let (Operation::Get { kind, .. } | Operation::Scan { kind, .. }) = &mut operation else {
            return Ok(Some(operation));
        };
        let certain_us = now.wall.latest_us - now.wall.earliest_us;
        match kind {
            ReadKind::Snapshot => *kind = of_now(now),
            // Nothing that has certainly passed is as fresh.
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
            return Err(Outcome::Rejected(Rejection::NotYet));
        }
        if self.waiting.len() >= MAX_EARLY {
            return Err(Outcome::Rejected(Rejection::Overloaded));
        }
        self.next_number += 1;
        self.waiting.insert((at_ts, self.next_number), (asker, detached(operation)));
        Ok(None)
    }

    /// A read whose timestamp has passed.
    pub(crate) fn next(&mut self, now: Now) -> Option<(Asker, Operation)> {
        let first = self.waiting.first_entry()?;
        now.wall.has_passed(first.key().0).then(|| first.remove())
    }

    /// When the next timestamp has passed, at the soonest.
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

/// What waits must not keep the memory of everything that arrived with it.
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
