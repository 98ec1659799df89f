//! Stores replaced versions until no read can see them.
//!
//! With a list per key, every write and every collection would touch that list, which is as cold in
//! the cache as the key. But versions are replaced in timestamp order, and collected in the same
//! order. So all of them are in one sequence: added at the end, dropped at the front. Each version
//! links to the previous version of its key. A link to a dropped version needs no update: the
//! version that holds the link replaced the dropped one at or below the horizon, and no read goes
//! back further.
//!
//! A read of a key that is written often would follow thousands of links. So the versions of a key
//! form runs, and each version also links to the last version of the previous run.

use bytes::Bytes;
use palisade_clock::Timestamp;
use palisade_sequence::Sequence;

/// A version: its timestamp and its value, or `None` for a delete.
pub(crate) type Dated = (Timestamp, Option<Bytes>);

/// Number of versions in a full run.
const RUN: u32 = 32;

/// A version that was replaced.
#[derive(Debug)]
struct Past {
    version: Dated,
    replaced_ts: Timestamp,
    /// Number of the previous version of the key.
    previous: Option<u64>,
    /// Number of the last version in the previous run of the key.
    run_before: Option<u64>,
    /// Number of versions before this one in its run.
    in_run: u32,
}

/// All versions except the newest one of each key, in the order in which they were replaced.
#[derive(Debug, Default)]
pub(crate) struct History {
    past: Sequence<Past>,
}

impl History {
    /// Adds a version that was replaced at `replaced_ts`, and returns its number. `previous` is the
    /// number of the key's version before it.
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

    /// Returns the newest version at or below `at_ts` among the version `number` and the earlier
    /// ones of its key.
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

    /// Drops the first version if no read at or above the horizon can see it. Returns true if it
    /// was dropped.
    pub(crate) fn collect(&mut self, horizon_ts: Timestamp) -> bool {
        let due = self.is_due(horizon_ts);
        due && self.past.pop_front().is_some()
    }

    /// Returns true if no read at or above the horizon can see the first version.
    pub(crate) fn is_due(&self, horizon_ts: Timestamp) -> bool {
        self.past.front().is_some_and(|first| first.replaced_ts <= horizon_ts)
    }

    /// Drops the first version, whether or not it is still visible.
    pub(crate) fn drop_first(&mut self) {
        self.past.pop_front();
    }

    /// Returns the number of versions.
    pub(crate) fn len(&self) -> usize {
        self.past.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two keys: one is written each microsecond, the other once in a hundred microseconds.
    #[test]
    fn version_lookup_is_exact_across_growth_and_collection() {
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
                // Each of its versions was replaced a hundred microseconds later.
                let found = history.at(cold, ts(at)).map(|(found, _)| found.physical_us());
                let expected = (at > 0).then(|| (at.min(VERSIONS) - 1) / 100 * 100 + 1);
                assert_eq!(found, expected, "{at} from {horizon} on");
            }
        }
    }
}
