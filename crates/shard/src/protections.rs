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
//! Before a snapshot is named for the first time, its versions are kept because none is collected
//! that was replaced just now. A snapshot's timestamp may be twice the clocks' error behind true
//! time when its first read is answered, so that much is added.
//!
//! Invariant: a timestamp that was protected less than [`PROTECTED_US`] ago, and is not older than
//! [`MAX_AGE_US`], is not below [`Protections::oldest_ts`].

use std::collections::BTreeMap;

use palisade_clock::{Now, Timestamp};
use palisade_wire::MAX_SNAPSHOT_AGE_US;

/// How long a version outlives the one that replaced it, beside what clocks may differ by.
const RETENTION_US: u64 = 1_000_000;

/// How long a timestamp stays protected after it was last named.
const PROTECTED_US: u64 = 5_000_000;

/// Older timestamps are not protected: what clients may rely on, and time for a last read.
const MAX_AGE_US: u64 = MAX_SNAPSHOT_AGE_US + 5_000_000;

/// Timestamps of one such span are protected as the first of it, so their number is bounded.
const BUCKET_US: u64 = 100_000;

/// Protected timestamps of a shard.
#[derive(Debug)]
pub(crate) struct Protections {
    /// How long every version outlives the one that replaced it.
    retention_us: u64,
    /// The first timestamp of a span, and until when the span is protected.
    until_us: BTreeMap<Timestamp, u64>,
}

impl Protections {
    /// No clock of the cluster is further off than `max_offset_us`.
    pub(crate) fn new(max_offset_us: u64) -> Self {
        let retention_us = RETENTION_US.saturating_add(max_offset_us.saturating_mul(2));
        Self { retention_us, until_us: BTreeMap::new() }
    }

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
    pub(crate) fn oldest_ts(&self, now: Now) -> Timestamp {
        let earliest_ts = Timestamp::from_physical_us(now.wall.earliest_us);
        let recent_ts = earliest_ts.saturating_sub_us(self.retention_us);
        self.until_us.first_key_value().map_or(recent_ts, |(ts, _)| recent_ts.min(*ts))
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

    /// What is kept without any snapshot.
    fn recent_ts(seconds: u64) -> Timestamp {
        let offsets_us = 2 * 1_000;
        Timestamp::from_physical_us(seconds * 1_000_000 - 10 - RETENTION_US - offsets_us)
    }

    fn ts(seconds: u64) -> Timestamp {
        Timestamp::from_physical_us(seconds * 1_000_000 + 50_000)
    }

    #[test]
    fn a_timestamp_is_protected_while_it_is_renewed_and_no_longer_than_allowed() {
        let mut protections = Protections::new(1_000);
        assert_eq!(protections.oldest_ts(now(100)), recent_ts(100));
        for second in (100..=165).step_by(4) {
            assert!(protections.protect(ts(100), now(second)));
            protections.expire(now(second));
            assert!(protections.oldest_ts(now(second)) <= ts(100), "at {second}");
        }
        assert!(!protections.protect(ts(100), now(166)));
        protections.expire(now(166));
        assert_eq!(protections.oldest_ts(now(166)), recent_ts(166));
    }

    #[test]
    fn the_oldest_counts_until_it_is_not_renewed_any_more() {
        let mut protections = Protections::new(1_000);
        assert!(protections.protect(ts(100), now(101)) && protections.protect(ts(103), now(104)));
        protections.expire(now(105));
        assert!(protections.oldest_ts(now(105)) <= ts(100));
        protections.expire(now(107));
        assert!((ts(102)..=ts(103)).contains(&protections.oldest_ts(now(107))));
    }

    #[test]
    fn their_number_is_bounded() {
        let mut protections = Protections::new(1_000);
        for us in (100_000_000..160_000_000).step_by(777) {
            protections.protect(Timestamp::from_physical_us(us), now(160));
        }
        assert!(protections.until_us.len() <= 601);
    }
}
