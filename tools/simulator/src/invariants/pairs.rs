//! Commits of several keys are atomic: two keys of a range are always written and deleted together,
//! sometimes on a condition. In terms of the timestamps that answers carry:
//!
//! - one commit has one timestamp, and a version read with that timestamp has the value written;
//! - a read of either key sees the last commit known when it began, or a later one;
//! - between the version that a condition names and the commit on it, nothing was committed;
//! - a value that was refused for its condition is never seen.

use std::collections::{BTreeMap, BTreeSet};

use palisade_clock::Timestamp;

/// What is known about one pair.
#[derive(Debug, Default)]
pub(crate) struct Pairs {
    /// Commits by timestamp: a value, or `None` for a delete.
    committed: BTreeMap<Timestamp, Option<u64>>,
    /// The version that each conditional commit expected, by the commit's timestamp.
    conditional: BTreeMap<Timestamp, Timestamp>,
    refused: BTreeSet<u64>,
    /// The timestamp of the last commit that a client knows of.
    known_ts: Timestamp,
}

impl Pairs {
    pub(crate) const NAME: &'static str = "commits of several keys are atomic";

    /// Returns the timestamp of the last commit that any client knows of, or zero.
    pub(crate) fn known_ts(&self) -> Timestamp {
        self.known_ts
    }

    /// Returns `known_ts` if that commit wrote a value.
    pub(crate) fn known_version(&self) -> Option<Timestamp> {
        self.committed.get(&self.known_ts).copied().flatten().map(|_| self.known_ts)
    }

    /// Returns the value that was committed at a timestamp, if it is known.
    pub(crate) fn value_at(&self, ts: Timestamp) -> Option<u64> {
        self.committed.get(&ts).copied().flatten()
    }

    /// Checks and records an acknowledged commit.
    pub(crate) fn committed(
        &mut self,
        ts: Timestamp,
        value: Option<u64>,
        condition: Option<Timestamp>,
    ) -> Result<(), String> {
        self.note(ts, value)?;
        if let Some(expected) = condition {
            if let Some((between, _)) = self.committed.range(expected.next()..ts).next_back() {
                return Err(format!(
                    "{value:?} was written at {ts} on the condition of {expected}, and {between} is \
                     between them"
                ));
            }
            self.conditional.insert(ts, expected);
        }
        self.known_ts = self.known_ts.max(ts);
        Ok(())
    }

    /// Checks and records a commit that was refused because its condition did not hold.
    pub(crate) fn refused(&mut self, value: Option<u64>) -> Result<(), String> {
        self.refused.extend(value);
        let seen = self.committed.values().flatten().any(|seen| Some(*seen) == value);
        if seen { Err(format!("{value:?} was refused, and is seen")) } else { Ok(()) }
    }

    /// Checks a read of one key, which began when `known_ts` was known. It saw a version with the
    /// timestamp `ts`, or no value.
    pub(crate) fn read(
        &mut self,
        ts: Timestamp,
        value: Option<u64>,
        known_ts: Timestamp,
    ) -> Result<(), String> {
        if value.is_some() {
            self.note(ts, value)?;
        }
        // After an old tombstone was collected, the timestamp of the delete is not known.
        let was_deleted = self.committed.get(&known_ts).is_none_or(Option::is_none);
        if ts < known_ts && !(value.is_none() && was_deleted) {
            return Err(format!("{value:?} of {ts} is read, where {known_ts} was known"));
        }
        if value.is_some() {
            self.known_ts = self.known_ts.max(ts);
        }
        Ok(())
    }

    fn note(&mut self, ts: Timestamp, value: Option<u64>) -> Result<(), String> {
        if let Some(value) = value.filter(|value| self.refused.contains(value)) {
            return Err(format!("{value} of {ts} was refused, and is seen"));
        }
        let known = *self.committed.entry(ts).or_insert(value);
        if known != value {
            return Err(format!("{value:?} and {known:?} are both of {ts}"));
        }
        match self.conditional.range(ts.next()..).next() {
            Some((later, expected)) if *expected < ts => Err(format!(
                "{value:?} of {ts} is between the condition at {expected} and what was written on \
                 it at {later}"
            )),
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

    #[test]
    fn consistent_pair_commits_and_reads_are_accepted() {
        let mut pairs = Pairs::default();
        pairs.committed(ts(10), Some(1), None).unwrap();
        pairs.read(ts(10), Some(1), ts(10)).unwrap();
        // A commit that was not acknowledged yet.
        pairs.read(ts(12), Some(2), ts(10)).unwrap();
        pairs.committed(ts(20), Some(3), Some(ts(12))).unwrap();
        pairs.refused(Some(4)).unwrap();
        pairs.committed(ts(30), None, None).unwrap();
        pairs.read(ts(30), None, ts(30)).unwrap();
        pairs.read(ts(5), None, ts(30)).unwrap();
        assert_eq!(pairs.known_version(), None);
    }

    #[test]
    fn inconsistent_pair_commits_and_reads_are_detected() {
        let noticed = |after: fn(&mut Pairs) -> Result<(), String>| {
            let mut pairs = Pairs::default();
            pairs.committed(ts(10), Some(1), None).unwrap();
            pairs.committed(ts(20), Some(2), None).unwrap();
            after(&mut pairs).unwrap_err();
        };
        // A stale read, another value, a lost commit, and two commits at one timestamp.
        noticed(|pairs| pairs.read(ts(10), Some(1), ts(20)));
        noticed(|pairs| pairs.read(ts(20), Some(1), ts(20)));
        noticed(|pairs| pairs.read(ts(5), None, ts(20)));
        noticed(|pairs| pairs.committed(ts(20), Some(3), None));
        // A lost update, whichever commit is learned of first.
        noticed(|pairs| pairs.committed(ts(30), Some(3), Some(ts(10))));
        noticed(|pairs| {
            pairs.committed(ts(30), Some(3), Some(ts(20)))?;
            pairs.read(ts(25), Some(4), ts(20))
        });
        noticed(|pairs| pairs.refused(Some(2)));
        noticed(|pairs| {
            pairs.refused(Some(9))?;
            pairs.read(ts(40), Some(9), ts(20))
        });
    }
}
