//! Versions that were replaced, until nobody can see them.
//!
//! The naive way, a list with each key, has every write and every collection touch the memory of
//! that list, which is as cold as the key. But versions are replaced in the order of timestamps, and
//! are collected in the same: so they lie in one row, added at one end and dropped at the other, and
//! each names the one before it of its key. Nothing is unlinked: of a version that was dropped, the
//! one that replaced it is at or below the horizon, and a read goes no further than there.
//!
//! A read of a key that is written all the time would go back over thousands: so the versions of a key
//! form runs, and each also names the last one of the run before.

use bytes::Bytes;
use palisade_clock::Timestamp;
use palisade_sequence::Sequence;

/// A version: when, and what; or that there is nothing from then on.
pub(crate) type Dated = (Timestamp, Option<Bytes>);

/// Versions of a run.
const RUN: u32 = 32;

/// A version that was replaced.
#[derive(Debug)]
struct Past {
    version: Dated,
    replaced_ts: Timestamp,
    /// The number of the version before it.
    previous: Option<u64>,
    /// Of the last one in the run before.
    run_before: Option<u64>,
    /// How many of its run are before it.
    in_run: u32,
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
        let before = previous.and_then(|number| self.past.get(number));
        let (run_before, in_run) = match before {
            None => (None, 0),
            Some(before) if before.in_run + 1 < RUN => (before.run_before, before.in_run + 1),
            Some(_) => (previous, 0),
        };
        self.past.push(Past { version, replaced_ts, previous, run_before, in_run })
    }

    /// The newest version at or below a timestamp, of that with a number and those before it.
    pub(crate) fn at(&self, mut number: Option<u64>, at_ts: Timestamp) -> Option<&Dated> {
        loop {
            let past = self.past.get(number?)?;
            if past.version.0 <= at_ts {
                return Some(&past.version);
            }
            let run = past.run_before.and_then(|number| self.past.get(number));
            let is_later = run.is_some_and(|last| last.version.0 > at_ts);
            number = if is_later { past.run_before } else { past.previous };
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Two keys, one of which is written all the time.
    #[test]
    fn every_version_is_found_however_many_there_are_and_were() {
        const VERSIONS: u64 = 500;
        let ts = Timestamp::from_physical_us;
        let mut history = History::default();
        let (mut hot, mut cold) = (None, None);
        for us in 1..=VERSIONS {
            hot = Some(history.push((ts(us), None), ts(us + 1), hot));
            if us % 100 == 0 {
                cold = Some(history.push((ts(us - 99), None), ts(us + 1), cold));
            }
        }
        for horizon in 0..=VERSIONS {
            while history.collect(ts(horizon)) {}
            for at in [horizon, horizon + 1, horizon + 30, horizon + 200, VERSIONS] {
                let found = history.at(hot, ts(at)).map(|(found, _)| found.physical_us());
                let expected = at.min(VERSIONS);
                assert_eq!(found, (expected > 0).then_some(expected), "{at} from {horizon} on");
                // What replaced its versions came a hundred later each.
                let found = history.at(cold, ts(at)).map(|(found, _)| found.physical_us());
                let expected = (at > 0).then(|| (at.min(VERSIONS) - 1) / 100 * 100 + 1);
                assert_eq!(found, expected, "{at} from {horizon} on");
            }
        }
    }
}
