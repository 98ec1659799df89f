//! Transactions that read, think and write are strictly serializable, in the order of their commit
//! timestamps: what a transaction has read of the cells of a range was still so when it committed.
//! By the timestamps that answers carry, in true time:
//!
//! - between what a committed transaction read of a cell and its commit, nothing else was committed
//!   to that cell: no lost update, no write skew, no phantom;
//! - what is read at a timestamp is what was written then;
//! - what one transaction reads was so at one moment, even if it never commits;
//! - what is read as of a timestamp was so then, and stays so, whoever is asked;
//! - what was aborted is never seen.
//!
//! That commits are in the order in which the world saw them is `external_consistency`'s to check.

use std::collections::{BTreeMap, BTreeSet};

use palisade_clock::Timestamp;

/// What a transaction saw of a cell: a value and when it was written; or none, and when there was
/// none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) cell: usize,
    pub(crate) ts: Timestamp,
    pub(crate) value: Option<u64>,
}

/// What is known of the cells of a range.
#[derive(Debug, Default)]
pub(crate) struct Transactions {
    cells: BTreeMap<usize, Cell>,
    /// Values that were seen, or are known to be committed.
    there: BTreeSet<u64>,
    aborted: BTreeSet<u64>,
}

#[derive(Debug, Default)]
struct Cell {
    /// What was committed when: a value, or a delete.
    versions: BTreeMap<Timestamp, Option<u64>>,
    /// Since when what a transaction read was so, by when that transaction committed; and whether
    /// that was a value.
    reads: BTreeMap<Timestamp, (Timestamp, bool)>,
    /// Deletes that may be committed, or become so, without anybody knowing.
    deletes: u32,
}

impl Transactions {
    pub(crate) const NAME: &'static str = "transactions are strictly serializable";

    /// A transaction begins to commit: what it deletes may be gone from now on.
    pub(crate) fn commits(&mut self, writes: &[(usize, Option<u64>)]) {
        self.count_deletes(writes, |deletes| deletes + 1);
    }

    fn count_deletes(&mut self, writes: &[(usize, Option<u64>)], count: impl Fn(u32) -> u32) {
        for (cell, _) in writes.iter().filter(|(_, value)| value.is_none()) {
            let known = self.cells.entry(*cell).or_default();
            known.deletes = count(known.deletes);
        }
    }

    /// A transaction, committed or not, has seen something more.
    pub(crate) fn read(&mut self, seen: &[Seen]) -> Result<(), String> {
        for Seen { cell, ts, value } in seen {
            if value.is_some() {
                self.note(*cell, *ts, *value)?;
            }
        }
        let moment = seen.iter().map(|seen| seen.ts).max().unwrap_or_default();
        seen.iter().try_for_each(|seen| self.unchanged(seen, moment.next()))
    }

    /// Somebody has read at a timestamp, without locks: later reads at it must see the same.
    pub(crate) fn snapshot(&mut self, at_ts: Timestamp, seen: &[Seen]) -> Result<(), String> {
        for Seen { cell, ts, value } in seen {
            if *ts > at_ts {
                return Err(format!("cell {cell} of {ts} was read at {at_ts}"));
            }
            if value.is_some() {
                self.note(*cell, *ts, *value)?;
            }
        }
        self.still_so(at_ts.next(), seen)
    }

    /// What was seen is still so right before a moment, and nobody is to say otherwise later.
    fn still_so(&mut self, before: Timestamp, seen: &[Seen]) -> Result<(), String> {
        for seen in seen {
            self.unchanged(seen, before)?;
            let read = (seen.ts, seen.value.is_some());
            self.cells.entry(seen.cell).or_default().reads.insert(before, read);
        }
        Ok(())
    }

    /// A transaction has committed.
    pub(crate) fn committed(
        &mut self,
        ts: Timestamp,
        seen: &[Seen],
        writes: &[(usize, Option<u64>)],
    ) -> Result<(), String> {
        self.still_so(ts, seen)?;
        self.count_deletes(writes, |deletes| deletes - 1);
        writes.iter().try_for_each(|(cell, value)| self.note(*cell, ts, *value))
    }

    /// A transaction that began to commit is known to have failed.
    pub(crate) fn aborted(&mut self, writes: &[(usize, Option<u64>)]) -> Result<(), String> {
        self.count_deletes(writes, |deletes| deletes - 1);
        let values = || writes.iter().filter_map(|(_, value)| *value);
        self.aborted.extend(values());
        match values().find(|value| self.there.contains(value)) {
            Some(value) => Err(format!("{value} was aborted, and is seen")),
            None => Ok(()),
        }
    }

    /// What was seen was so, and was still so right before a moment.
    fn unchanged(&self, seen: &Seen, before: Timestamp) -> Result<(), String> {
        let Seen { cell, ts, value } = *seen;
        let Some(known) = self.cells.get(&cell) else { return Ok(()) };
        let at = known.versions.range(..=ts).next_back();
        let was_there = at.and_then(|(_, value)| *value);
        let may_be_gone = value.is_none() && known.deletes > 0;
        if was_there != value && !may_be_gone {
            return Err(format!("cell {cell} was {was_there:?} at {ts}, and {value:?} was read"));
        }
        let mut later = known.versions.range(ts.next()..before.max(ts.next()));
        // The delete of what is not there leaves nothing behind.
        match later.find(|(_, other)| other.is_some() || value.is_some()) {
            Some((between, other)) => Err(format!(
                "cell {cell} was read as {value:?} of {ts} by who came at {before}; at {between} it \
                 became {other:?}"
            )),
            None => Ok(()),
        }
    }

    fn note(&mut self, cell: usize, ts: Timestamp, value: Option<u64>) -> Result<(), String> {
        if let Some(value) = value.filter(|value| self.aborted.contains(value)) {
            return Err(format!("{value} of {ts} was aborted, and is seen"));
        }
        self.there.extend(value);
        let known = self.cells.entry(cell).or_default();
        let before = *known.versions.entry(ts).or_insert(value);
        if before != value {
            return Err(format!("cell {cell} became {before:?} and {value:?} at {ts}"));
        }
        match known.reads.range(ts.next()..).next() {
            Some((later, (since, was_there))) if *since < ts && (*was_there || value.is_some()) => {
                Err(format!(
                    "cell {cell} became {value:?} at {ts}, between what was read of {since} and the \
                 commit of the reader at {later}"
                ))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ts(us: u64) -> Timestamp {
        Timestamp::from_physical_us(us)
    }

    fn seen(cell: usize, us: u64, value: Option<u64>) -> Seen {
        Seen { cell, ts: ts(us), value }
    }

    #[test]
    fn what_is_serializable_is_accepted() {
        let mut all = Transactions::default();
        let nothing = [seen(0, 0, None), seen(1, 5, None)];
        all.read(&nothing).unwrap();
        all.committed(ts(10), &nothing, &[(0, Some(1)), (1, Some(2))]).unwrap();
        let both = [seen(0, 10, Some(1)), seen(1, 10, Some(2))];
        all.read(&both).unwrap();
        all.committed(ts(20), &both, &[(0, Some(3))]).unwrap();
        // Learned of late, and by somebody else.
        all.read(&[seen(1, 30, Some(4)), seen(0, 20, Some(3))]).unwrap();
        all.commits(&[(1, None)]);
        all.read(&[seen(1, 45, None)]).unwrap();
        all.committed(ts(40), &[seen(1, 30, Some(4))], &[(1, None)]).unwrap();
        all.read(&[seen(1, 45, None)]).unwrap();
        all.aborted(&[(0, Some(9))]).unwrap();
        all.snapshot(ts(25), &[seen(0, 20, Some(3)), seen(1, 10, Some(2))]).unwrap();
        all.snapshot(ts(50), &[seen(0, 20, Some(3)), seen(1, 50, None)]).unwrap();
    }

    #[test]
    fn anomalies_are_noticed() {
        let noticed = |after: fn(&mut Transactions) -> Result<(), String>| {
            let mut all = Transactions::default();
            all.committed(ts(10), &[], &[(0, Some(1)), (1, Some(2))]).unwrap();
            all.committed(ts(20), &[], &[(0, Some(3))]).unwrap();
            after(&mut all).unwrap_err();
        };
        // A lost update; a write skew, learned of in either order; a phantom.
        noticed(|all| all.committed(ts(30), &[seen(0, 10, Some(1))], &[(0, Some(4))]));
        noticed(|all| {
            all.committed(ts(30), &[seen(0, 20, Some(3))], &[(1, Some(4))])?;
            all.committed(ts(31), &[seen(1, 10, Some(2))], &[(0, Some(5))])
        });
        noticed(|all| {
            all.committed(ts(31), &[seen(1, 10, Some(2))], &[(0, Some(5))])?;
            all.committed(ts(30), &[seen(0, 20, Some(3))], &[(1, Some(4))])
        });
        noticed(|all| {
            all.committed(ts(30), &[seen(7, 20, None)], &[])?;
            all.read(&[seen(7, 25, Some(6))])
        });
        // A snapshot that misses something, and one below which something is written later.
        noticed(|all| all.snapshot(ts(30), &[seen(0, 10, Some(1))]));
        noticed(|all| {
            all.snapshot(ts(30), &[seen(0, 20, Some(3))])?;
            all.read(&[seen(0, 30, Some(8))])
        });
        // A fractured read, an aborted one, one of what never was, one of what is gone.
        noticed(|all| all.read(&[seen(0, 10, Some(1)), seen(1, 20, Some(2))]));
        noticed(|all| {
            all.aborted(&[(0, Some(9))])?;
            all.read(&[seen(0, 50, Some(9))])
        });
        noticed(|all| all.aborted(&[(0, Some(3))]));
        noticed(|all| all.read(&[seen(0, 15, None)]));
    }
}
