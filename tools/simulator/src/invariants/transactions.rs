//! Transactions that read, think and write are strictly serializable in the order of their commit
//! timestamps: what a transaction read from the cells of a range still held when it committed.
//! In terms of the timestamps that answers carry:
//!
//! - between the version that a committed transaction read of a cell and its commit timestamp, no
//!   other version of that cell was committed: no lost update, no write skew, no phantom;
//! - a version read with a timestamp is the version written at that timestamp;
//! - all reads of one transaction held at one timestamp, even if it never commits;
//! - a snapshot read returns the state at its timestamp, and every replica returns the same state
//!   at any later time;
//! - writes of aborted transactions are never seen.
//!
//! `external_consistency` checks the order of commits in real time.

use std::collections::{BTreeMap, BTreeSet};

use palisade_clock::Timestamp;

/// What a transaction read from a cell: a value and its version's timestamp, or `None` and a
/// timestamp at which the cell was absent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) cell: usize,
    pub(crate) ts: Timestamp,
    pub(crate) value: Option<u64>,
}

/// What is known about the cells of a range.
#[derive(Debug, Default)]
pub(crate) struct Transactions {
    cells: BTreeMap<usize, Cell>,
    /// Values that were read, or are known to be committed.
    there: BTreeSet<u64>,
    aborted: BTreeSet<u64>,
}

#[derive(Debug, Default)]
struct Cell {
    /// Committed versions by timestamp: a value, or `None` for a delete.
    versions: BTreeMap<Timestamp, Option<u64>>,
    /// Reads, by the timestamp below which the version read must stay the newest: the commit
    /// timestamp of the transaction, or just above the timestamp of the snapshot. Holds the
    /// version's timestamp, and true if it is a value.
    reads: BTreeMap<Timestamp, (Timestamp, bool)>,
    /// Deletes in commits that were sent and whose outcome is unknown.
    deletes: u32,
}

impl Transactions {
    pub(crate) const NAME: &'static str = "transactions are strictly serializable";

    /// Records that a transaction begins to commit: its deletes may take effect from now on.
    pub(crate) fn commits(&mut self, writes: &[(usize, Option<u64>)]) {
        self.count_deletes(writes, |deletes| deletes + 1);
    }

    fn count_deletes(&mut self, writes: &[(usize, Option<u64>)], count: impl Fn(u32) -> u32) {
        for (cell, _) in writes.iter().filter(|(_, value)| value.is_none()) {
            let known = self.cells.entry(*cell).or_default();
            known.deletes = count(known.deletes);
        }
    }

    /// Checks everything that a transaction has read so far. The transaction need not commit.
    pub(crate) fn read(&mut self, seen: &[Seen]) -> Result<(), String> {
        for Seen { cell, ts, value } in seen {
            if value.is_some() {
                self.note(*cell, *ts, *value)?;
            }
        }
        let moment = seen.iter().map(|seen| seen.ts).max().unwrap_or_default();
        seen.iter().try_for_each(|seen| self.unchanged(seen, moment.next()))
    }

    /// Checks reads at a timestamp, without locks. Later reads at that timestamp must see the same.
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

    /// Checks that no read was overwritten below the timestamp `before`, and records the reads so
    /// that versions which are learned of later are checked against them.
    fn still_so(&mut self, before: Timestamp, seen: &[Seen]) -> Result<(), String> {
        for seen in seen {
            self.unchanged(seen, before)?;
            let read = (seen.ts, seen.value.is_some());
            self.cells.entry(seen.cell).or_default().reads.insert(before, read);
        }
        Ok(())
    }

    /// Checks and records a committed transaction.
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

    /// Records that a transaction which began to commit has certainly failed.
    pub(crate) fn aborted(&mut self, writes: &[(usize, Option<u64>)]) -> Result<(), String> {
        self.count_deletes(writes, |deletes| deletes - 1);
        let values = || writes.iter().filter_map(|(_, value)| *value);
        self.aborted.extend(values());
        match values().find(|value| self.there.contains(value)) {
            Some(value) => Err(format!("{value} was aborted, and is seen")),
            None => Ok(()),
        }
    }

    /// Checks that a read agrees with the known versions, and that none of them overwrote it below
    /// the timestamp `before`.
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
        // Deleting an absent cell changes nothing.
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
    fn serializable_transactions_are_accepted() {
        let mut all = Transactions::default();
        let nothing = [seen(0, 0, None), seen(1, 5, None)];
        all.read(&nothing).unwrap();
        all.committed(ts(10), &nothing, &[(0, Some(1)), (1, Some(2))]).unwrap();
        let both = [seen(0, 10, Some(1)), seen(1, 10, Some(2))];
        all.read(&both).unwrap();
        all.committed(ts(20), &both, &[(0, Some(3))]).unwrap();
        // A version that another transaction wrote, and that is learned of late.
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
    fn transaction_anomalies_are_detected() {
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
        // A snapshot that misses a version, and one at whose timestamp a version appears later.
        noticed(|all| all.snapshot(ts(30), &[seen(0, 10, Some(1))]));
        noticed(|all| {
            all.snapshot(ts(30), &[seen(0, 20, Some(3))])?;
            all.read(&[seen(0, 30, Some(8))])
        });
        // A fractured read; reads of aborted values, in either order; a read that misses a version.
        noticed(|all| all.read(&[seen(0, 10, Some(1)), seen(1, 20, Some(2))]));
        noticed(|all| {
            all.aborted(&[(0, Some(9))])?;
            all.read(&[seen(0, 50, Some(9))])
        });
        noticed(|all| all.aborted(&[(0, Some(3))]));
        noticed(|all| all.read(&[seen(0, 15, None)]));
    }
}
