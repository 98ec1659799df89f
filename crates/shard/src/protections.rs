//! Protects the versions that open snapshots read from garbage collection.
//!
//! The problem: a snapshot is read for longer than replaced versions are kept, and in ranges that
//! it has not read before. Protecting versions only in ranges already read loses them in the
//! others. Protecting them only at the leader loses all of them when leadership changes. So clients
//! renew their oldest open snapshot at every shard of every node, and every replica of a shard
//! keeps the versions that the snapshot sees.
//!
//! ```text
//! versions    |-------- kept --------------------------------------|
//!             oldest open snapshot, to within 100 ms            now, and 5 s more
//! ```
//!
//! Before its first renewal, a snapshot is protected by the retention of all versions. When its
//! first read is answered, its timestamp may be behind true time by twice the clocks' error, so the
//! retention includes that.
//!
//! Invariant: a timestamp that was protected less than [`PROTECTED_US`] ago, and is not older than
//! [`MAX_AGE_US`], is not below [`Protections::oldest_ts`].

use std::collections::BTreeMap;

use palisade_clock::{Now, Timestamp};
use palisade_wire::MAX_SNAPSHOT_AGE_US;

/// Microseconds that a version is kept after it was replaced, beyond twice the clocks' error.
const RETENTION_US: u64 = 1_000_000;

/// How long a timestamp stays protected after the last read or renewal, in microseconds.
const PROTECTED_US: u64 = 5_000_000;

/// Maximum age of a protected timestamp in microseconds: the clients' limit and a last read.
const MAX_AGE_US: u64 = MAX_SNAPSHOT_AGE_US + 5_000_000;

/// Timestamps are protected in buckets of this width, in microseconds, so their number is bounded.
/// The first timestamp of a bucket stands for all of it.
const BUCKET_US: u64 = 100_000;

/// The protected timestamps of a shard.
#[derive(Debug)]
pub(crate) struct Protections {
    /// How long every version is kept after it was replaced, in microseconds.
    retention_us: u64,
    /// First timestamp of each bucket, and the monotonic time until which the bucket is protected.
    until_us: BTreeMap<Timestamp, u64>,
}

impl Protections {
    /// Creates an empty set. `max_offset_us` bounds the error of every clock of the cluster.
    pub(crate) fn new(max_offset_us: u64) -> Self {
        let retention_us = RETENTION_US.saturating_add(max_offset_us.saturating_mul(2));
        Self { retention_us, until_us: BTreeMap::new() }
    }

    /// Protects the versions that a read at `at_ts` sees. Returns false if `at_ts` is too old.
    pub(crate) fn protect(&mut self, at_ts: Timestamp, now: Now) -> bool {
        if at_ts < oldest_allowed_ts(now) {
            return false;
        }
        let first_us = at_ts.physical_us() / BUCKET_US * BUCKET_US;
        let until_us = self.until_us.entry(Timestamp::from_physical_us(first_us)).or_default();
        *until_us = now.monotonic_us + PROTECTED_US;
        true
    }

    /// Removes buckets that were not renewed in time or are too old.
    pub(crate) fn expire(&mut self, now: Now) {
        // A bucket is as old as its last timestamp.
        let oldest_ts = oldest_allowed_ts(now).saturating_sub_us(BUCKET_US);
        self.until_us.retain(|ts, until_us| *until_us > now.monotonic_us && *ts >= oldest_ts);
    }

    /// Returns the lowest timestamp at which reads must stay possible.
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

    /// The oldest timestamp kept without any snapshot.
    fn recent_ts(seconds: u64) -> Timestamp {
        let offsets_us = 2 * 1_000;
        Timestamp::from_physical_us(seconds * 1_000_000 - 10 - RETENTION_US - offsets_us)
    }

    fn ts(seconds: u64) -> Timestamp {
        Timestamp::from_physical_us(seconds * 1_000_000 + 50_000)
    }

    #[test]
    fn protection_lasts_while_renewed_up_to_limit() {
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
    fn protection_of_oldest_timestamp_ends_without_renewal() {
        let mut protections = Protections::new(1_000);
        assert!(protections.protect(ts(100), now(101)) && protections.protect(ts(103), now(104)));
        protections.expire(now(105));
        assert!(protections.oldest_ts(now(105)) <= ts(100));
        protections.expire(now(107));
        assert!((ts(102)..=ts(103)).contains(&protections.oldest_ts(now(107))));
    }

    #[test]
    fn protection_count_is_bounded() {
        let mut protections = Protections::new(1_000);
        for us in (100_000_000..160_000_000).step_by(777) {
            protections.protect(Timestamp::from_physical_us(us), now(160));
        }
        assert!(protections.until_us.len() <= 601);
    }
}
