//! The versions of one key.

use std::collections::VecDeque;

use bytes::Bytes;
use palisade_clock::Timestamp;

/// A version: when, and what; or that there is nothing from then on.
pub(crate) type Dated = (Timestamp, Option<Bytes>);

/// Most keys have one version, and those that are written now and then have two: only further ones
/// take memory of their own.
#[derive(Debug)]
pub(crate) struct Versions {
    pub(crate) newest: Dated,
    /// The one before it.
    previous: Option<Dated>,
    /// Those before that, oldest first.
    older: VecDeque<Dated>,
}

impl Versions {
    pub(crate) fn new(first: Dated) -> Self {
        Self { newest: first, previous: None, older: VecDeque::new() }
    }

    pub(crate) fn push(&mut self, newest: Dated) {
        assert!(newest.0 > self.newest.0, "a version was written below one that is there");
        let replaced = std::mem::replace(&mut self.newest, newest);
        self.older.extend(self.previous.replace(replaced));
    }

    /// All of them, oldest first.
    #[cfg(test)]
    pub(crate) fn all(&self) -> impl Iterator<Item = &Dated> {
        self.older.iter().chain(&self.previous).chain([&self.newest])
    }

    /// The newest at or below a timestamp.
    pub(crate) fn at(&self, at_ts: Timestamp) -> Option<&Dated> {
        if self.newest.0 <= at_ts {
            return Some(&self.newest);
        }
        let previous = self.previous.as_ref()?;
        if previous.0 <= at_ts {
            return Some(previous);
        }
        let after = self.older.partition_point(|(ts, _)| *ts <= at_ts);
        self.older.get(after.checked_sub(1)?)
    }

    /// Drops what no read at or above the horizon sees. Returns whether nothing is left to be seen.
    pub(crate) fn collect(&mut self, horizon_ts: Timestamp) -> bool {
        // The newest version at or below the horizon is what a read at the horizon sees, unless it
        // is a delete, which says no more than its absence.
        let is_past = |(ts, _): &Dated| *ts <= horizon_ts;
        let says_nothing = |dated: &Dated| is_past(dated) && dated.1.is_none();
        if is_past(&self.newest) {
            self.previous = None;
            self.older = VecDeque::new();
        } else if self.previous.as_ref().is_some_and(is_past) {
            self.older = VecDeque::new();
            self.previous.take_if(|previous| says_nothing(previous));
        } else {
            while self.older.get(1).is_some_and(is_past) {
                self.older.pop_front();
            }
            self.older.pop_front_if(|oldest| says_nothing(oldest));
            if self.older.is_empty() {
                self.older = VecDeque::new();
            }
        }
        self.previous.is_none() && says_nothing(&self.newest)
    }
}
