//! Versions that were replaced, until nobody can see them.
//!
//! The naive way, a list with each key, has every write and every collection touch the memory of
//! that list, which is as cold as the key. But versions are replaced in the order of timestamps, and
//! are collected in the same: so they lie in one row, added at one end and dropped at the other, and
//! each names the one before it of its key. Nothing is unlinked: of a version that was dropped, the
//! one that replaced it is at or below the horizon, and a read goes no further than there.

use bytes::Bytes;
use palisade_clock::Timestamp;
use palisade_sequence::Sequence;

/// A version: when, and what; or that there is nothing from then on.
pub(crate) type Dated = (Timestamp, Option<Bytes>);

/// A version that was replaced.
#[derive(Debug)]
struct Past {
    version: Dated,
    replaced_ts: Timestamp,
    /// The number of the version before it.
    previous: Option<u64>,
}

/// The versions of all keys but the newest ones, in the order in which they were replaced.
#[derive(Debug, Default)]
pub(crate) struct History {
    past: Sequence<Past>,
}

impl History {
    /// Adds a version with what replaced it when, and the one before it; returns its number.
    pub(crate) fn push(
        &mut self,
        version: Dated,
        replaced_ts: Timestamp,
        previous: Option<u64>,
    ) -> u64 {
        let last = self.past.back();
        assert!(
            last.is_none_or(|last| last.replaced_ts <= replaced_ts),
            "versions go back in time"
        );
        self.past.push(Past { version, replaced_ts, previous })
    }

    /// The newest version at or below a timestamp, of that with a number and those before it.
    pub(crate) fn at(&self, mut number: Option<u64>, at_ts: Timestamp) -> Option<&Dated> {
        loop {
            let past = self.past.get(number?)?;
            if past.version.0 <= at_ts {
                return Some(&past.version);
            }
            number = past.previous;
        }
    }

    /// Drops the first version if nobody sees it at or above the horizon. Returns whether it did.
    pub(crate) fn collect(&mut self, horizon_ts: Timestamp) -> bool {
        let due = self.is_due(horizon_ts);
        due && self.past.pop_front().is_some()
    }

    /// Whether there is something that nobody sees.
    pub(crate) fn is_due(&self, horizon_ts: Timestamp) -> bool {
        self.past.front().is_some_and(|first| first.replaced_ts <= horizon_ts)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.past.is_empty()
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.past.len()
    }
}
