//! The versions of one key.

use std::collections::VecDeque;

use bytes::Bytes;
use palisade_clock::Timestamp;

/// A version: when, and what; or that there is nothing from then on.
pub(crate) type Dated = (Timestamp, Option<Bytes>);

#[derive(Debug)]
pub(crate) struct Versions {
    pub(crate) newest: Dated,
    /// Those before it, oldest first.
    older: VecDeque<Dated>,
}

impl Versions {
    pub(crate) fn new(first: Dated) -> Self {
        Self { newest: first, older: VecDeque::new() }
    }

    pub(crate) fn push(&mut self, newest: Dated) {
        assert!(newest.0 > self.newest.0, "a version was written below one that is there");
        self.older.push_back(std::mem::replace(&mut self.newest, newest));
    }

    /// All of them, oldest first.
    #[cfg(test)]
    pub(crate) fn all(&self) -> impl Iterator<Item = &Dated> {
        self.older.iter().chain([&self.newest])
    }

    /// The newest at or below a timestamp.
    pub(crate) fn at(&self, at_ts: Timestamp) -> Option<&Dated> {
        if self.newest.0 <= at_ts {
            return Some(&self.newest);
        }
        let after = self.older.partition_point(|(ts, _)| *ts <= at_ts);
        self.older.get(after.checked_sub(1)?)
    }

    /// Drops what no read at or above the horizon sees. Returns whether nothing is left to be seen.
    pub(crate) fn collect(&mut self, horizon_ts: Timestamp) -> bool {
        // The newest version at or below the horizon is what a read at the horizon sees.
        let next_ts = |versions: &Self| versions.older.get(1).map_or(versions.newest.0, |v| v.0);
        while !self.older.is_empty() && next_ts(self) <= horizon_ts {
            self.older.pop_front();
        }
        // A delete that is the oldest version says no more than its absence.
        while self.older.front().is_some_and(|(ts, value)| value.is_none() && *ts <= horizon_ts) {
            self.older.pop_front();
        }
        self.older.is_empty() && self.newest.1.is_none() && self.newest.0 <= horizon_ts
    }
}
