//! Timestamps that are read at, and whose versions are therefore kept.
//!
//! The problem: a snapshot is read for longer than replaced versions are kept, and in ranges that
//! it has not touched yet. Keeping versions in the ranges that it reads loses the others, and
//! keeping them at the leader alone loses all of them with the next leader. So clients renew their
//! oldest open snapshot at every shard of every node, whether or not it was read there, and every
//! replica of the shard keeps what it sees.
//!
//! ```text
//! versions    |-------- kept --------------------------------------|
//!             oldest open snapshot, to within 100 ms            now, and 5 s more
//! ```
//!
//! Invariant: a timestamp that was protected less than [`PROTECTED_US`] ago, and is not older than
//! [`MAX_AGE_US`], is not below [`Protections::oldest_ts`].

use std::collections::BTreeMap;

use palisade_clock::{Now, Timestamp};
use palisade_wire::MAX_SNAPSHOT_AGE_US;

/// How long a timestamp stays protected after it was last named.
const PROTECTED_US: u64 = 5_000_000;

/// Older timestamps are not protected: what clients may rely on, and time for a last read.
const MAX_AGE_US: u64 = MAX_SNAPSHOT_AGE_US + 5_000_000;

/// Timestamps of one such span are protected as the first of it, so their number is bounded.
const BUCKET_US: u64 = 100_000;

/// Protected timestamps of a shard.
#[derive(Debug, Default)]
pub(crate) struct Protections {
    /// The first timestamp of a span, and until when the span is protected.
    until_us: BTreeMap<Timestamp, u64>,
}

impl Protections {
    /// Keeps what a read at a timestamp sees. Returns false if the timestamp is too old for that.
    pub(crate) fn protect(&mut self, at_ts: Timestamp, now: Now) -> bool {
        if at_ts < oldest_allowed_ts(now) {
            return false;
        }
        let first_us = at_ts.physical_us() / BUCKET_US * BUCKET_US;
        let until_us = self.until_us.entry(Timestamp::from_physical_us(first_us)).or_default();
        *until_us = now.monotonic_us + PROTECTED_US;
        true
    }

    /// Forgets what was not named for too long, or is too old.
    pub(crate) fn expire(&mut self, now: Now) {
        // A span is as old as its last timestamp.
        let oldest_ts = oldest_allowed_ts(now).saturating_sub_us(BUCKET_US);
        self.until_us.retain(|ts, until_us| *until_us > now.monotonic_us && *ts >= oldest_ts);
    }

    /// Versions that a read at this timestamp, or at a later one, sees are kept.
    pub(crate) fn oldest_ts(&self) -> Timestamp {
        self.until_us.first_key_value().map_or(Timestamp::MAX, |(ts, _)| *ts)
    }
}

fn oldest_allowed_ts(now: Now) -> Timestamp {
    Timestamp::from_physical_us(now.wall.earliest_us.saturating_sub(MAX_AGE_US))
}

#[cfg(test)]
mod tests {
    use palisade_clock::Interval;

    use super::*;

    fn now(seconds: u64) -> Now {
        let us = seconds * 1_000_000;
        Now { monotonic_us: us, wall: Interval::around(us, 10) }
    }

    fn ts(seconds: u64) -> Timestamp {
        Timestamp::from_physical_us(seconds * 1_000_000 + 50_000)
    }

    #[test]
    fn a_timestamp_is_protected_while_it_is_renewed_and_no_longer_than_allowed() {
        let mut protections = Protections::default();
        assert_eq!(protections.oldest_ts(), Timestamp::MAX);
        for second in (100..=165).step_by(4) {
            assert!(protections.protect(ts(100), now(second)));
            protections.expire(now(second));
            assert!(protections.oldest_ts() <= ts(100), "at {second}");
        }
        assert!(!protections.protect(ts(100), now(166)));
        protections.expire(now(166));
        assert_eq!(protections.oldest_ts(), Timestamp::MAX);
    }

    #[test]
    fn the_oldest_counts_until_it_is_not_renewed_any_more() {
        let mut protections = Protections::default();
        assert!(protections.protect(ts(100), now(101)) && protections.protect(ts(103), now(104)));
        protections.expire(now(105));
        assert!(protections.oldest_ts() <= ts(100));
        protections.expire(now(107));
        assert!((ts(102)..=ts(103)).contains(&protections.oldest_ts()));
    }

    #[test]
    fn their_number_is_bounded() {
        let mut protections = Protections::default();
        for us in (100_000_000..160_000_000).step_by(777) {
            protections.protect(Timestamp::from_physical_us(us), now(160));
        }
        assert!(protections.until_us.len() <= 601);
    }
}
