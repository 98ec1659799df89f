//! Commits of several keys: two keys of a range that are always written and deleted together, some
//! of the time on a condition. By the timestamps that answers carry, in true time:
//!
//! - one commit has one timestamp, and what is read at it is what was written;
//! - a read sees what was committed before it began, or later: of either key;
//! - between what a condition was of and what was written on it, nothing was committed;
//! - what was refused for its condition is never seen.

use std::collections::{BTreeMap, BTreeSet};

use palisade_clock::Timestamp;

/// What is known of one pair.
#[derive(Debug, Default)]
pub(crate) struct Pairs {
    /// What was committed when: a value, or a delete.
    committed: BTreeMap<Timestamp, Option<u64>>,
    /// Timestamps of what conditions were of, by those of what was written on them.
    conditional: BTreeMap<Timestamp, Timestamp>,
    refused: BTreeSet<u64>,
    /// The last commit that somebody knows of.
    known_ts: Timestamp,
}

impl Pairs {
    pub(crate) const NAME: &'static str = "commits of several keys are atomic";

    /// The last commit that anybody knows of.
    pub(crate) fn known_ts(&self) -> Timestamp {
        self.known_ts
    }

    /// A value that can be read at `known_ts`, if that was no delete.
    pub(crate) fn known_version(&self) -> Option<Timestamp> {
        self.committed.get(&self.known_ts).copied().flatten().map(|_| self.known_ts)
    }

    /// The value that was committed at a timestamp, if that is known.
    pub(crate) fn value_at(&self, ts: Timestamp) -> Option<u64> {
        self.committed.get(&ts).copied().flatten()
    }

    /// A commit was acknowledged.
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

    /// A commit was refused because its condition did not hold.
    pub(crate) fn refused(&mut self, value: Option<u64>) -> Result<(), String> {
        self.refused.extend(value);
        let seen = self.committed.values().flatten().any(|seen| Some(*seen) == value);
        if seen { Err(format!("{value:?} was refused, and is seen")) } else { Ok(()) }
    }

    /// A read of one of the keys, which began when `known_ts` was known, saw a version, or nothing
    /// at a time.
    pub(crate) fn read(
        &mut self,
        ts: Timestamp,
        value: Option<u64>,
        known_ts: Timestamp,
    ) -> Result<(), String> {
        if value.is_some() {
            self.note(ts, value)?;
        }
        // Of a delete that is long past, the time is not known any more.
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
    fn what_makes_sense_is_accepted() {
        let mut pairs = Pairs::default();
        pairs.committed(ts(10), Some(1), None).unwrap();
        pairs.read(ts(10), Some(1), ts(10)).unwrap();
        // Of a commit that nobody was told of yet.
        pairs.read(ts(12), Some(2), ts(10)).unwrap();
        pairs.committed(ts(20), Some(3), Some(ts(12))).unwrap();
        pairs.refused(Some(4)).unwrap();
        pairs.committed(ts(30), None, None).unwrap();
        pairs.read(ts(30), None, ts(30)).unwrap();
        pairs.read(ts(5), None, ts(30)).unwrap();
        assert_eq!(pairs.known_version(), None);
    }

    #[test]
    fn what_makes_none_is_noticed() {
        let noticed = |after: fn(&mut Pairs) -> Result<(), String>| {
            let mut pairs = Pairs::default();
            pairs.committed(ts(10), Some(1), None).unwrap();
            pairs.committed(ts(20), Some(2), None).unwrap();
            after(&mut pairs).unwrap_err();
        };
        // Stale, of another value, lost, half of a commit.
        noticed(|pairs| pairs.read(ts(10), Some(1), ts(20)));
        noticed(|pairs| pairs.read(ts(20), Some(1), ts(20)));
        noticed(|pairs| pairs.read(ts(5), None, ts(20)));
        noticed(|pairs| pairs.committed(ts(20), Some(3), None));
        // A lost update, whichever is learned of first.
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
